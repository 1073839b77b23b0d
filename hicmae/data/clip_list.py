"""Clip records and the space-separated lists they are kept in.

A list is what the `csv` module calls delimiter " ", quote character '"', minimal quoting, one clip
a line and no header, so that names with spaces, quotes or line breaks survive. Bytes of a name that
are not UTF-8 survive as well (surrogateescape, as `os` does).

Where a list is read, a folder of shards, or the index of one, may stand instead (`shard_index`);
`train/` with shards stands for `train.csv` beside it.

Names of classes and regression outputs, in the order of their numbers.
"""

import csv
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hicmae.data.shards import PackedClip, is_packed, read_packed

logger = logging.getLogger(__name__)


_PRETRAIN_LINE = "'<video.mp4> <int>' or '<video.mp4> <audio.wav> <int>'"


_CLASSIFICATION_LINE = "'<video> <audio.wav> <class index>'"


_REGRESSION_LINE = "'<video> <audio.wav> <number> ...'"


# VoxCeleb2 as its authors ship it keeps the sound in a tree of its own.
_VOXCELEB_VIDEO, _VOXCELEB_AUDIO = "video/file~/dev/mp4", "audio/file~/dev/aac"


class Clip(NamedTuple):
    """One line of a list.

    `video` is an mp4 file or a folder of frames, `audio` a wav file. `label` is a class index, a
    tuple of regression targets, or None where there is none (pre-training).
    """

    video: str
    audio: str | None
    label: int | tuple[float, ...] | None


def find_list(path: str | Path) -> Path | None:
    """Return a list file, or the shards that stand for it; None where there is neither."""
    path = Path(path)
    places = [path, path.with_suffix("")] if path.suffix == ".csv" else [path]
    return next((p for p in places if is_packed(p) or (p == path and p.is_file())), None)


def read_pretrain_list(path: str | Path, data_root: str = "") -> Sequence[Clip | PackedClip]:
    """Read lines `<video.mp4> <int>`, or `<video.mp4> <audio.wav> <int>`; the integer is ignored.

    Without a second name the wav stands beside the video under the same name, except for VoxCeleb2,
    where `video/file~/dev/mp4` becomes `audio/file~/dev/aac`.

    Args:
        path: list file, or its folder with train.csv; a folder of shards, or one index.
        data_root: folder that relative names are joined to.
    """
    path = Path(path)
    if path.is_dir() and not is_packed(path):
        path = path / "train.csv"
    if (shards := find_list(path)) and is_packed(shards):
        return read_packed(shards)

    def parse(fields: list[str]) -> Clip:
        if len(fields) not in (2, 3):
            raise ValueError(f"got {len(fields)} fields")
        _integer(fields[-1])
        video = os.path.join(data_root, fields[0])
        audio = os.path.join(data_root, fields[1]) if len(fields) == 3 else wav_of(video)
        return Clip(video, audio, None)

    return _read(path, parse, _PRETRAIN_LINE)


def read_labelled_list(
    path: str | Path,
    task: str = "classification",
    num_classes: int | None = None,
    data_root: str = "",
) -> Sequence[Clip | PackedClip]:
    """Read lines `<video> <audio.wav> <label>`, or several numbers as label for regression.

    Args:
        path: list file, or a folder of shards, or one index.
        task: "classification" or "regression".
        num_classes: upper bound of the class indices; for regression the number of targets.
        data_root: folder that relative names are joined to.
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    if (shards := find_list(path)) and is_packed(shards):
        packed = read_packed(shards)
        for clip in packed:
            _check_packed_label(clip, task, num_classes)
        return packed
    num_targets = num_classes  # of a regression: fixed by the first line when it is not given

    def parse(fields: list[str]) -> Clip:
        nonlocal num_targets
        exact = task == "classification"
        if len(fields) < 3 or (exact and len(fields) > 3):
            raise ValueError(f"got {len(fields)} fields")
        if exact:
            label: int | tuple[float, ...] = _class_index(fields[2], num_classes)
        else:
            label = tuple(_number(field) for field in fields[2:])
            num_targets = num_targets or len(label)
            if len(label) != num_targets:
                raise ValueError(f"got {len(label)} targets instead of {num_targets}")
        return Clip(os.path.join(data_root, fields[0]), os.path.join(data_root, fields[1]), label)

    expected = _CLASSIFICATION_LINE if task == "classification" else _REGRESSION_LINE
    return _read(path, parse, expected)


def write_list(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a list; a reader sees the old file or the whole new one. Clips without label get 0."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, delimiter=" ", lineterminator="\n")
            writer.writerows(_fields(clip) for clip in clips)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the list from colleagues
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def wav_of(video: str) -> str:
    """Return the name of the wav that belongs to a pre-training video."""
    return os.path.splitext(video.replace(_VOXCELEB_VIDEO, _VOXCELEB_AUDIO))[0] + ".wav"


def _fields(clip: Clip) -> list[str]:
    label = clip.label
    labels: Sequence[object] = (
        label if isinstance(label, tuple) else (0 if label is None else label,)
    )
    names = [clip.video] if clip.audio is None else [clip.video, clip.audio]
    return names + [str(value) for value in labels]


def _read(path: str | Path, parse: Callable[[list[str]], Clip], expected: str) -> list[Clip]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"list '{path}' does not exist; check --data_path")
    clips: list[Clip] = []
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=" ", strict=True)
        line = 0  # where the row before ended: a quote left open swallows all lines after it
        try:
            for fields in reader:
                if fields:
                    clips.append(_parsed(parse, fields, expected, f"{path}:{reader.line_num}"))
                line = reader.line_num
        except csv.Error as error:
            raise ValueError(f"{path}:{line + 1}: expected {expected}, got: {error}") from None
    if not clips:
        raise ValueError(f"{path}:1: expected at least one line {expected}, got an empty list")
    return clips


def _parsed(
    parse: Callable[[list[str]], Clip], fields: list[str], expected: str, where: str
) -> Clip:
    try:
        return parse(fields)
    except ValueError as error:
        raise ValueError(
            f"{where}: expected {expected}, {error}: {' '.join(fields)[:200]!r}"
        ) from None


def _check_packed_label(clip: PackedClip, task: str, num_classes: int | None) -> None:
    """Refuse a label that a list of the same task could not have held."""
    label, most = clip.label, num_classes
    if task == "classification":
        fits = isinstance(label, int) and 0 <= label and (most is None or label < most)
    else:
        numbers = label if isinstance(label, tuple) else ()
        fits = bool(numbers) and (most is None or len(numbers) == most)
    if not fits:
        raise ValueError(
            f"shard '{clip.shard.path}': clip '{clip.video}' has label {label}, expected one for "
            f"{task} with --nb_classes {most}; pack the list with the same --task"
        )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"got {text!r} where an integer belongs") from None


def _class_index(text: str, num_classes: int | None) -> int:
    label = _integer(text)
    if label < 0 or (num_classes is not None and label >= num_classes):
        bound = (
            "0 or more"
            if num_classes is None
            else f"0..{num_classes - 1} (--nb_classes {num_classes})"
        )
        raise ValueError(f"got class {label}, which is not {bound}")
    return label


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"got {text!r} where a finite number belongs")
    return value


# In the order of the lists that preprocess/ makes, which is that of the published protocols.
DATA_SETS = {
    ("cremad", 6): ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
    ("cremad", 4): ("ANG", "HAP", "NEU", "SAD"),
    ("mafw", 11): tuple(
        "anger disgust fear happiness neutral sadness surprise contempt anxiety helplessness "
        "disappointment".split()
    ),
    ("ravdess", 8): tuple("neutral calm happy sad angry fearful disgust surprised".split()),
    ("mspimprov", 4): ("A", "H", "N", "S"),
    ("werewolfxl", 3): ("valence", "arousal", "dominance"),
}


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read a file of names, one a line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(
            f"'{path}' is no file; expected the names of classes or outputs, one a line"
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def chosen_names(chosen: Sequence[str], count: int) -> tuple[str, ...]:
    """Read --class_names: the names themselves, one file with a name a line, or a data set's name.

    Args:
        chosen: values of the flag.
        count: number of classes or outputs.

    Raises:
        ValueError: not `count` names, or one twice.
    """
    names = tuple(chosen)
    if len(names) == 1:
        known = data_set_names(names[0], count)
        names = known if known else read_names(names[0])
    return checked(names, count, "--class_names")


def checked(names: Sequence[str], count: int, source: str) -> tuple[str, ...]:
    """Refuse names that are not as many as the outputs, or not distinct."""
    if len(names) != count:
        raise ValueError(
            f"{source} gives {len(names)} names ({', '.join(names)[:80]}), expected {count}, one "
            "for each class or output"
        )
    if len(set(names)) != count:
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"{source} gives the name '{twice}' twice; names must differ")
    return tuple(names)


def data_set_names(data_set: str, count: int) -> tuple[str, ...]:
    """Return the names of a known data set's classes, () for an unknown one."""
    key = re.sub(r"[^a-z0-9]", "", data_set.lower())
    return DATA_SETS.get((key, count), ())


def names_of_run(settings: dict[str, Any], task: str, count: int) -> tuple[str, ...]:
    """Return the names for a model by the settings it was trained with.

    The flag --class_names comes first, then classes.txt (regression: targets.txt) in the folder of
    the lists or in the one above, then the table of known data sets, then "class 0", "class 1".

    Args:
        settings: flags by name.
        task: "classification" or "regression".
        count: number of classes or outputs.
    """
    if settings.get("class_names"):
        return chosen_names(settings["class_names"], count)
    folder = Path(settings.get("data_path") or ".")
    if settings.get("data_path"):
        for place in (folder, folder.parent):
            path = place / ("classes.txt" if task == "classification" else "targets.txt")
            if path.is_file():
                names = read_names(path)
                if len(names) == count == len(set(names)):
                    return names
                logger.warning("%s has %d names for %d outputs: unused", path, len(names), count)
    known = data_set_names(str(settings.get("data_set") or ""), count)
    word = "class" if task == "classification" else "output"
    return known or tuple(f"{word} {k}" for k in range(count))


AnyClip = Clip | PackedClip
