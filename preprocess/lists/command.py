"""The command line of a list script, and its run from folders to lists."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.face_and_audio.batch import usable_cores
from preprocess.lists import tables
from preprocess.lists.clips import LeftOut, whole_file, write_csv, write_left_out
from preprocess.lists.files import contents, find_folder, frame_folders, wav_files
from preprocess.lists.folds import check_fold, write_clip_speakers, write_fold
from preprocess.lists.plan import Found, Plan, match_files
from preprocess.lists.probe import Measured, probe_all

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]

Folds = dict[str, dict[str, list[Measured]]]


@dataclass(frozen=True)
class DataSet:
    """What distinguishes one list script from another.

    Attributes:
        title: name for people.
        usage: the script's docstring: what it needs, what it writes.
        output_dir: from the command line to the default place of the lists below saved/data.
        read: from the command line and the files that are there to the protocol.
        video_dirs: places of the face folders below --data_root, best first.
        audio_dirs: places of the wavs.
    """

    title: str
    usage: str | None
    output_dir: Callable[[argparse.Namespace], str]
    read: Callable[[argparse.Namespace, Found], Plan]
    video_dirs: Sequence[str] = ("faces", "face_aligned", "openface", "frames")
    audio_dirs: Sequence[str] = ("audio_16k", "audio")

    def parser(self) -> argparse.ArgumentParser:
        """Return the flags that all list scripts share; a script adds its own."""
        parser = argparse.ArgumentParser(
            description=self.usage, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--data_root", required=True, help=f"folder of {self.title}")
        add_output_arguments(parser)
        for kind, what, places in (
            ("video", "the folders of face frames", self.video_dirs),
            ("audio", "the 16 kHz mono wavs", self.audio_dirs),
        ):
            where = f"{what}, relative to --data_root (default: the first there is of"
            parser.add_argument(f"--{kind}_dir", help=f"{where} {', '.join(places)})")
        return parser


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where and how lists are written."""
    parser.add_argument("--output_dir", help="default: where the experiment scripts look")
    parser.add_argument(
        "--relative",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write names relative to --data_root, which is then given again in training",
    )
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write nothing when a count differs from the published one",
    )
    parser.add_argument(
        "--num_workers", type=int, default=usable_cores(), help="(default: %(default)s)"
    )


def exit_code(run: Callable[[], None]) -> int:
    """Run a script's work: 0 done, 1 the data contradict the protocol, 2 it cannot be done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run()
    except (OSError, RuntimeError) as error:
        LOGGER.error("error: %s", error)
        return 2
    except ValueError as error:
        LOGGER.error("error: %s", error)
        return 1
    return 0


def make_lists(data_set: DataSet, args: argparse.Namespace) -> None:
    """Make the lists of a data set: find, match, measure, check, write, report."""
    root = checked_root(args.data_root, data_set.title)
    output = Path(args.output_dir or ROOT / data_set.output_dir(args))
    found = find_halves(data_set, args, root)
    plan = data_set.read(args, found)
    for note in plan.notes:
        LOGGER.info("note: %s", note)
    listed, left_out = match_files(plan, found)
    measured: dict[str, Measured] = {}
    for result in probe_all(listed, args.num_workers):
        if isinstance(result, LeftOut):
            left_out.append(result)
        else:
            measured[result.clip.name] = result
    folds = {
        fold: {part: [measured[n] for n in names if n in measured] for part, names in parts.items()}
        for fold, parts in plan.folds.items()
    }
    write_left_out(output / "left_out.csv", left_out)
    LOGGER.info("%s\n(all of them, with details: %s)", tables.left_out_table(left_out), output)
    in_lists = {m.clip.name for parts in folds.values() for clips in parts.values() for m in clips}
    used = [clip for name, clip in measured.items() if name in in_lists]
    check_counts(plan, found, folds, len(used), args.strict)
    parts_of = {
        fold: {part: [m.clip for m in clips] for part, clips in parts.items()}
        for fold, parts in folds.items()
    }
    for fold, parts in parts_of.items():  # all folds are checked before one is written
        check_fold(str(output / fold), parts, plan.shared_speakers)
    for fold, parts in parts_of.items():
        write_fold(output / fold, parts, root if args.relative else None, plan.shared_speakers)
    write_clip_speakers(output, (m.clip for m in used), root if args.relative else None)
    _report(output, folds, used, plan.labels)


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


def find_halves(data_set: DataSet, args: argparse.Namespace, root: str) -> Found:
    """Find face folders and wavs; FileNotFoundError where a whole kind is missing."""
    video_dir = find_folder(root, "--video_dir", args.video_dir, data_set.video_dirs)
    audio_dir = find_folder(root, "--audio_dir", args.audio_dir, data_set.audio_dirs)
    found = Found(frame_folders(video_dir), wav_files(audio_dir))
    LOGGER.info("%d folders of frames in %s", len(found.videos.paths), video_dir)
    LOGGER.info("%d wavs in %s", len(found.audios.paths), audio_dir)
    if not any(found.videos):
        raise FileNotFoundError(
            f"expected folders of jpg, png or bmp frames in '{video_dir}', found "
            f"{contents(video_dir)}; make them with preprocess/face_and_audio/extract_face.py"
        )
    if not any(found.audios):
        raise FileNotFoundError(
            f"expected wavs in '{audio_dir}', found {contents(audio_dir)}; make them with "
            "preprocess/face_and_audio/extract_audio.py"
        )
    return found


def check_counts(plan: Plan, found: Found, folds: Folds, num_clips: int, strict: bool) -> None:
    """Compare with the published counts; a difference is said, with --strict it is an error."""
    counts = {"clips": num_clips, "face folders": len(found.videos.paths)}
    counts["wavs"] = len(found.audios.paths)
    for fold, parts in folds.items():
        counts |= {f"{fold}/{part}": len(clips) for part, clips in parts.items()}
    wrong = [name for name, expected in plan.expected.items() if counts[name] != expected]
    message = "; ".join(f"{n}: got {counts[n]}, expected {plan.expected[n]}" for n in wrong)
    if wrong and strict:
        raise ValueError(f"counts differ from the protocol ({message}); see left_out.csv")
    if wrong:
        LOGGER.warning("DIFFERS from the protocol: %s", message)
    elif plan.expected:
        LOGGER.info("counts are as published: %s", ", ".join(plan.expected))
    else:
        LOGGER.info("no published counts to compare with")


def _report(output: Path, folds: Folds, used: list[Measured], labels: Sequence[str]) -> None:
    speakers = tables.speaker_rows(used, labels)
    write_csv(output / "speakers.csv", [str(cell) for cell in speakers[0]], speakers[1:])
    regression = isinstance(used[0].clip.label, tuple)
    with whole_file(output / ("targets.txt" if regression else "classes.txt")) as file:
        file.writelines(f"{label}\n" for label in labels)
    print(tables.fold_table(folds, labels))
    print()
    print(tables.speaker_table(speakers))
    print()
    print(tables.duration_line(used))
    LOGGER.info("lists are in %s", output)
