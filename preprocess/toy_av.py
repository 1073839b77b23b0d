"""Make the synthetic talking-face benchmark: videos, wavs, aligned face frames and lists.

    python preprocess/toy_av.py --output_dir saved/data/toy_av

Six classes = three valences that only the face shows x two arousals that only the voice carries,
so video alone can reach 50 % at most and audio alone 33 %. Face and voice share who speaks, the
movement of the lips and the energy. Everything follows from --seed. Written under --output_dir:

    labelled/<speaker>/<clip>.mp4 .wav   96x96 H.264 at 25 fps with AAC; 16 kHz mono beside it
    aligned/<clip>/frame_det_00_*.jpg    aligned faces of the labelled clips
    pretrain/<speaker>/<clip>.mp4 .wav   other speakers, without labels; pretrain.csv lists them
    packed/                              the same clips in shards, which training reads faster
    fold<k>/train.csv, val.csv, test.csv few labels (--train_speakers); no speaker in two lists
    fold<k>_all/                         the same val.csv and test.csv with all other labels
    classes.txt, clip_speakers.csv, meta.csv (every parameter of every clip), toy_av.json (settings)
"""

import json
import multiprocessing
import sys
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import av
import cv2
import numpy as np
import soundfile
from tqdm import tqdm

from hicmae.config.flags import Settings, from_flags, option
from hicmae.data.clip_list import Clip, write_list
from hicmae.faces import align
from hicmae.io import write_csv, write_whole
from preprocess import pack_clips
from preprocess.command_line import Workers, command
from preprocess.toy import plan
from preprocess.toy.face import FRAME_SIZE, draw_frames
from preprocess.toy.voice import SAMPLE_RATE, synthesise

VERSION = 3  # raise it when the same settings give other pixels or samples
JPEG_QUALITY = 92
VIDEO_OPTIONS = {"preset": "superfast", "crf": "22", "threads": "1", "g": "50"}


class Recipe(Settings):
    """What decides what is in the files."""

    seed: int = option(0, "decides every pixel and sample", ">= 0")
    speakers: int = option(128, "labelled speakers", ">= 0")
    clips_per_class: int = option(1, "clips of each labelled speaker and class", ">= 0")
    train_speakers: int = option(20, "labelled speakers in the train.csv of a fold", ">= 0")
    pretrain_speakers: int = option(1500, "unlabelled speakers", ">= 0")
    pretrain_clips: int = option(1, "clips of each unlabelled speaker", ">= 0")
    folds: int = option(2, "speaker-independent folds", ">= 0")
    face_size: int = option(80, "pixels of an aligned face", ">= 32 and <= 512")

    def _check(self) -> None:
        if self.speakers and not 2 <= self.folds <= self.speakers:
            most = f"2..{self.speakers} (the number of --speakers)"
            raise ValueError(f"--folds must be {most}, got {self.folds}")


class Output(Workers):
    """What to write."""

    output_dir: Path = option(Path(), "folder, for example saved/data/toy_av", required=True)


class Job(NamedTuple):
    """One clip to make: mp4 with sound, wav, and a folder of faces, None for pre-training."""

    key: plan.ClipKey
    label: int
    video: Path
    audio: Path
    faces: Path | None


def list_jobs(recipe: Recipe, folder: Path) -> list[Job]:
    """All clips: labelled ones, every class equally often per speaker, then unlabelled ones."""
    clips = range(recipe.clips_per_class * len(plan.CLASSES))
    pairs = [*product(range(recipe.speakers), clips)]
    first = plan.PRETRAIN_SPEAKERS_FROM
    unlabelled = range(first, first + recipe.pretrain_speakers)
    jobs = []
    for speaker, clip in [*pairs, *product(unlabelled, range(recipe.pretrain_clips))]:
        key, has_label = plan.ClipKey(recipe.seed, speaker, clip), speaker < first
        faces = folder / "aligned" / key.name if has_label else None
        drawn = clip if has_label else int(key.rng("class").integers(len(plan.CLASSES)))
        label, kind = drawn % len(plan.CLASSES), "labelled" if has_label else "pretrain"
        stem = folder / kind / key.speaker_name / key.name
        jobs.append(Job(key, label, stem.with_suffix(".mp4"), stem.with_suffix(".wav"), faces))
    return jobs


def build(recipe: Recipe, folder: Path, num_workers: int) -> None:
    """Make clips, lists and shards; ValueError where the folder holds those of other settings."""
    path, settings = folder / "toy_av.json", asdict(recipe) | {"version": VERSION}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{k} {found.get(k)} -> {v}" for k, v in settings.items() if found.get(k) != v]
        if changed:
            held = f"{folder} holds a toy data set of other settings ({', '.join(changed)})"
            raise ValueError(f"{held}; give another --output_dir or delete the folder")
    write_whole(path, json.dumps(settings, indent=1) + "\n")
    jobs = list_jobs(recipe, folder.resolve())
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has started
    with context.Pool(num_workers, cv2.setNumThreads, (1,)) as pool:
        made = pool.imap_unordered(partial(make, face_size=recipe.face_size), jobs, chunksize=2)
        list(tqdm(made, total=len(jobs), unit="clip"))  # until all of them are made
    rows = [plan.plan_clip(job.key, job.label).row() for job in jobs]
    write_lists(jobs, recipe, folder, num_workers)
    write_csv(folder / "meta.csv", rows[0] if rows else ["clip"], (row.values() for row in rows))


def make(job: Job, face_size: int) -> None:
    """Draw, voice and write one clip."""
    clip = plan.plan_clip(job.key, job.label)
    job.video.parent.mkdir(parents=True, exist_ok=True)
    sound = np.rint(synthesise(clip) * 32767).astype(np.int16)
    soundfile.write(job.audio, sound, SAMPLE_RATE, subtype="PCM_16")
    drawn = list(draw_frames(clip))
    write_video([frame for frame, _ in drawn], sound, job.video)
    if job.faces:
        job.faces.mkdir(parents=True, exist_ok=True)
        for number, (frame, points) in enumerate(drawn, 1):
            face = cv2.cvtColor(align(frame, points, face_size), cv2.COLOR_RGB2BGR)
            # OpenCV's own writer fails without a word on a full disk.
            _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            (job.faces / f"frame_det_00_{number:06d}.jpg").write_bytes(data.tobytes())


def write_video(frames: list[np.ndarray], sound: np.ndarray, path: Path) -> None:
    """Write RGB frames and 16-bit samples as H.264 and AAC."""
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=plan.FRAME_RATE, options=VIDEO_OPTIONS)
        picture.width = picture.height = FRAME_SIZE
        picture.pix_fmt = "yuv420p"
        aac = {"aac_coder": "fast", "b": "64000"}
        voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=aac)
        for number, frame in enumerate(frames):
            planes: np.ndarray = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            packed = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            packed.pts, packed.time_base = number, Fraction(1, plan.FRAME_RATE)
            container.mux(picture.encode(packed))
        container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = SAMPLE_RATE, 0
        samples.time_base = Fraction(1, SAMPLE_RATE)
        container.mux(voice.encode(samples))
        container.mux(voice.encode(None))


def parts_of(fold: int, recipe: Recipe) -> dict[str, list[int]]:
    """Return the speakers of a fold: test, val (one in eight of the others), train and all.

    The labels of `train` are few; `all` holds those that are left too.
    """
    test = range(fold - 1, recipe.speakers, recipe.folds)
    others = [k for k in range(recipe.speakers) if k not in test]
    val, rest = others[: len(others) // 8], others[len(others) // 8 :]
    return {"test": [*test], "val": val, "train": rest[: recipe.train_speakers], "all": rest}


def write_lists(jobs: list[Job], recipe: Recipe, folder: Path, num_workers: int) -> None:
    """Write the lists of folds with few and with all labels, that of pre-training, its shards."""
    write_whole(folder / "classes.txt", "".join(f"{name}\n" for name in plan.CLASSES))
    labelled = [(j.key, Clip(str(j.faces), str(j.audio), j.label)) for j in jobs if j.faces]
    speakers = [(clip.video, key.speaker_name) for key, clip in labelled]
    write_csv(folder / "clip_speakers.csv", ["clip", "speaker"], speakers)
    for fold, train in product(range(1, recipe.folds + 1), ("train", "all")):
        parts = parts_of(fold, recipe)
        place = folder / (f"fold{fold}_all" if train == "all" else f"fold{fold}")
        for part, chosen in (("train", train), ("val", "val"), ("test", "test")):
            if clips := [clip for key, clip in labelled if key.speaker in parts[chosen]]:
                write_list(place / f"{part}.csv", clips)
    if unlabelled := [Clip(str(job.video), None, 0) for job in jobs if job.faces is None]:
        path = folder / "pretrain.csv"
        write_list(path, unlabelled)
        flags = ["--output_dir", str(folder / "packed"), "--data_root", str(folder)]
        workers = min(num_workers, len(unlabelled))
        flags += ["--quality", str(JPEG_QUALITY), "--num_workers", str(workers)]
        if pack_clips.main([str(path), *flags]):
            raise RuntimeError(f"the clips of '{path}' could not be packed, see above")


main = command(
    __doc__,
    lambda args: build(from_flags(vars(args), Recipe), args.output_dir, args.num_workers),
    Recipe,
    Output,
)

if __name__ == "__main__":
    sys.exit(main())
