"""The whole data set: its clips, made by several processes, the lists and the table."""

from __future__ import annotations

import csv
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

from preprocess.toy.clips import (
    AROUSALS,
    CLASSES,
    PRETRAIN_SPEAKERS_FROM,
    VALENCES,
    Clip,
    ClipKey,
    make_tracks,
    plan_clip,
)
from preprocess.toy.frames import align, draw_frames
from preprocess.toy.portrait import FRAME_SIZE
from preprocess.toy.speech import FRAME_RATE, SAMPLE_RATE
from preprocess.toy.voice import synthesise

LOGGER = logging.getLogger(__name__)
RECIPE = "toy_av.json"
VERSION = 1  # raise it when the same settings give other pixels or samples
JPEG_QUALITY = 92
VIDEO_OPTIONS = {"preset": "superfast", "crf": "22", "threads": "1", "g": "50"}
SHEET_CLIP = 900  # a clip number that no data set uses: the contact sheet shows speakers
MARGIN = 26  # of the sheet, in pixels


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what is in the files."""

    seed: int = 0
    speakers: int = 128
    clips_per_class: int = 1
    pretrain_speakers: int = 120
    pretrain_clips: int = 4
    folds: int = 4
    face_size: int = 112
    version: int = VERSION

    def __post_init__(self) -> None:
        for name in ("speakers", "clips_per_class", "pretrain_speakers", "pretrain_clips", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        if not 32 <= self.face_size <= 512:
            raise ValueError(f"--face_size must be 32..512 pixels, got {self.face_size}")
        if self.speakers and not 2 <= self.folds <= self.speakers:
            raise ValueError(
                f"--folds must be 2..{self.speakers} (the number of --speakers), got {self.folds}"
            )


class Job(NamedTuple):
    """One clip to make: mp4 with sound, wav, and a folder of faces, None for pre-training."""

    key: ClipKey
    label: int
    video: Path
    audio: Path
    faces: Path | None

    def is_done(self) -> bool:
        """Tell whether the clip is there; parts get their names only when they are whole."""
        return all(path is None or path.exists() for path in self[2:])


def list_jobs(recipe: Recipe, folder: Path) -> list[Job]:
    """All clips: labelled ones, every class equally often per speaker, then unlabelled ones."""

    def job(key: ClipKey, label: int) -> Job:
        kind = "pretrain" if key.for_pretraining else "labelled"
        stem = folder / kind / key.speaker_name / key.name
        faces = None if key.for_pretraining else folder / "aligned" / key.name
        return Job(key, label, stem.with_suffix(".mp4"), stem.with_suffix(".wav"), faces)

    clips = range(recipe.clips_per_class * len(CLASSES))
    jobs = [
        job(ClipKey(recipe.seed, speaker, clip), clip % len(CLASSES))
        for speaker, clip in product(range(recipe.speakers), clips)
    ]
    for speaker, clip in product(range(recipe.pretrain_speakers), range(recipe.pretrain_clips)):
        key = ClipKey(recipe.seed, PRETRAIN_SPEAKERS_FROM + speaker, clip)
        jobs.append(job(key, int(key.rng("class").integers(len(CLASSES)))))
    return jobs


def build(recipe: Recipe, folder: Path, num_workers: int, relative: bool) -> None:
    """Make what is missing of the data set, then write its lists."""
    # hicmae brings torch, which the drawing processes do not need
    from hicmae.io import whole_file, write_whole

    check_recipe(recipe, folder)
    write_whole(folder / RECIPE, json.dumps(asdict(recipe), indent=1) + "\n")
    jobs = list_jobs(recipe, folder)
    missing = [job for job in jobs if not job.is_done()]
    done = len(jobs) - len(missing)
    if done:
        LOGGER.info("%d of %d clips are there already", done, len(jobs))
    made = run_jobs(missing, recipe.face_size, num_workers)
    for _ in tqdm(made, total=len(jobs), initial=done, unit="clip"):
        pass
    rows = [plan_clip(job.key, job.label).row() for job in jobs]
    with (
        whole_file(folder / "meta.csv") as part,
        part.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["clip"])
        writer.writeheader()
        writer.writerows(rows)
    write_whole(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
    write_lists(jobs, recipe.folds, folder, relative)


def check_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuse to mix two data sets in one folder."""
    path = folder / RECIPE
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} {found.get(name)} -> {value}"
        for name, value in asdict(recipe).items()
        if found.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a toy data set with other settings ({', '.join(changed)}); "
            "expected the same ones; give another --output_dir or delete the folder"
        )


# One clip


def run_jobs(jobs: list[Job], face_size: int, num_workers: int) -> Iterator[None]:
    """Make clips in `num_workers` processes."""
    tasks = [(job, face_size) for job in jobs]
    workers = min(num_workers, len(jobs))
    if workers <= 1:
        yield from map(make, tasks)
        return
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has started
    with context.Pool(workers, cv2.setNumThreads, (1,)) as pool:
        yield from pool.imap_unordered(make, tasks, chunksize=2)


def make(task: tuple[Job, int]) -> None:
    """Draw, voice and write one clip; everything goes to temporary names first."""
    job, face_size = task
    clip = plan_clip(job.key, job.label)
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
            quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            # OpenCV's own writer fails without a word on a full disk.
            _, data = cv2.imencode(".jpg", align(frame, transform, face_size), quality)
            (parts[job.faces] / f"frame_det_00_{number:06d}.jpg").write_bytes(data.tobytes())
    for path, part in parts.items():
        part.replace(path)


def write_video(
    clip: Clip, sound: np.ndarray, path: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Write H.264 and AAC, and pass on what `draw_frames` yields."""
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=FRAME_RATE, options=VIDEO_OPTIONS)
        picture.width = picture.height = FRAME_SIZE
        picture.pix_fmt = "yuv420p"
        aac = {"aac_coder": "fast"}
        voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=aac)
        voice.bit_rate = 64000
        for number, (frame, transform) in enumerate(draw_frames(clip)):
            planes: np.ndarray = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)
            packed = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            packed.pts, packed.time_base = number, Fraction(1, FRAME_RATE)
            container.mux(picture.encode(packed))
            yield frame, transform
        container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = SAMPLE_RATE, 0
        samples.time_base = Fraction(1, SAMPLE_RATE)
        container.mux(voice.encode(samples))
        container.mux(voice.encode(None))


# Lists


def part_of(speaker: int, fold: int, folds: int) -> str:
    """Which list of a fold a speaker is in: test, or val for one in eight of the others."""
    if speaker % folds + 1 == fold:
        return "test"
    return "val" if speaker // folds % 8 == fold % 8 else "train"


def write_lists(jobs: list[Job], folds: int, folder: Path, relative: bool) -> None:
    """Write pretrain.csv and fold<k>/train.csv, val.csv, test.csv (speaker-independent)."""
    from hicmae.data.clip_list import Clip as ListedClip
    from hicmae.data.clip_list import write_list
    from preprocess.lists.writing import write_csv

    def name(path: Path) -> str:
        return os.path.relpath(path, folder) if relative else str(path.resolve())

    unlabelled = [ListedClip(name(job.video), None, 0) for job in jobs if job.faces is None]
    if unlabelled:
        write_list(folder / "pretrain.csv", unlabelled)
    labelled = [
        (job.key, ListedClip(name(job.faces), name(job.audio), job.label))
        for job in jobs
        if job.faces is not None
    ]
    speakers = [(clip.video, key.speaker_name) for key, clip in labelled]
    write_csv(folder / "clip_speakers.csv", ["clip", "speaker"], speakers)
    for fold, part in product(range(1, folds + 1), ("train", "val", "test")):
        clips = [clip for key, clip in labelled if part_of(key.speaker, fold, folds) == part]
        if clips:
            (folder / f"fold{fold}").mkdir(exist_ok=True)
            write_list(folder / f"fold{fold}" / f"{part}.csv", clips)


# The contact sheet


def write_preview(path: Path, seed: int, speakers: int, face_size: int) -> None:
    """Write a contact sheet: per speaker and valence the mouth shut, open, and the aligned face.

    Speech and motion are the same in every column, so only the expression differs.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--preview must name a .png or .jpg file, got '{path}'")
    if speakers < 1:
        raise ValueError(f"--preview_speakers must be 1 or more, got {speakers}")
    rows = [
        np.hstack([_preview(seed, speaker, k, face_size) for k in range(len(VALENCES))])
        for speaker in range(speakers)
    ]
    width = rows[0].shape[1]
    strip = np.full((MARGIN, width, 3), 255, np.uint8)
    for column in range(len(VALENCES)):
        pair = " and ".join(CLASSES[column * len(AROUSALS) : (column + 1) * len(AROUSALS)])
        text, where = f"{pair}: mouth shut, open, aligned face", (column * width // 3 + 8, 18)
        cv2.putText(strip, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40,) * 3, 1, cv2.LINE_AA)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack([strip, *rows])[..., ::-1]).save(path)


def _preview(seed: int, speaker: int, valence: int, face_size: int) -> np.ndarray:
    """One speaker in one valence, three pictures beside each other: (224, 672, 3) uint8."""
    clip = plan_clip(ClipKey(seed, speaker, SHEET_CLIP), valence * len(AROUSALS))
    tracks = make_tracks(clip)
    awake = tracks.eyelids == 1
    shut, opened = np.argmin(tracks.opening + ~awake), np.argmax(tracks.opening * awake)
    frames = list(draw_frames(clip))
    face = align(*frames[shut], face_size)
    large = cv2.resize(face, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_CUBIC)
    return np.hstack([frames[shut][0], frames[opened][0], large])
