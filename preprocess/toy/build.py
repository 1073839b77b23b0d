"""The whole data set: which clips, made by several processes, then the lists and the table."""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import cv2
from tqdm import tqdm

from preprocess.lists.clips import write_csv
from preprocess.toy.clips import (
    CLASS_STREAM,
    CLASSES,
    PRETRAIN_SPEAKERS_FROM,
    ClipKey,
    clip_row,
    plan_clip,
)
from preprocess.toy.media import ClipFiles, files_of, write_clip

LOGGER = logging.getLogger(__name__)
RECIPE = "toy_av.json"
VERSION = 1  # raise it when the same settings give other pixels or samples


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
        for name in ("speakers", "clips_per_class", "pretrain_speakers", "pretrain_clips"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if not 32 <= self.face_size <= 512:
            raise ValueError(f"--face_size must be 32..512 pixels, got {self.face_size}")
        if self.speakers and not 2 <= self.folds <= self.speakers:
            raise ValueError(
                f"--folds must be 2..{self.speakers} (the number of --speakers), got {self.folds}"
            )


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    key: ClipKey
    label: int
    files: ClipFiles
    face_size: int


def list_jobs(recipe: Recipe, folder: Path) -> list[Job]:
    """All clips: labelled ones, every class equally often per speaker, then unlabelled ones."""
    clips = range(recipe.clips_per_class * len(CLASSES))
    keys = [
        (ClipKey(recipe.seed, speaker, clip), clip % len(CLASSES))
        for speaker, clip in product(range(recipe.speakers), clips)
    ]
    for speaker, clip in product(range(recipe.pretrain_speakers), range(recipe.pretrain_clips)):
        key = ClipKey(recipe.seed, PRETRAIN_SPEAKERS_FROM + speaker, clip)
        keys.append((key, int(key.rng(CLASS_STREAM).integers(len(CLASSES)))))
    return [Job(key, label, files_of(folder, key), recipe.face_size) for key, label in keys]


def build(recipe: Recipe, folder: Path, num_workers: int, relative: bool) -> None:
    """Make what is missing of the data set, then write its lists."""
    check_recipe(recipe, folder)
    jobs = list_jobs(recipe, folder)
    missing = [job for job in jobs if not job.files.complete()]
    if len(missing) < len(jobs):
        LOGGER.info("%d of %d clips are there already", len(jobs) - len(missing), len(jobs))
    bar = tqdm(
        run_jobs(missing, num_workers),
        total=len(jobs),
        initial=len(jobs) - len(missing),
        unit="clip",
    )
    for _ in bar:
        pass
    write_table(jobs, folder / "meta.csv")
    write_lines(folder / "classes.txt", CLASSES)
    write_lists(jobs, recipe.folds, folder, relative)


def check_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuse to mix two data sets in one folder; note the settings of a new one."""
    path = folder / RECIPE
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
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
    write_lines(path, [json.dumps(asdict(recipe), indent=1)])


def run_jobs(jobs: list[Job], num_workers: int) -> Iterator[str]:
    """Make clips in `num_workers` processes, yield their names as they are done."""
    if num_workers <= 1 or len(jobs) <= 1:
        yield from map(make, jobs)
        return
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has started
    with context.Pool(
        min(num_workers, len(jobs)), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from pool.imap_unordered(make, jobs, chunksize=2)


def make(job: Job) -> str:
    """Make one clip."""
    write_clip(plan_clip(job.key, job.label), job.files, job.face_size)
    return job.key.name


def fold_of(speaker: int, folds: int) -> int:
    """The fold (1..folds) that tests on a speaker."""
    return speaker % folds + 1


def part_of(speaker: int, fold: int, folds: int) -> str:
    """Which list of a fold a speaker is in: test, or val for one in eight of the others."""
    if fold_of(speaker, folds) == fold:
        return "test"
    return "val" if speaker // folds % 8 == fold % 8 else "train"


def write_table(jobs: list[Job], path: Path) -> None:
    """Write meta.csv: one line a clip with every parameter of the generator."""
    rows = [clip_row(plan_clip(job.key, job.label)) for job in jobs]
    part = path.with_name(f".part-{path.name}")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["clip"])
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def write_lines(path: Path, lines: tuple[str, ...] | list[str]) -> None:
    """Write a small text file at once."""
    part = path.with_name(f".part-{path.name}")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    part.replace(path)


def write_lists(jobs: list[Job], folds: int, folder: Path, relative: bool) -> None:
    """Write pretrain.csv and fold<k>/train.csv, val.csv, test.csv (speaker-independent)."""
    # imported here, not above: hicmae brings torch, which the drawing processes do not need
    from hicmae.data.clip_list import Clip, write_list

    def name(path: Path) -> str:
        return os.path.relpath(path, folder) if relative else str(path.resolve())

    unlabelled = [Clip(name(job.files.video), None, 0) for job in jobs if job.key.for_pretraining]
    labelled = [job for job in jobs if not job.key.for_pretraining]
    if unlabelled:
        write_list(folder / "pretrain.csv", unlabelled)
    speakers = [(name(job.files.faces), job.key.name.split("_")[0]) for job in labelled]
    write_csv(folder / "clip_speakers.csv", ["clip", "speaker"], speakers)
    for fold in range(1, folds + 1 if labelled else 1):
        parts: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
        for job in labelled:
            clip = Clip(name(job.files.faces), name(job.files.audio), job.label)
            parts[part_of(job.key.speaker, fold, folds)].append(clip)
        (folder / f"fold{fold}").mkdir(exist_ok=True)
        for part, clips in parts.items():
            if clips:
                write_list(folder / f"fold{fold}" / f"{part}.csv", clips)
