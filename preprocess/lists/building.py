"""From a data set's protocol and the files that are there to its lists, tables and reports."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from hicmae.config.flags import Flags, option
from hicmae.io import check_writable
from preprocess.command_line import Workers, command
from preprocess.lists.clips import (
    Candidate,
    checked,
    find_halves,
    some,
    write_left_out,
    write_lists,
)

logger = logging.getLogger(__name__)

SAVED_DATA = Path(__file__).resolve().parents[2] / "saved" / "data"
USAGE = """{}

For a folder x/ of frames x_aligned/ or x/x_aligned/ may stand. Faces are made by
preprocess/face_and_audio/extract_face.py, wavs by extract_audio.py. Written to --output_dir:
split01/train.csv and test.csv, split02/ and so on; classes.txt, or targets.txt for a regression;
clip_speakers.csv where speakers are known; left_out.csv, which tells why a clip is in no list.
Exit code: 0; 1 where the data contradict the protocol; 2 where something is missing.
"""


class ClipFiles(NamedTuple):
    """The face folders and wavs below --data_root, the folder `root`, see `find_halves`."""

    root: str
    videos: dict[str, list[str]]
    audios: dict[str, list[str]]

    def names(self) -> list[str]:
        """Every name that stands for a clip, whichever half has it, also unusable halves."""
        return sorted({*self.videos, *self.audios})

    def with_files(self, clip: Candidate) -> Candidate:
        """Return a clip with its files, or with the reason why there are none."""
        halves: dict[str, Any] = {
            "video": self.videos.get(clip.name),
            "audio": self.audios.get(clip.audio or clip.name),
        }
        for kind, paths in halves.items():
            if not paths:
                reason = f"{kind} missing" if paths is None else "no face frames"
                return clip._replace(reason=reason)
            if len(paths) > 1:
                return clip._replace(reason="two of one name", detail=some(paths))
        return clip._replace(**{kind: path for kind, (path,) in halves.items()})


class Plan(NamedTuple):
    """The protocol of a data set."""

    place: str  # folder of the lists below saved/data, where the experiment scripts look
    labels: Sequence[str]  # names of the classes, or of the regression targets
    clips: Sequence[Candidate]  # all it knows, without files; with a reason where one is left out
    lists: Mapping[str, Sequence[str]]  # names of the clips of each list, see `list_name`
    test_sizes: Sequence[int] = ()  # published numbers of test clips, fold by fold
    # Other published counts, of "clips" in lists, "face folders", "wavs".
    expected: Mapping[str, int] = {}
    note: str = ""  # for the user, in the log


Protocol = Callable[[argparse.Namespace, ClipFiles], Plan]


class Places(Workers):
    """Where the data set is, and how its lists are written."""

    data_root: str = option("", "folder of the data set", required=True, metavar="DIR")
    video_dir: str | None = option(None, "of faces or films (default: as above)", metavar="DIR")
    audio_dir: str | None = option(None, "of wavs (default: as above)", metavar="DIR")
    output_dir: Path | None = option(None, "default: where experiments look, in saved/data")
    relative: bool = option(False, "write names relative to --data_root, for training's")
    strict: bool = option(False, "write nothing when a count differs from the published one")


def data_set(
    flags: Flags | None = None,
    video_dirs: Sequence[str] = ("faces", "face_aligned", "openface", "frames"),
    audio_dirs: Sequence[str] = ("audio_16k", "audio"),
) -> Callable[[Protocol], Callable[..., int]]:
    """Make the `main` of a list script of what reads a data set's protocol.

    The protocol is read from the command line and the files that are there; its docstring is the
    script's --help. `flags` are the script's own. `video_dirs` and `audio_dirs` are places of face
    folders and wavs below --data_root, best first.
    """

    def main_of(read: Protocol) -> Callable[..., int]:
        usage = USAGE.format(inspect.cleandoc(str(read.__doc__)))
        make = partial(make_lists, read, video_dirs, audio_dirs)
        return command(usage, make, Places, flags=flags, bad_data=1)

    return main_of


def find_places(
    args: argparse.Namespace, video_dirs: Sequence[str], audio_dirs: Sequence[str]
) -> tuple[str, str, str]:
    """Return --data_root, --video_dir and --audio_dir; FileNotFoundError where one is missing."""
    root = os.path.abspath(os.path.expanduser(args.data_root))
    if not os.path.isdir(root):
        raise FileNotFoundError(f"--data_root '{args.data_root}' is no folder")
    videos, audios = args.video_dir, args.audio_dir
    video_dir = find(root, *([videos] if videos else video_dirs), remedy="give --video_dir")
    audio_dir = find(root, *([audios] if audios else audio_dirs), remedy="give --audio_dir")
    return root, video_dir, audio_dir


def find(root: str, *candidates: str, remedy: str = "see --help") -> str:
    """Return the first file or folder there is of some below a root; FileNotFoundError if none."""
    for candidate in candidates:
        path = os.path.normpath(os.path.join(root, candidate))
        if os.path.exists(path):
            return path
    expected = " or ".join(f"'{name}'" for name in candidates)
    raise FileNotFoundError(f"expected {expected} in '{root}', found {contents(root)}; {remedy}")


def contents(folder: str) -> str:
    """Name what is in a folder, shortened."""
    with os.scandir(folder) as entries:
        names = [entry.name + "/" * entry.is_dir() for entry in entries]
    return some(names, 8) or "nothing"


def make_lists(
    read: Protocol, video_dirs: Sequence[str], audio_dirs: Sequence[str], args: argparse.Namespace
) -> None:
    """Make the lists of a data set: find, match, check, write."""
    root, video_dir, audio_dir = find_places(args, video_dirs, audio_dirs)
    files = ClipFiles(root, find_halves(video_dir, "faces"), find_halves(audio_dir, "wavs"))
    counts = Counter[str]()
    for halves, kind, folder, tool in (
        (files.videos, "face folders", video_dir, "extract_face.py"),
        (files.audios, "wavs", audio_dir, "extract_audio.py"),
    ):
        counts[kind] = sum(len(paths) == 1 for paths in halves.values())
        logger.info("%d %s in %s", counts[kind], kind, folder)
        if not halves:
            raise FileNotFoundError(
                f"expected {kind} in '{folder}', found {contents(folder)}; make them with "
                f"preprocess/face_and_audio/{tool}"
            )
    plan = read(args, files)
    output = args.output_dir or SAVED_DATA / plan.place
    check_writable(output / "left_out.csv")  # before the headers of many files are read
    if plan.note:
        logger.info("note: %s", plan.note)
    asked = {name for clip in plan.clips for name in (clip.name, clip.audio)}
    others = (name for name in files.names() if name not in asked)
    clips = [clip if clip.reason else files.with_files(clip) for clip in plan.clips]
    clips += [Candidate(name, reason="not in the protocol") for name in others]
    clips = checked(clips, args.num_workers)
    write_left_out(output, clips)
    good = {clip.name: clip for clip in clips if not clip.reason}
    lists = {name: [good[c] for c in own if c in good] for name, own in plan.lists.items()}
    counts.update({name: len(own) for name, own in lists.items()}, clips=len(good))
    tests = {list_name(k, "test"): size for k, size in enumerate(plan.test_sizes, 1)}
    check_counts(counts, tests | dict(plan.expected), args.strict)
    write_lists(output, lists, plan.labels, root if args.relative else None)


def check_counts(counts: Mapping[str, int], expected: Mapping[str, int], strict: bool) -> None:
    """Compare with the published counts; a difference is said, with --strict it is an error."""
    wrong = [f"{n}: got {counts[n]}, expected {e}" for n, e in expected.items() if counts[n] != e]
    if wrong and strict:
        raise ValueError(f"counts differ from the protocol ({'; '.join(wrong)}); see left_out.csv")
    if wrong:
        logger.warning("DIFFERS from the protocol: %s", "; ".join(wrong))
    elif expected:
        logger.info("counts are as published: %s", ", ".join(expected))


# Folds


def list_name(fold: int, part: str) -> str:
    """Return the name of a list, "split01/train", as the experiment scripts look for it."""
    return f"split{fold:02d}/{part}"


def cross_validation(
    clips: Iterable[Candidate], num_folds: int, test_fold: Callable[[str], int]
) -> dict[str, list[str]]:
    """Return lists; a speaker is tested in one fold, `test_fold` from 1, else trained on."""
    fold_of = {clip.name: test_fold(str(clip.speaker)) for clip in clips if not clip.reason}
    return {
        list_name(k, part): [name for name, own in fold_of.items() if (own == k) == tested]
        for k in range(1, num_folds + 1)
        for part, tested in (("train", False), ("test", True))
    }


def official_split(
    num_folds: int, read: Callable[[int, str], Iterable[tuple[str, Candidate]]]
) -> tuple[list[Candidate], dict[str, list[str]]]:
    """Return all clips of official lists, and the lists; a clip's label is the same in all of them.

    `read` returns (file:line, clip) for every line of one list, given fold from 1 and part.
    """
    clips: dict[str, Candidate] = {}
    lists: dict[str, list[str]] = {}
    for fold, part in product(range(1, num_folds + 1), ("train", "test")):
        names = lists[list_name(fold, part)] = []
        for where, clip in read(fold, part):
            known = clips.setdefault(clip.name, clip)
            if known != clip:
                raise ValueError(
                    f"{where}: expected the label {known.label} that clip {clip.name} has in "
                    f"another list, got {clip.label} (classes count from 0)"
                )
            names.append(clip.name)
    return list(clips.values()), lists
