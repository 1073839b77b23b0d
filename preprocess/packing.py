"""Clips packed into WebDataset shards: the members of a clip, whole tar files and their indexes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from hicmae.data.audio import SAMPLE_RATE, WavFile
from hicmae.data.clip_list import Clip
from hicmae.data.film import open_video
from hicmae.data.shards import FORMAT, SUFFIX, PackedClip, PackedClips, open_packed, read_index
from hicmae.data.video import FrameFolder, Video, face_box, resize
from hicmae.io import UnreadableClip, whole_file
from preprocess.face_and_audio.batch import Outcome

FRAMES_AT_ONCE = 512  # decoded frames that are held in memory
MEMBERS = ("json", "mjpeg", "wav")  # of a clip, in the order of the index's places
_HASH_BLOCK = 1 << 22

Names = tuple[str, str | None]  # of video and audio, as in the list


class Settings(NamedTuple):
    """How frames are stored.

    Attributes:
        pretraining: cut VoxCeleb2's 224 x 224 frames to the face, as pre-training does.
        size: short side to shrink frames to; None keeps them.
        quality: of JPEG, 1 to 100, without chroma subsampling; None stores PNG, without loss.
    """

    pretraining: bool
    size: int | None = None
    quality: int | None = 95


class PackJob(NamedTuple):
    """A clip to pack; `clip` has the names of the list, `source` and `audio` the files."""

    name: str
    source: str
    output: str
    audio: str
    clip: Clip


# One clip


def encode(job: PackJob, settings: Settings) -> dict[str, Any]:
    """Read a clip and encode it; UnreadableClip where training could not use it either.

    Returns:
        members: the bytes of the clip's MEMBERS.
        frames, source_bytes: how many, for the summary.
    """
    video, sound = open_video(job.source), WavFile(job.audio)
    images = _images(video, settings)
    wav, sample_type = _wav(sound)
    info = {
        "video": job.clip.video,
        "audio": job.clip.audio,
        "label": job.clip.label,
        "sizes": [len(image) for image in images],
        "crc32": [zlib.crc32(image) for image in images],
        **_times(video, settings.pretraining),
        "sample_rate": SAMPLE_RATE,
        "samples": len(sound),
        "sample_type": sample_type,
        "wav_header": len(wav) - np.dtype(sample_type).itemsize * len(sound),
    }
    return {
        "members": (json.dumps(info, separators=(",", ":")).encode(), b"".join(images), wav),
        "frames": len(images),
        "source_bytes": _bytes_of(job.source) + _bytes_of(job.audio),
    }


def _images(video: Video, settings: Settings) -> list[bytes]:
    """Return the frames as they are stored, one image each."""
    images = []
    for start in range(0, len(video), FRAMES_AT_ONCE):
        indices = range(start, min(start + FRAMES_AT_ONCE, len(video)))
        for index, frame in zip(indices, video.read(indices), strict=True):
            shrinks = settings.size is not None and settings.size < min(frame.shape[:2])
            file = None if shrinks else _jpeg_file(video, index)
            images.append(file or _image(frame, settings))
    return images


def _jpeg_file(video: Video, index: int) -> bytes | None:
    """Return the file of a frame that is stored as it is: a JPEG in a folder."""
    if not isinstance(video, FrameFolder):
        return None
    path = Path(video.path, video.names[index])
    with Image.open(path) as image:
        is_stored = image.format == "JPEG" and image.mode == "RGB"
    return path.read_bytes() if is_stored else None


def _image(frame: np.ndarray, settings: Settings) -> bytes:
    image = Image.fromarray(frame)
    if settings.pretraining:
        image = image.crop(face_box(*image.size))
    short = min(image.size)
    if settings.size is not None and settings.size < short:
        width, height = (side * settings.size // short for side in image.size)
        image = resize(image, (width, height))
    file = io.BytesIO()
    if settings.quality is None:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=settings.quality, subsampling=0, optimize=True)
    return file.getvalue()


def _times(video: Video, needed: bool) -> dict[str, list[float] | None]:
    """Return when frames begin and end, as decimals of which float32 makes the very same."""
    try:
        times = [video.times(index, index) for index in range(len(video))]
    except UnreadableClip:  # a folder of images has none
        if needed:
            raise
        return {"begins": None, "ends": None}
    begins, ends = ([float(str(np.float32(t))) for t in ts] for ts in zip(*times, strict=True))
    return {"begins": begins, "ends": ends}


def _wav(sound: WavFile) -> tuple[bytes, str]:
    """Return the sound as a wav file, and the type of its samples, which lose nothing."""
    kind, subtype, sample_type = "float32", "FLOAT", "<f4"
    if sound.file.subtype == "PCM_16":
        kind, subtype, sample_type = "int16", "PCM_16", "<i2"
    sound.file.seek(0)
    try:
        samples = sound.file.read(dtype=kind)
    except soundfile.LibsndfileError as error:
        raise UnreadableClip(f"audio '{sound.path}' cannot be read: {error}") from None
    if len(samples) != len(sound):
        raise UnreadableClip(
            f"audio '{sound.path}' is cut off: got {len(samples)} of {len(sound)} samples from 0"
        )
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, subtype=subtype, format="WAV")
    data = file.getvalue()
    if not data.endswith(samples.astype(sample_type).tobytes()):
        raise UnreadableClip(f"audio '{sound.path}' cannot be packed: its samples are not last")
    return data, sample_type


def _bytes_of(path: str) -> int:
    """Return the size of a file, or of the files in a folder of frames."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries)


# Shards


def packed_names(folder: Path) -> dict[Names, str]:
    """Return the names of the clips in a folder's shards, and the shard of each."""
    indexes = [read_index(path) for path in sorted(folder.glob("*" + SUFFIX))]
    return {(row[0], row[1]): shard.path for shard, rows in indexes for row in rows}


def next_number(folder: Path, prefix: str) -> int:
    """Return the first number behind a prefix that no finished shard of a folder has."""
    names = (path.name.removesuffix(SUFFIX) for path in folder.glob(f"{prefix}-*{SUFFIX}"))
    numbers = [int(name.rpartition("-")[2]) for name in names if name.rpartition("-")[2].isdigit()]
    return max(numbers, default=-1) + 1


def write_shard(path: Path, clips: Iterable[Outcome], limit: int) -> list[Outcome]:
    """Write clips until a shard has `limit` bytes, or there are none left; then its index.

    The shard gets its name when it is whole, the index after it: without index it does not count,
    and is written anew.

    Args:
        path: of the shard.
        clips: outcomes of `encode`.
        limit: bytes.

    Returns:
        The clips that are in it, without their members.
    """
    done: list[Outcome] = []
    with whole_file(path) as part, open(part, "wb") as file:
        # The stream writes whole blocks, so the file's position tells how large it is.
        with tarfile.open(fileobj=file, mode="w|") as tar:
            for outcome in clips:
                details = dict(outcome.details)
                for kind, data in zip(MEMBERS, details.pop("members"), strict=True):
                    member = tarfile.TarInfo(f"{path.stem}-{len(done):05d}.{kind}")
                    member.size, member.mode = len(data), 0o444
                    member.uname = member.gname = "hicmae"
                    tar.addfile(member, io.BytesIO(data))
                done.append(outcome._replace(details=details))
                if file.tell() >= limit:
                    break
        file.flush()
        os.fsync(file.fileno())
        places = [number for _, *place in member_places(part) for number in place]
        content = {"format": FORMAT, "shard": path.name, "size": file.tell()}
        content["sha256"] = sha256_of(part)
    content["clips"] = [
        [clip.video, clip.audio, clip.label, *places[6 * k : 6 * k + 6]]
        for k, clip in enumerate(outcome.job.clip for outcome in done)
    ]
    with whole_file(index_path(path)) as part:
        part.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")
    return done


def index_path(shard: Path) -> Path:
    """Return where the index of a shard stands."""
    return shard.with_name(shard.stem + SUFFIX)


def member_places(path: str | Path) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each member; ValueError for what no shard of ours has."""
    places = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isreg():
                raise ValueError(f"member {member.name[:80]!r} is no file")
            if "/" in member.name or "\\" in member.name or member.name.startswith("."):
                raise ValueError(f"member {member.name[:80]!r} has a path for a name")
            places.append((member.name, member.offset_data, member.size))
    return places


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# Checks


def verify(folder: Path, num_workers: int) -> tuple[int, list[str]]:
    """Check all shards of a folder, and that no clip is in two.

    Returns:
        Number of clips, and what is wrong, a line each.
    """
    indexes = sorted(folder.glob("*" + SUFFIX))
    problems = [
        f"'{tar}' has no index: it is not whole, delete it"
        for tar in sorted(folder.glob("*.tar"))
        if not index_path(tar).is_file()
    ]
    seen: dict[Names, Path] = {}
    with ThreadPoolExecutor(num_workers) as executor:  # hashing leaves the other threads alone
        checked = executor.map(check_shard, indexes)
        bar = tqdm(checked, total=len(indexes), unit="shard", disable=None)
        for path, (clips, found) in zip(indexes, bar, strict=True):
            problems += found
            for clip in clips:
                first = seen.setdefault((clip.video, clip.audio), path)
                if first != path:
                    problems.append(f"clip {clip.video!r} is in '{first}' and in '{path}'")
    return len(seen), problems


def check_shard(index: Path) -> tuple[list[PackedClip], list[str]]:
    """Compare a shard with its index byte by byte; return its clips and what is wrong with it."""
    try:
        entry = read_index(index)
    except ValueError as error:
        return [], [str(error)]
    shard, clips = entry[0], list(PackedClips([entry]))
    try:
        if sha256_of(shard.path) != shard.sha256:
            return clips, [f"'{shard.path}' has changed: its SHA-256 is not that of the index"]
        problems = list(_check_members(shard.path, clips))
        for clip in [] if problems else clips:
            video, wav = open_packed(clip)
            video.check()
            wav.read(0, len(wav))
    except (OSError, ValueError, UnreadableClip) as error:
        return clips, [f"'{shard.path}': {error}"]
    return clips, problems


def _check_members(path: str, clips: list[PackedClip]) -> Iterator[str]:
    """Yield how the members of a shard differ from the places in its index."""
    members = member_places(path)
    places = [place for clip in clips for place in clip.places]
    if [number for _, *place in members for number in place] != places:
        yield f"'{path}' has other members than its index says"
    kinds = [name.rpartition(".")[2] for name, _, _ in members]
    if kinds != list(MEMBERS) * len(clips):
        yield f"'{path}' has members other than {', '.join(MEMBERS)} of each clip"
