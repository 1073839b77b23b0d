"""The whole data set: its clips, made by several processes, the lists and the table."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from hicmae.data.clip_list import Clip, write_list
from hicmae.io import write_whole
from preprocess import pack_clips
from preprocess.lists.writing import write_csv
from preprocess.toy import plan
from preprocess.toy.face import FRAME_SIZE, align, draw_frames
from preprocess.toy.voice import SAMPLE_RATE, synthesise

LOGGER = logging.getLogger(__name__)
RECIPE = "toy_av.json"
VERSION = 2  # raise it when the same settings give other pixels or samples
JPEG_QUALITY = 92
VIDEO_OPTIONS = {"preset": "superfast", "crf": "22", "threads": "1", "g": "50"}
SHEET_CLIP = 900  # a clip number that no data set uses: the contact sheet shows speakers


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what is in the files."""

    seed: int = 0
    speakers: int = 128
    clips_per_class: int = 1
    train_speakers: int = 20
    pretrain_speakers: int = 1500
    pretrain_clips: int = 1
    folds: int = 2
    face_size: int = 80
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"--{name} must be 0 or more, got {value}")
        if not 32 <= self.face_size <= 512:
            raise ValueError(f"--face_size must be 32..512 pixels, got {self.face_size}")
        if self.speakers and not 2 <= self.folds <= self.speakers:
            raise ValueError(
                f"--folds must be 2..{self.speakers} (the number of --speakers), got {self.folds}"
            )


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
        key, label = plan.ClipKey(recipe.seed, speaker, clip), clip % len(plan.CLASSES)
        has_label = speaker < first
        faces = folder / "aligned" / key.name if has_label else None
        label = label if has_label else int(key.rng("class").integers(len(plan.CLASSES)))
        kind = "labelled" if has_label else "pretrain"
        stem = folder / kind / key.speaker_name / key.name
        jobs.append(Job(key, label, stem.with_suffix(".mp4"), stem.with_suffix(".wav"), faces))
    return jobs


def build(recipe: Recipe, folder: Path, num_workers: int, relative: bool) -> None:
    """Make what is missing of the data set, then write its lists and its shards.

    ValueError where the folder holds a data set with other settings.
    """
    path, settings = folder / RECIPE, asdict(recipe)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{k} {found.get(k)} -> {v}" for k, v in settings.items() if found.get(k) != v]
        if changed:
            raise ValueError(
                f"{folder} holds a toy data set with other settings ({', '.join(changed)}); "
                "expected the same ones; give another --output_dir or delete the folder"
            )
    write_whole(path, json.dumps(settings, indent=1) + "\n")
    jobs = list_jobs(recipe, folder)
    # parts of a clip get their names only when they are whole
    missing = [(job, recipe.face_size) for job in jobs
               if not all(path is None or path.exists() for path in job[2:])]  # fmt: skip
    if done := len(jobs) - len(missing):
        LOGGER.info("%d of %d clips are there already", done, len(jobs))
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has started
    with context.Pool(max(1, min(num_workers, len(missing))), cv2.setNumThreads, (1,)) as pool:
        made = pool.imap_unordered(make, missing, chunksize=2)
        for _ in tqdm(made, total=len(jobs), initial=done, unit="clip"):
            pass
    rows = [plan.plan_clip(job.key, job.label).row() for job in jobs]
    write_lists(jobs, recipe, folder, num_workers, relative)
    write_csv(folder / "meta.csv", rows[0] if rows else ["clip"], (row.values() for row in rows))


# One clip


def make(task: tuple[Job, int]) -> None:
    """Draw, voice and write one clip; everything goes to temporary names first."""
    job, face_size = task
    clip = plan.plan_clip(job.key, job.label)
    paths = [path for path in (job.faces, job.audio, job.video) if path]
    parts = {path: path.with_name(f".part-{path.name}") for path in paths}
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    if job.faces:
        for folder in (job.faces, parts[job.faces]):
            shutil.rmtree(folder, ignore_errors=True)
        parts[job.faces].mkdir()
    sound = np.rint(synthesise(clip) * 32767).astype(np.int16)
    soundfile.write(parts[job.audio], sound, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    faces = write_video(clip, sound, parts[job.video])
    for number, (frame, transform) in enumerate(faces, start=1):
        if job.faces:
            face = cv2.cvtColor(align(frame, transform, face_size), cv2.COLOR_RGB2BGR)
            # OpenCV's own writer fails without a word on a full disk.
            _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            (parts[job.faces] / f"frame_det_00_{number:06d}.jpg").write_bytes(data.tobytes())
    for path, part in parts.items():
        part.replace(path)


def write_video(
    clip: plan.Clip, sound: np.ndarray, path: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Write H.264 and AAC, and pass on what `draw_frames` yields."""
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=plan.FRAME_RATE, options=VIDEO_OPTIONS)
        picture.width = picture.height = FRAME_SIZE
        picture.pix_fmt = "yuv420p"
        aac = {"aac_coder": "fast"}
        voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=aac)
        voice.bit_rate = 64000
        for number, (frame, transform) in enumerate(draw_frames(clip)):
            planes: np.ndarray = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            packed = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            packed.pts, packed.time_base = number, Fraction(1, plan.FRAME_RATE)
            container.mux(picture.encode(packed))
            yield frame, transform
        container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = SAMPLE_RATE, 0
        samples.time_base = Fraction(1, SAMPLE_RATE)
        container.mux(voice.encode(samples))
        container.mux(voice.encode(None))


# Lists and shards


def parts_of(fold: int, recipe: Recipe) -> dict[str, list[int]]:
    """Return the speakers of a fold: test, val (one in eight of the others), train and all.

    The labels of `train` are few; `all` holds those that are left too.
    """
    test = range(fold - 1, recipe.speakers, recipe.folds)
    others = [k for k in range(recipe.speakers) if k not in test]
    val, rest = others[: len(others) // 8], others[len(others) // 8 :]
    return {"test": [*test], "val": val, "train": rest[: recipe.train_speakers], "all": rest}


def write_lists(
    jobs: list[Job], recipe: Recipe, folder: Path, num_workers: int, relative: bool
) -> None:
    """Write the lists of folds with few and with all labels, that of pre-training, its shards."""

    def name(path: Path) -> str:
        return os.path.relpath(path, folder) if relative else str(path.resolve())

    write_whole(folder / "classes.txt", "".join(f"{name}\n" for name in plan.CLASSES))
    labelled = [
        (job.key, Clip(name(job.faces), name(job.audio), job.label))
        for job in jobs
        if job.faces is not None
    ]
    speakers = [(clip.video, key.speaker_name) for key, clip in labelled]
    write_csv(folder / "clip_speakers.csv", ["clip", "speaker"], speakers)
    for fold, train in product(range(1, recipe.folds + 1), ("train", "all")):
        parts = parts_of(fold, recipe)
        place = folder / (f"fold{fold}_all" if train == "all" else f"fold{fold}")
        for part, chosen in (("train", train), ("val", "val"), ("test", "test")):
            clips = [clip for key, clip in labelled if key.speaker in parts[chosen]]
            if clips:
                write_list(place / f"{part}.csv", clips)
    unlabelled = [Clip(name(job.video), None, 0) for job in jobs if job.faces is None]
    if unlabelled:
        path = folder / "pretrain.csv"
        write_list(path, unlabelled)
        flags = ["--output_dir", str(folder / "packed"), "--data_root", str(folder)]
        workers = min(num_workers, len(unlabelled))
        flags += ["--quality", str(JPEG_QUALITY), "--num_workers", str(workers)]
        if pack_clips.main([str(path), *flags]):
            raise RuntimeError(f"the clips of '{path}' could not be packed, see above")


# The contact sheet


def write_preview(path: Path, seed: int, speakers: int, face_size: int) -> None:
    """Write a contact sheet: per speaker and valence the mouth shut, open, and the aligned face.

    Speech and motion are the same in every column, so only the expression differs.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--preview must name a .png or .jpg file, got '{path}'")
    if speakers < 1:
        raise ValueError(f"--preview_speakers must be 1 or more, got {speakers}")
    shown = []
    for speaker, valence in product(range(speakers), range(len(plan.VALENCES))):
        clip = plan.plan_clip(plan.ClipKey(seed, speaker, SHEET_CLIP), valence * len(plan.AROUSALS))
        tracks, frames = plan.make_tracks(clip), list(draw_frames(clip))
        awake = tracks.eyelids == 1
        shut, opened = np.argmin(tracks.opening + 9 * ~awake), np.argmax(tracks.opening * awake)
        shown += [frames[shut][0], frames[opened][0], align(*frames[shut], face_size)]
    size = (2 * FRAME_SIZE, 2 * FRAME_SIZE)
    large = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in shown])
    rows = large.reshape(speakers, -1, *large.shape[1:]).swapaxes(1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rows.reshape(speakers * size[1], -1, 3)).save(path)
