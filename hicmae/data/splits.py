"""Splits of a list: speakers, validation clips held out, shares of labels, clips of one item."""

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from hicmae.data.clip_list import AnyClip, find_list, name_of

logger = logging.getLogger(__name__)

Clips = Sequence[AnyClip]

SPEAKER_FILE = "clip_speakers.csv"  # what the list scripts of preprocess/ write: clip,speaker
HOLDOUT_FILE, SHARE_FILE = "val_clips.csv", "train_clips.csv"

# Data sets whose clips are named after their speakers.
PATTERNS = {
    "crema-d": r"^(10\d\d)_[A-Z]{3}_",
    "ravdess": r"^0[123]-0[12]-0[1-8]-0[12]-0[12]-0[12]-(\d\d)",
    "msp-improv": r"S\d\d[AHNS]-([FM]0[1-6])-",
    "iemocap": r"^(Ses0[1-5])[FM]_\w+_([FM])\w+",
    "werewolf-xl": r"^(\d\d_\d\d)_\d+",
    "avcaffe": r"^(aiim\d{3})_",
}

DRAWS = 1000  # orders of the groups to choose from; more hardly balance better
# First words of seeds, so that these draws share no random numbers with the order of the clips.
_HOLD_OUT, _SHARE = 3, 5


def base_name(path: str) -> str:
    """Return a clip's own name: the last part of its path without `.mp4`, `_aligned` and such."""
    return re.sub(r"(?:_aligned|\.[A-Za-z]\w{1,3})$", "", PurePath(path).name)


def find_speakers(
    videos: Sequence[str], folder: Path, data_root: str = "", file: str = "", pattern: str = ""
) -> list[str]:
    """Return the speaker of each clip; ValueError where one is unknown.

    `pattern` is a regular expression or a key of `PATTERNS`. Without one a table, `file` or the
    `clip_speakers.csv` in the `folder` of the list or the one above, is read, whose relative names
    start from `data_root`, as in lists.
    """
    if pattern:
        speakers = _by_pattern(videos, PATTERNS.get(pattern, pattern))
        reason = f"--speaker_pattern '{pattern}' fails"
    else:
        beside = (folder / SPEAKER_FILE, folder.absolute().parent / SPEAKER_FILE)
        table = Path(file) if file else next((p for p in beside if p.is_file()), None)
        if table is None:
            raise ValueError(
                f"speakers are asked for, but neither '{folder}' nor the folder above holds "
                f"{SPEAKER_FILE}; make the lists again by their script, or give --speaker_file "
                f"(csv, columns clip,speaker) or --speaker_pattern (regex or {', '.join(PATTERNS)})"
            )
        speakers, reason = _by_table(videos, table, data_root), f"'{table}' has no line for it"
    if unknown := [video for video, name in zip(videos, speakers, strict=True) if not name]:
        text = f"{len(unknown)} of {len(videos)} clips have no known speaker"
        raise ValueError(f"{text}, first '{unknown[0]}': {reason}")
    return speakers


def _by_pattern(videos: Sequence[str], pattern: str) -> list[str]:
    """Return what the groups of an expression find in the last part of each name, "": nothing.

    A pattern with a slash looks at whole names.
    """
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--speaker_pattern '{pattern}' is no expression: {error}") from None
    if not search.groups:
        expected = r"expected one around the speaker, e.g. '^(\d{4})_'"
        raise ValueError(f"--speaker_pattern '{pattern}' has no group, {expected}")
    names = videos if "/" in pattern else [PurePath(video).name for video in videos]
    return ["".join(found.groups("")) if (found := search.search(name)) else "" for name in names]


def _by_table(videos: Sequence[str], path: Path, data_root: str) -> list[str]:
    """Look clips up in the columns `clip` and `speaker` of a csv file; "" where there is no line.

    The table lists a clip by its whole name, also below `data_root`, or where that is clear by its
    `base_name`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--speaker_file '{path}' does not exist")
    speakers = defaultdict[str, set[str]](set)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        if not {"clip", "speaker"} <= {*header}:
            raise ValueError(f"{path}:1: expected the columns clip,speaker, got {','.join(header)}")
        for row in reader:
            clip, speaker = ((row[name] or "").strip() for name in ("clip", "speaker"))
            if not clip or not speaker:
                where = f"{path}:{reader.line_num}"
                raise ValueError(f"{where}: expected a clip and its speaker, got {row}")
            for name in (clip, os.path.join(data_root, clip), base_name(clip)):
                speakers[name].add(speaker)
    short = Counter(base_name(video) for video in {*videos} if video not in speakers)
    found = []
    for video in videos:
        name = video if video in speakers else base_name(video)
        known = speakers.get(name, set())
        if len(known) > 1 or (known and short[name] > 1 and name != video):
            text = f"'{path}' leaves the speaker of '{video}' open: '{name}' has {sorted(known)}"
            advice = "give whole names, as in the list"
            raise ValueError(f"{text}, or is the name of several clips; {advice}")
        found.append("".join(known))
    return found


def hold_out(
    clips: Clips, groups: Sequence[str], share: float, seed: int, modality: str = "av"
) -> tuple[list[AnyClip], list[AnyClip], list[str]]:
    """Hold out whole groups (speakers) of clips, see `draw_groups`.

    No file of a stream in `modality` may be on both sides. Returns training clips, validation clips
    and their groups, all in list order.
    """
    held = draw_groups([clip.label for clip in clips], groups, share, seed)
    train, val = ([clips[k] for k in np.flatnonzero(side).tolist()] for side in (~held, held))
    owners = [groups[k] for k in np.flatnonzero(held).tolist()]
    _check_sides(train, val, modality)
    text = "held out of train.csv for validation: %d of %d speakers or items, %d of %d clips"
    logger.info(text, len(set(owners)), len(set(groups)), len(val), len(clips))
    return train, val, owners


def draw_groups(
    labels: Sequence[Any], groups: Sequence[str], share: float, seed: int
) -> np.ndarray:
    """Draw groups (speakers) of clips, so that every class gives about its share.

    Of many random orders of the groups, and of the beginnings of each, the one is taken whose share
    of all clips and of every class (regression: of each third of every target's values) comes
    nearest to `share` in (0, 1). Returns (n,) bool, True for a clip of a group that is drawn.
    """
    names, members = np.unique(np.array(groups, object), return_inverse=True)
    if len(names) < 2:
        text = f"expected at least two speakers or clips to hold some out, got {len(names)}"
        advice = "use --val_split list, or for videos of your own a column 'split'"
        raise ValueError(f"{text}; {advice}")
    rng = np.random.default_rng((_HOLD_OUT, seed))
    best, least = [0], np.inf
    traits = _traits(np.array(labels))
    shares = np.zeros((len(names), traits.shape[1]))
    np.add.at(shares, members, traits)
    shares /= shares.sum(axis=0)
    for _ in range(DRAWS):
        order = rng.permutation(len(names))
        errors = np.abs(shares[order[:-1]].cumsum(axis=0) - share).mean(axis=1)
        size = int(errors.argmin()) + 1
        if errors[size - 1] < least:
            best, least = order[:size].tolist(), errors[size - 1]
    return np.isin(members, best)


def _traits(labels: np.ndarray) -> np.ndarray:
    """Return (n, traits) 0 or 1: being a clip, and being of each class or third of the values."""
    columns = [labels]
    if labels.ndim > 1:
        columns = [np.searchsorted(np.quantile(v, (1 / 3, 2 / 3)), v) for v in labels.T]
    kinds = [column == kind for column in columns for kind in np.unique(column)]
    return np.stack([np.ones(len(labels)), *kinds], axis=1)


def _check_sides(train: Clips, val: Clips, modality: str) -> None:
    """Refuse a file that is on both sides; warn of a class that is on the training side only."""

    def files(clip: AnyClip) -> list[str]:
        read = {"v": clip.video, "a": clip.audio}
        return [os.path.abspath(read[stream] or "") for stream in modality]

    first, second = ({path: clip for clip in side for path in files(clip)} for side in (train, val))
    for path in second.keys() & first.keys():
        one, other = name_of(first[path]), name_of(second[path])
        text = f"'{path}' belongs to a training clip, '{one}', and to the validation clip '{other}'"
        raise ValueError(f"{text}, expected one; mend train.csv or the speakers")
    classes = [{c.label for c in side if isinstance(c.label, int)} for side in (train, val)]
    if missing := ", ".join(map(str, sorted(classes[0] - classes[1]))):
        text = "no validation clip is of class %s: too few speakers or items have it; see %s"
        logger.warning(text, missing, "--val_share and --seed")


def take_share(clips: Sequence[AnyClip], share: float, seed: int) -> list[AnyClip]:
    """Draw a share in (0, 1] of the clips of every class, at least one; of a regression, of all.

    The seed alone orders the clips of a class, and the first ones are taken, so a smaller share is
    part of a larger one. Returns single clips, whoever speaks, in list order.
    """
    classes = np.array([clip.label if isinstance(clip.label, int) else 0 for clip in clips])
    chosen: list[int] = []
    for label in np.unique(classes).tolist():
        order = np.random.default_rng((_SHARE, seed, label))
        members = order.permutation(np.flatnonzero(classes == label))
        chosen += members[: max(1, round(share * len(members)))].tolist()
    return [clips[index] for index in sorted(chosen)]


def item_name(video: str, fields: int) -> str:
    """Return the first `fields` "_" fields of a clip's base name; ValueError where it has fewer."""
    parts = base_name(video).split("_")
    if len(parts) < fields:
        text = f"--average_clips {fields} needs names of as many '_' fields"
        raise ValueError(f"{text}, got '{'_'.join(parts)}'")
    return "_".join(parts[:fields])


def group_clips(videos: Sequence[str], labels: Sequence[Any], fields: int) -> dict[str, list[int]]:
    """Return the positions of each item's clips, items in the order of their first clips.

    An item (see `item_name`) is a longer recording, such as AVCAffe's tasks, of which clips are
    pieces; ValueError where labels (classes or regression targets) of an item differ.
    """
    items: dict[str, list[int]] = {}
    for index, video in enumerate(videos):
        first = items.setdefault(item_name(video, fields), [])
        first.append(index)
        if not np.array_equal(labels[first[0]], labels[index]):
            item = f"'{videos[first[0]]}' and '{video}' are one item by --average_clips {fields}"
            found = f"but have the labels {labels[first[0]]} and {labels[index]}"
            raise ValueError(f"clips {item}, {found}, expected the same; check list and number")
    return items


class Lists(NamedTuple):
    """The clips of a fold, where those for validation come from, and what was held out or drawn."""

    train: Clips
    val: Clips
    test: Clips
    val_file: str
    tables: dict[str, dict[str, list[str]]]  # csv files for the results: columns by name
    val_is_test: bool


def read_lists(
    folder: Path,
    read: Callable[[Path], Clips],
    output_dir: Path,
    *,
    val_path: str,
    val_split: str,
    val_share: float,
    label_share: float,
    speakers: tuple[str, str, str],
    average_clips: int,
    seed: int,
    modality: str,
) -> Lists:
    """Read train.csv and test.csv, and choose what to validate on and how much to train on.

    `read` reads each list of the folder. Clips to validate on are those of `val_path` ("": val.csv,
    else test.csv) with the `val_split` "list"; with "speaker" or "clip" `val_share` of train.csv is
    held out instead, where `speakers` are the last arguments of `find_speakers` and `average_clips`
    tells items (see `group_clips`; 0: each clip is one). `label_share` of the rest is trained on.
    The tables of `Lists` will be in `output_dir`; `modality` names the streams that are read.
    """
    train, test = read(folder / "train.csv"), read(folder / "test.csv")
    given, tables = Path(val_path) if val_path else find_list(folder / "val.csv"), {}
    if val_split == "list":
        val_file = given or folder / "test.csv"
        val = test if val_file == folder / "test.csv" else read(val_file)
    else:
        groups = [name_of(clip) for clip in train]  # what stays on one side
        if val_split == "speaker":
            groups = find_speakers(groups, folder, *speakers)
        elif average_clips:
            groups = [item_name(video, average_clips) for video in groups]
        train, val, owners = hold_out(train, groups, val_share, seed, modality)
        val_file = output_dir / HOLDOUT_FILE
        speaker = {"speaker": owners} if val_split == "speaker" else {}
        tables[HOLDOUT_FILE] = {"clip": [name_of(clip) for clip in val], **speaker}
    for clips in (val, test) if average_clips else ():  # their items must have one label each
        group_clips([*map(name_of, clips)], [clip.label for clip in clips], average_clips)
    if label_share < 1:
        total, train = len(train), take_share(train, label_share, seed)
        counts = Counter(clip.label for clip in train if isinstance(clip.label, int))
        spread = f" (by class {dict(sorted(counts.items()))})" if counts else ""
        logger.info("%d of %d training clips%s, see %s", len(train), total, spread, SHARE_FILE)
        tables[SHARE_FILE] = {"clip": [name_of(clip) for clip in train]}
    if same := val == test:
        logger.warning(
            "the best epoch is chosen on %s, the same clips as the test list, as in the published "
            "protocol: best-epoch results are optimistic, last-epoch results are not, and "
            "probabilities stay uncalibrated",
            val_file,
        )
    else:
        logger.info("the best epoch is chosen on %s, apart from the test list", val_file)
    logger.info("clips: train %d, validation %d, test %d", len(train), len(val), len(test))
    return Lists(train, val, test, str(val_file), tables, same)
