"""From a data set's protocol and the files that are there to its lists, tables and reports."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from preprocess.command_line import add_num_workers, add_switch, exit_code, make_parser
from preprocess.lists.clips import (
    Label,
    LeftOut,
    ListedClip,
    in_list,
    left_out_table,
    table_text,
    totals,
    write_clip_speakers,
    write_csv,
    write_folds,
    write_left_out,
    write_names,
)
from preprocess.lists.files import Halves, contents, find, frame_folders, measure_all, wav_files

logger = logging.getLogger(__name__)

SAVED_DATA = Path(__file__).resolve().parents[2] / "saved" / "data"
EPILOG = """\
--video_dir and --audio_dir name other places; for a folder x/ of frames x_aligned/ or
x/x_aligned/ may stand. Faces are made by preprocess/face_and_audio/extract_face.py, wavs by
extract_audio.py. Written to --output_dir: split01/train.csv and test.csv, split02/ and so on;
classes.txt, or targets.txt for a regression; speakers.csv; clip_speakers.csv where speakers are
known; left_out.csv, which tells why a clip is in no list. Exit code: 0; 1 where the data
contradict the protocol; 2 where something is missing.
"""

FoldNames = dict[str, dict[str, list[str]]]  # fold -> "train" or "test" -> names of its clips


class Wanted(NamedTuple):
    """A labelled clip before its files are known; `audio_name` where the wav is named otherwise."""

    name: str
    label: Label
    speaker: str = ""
    audio_name: str = ""


class Found(NamedTuple):
    """The face folders and wavs below --data_root, the folder `root`."""

    root: str
    videos: Halves
    audios: Halves

    def names(self) -> list[str]:
        """Every name that stands for a clip, whichever half has it, also unusable halves."""
        return sorted(set(chain(*self.videos, *self.audios)))


@dataclass
class Plan:
    """The protocol of a data set: all labelled clips `wanted`, and the names in every list.

    Attributes:
        place: folder of the lists below saved/data, where the experiment scripts look.
        labels: names of the classes, or of the regression targets.
        expected: published counts of "clips" in lists, "face folders", "wavs", "split01/test" ...
        left_out: clips that the protocol itself leaves out.
        note: for the user, in the log.
    """

    place: str
    wanted: Sequence[Wanted]
    folds: FoldNames
    labels: Sequence[str]
    expected: Mapping[str, int] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    note: str = ""


@dataclass(frozen=True)
class DataSet:
    """What distinguishes one list script from another.

    `read` makes the protocol from the command line and the files that are there; its docstring is
    the script's --help. `flags` are the script's own, with what `add_argument` takes. `video_dirs`
    and `audio_dirs` are places of face folders and wavs below --data_root, best first.
    """

    title: str
    read: Callable[[argparse.Namespace, Found], Plan]
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    video_dirs: Sequence[str] = ("faces", "face_aligned", "openface", "frames")
    audio_dirs: Sequence[str] = ("audio_16k", "audio")

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the list script; returns its exit code."""
        parser = make_parser(self.read.__doc__)
        parser.epilog = EPILOG
        add_output_arguments(parser, self.title)
        for flag, places in (("--video_dir", self.video_dirs), ("--audio_dir", self.audio_dirs)):
            default = (
                f"relative to --data_root (default: the first there is of {', '.join(places)})"
            )
            parser.add_argument(flag, help=default)
        for flag, options in self.flags.items():
            parser.add_argument(flag, **options)
        args = parser.parse_args(arguments)
        return exit_code(lambda: make_lists(self, args), bad_data=1)


def add_output_arguments(parser: argparse.ArgumentParser, title: str) -> None:
    """Add the flags that say where a data set is, and where and how its lists are written."""
    parser.add_argument("--data_root", required=True, help=f"folder of {title}")
    parser.add_argument(
        "--output_dir", type=Path, help="default: where the experiment scripts look"
    )
    use = "write names relative to --data_root, which is then given again in training"
    add_switch(parser, "--relative", use)
    add_switch(parser, "--strict", "write nothing when a count differs from the published one")
    add_num_workers(parser)


def make_lists(data_set: DataSet, args: argparse.Namespace) -> None:
    """Make the lists of a data set: find, match, measure, check, write, report."""
    found = find_halves(data_set, args)
    plan = data_set.read(args, found)
    output = args.output_dir or SAVED_DATA / plan.place
    if plan.note:
        logger.info("note: %s", plan.note)
    listed, left_out = match_files(plan, found)
    measured: dict[str, ListedClip] = {}
    for result in measure_all(listed, args.num_workers):
        if isinstance(result, LeftOut):
            left_out.append(result)
        else:
            measured[result.name] = in_list(result, found.root if args.relative else None)
    write_left_out(output / "left_out.csv", left_out)
    logger.info("%s\n(all of them, with details: %s)", left_out_table(left_out), output)

    folds = {
        fold: {part: [measured[n] for n in names if n in measured] for part, names in parts.items()}
        for fold, parts in plan.folds.items()
    }
    lists = {f"{f}/{p}": clips for f, parts in folds.items() for p, clips in parts.items()}
    in_lists = {clip.name for clips in lists.values() for clip in clips}
    used = [clip for name, clip in measured.items() if name in in_lists]
    counts = {"face folders": len(found.videos.paths), "wavs": len(found.audios.paths)}
    counts |= {"clips": len(used)} | {name: len(clips) for name, clips in lists.items()}
    check_counts(counts, plan.expected, args.strict)
    write_folds(output, folds)
    write_clip_speakers(output, used)
    report(output, lists, used, plan.labels)


def checked_root(data_root: str, title: str) -> str:
    """Return --data_root as an absolute path; FileNotFoundError where there is no folder."""
    root = os.path.abspath(os.path.expanduser(data_root))
    if not os.path.isdir(root):
        parent = os.path.dirname(root)
        raise FileNotFoundError(
            f"--data_root '{data_root}' is no folder, expected that of {title}; "
            f"'{parent}' holds {contents(parent)}"
        )
    return root


def find_halves(data_set: DataSet, args: argparse.Namespace) -> Found:
    """Find face folders and wavs; FileNotFoundError where a whole kind is missing."""
    root = checked_root(args.data_root, data_set.title)
    video_dirs = data_set.video_dirs if args.video_dir is None else [args.video_dir]
    audio_dirs = data_set.audio_dirs if args.audio_dir is None else [args.audio_dir]
    video_dir = find(root, "give --video_dir", *video_dirs)
    audio_dir = find(root, "give --audio_dir", *audio_dirs)
    found = Found(root, frame_folders(video_dir), wav_files(audio_dir))
    for halves, kind, folder, tool in (
        (found.videos, "folders of jpg, png or bmp frames", video_dir, "extract_face.py"),
        (found.audios, "wavs", audio_dir, "extract_audio.py"),
    ):
        logger.info("%d %s in %s", len(halves.paths), kind, folder)
        if not any(halves):
            raise FileNotFoundError(
                f"expected {kind} in '{folder}', found {contents(folder)}; make them with "
                f"preprocess/face_and_audio/{tool}"
            )
    return found


def match_files(plan: Plan, found: Found) -> tuple[list[ListedClip], list[LeftOut]]:
    """Give the wanted clips their files; return those without, and files no protocol asks for."""
    listed, left_out = [], list(plan.left_out)
    known = {clip.clip for clip in left_out}
    for clip in plan.wanted:
        audio_name = clip.audio_name or clip.name
        known |= {clip.name, audio_name}
        video, audio = found.videos.paths.get(clip.name), found.audios.paths.get(audio_name)
        if video and audio:
            listed.append(ListedClip(clip.name, video, audio, clip.label, clip.speaker or None))
            continue
        halves = [(found.videos, clip.name, "video"), (found.audios, audio_name, "audio")]
        lacking = [half for half in halves if half[1] not in half[0].paths]
        problems = [h.unusable.get(name, (f"{kind} missing", "")) for h, name, kind in lacking]
        nothing = [reason for reason, _ in problems] == ["video missing", "audio missing"]
        reason = "both halves missing" if nothing else problems[0][0]
        left_out.append(LeftOut(clip.name, reason, "; ".join(d for _, d in problems if d)))
    left_out += [LeftOut(n, "not in the protocol") for n in found.names() if n not in known]
    return listed, left_out


def check_counts(counts: Mapping[str, int], expected: Mapping[str, int], strict: bool) -> None:
    """Compare with the published counts; a difference is said, with --strict it is an error."""
    wrong = [f"{n}: got {counts[n]}, expected {e}" for n, e in expected.items() if counts[n] != e]
    if wrong and strict:
        raise ValueError(f"counts differ from the protocol ({'; '.join(wrong)}); see left_out.csv")
    if wrong:
        logger.warning("DIFFERS from the protocol: %s", "; ".join(wrong))
    elif expected:
        logger.info("counts are as published: %s", ", ".join(expected))
    else:
        logger.info("no published counts to compare with")


def report(
    output: Path,
    lists: Mapping[str, Sequence[ListedClip]],
    used: Sequence[ListedClip],
    labels: Sequence[str],
) -> None:
    """Write speakers.csv and the names of the labels, and show what the lists hold."""
    regression = isinstance(used[0].label, tuple)
    write_names(output / ("targets.txt" if regression else "classes.txt"), labels)
    rows = [(name, *clip) for name, clips in lists.items() for clip in clips]
    columns = ["list", *ListedClip._fields]
    print(table_text(totals(pd.DataFrame(rows, columns=columns, dtype=object), "list", labels)))
    clips = pd.DataFrame(used, columns=columns[1:], dtype=object)
    speakers = totals(clips, "speaker", labels).drop(columns="speakers").sort_index()
    write_csv(output / "speakers.csv", ["speaker", *speakers], speakers.itertuples())
    sizes = speakers["clips"].tolist() or [0]
    print(f"\n{len(speakers)} known speakers with {min(sizes)} to {max(sizes)} clips each")
    seconds, frames = clips["seconds"], clips["frames"]
    print(
        f"{len(clips)} clips, {seconds.sum() / 3600:.2f} h; a clip lasts {seconds.min():.2f} to "
        f"{seconds.max():.2f} s, mean {seconds.mean():.2f} s, and has {frames.min()} to "
        f"{frames.max()} frames"
    )
    logger.info("lists are in %s", output)


def fold_name(fold: int) -> str:
    """Return the folder of a fold, as the experiment scripts look for it."""
    return f"split{fold:02d}"


def cross_validation(
    wanted: Iterable[Wanted], num_folds: int, test_fold: Callable[[Wanted], int]
) -> FoldNames:
    """Return folds; a clip is tested in one of them, `test_fold` from 1, else trained on."""
    fold_of = {clip.name: test_fold(clip) for clip in wanted}
    return {
        fold_name(fold): {
            "train": [name for name, tested in fold_of.items() if tested != fold],
            "test": [name for name, tested in fold_of.items() if tested == fold],
        }
        for fold in range(1, num_folds + 1)
    }


def official_split(
    num_folds: int, read: Callable[[int, str], Iterable[tuple[str, Wanted]]]
) -> tuple[list[Wanted], FoldNames]:
    """Return all clips of official lists, and the folds; a clip has the same label in all of them.

    `read` returns (file:line, clip) for every line of one list, given fold from 1 and part.
    """
    clips: dict[str, Wanted] = {}
    folds: FoldNames = {}
    for fold, part in product(range(1, num_folds + 1), ("train", "test")):
        names = folds.setdefault(fold_name(fold), {}).setdefault(part, [])
        for where, clip in read(fold, part):
            known = clips.setdefault(clip.name, clip)
            if known != clip:
                raise ValueError(
                    f"{where}: expected the label {known.label} that clip {clip.name} has in "
                    f"another list, got {clip.label} (classes count from 0)"
                )
            names.append(clip.name)
    return list(clips.values()), folds
