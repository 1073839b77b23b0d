"""The lists of a data set, made of its protocol and of the files that are there.

Files are found by name; of a wav the header is looked at. Beside the lists are a table of
speakers, and the reasons for leaving out.
"""

import argparse
import inspect
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from hicmae.config.flags import Flags, option
from hicmae.data.audio import SHORTEST_SPAN, WavFile
from hicmae.data.clip_list import Clip, Label, write_list
from hicmae.data.media import walk
from hicmae.data.splits import SPEAKER_FILE
from hicmae.data.video import FRAME_EXTENSIONS
from hicmae.io import UnreadableClip, check_writable, describe, write_csv, write_whole
from preprocess.command_line import Workers, command

logger = logging.getLogger(__name__)

SAVED_DATA = Path(__file__).resolve().parents[1] / "saved" / "data"
USAGE = """{}

For a folder x/ of frames x_aligned/ or x/x_aligned/ may be there. Faces are made by
preprocess/face_and_audio/extract_face.py, wavs by extract_audio.py. Written to --output_dir:
split01/train.csv and test.csv, split02/ and so on; classes.txt, or targets.txt for a regression;
clip_speakers.csv where speakers are known; left_out.csv, which tells why a clip is in no list.
Exit code: 0; 1 where the data contradict the protocol; 2 where something is missing.
"""
ALIGNED = "_aligned"  # OpenFace's and extract_face's ending of a folder of faces
KINDS = {  # of what is wrong with video or audio, by words of the readers' messages
    "does not exist": "{} missing",
    "No such file": "{} missing",
    "holds no frame": "no face frames",
    "sample rate": "{} sample rate",
    "channels": "{} channels",
    "samples, expected": "{} too short",
    "is silent": "{} silent",
}

Problem = tuple[str, str]  # one of few kinds, and the details


class Candidate(NamedTuple):
    """A clip that a list may hold; with a `reason`, one of few kinds, it is in none."""

    name: str  # what its data set calls it, unique in a list
    label: Label = 0
    speaker: str | None = None  # None where nobody knows
    video: str = ""  # folder of face frames or video file
    audio: str = ""  # wav; before files are looked for, its name where that is not the clip's
    reason: str = ""
    detail: str = ""


Lists = Mapping[str, Sequence[Candidate]]  # by name, such as "split01/train" or "test"


class ClipFiles(NamedTuple):
    """The face folders and wavs below --data_root, the folder `root`, see `find_halves`."""

    root: str
    videos: dict[str, list[str]]
    audios: dict[str, list[str]]

    def names(self) -> list[str]:
        """Every name that stands for a clip, whichever half has it, also unusable halves."""
        return sorted({*self.videos, *self.audios})


class Plan(NamedTuple):
    """The protocol of a data set."""

    place: str  # folder of the lists below saved/data, where the experiment scripts look
    labels: Sequence[str]  # names of the classes, or of the regression targets
    clips: Sequence[Candidate]  # all it knows, without files; with a reason where one is left out
    lists: Mapping[str, Sequence[str]]  # names of the clips of each list, see `list_name`
    test_sizes: Sequence[int] = ()  # published numbers of test clips, fold by fold
    # Other published counts, of "clips" in lists, "face folders", "wavs".
    expected: Mapping[str, int] = {}


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

    The docstring of that is the script's --help. `flags` are the script's own. `video_dirs` and
    `audio_dirs` are places of face folders and wavs below --data_root, best first.
    """

    def main_of(read: Protocol) -> Callable[..., int]:
        usage = USAGE.format(inspect.cleandoc(str(read.__doc__)))
        make = partial(make_lists, read, video_dirs, audio_dirs)
        return command(usage, make, Places, flags=flags, bad_data=1)

    return main_of


def make_lists(
    read: Protocol, video_dirs: Sequence[str], audio_dirs: Sequence[str], args: argparse.Namespace
) -> None:
    """Make the lists of a data set: find, match, check, write."""
    root, video_dir, audio_dir = find_places(args, video_dirs, audio_dirs)
    files = ClipFiles(root, find_halves(video_dir, "faces"), find_halves(audio_dir, "wavs"))
    counts = Counter[str]()
    for halves, kind, folder, tool in (
        (files.videos, "face folders", video_dir, "preprocess/face_and_audio/extract_face.py"),
        (files.audios, "wavs", audio_dir, "preprocess/face_and_audio/extract_audio.py"),
    ):
        counts[kind] = sum(len(paths) == 1 for paths in halves.values())
        logger.info("%d %s in %s", counts[kind], kind, folder)
        if not halves:
            text = f"expected {kind} in '{folder}', found {contents(folder)}; make them with {tool}"
            raise FileNotFoundError(text)
    plan = read(args, files)
    output = args.output_dir or SAVED_DATA / plan.place
    check_writable(output / "left_out.csv")  # before the headers of many files are read
    others = {*files.names()} - {name for clip in plan.clips for name in (clip.name, clip.audio)}
    clips = [*plan.clips, *(Candidate(n, reason="not in the protocol") for n in sorted(others))]
    with ThreadPoolExecutor(args.num_workers) as executor:  # the time goes to the file system
        looked_at = executor.map(partial(with_files, files=files), clips)
        clips = list(tqdm(looked_at, "reading headers", len(clips), unit="clip"))
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


def list_name(fold: int, part: str) -> str:
    """Return the name of a list, "split01/train", as the experiment scripts look for it."""
    return f"split{fold:02d}/{part}"


def cross_validation(
    clips: Iterable[Candidate], num_folds: int, test_fold: Callable[[str], int]
) -> dict[str, list[str]]:
    """Return lists; a speaker is tested in one fold, `test_fold` from 1, else trained on."""
    good = [clip for clip in clips if not clip.reason]
    labels: dict[str, Label] = {}
    for clip in good:
        if labels.setdefault(clip.name, clip.label) != clip.label:
            text = f"clip {clip.name} has two labels, {labels[clip.name]} and {clip.label}"
            raise ValueError(f"{text} (classes count from 0), expected one; mend its labels")
    fold_of = {clip.name: test_fold(str(clip.speaker)) for clip in good}
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
            if (known := clips.setdefault(clip.name, clip)) != clip:
                text = f"the label {known.label} that clip {clip.name} has in another list, got"
                raise ValueError(f"{where}: expected {text} {clip.label} (classes count from 0)")
            names.append(clip.name)
    return list(clips.values()), lists


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


def some(names: Iterable[str], shown: int = 5) -> str:
    """Name a few of many, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(map(repr, ordered[:shown])) + more


def find_halves(root: str, wanted: Literal["faces", "wavs"]) -> dict[str, list[str]]:
    """Find the wavs or the folders of pictures under a folder, by the names of their clips.

    `x/x_aligned/` and `x/` are both the pictures of clip x. Of a folder that holds none, or cannot
    be read, there is the name only.
    """
    found = defaultdict[str, list[str]](list)

    def clip_of(folder: str) -> list[str]:
        return found[os.path.basename(folder).removesuffix(ALIGNED)]

    def note(error: OSError) -> None:
        if error.filename == root:
            raise error
        logger.warning("'%s' cannot be read: %s", error.filename, error.strerror)
        clip_of(error.filename)

    for folder, subfolders, names in walk(root, note):
        if wanted == "wavs":
            for wav in (name for name in names if name.lower().endswith(".wav")):
                found[wav[:-4]].append(os.path.join(folder, wav))
        elif any(name.lower().endswith(FRAME_EXTENSIONS) for name in names):
            subfolders.clear()  # frames lie in a folder of their own
            clip_of(folder).append(folder)
        elif not subfolders and folder != root:
            clip_of(folder)
    return dict(found)


def with_files(clip: Candidate, files: ClipFiles) -> Candidate:
    """Return a clip with its files, or with the reason why they are missing or cannot be used."""
    if clip.reason:
        return clip
    wav = clip.audio or clip.name
    halves: Any = {"video": files.videos.get(clip.name), "audio": files.audios.get(wav)}
    for kind, paths in halves.items():
        if not paths:
            return clip._replace(reason=f"{kind} missing" if paths is None else "no face frames")
        if len(paths) > 1:
            return clip._replace(reason="two of one name", detail=some(paths))
        clip = clip._replace(**{kind: paths[0]})
    problems: list[Problem] = []
    with reading("audio", clip.audio, problems):
        open_wav(clip.audio)
    for reason, detail in problems:
        clip = clip._replace(reason=reason, detail=detail)
    return clip


@contextmanager
def reading(kind: str, path: str, problems: list[Problem]) -> Iterator[None]:
    """Note what goes wrong while a file is read, and go on; `kind` is video or audio."""
    try:
        yield
    except (OSError, UnreadableClip) as error:
        words = str(error).replace(path, "")
        found = (what for said, what in KINDS.items() if said in words)
        problems.append((next(found, "{} unreadable").format(kind), describe(error)))


def open_wav(path: str) -> WavFile:
    """Open a mono 16 kHz wav; UnreadableClip where a file is none, or too short for a list."""
    wav = WavFile(path)
    if len(wav) <= SHORTEST_SPAN:
        text = f"audio '{path}' has {len(wav)} samples, expected more than {SHORTEST_SPAN}"
        raise UnreadableClip(text)
    return wav


def in_list(clip: Candidate, relative_to: str | None) -> Clip:
    """Return a clip as a list holds it: with absolute paths, or relative to a folder if given."""
    name = os.path.abspath if relative_to is None else partial(os.path.relpath, start=relative_to)
    return Clip(name(clip.video), name(clip.audio), clip.label)


def write_lists(
    output: Path, lists: Lists, labels: Sequence[str], relative_to: str | None = None
) -> None:
    """Write NAME.csv of each list, and clip_speakers.csv, which serves --val_split speaker.

    Nothing is written where `check_disjoint` refuses the lists. `labels` go to classes.txt, or
    targets.txt of a regression. Paths are absolute, or `relative_to` a folder.
    """
    check_disjoint(output, lists)
    speakers: dict[str, str] = {}
    for name, clips in lists.items():
        lines = [in_list(clip, relative_to) for clip in clips]
        write_list(output / f"{name}.csv", lines)
        known = zip(lines, clips, strict=True)
        speakers |= {line.video: clip.speaker for line, clip in known if clip.speaker is not None}
        logger.info("%s: %s", output / f"{name}.csv", contents_of(clips, labels))
    if speakers:
        write_csv(output / SPEAKER_FILE, ["clip", "speaker"], speakers.items())
    else:
        (output / SPEAKER_FILE).unlink(missing_ok=True)
    if labels:
        kind = "targets" if isinstance(lines[0].label, tuple) else "classes"
        write_whole(output / f"{kind}.txt", "".join(f"{label}\n" for label in labels))


def contents_of(clips: Sequence[Candidate], labels: Sequence[str]) -> str:
    """Say what a list holds: clips, speakers, the clips of each class or the means of targets."""
    values, speakers = [clip.label for clip in clips], {clip.speaker for clip in clips} - {None}
    of_each: list[str] = [str(values.count(k)) for k in range(len(labels))]
    if isinstance(values[0], tuple):
        of_each = [f"{mean:.3f}" for mean in np.mean(np.array(values), axis=0)]
    told = (f"{name!r} {value}" for name, value in zip(labels, of_each, strict=True))
    people = f" of {len(speakers)} speakers" if speakers else ""
    return f"{len(clips)} clips{people}" + "".join(f", {text}" for text in told)


def check_disjoint(output: Path, lists: Lists) -> None:
    """Refuse lists that are empty, repeat a clip, or share a clip or a speaker in one folder."""
    for name, clips in lists.items():
        path = f"'{output / name}.csv'"
        if not clips:
            raise ValueError(f"no clip is left for {path}, expected at least one; see left_out.csv")
        if twice := [clip for clip, count in Counter(c.name for c in clips).items() if count > 1]:
            text = f"{len(twice)} clips are twice in {path}, expected each once: {some(twice)}"
            raise ValueError(f"{text}; check the files named so")
    for one, other in combinations(lists, 2):
        for things, trait in (("clips", "name"), ("speakers", "speaker")):
            first, second = ({getattr(c, trait) for c in lists[name]} for name in (one, other))
            shared = (first & second) - {None}
            if shared and os.path.dirname(one) == os.path.dirname(other):
                text = f"{len(shared)} {things} are in {one}.csv and in {other}.csv, expected none"
                raise ValueError(f"{output}: {text}: {some(shared)}; check the split and the names")


def write_left_out(output: Path, clips: Iterable[Candidate]) -> None:
    """Write left_out.csv, also where nothing was left out, and log how many for which reason."""
    path, left_out = output / "left_out.csv", [clip for clip in clips if clip.reason]
    rows = ((clip.name, clip.reason, clip.detail) for clip in left_out)
    write_csv(path, ["clip", "reason", "detail"], rows)
    for reason, count in Counter(clip.reason for clip in left_out).most_common():
        logger.info("left out: %d for %r, see %s", count, reason, path)
