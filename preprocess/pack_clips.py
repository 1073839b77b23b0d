"""Pack the clips of a list into shards of about 1 GB, from which training reads much faster.

    python preprocess/pack_clips.py saved/data/voxceleb2/train.csv --output_dir DIR
    python preprocess/pack_clips.py LIST --output_dir DIR --shard 3/64      one task of a job array
    python run_pretraining.py --data_path DIR ...                           read it

Frames are stored as JPEG (VoxCeleb2's 224 x 224 frames cut to the face, see --source_crop and
--input_size; JPEG frames of a folder as they are) or, with --lossless, as PNG; sound as it is. A
shard is a WebDataset tar with an index beside it, so that a random clip of 16 frames costs only
those. For fine-tuning pack train.csv to DATA/train and test.csv to DATA/test with --task, and give
--data_path DATA.

The same command run again packs what is missing: nothing is packed twice, and a shard that was not
whole is not there. pack_clips.csv in the output folder has a row for each clip.

Exit code: 0; 1 where a clip failed; 2 where the input is wrong; 3 where the run was stopped, by
hand or by a full disk.
"""

import argparse
import io
import itertools
import json
import logging
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import numpy as np
import soundfile
from PIL import Image

from hicmae.config import CROP_HELP, LOSSES
from hicmae.config.flags import from_flags, option
from hicmae.data import clip_list
from hicmae.data.audio import SAMPLE_RATE, WavFile
from hicmae.data.film import open_video
from hicmae.data.video import NOT_READ, SOURCE_CROPS, FrameFolder, Video, source_box
from hicmae.io import UnreadableClip, digest, whole_file, write_whole
from preprocess.command_line import Parts, command
from preprocess.face_and_audio.batch import Job, Ledger, Outcome, Outcomes, sweep

logger = logging.getLogger("pack_clips")
FRAMES_AT_ONCE = 512  # decoded frames that are held in memory
MEMBERS = ("json", "mjpeg", "wav")  # of a clip, in the order of the index's places

Names = tuple[str, str | None]  # of video and audio, as in the list


def parse_size(text: str) -> int:
    """Read 1GB, 500MB or a number of bytes, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", text.strip().upper())
    size = int(float(match[1]) * 1000 ** " KMG".index(match[2] or " ")) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 1GB or 500MB, got {text!r}")
    return size


class Options(Parts):
    """What to pack, and how."""

    output_dir: Path = option(Path(), "folder of the shards", required=True)
    data_root: str = option("", "folder that relative names start from")
    task: str = option("pretrain", "kind of the list", choices=["pretrain", *LOSSES])
    shard_size: int = option(10**9, "bytes of a file, such as 1GB", type=parse_size)
    quality: int = option(95, "of JPEG, without chroma subsampling", ">= 1 and <= 100")
    lossless: bool = option(False, "store PNG instead")
    source_crop: str = option("auto", CROP_HELP, choices=SOURCE_CROPS)
    input_size: int = option(160, "of the training, for which these are cut", "> 0")


def encode(job: Job, options: Options) -> dict[str, Any]:
    """Read a clip and encode it; UnreadableClip where training could not use it either.

    The `source_crop` of the options is decided. Returns the bytes of the clip's MEMBERS; its number
    of frames, for the summary. A stream that is not read has none, and no bytes.
    """
    pretraining = options.task == "pretrain"
    reads_video, reads_audio = (pretraining or name != NOT_READ for name in (job.source, job.audio))
    video = open_video(job.source) if reads_video else None
    wav, samples = _wav(WavFile(job.audio)) if reads_audio else (b"", np.zeros(0, np.int16))
    images = [] if video is None else list(_images(video, options))
    if video and pretraining:
        video.times(0, 0)  # an error for a folder of images, which has none
    begins = ends = None
    if video and video.frame_times:  # as decimals of which float32 makes the very same
        begins, ends = ([float(str(time)) for time in times] for times in video.frame_times)
    info = {
        **job.clip._asdict(),
        "sizes": [len(image) for image in images],
        "crc32": [zlib.crc32(image) for image in images],
        "begins": begins,
        "ends": ends,
        "sample_rate": SAMPLE_RATE,
        "samples": len(samples),
        "sample_type": samples.dtype.str,
        "wav_header": len(wav) - samples.nbytes,
    }
    members = json.dumps(info, separators=(",", ":")).encode(), b"".join(images), wav
    return {"members": members, "frames": len(images)}


def _images(video: Video, options: Options) -> Iterator[bytes]:
    """Yield the image files of all frames: a folder's own JPEGs as they are, else new ones."""
    for start in range(0, len(video), FRAMES_AT_ONCE):
        indices = range(start, min(start + FRAMES_AT_ONCE, len(video)))
        for index, frame in zip(indices, video.read(indices), strict=True):
            if isinstance(video, FrameFolder):
                path = Path(video.path, video.names[index])
                with Image.open(path) as stored:
                    if stored.format == "JPEG" and stored.mode == "RGB":
                        yield path.read_bytes()
                        continue
            image, file = Image.fromarray(frame), io.BytesIO()
            image = image.crop(source_box(options.source_crop, options.input_size, *image.size))
            if options.lossless:
                image.save(file, "PNG")
            else:
                image.save(file, "JPEG", quality=options.quality, subsampling=0, optimize=True)
            yield file.getvalue()


def _wav(sound: WavFile) -> tuple[bytes, np.ndarray]:
    """Return the sound as a wav file, and its samples, of a type that loses nothing."""
    samples, subtype = sound.read(0, len(sound)), "FLOAT"
    if sound.file.subtype == "PCM_16":
        samples, subtype = (samples * 32768).astype(np.int16), "PCM_16"
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, subtype=subtype, format="WAV")
    data = file.getvalue()
    if not data.endswith(samples.tobytes()):
        raise UnreadableClip(f"audio '{sound.path}' cannot be packed: its samples are not last")
    return data, samples


def write_all(outcomes: Outcomes, options: Options) -> Outcomes:
    """Write shard after shard of the outcomes of `encode`; yields clips when they are packed."""
    part, parts = options.shard  # of an array, which never want the same name
    prefix = f"clips-{part:0{len(str(parts))}d}of{parts}" if parts > 1 else "clips"
    paths = (options.output_dir / f"{prefix}-{number:06d}.tar" for number in itertools.count())
    free = (path for path in paths if not path.with_suffix(clip_list.SUFFIX).exists())
    for first, path in zip(outcomes, free, strict=False):
        yield from write_shard(path, itertools.chain([first], outcomes), options)


def write_shard(path: Path, outcomes: Iterator[Outcome], options: Options) -> Outcomes:
    """Write clips until a shard has its size, then its index; yields them without their members.

    The shard gets its name when it is whole, the index after it; without index it does not count,
    and is written anew.
    """
    done: list[Outcome] = []
    with whole_file(path) as part:
        with open(part, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            for outcome in outcomes:
                details = dict(outcome.details)
                for kind, data in zip(MEMBERS, details.pop("members"), strict=True):
                    member = tarfile.TarInfo(f"{path.stem}-{len(done):05d}.{kind}")
                    member.size, member.mode = len(data), 0o444
                    member.uname = member.gname = "hicmae"
                    tar.addfile(member, io.BytesIO(data))
                job = outcome.job._replace(output=str(path))
                done.append(outcome._replace(job=job, details=details))
                # The stream writes whole blocks, so this tells how large the file is.
                if file.tell() >= options.shard_size:
                    break
        with tarfile.open(part, "r:") as tar:
            places = [number for member in tar for number in (member.offset_data, member.size)]
        content = {
            "format": clip_list.FORMAT,
            "shard": path.name,
            "size": part.stat().st_size,
            "source_crop": options.source_crop,
            "input_size": options.input_size,
            "sha256": digest(part),
            "clips": [[*one.job.clip, *places[6 * k : 6 * k + 6]] for k, one in enumerate(done)],
        }
    write_whole(path.with_suffix(clip_list.SUFFIX), json.dumps(content, separators=(",", ":")))
    yield from done


def pack(args: argparse.Namespace) -> int:
    """Pack the clips of a list that are in no shard yet; returns the exit code."""
    jobs, ledger = find_jobs(args), Ledger(args.output_dir, "pack_clips", args)
    sweep(str(args.output_dir))
    packed, crop = clip_list.read_packed(args.output_dir), "none"
    if args.task == "pretrain":
        crop = clip_list.decide_source_crop(args.source_crop, args.list, packed, args.input_size)
    elif args.source_crop == "voxceleb2":
        raise ValueError(f"--source_crop voxceleb2 is for --task pretrain, got {args.task}")
    options = from_flags(vars(args) | {"source_crop": crop}, Options)
    done = [
        job._replace(output=clip.shard.path)
        for clip in packed
        if (job := jobs.pop((clip.video, clip.audio), None))
    ]
    # In a random order, so that clips of a speaker, who are together in lists, meet others.
    waiting = list(jobs.values())
    pending = [waiting[k] for k in np.random.default_rng(0).permutation(len(waiting))]
    work, finish = partial(encode, options=options), partial(write_all, options=options)
    code = ledger.run(pending, work, done, finish)
    if packed := clip_list.read_packed(args.output_dir):
        size = sum(shard.size for shard in packed.shards)
        text = "%d clips are packed, %.2f GB; a clip takes %.0f KB"
        logger.info(text, len(packed), size / 1e9, size / len(packed) / 1e3)
    return code


def find_jobs(args: argparse.Namespace) -> dict[Names, Job]:
    """Return the clips of this part of the list; ValueError where it names shards."""
    if args.task == "pretrain":
        clips = clip_list.read_pretrain_list(args.list, args.data_root)
    else:
        clips = clip_list.read_labelled_list(args.list, args.task, None, args.data_root)
    if clips.shards:
        raise ValueError(f"'{args.list}' is packed already; name a list of files")
    jobs: dict[Names, Job] = {}
    root = os.path.join(args.data_root, "")  # the names are those of a list with this --data_root
    for clip in clips:
        video, audio = (str(path).removeprefix(root) for path in (clip.video, clip.audio))
        named = clip._replace(video=video, audio=audio)
        job = Job(clip_list.name_of(named), clip.video, "", str(clip.audio), named)
        jobs.setdefault(named[:2], job)
    mine = set(args.shard.take(jobs))
    return {names: job for names, job in jobs.items() if names in mine}


main = command(__doc__, pack, Options, flags={"list": {"help": "list of clips, as for training"}})

if __name__ == "__main__":
    sys.exit(main())
