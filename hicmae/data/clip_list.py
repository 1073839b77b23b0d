"""Lists of clips, and the names of classes and regression outputs.

A list is what the `csv` module calls delimiter " ", quote character '"', minimal quoting, one clip
a line and no header, so that names with spaces, quotes or line breaks survive; several blanks are
one. Bytes of a name that are not UTF-8 survive as well (surrogateescape, as `os` does).

A folder of shards, or the index of one, may stand in place of a list; a folder `train` with shards
stands for `train.csv` beside it.
"""

import contextlib
import csv
import functools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hicmae.data.media import AUDIO_SUFFIXES
from hicmae.data.shards import PackedClip, is_packed, read_packed
from hicmae.data.video import NOT_READ, voxceleb2_box
from hicmae.io import whole_file

logger = logging.getLogger(__name__)

# VoxCeleb2 as its authors ship it keeps the sound in a tree of its own.
_VOXCELEB_VIDEO, _VOXCELEB_AUDIO = "video/file~/dev/mp4", "audio/file~/dev/aac"

Label = int | tuple[float, ...] | None  # class index, regression targets, none in pre-training


FIELDS = "fields (blanks separate them; a name with blanks stands in double quotes)"


class Clip(NamedTuple):
    """One line of a list: a video file or a folder of frames, a wav file, a label."""

    video: str
    audio: str | None
    label: Label


AnyClip = Clip | PackedClip


def name_of(clip: AnyClip) -> str:
    """Return what a clip is called: its video, or its sound where the list names no video."""
    return clip.audio if clip.video == NOT_READ and clip.audio else clip.video


def find_list(path: str | Path) -> Path | None:
    """Return a list file, or the shards that stand for it; None where there is neither."""
    path = Path(path)
    if path.is_file() or is_packed(path):
        return path
    shards = path.with_suffix("")
    return shards if path.suffix == ".csv" and is_packed(shards) else None


def read_pretrain_list(path: str | Path, data_root: str = "") -> Sequence[AnyClip]:
    """Read lines `<video.mp4> <int>`, or `<video.mp4> <audio.wav> <int>`; the integer is ignored.

    Without a second name the wav is `wav_of` the video. `path` is a list file, or its folder with
    train.csv; a folder of shards, or one index. Relative names are joined to `data_root`.
    """
    path = Path(path)
    if path.is_dir() and not is_packed(path):
        path = path / "train.csv"

    def parse(fields: list[str]) -> Clip:
        if len(fields) not in (2, 3):
            raise ValueError(f"got {len(fields)} {FIELDS}")
        _integer(fields[-1])
        video = os.path.join(data_root, fields[0])
        audio = os.path.join(data_root, fields[1]) if len(fields) == 3 else wav_of(video)
        return Clip(video, audio, None)

    return _read(path, parse, "'<video.mp4> <int>' or '<video.mp4> <audio.wav> <int>'")


def source_crop_of(path: object) -> str:
    """Return "voxceleb2" where the path of a list says so, which is how the original decides."""
    return "voxceleb2" if "voxceleb2" in str(path) else "none"


def decide_source_crop(
    choice: str, path: str | Path, clips: Sequence[AnyClip], input_size: int
) -> str:
    """Decide whether films are cut to the face, and say so: "voxceleb2" or "none".

    The choice "auto" asks the path of the list, see `source_crop_of`. Shards stay as they were
    packed; ValueError where that does not fit the choice or the size.
    """
    decided, why = choice, "as asked"
    packed = [shard for shard in getattr(clips, "shards", ()) if shard.source_crop]
    if choice == "auto" and packed:
        decided, why = packed[0].source_crop, "as packed"
    elif choice == "auto":
        decided, why = source_crop_of(path), f"by the path of the list, '{path}'"
    box = voxceleb2_box(input_size) if decided == "voxceleb2" else None
    for shard in packed:
        cut = voxceleb2_box(shard.input_size) if shard.source_crop == "voxceleb2" else None
        if shard.source_crop != decided or (cut and cut != box):
            raise ValueError(
                f"shard '{shard.path}' is packed with --source_crop {shard.source_crop} for "
                f"--input_size {shard.input_size}, expected --source_crop {decided} and "
                f"--input_size {input_size}, as all shards; pack the films again"
            )
    kept = "columns {0} to {2}, rows {1} to {3}".format(*box) if box else "all"
    logger.info("--source_crop %s (%s): %s of 224 x 224 frames", decided, why, kept)
    return decided


def read_labelled_list(
    path: str | Path,
    task: str = "classification",
    num_classes: int | None = None,
    data_root: str = "",
) -> Sequence[AnyClip]:
    """Read lines `<video> <audio.wav> <label>`, or several numbers as label for regression.

    `path` and `data_root` are as in `read_pretrain_list`. `num_classes` bounds the class indices;
    for a regression it is the number of targets, which the first line fixes where it is not given.
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    is_class, count = task == "classification", num_classes

    def parse(fields: list[str]) -> Clip:
        nonlocal count
        if len(fields) < 3 or (is_class and len(fields) > 3):
            raise ValueError(f"got {len(fields)} {FIELDS}")
        label: Label = _integer(fields[2]) if is_class else tuple(map(_number, fields[2:]))
        count = _checked_count(label, is_class, count)
        video, audio = (_below(data_root, name) for name in fields[:2])
        return Clip(video, audio, label)

    label_form = "<class index>" if is_class else "<number> ..."
    clips = _read(Path(path), parse, f"'<video> <audio.wav> {label_form}'")
    for clip in clips:
        if isinstance(clip, PackedClip):
            try:
                _checked_count(clip.label, is_class, num_classes)
            except ValueError as error:
                raise ValueError(
                    f"shard '{clip.shard.path}': clip '{clip.video}': {error}, for {task}; "
                    "pack the list with the same --task"
                ) from None
    return clips


def read_any_list(path: str | Path, data_root: str = "") -> list[tuple[AnyClip, list[str]]]:
    """Read lines `<video> [<audio.wav>] [<label> ...]` of either stage, or shards.

    Returns the clips and the fields of their labels. The sound of a line without one is the wav
    beside its video; where there is none, or with a folder of frames, it is the video's own: None.
    """
    labels: list[list[str]] = []

    def parse(fields: list[str]) -> Clip:
        video, label = _below(data_root, fields[0]), fields[1:]
        audio: str | None = wav_of(video)
        if label and (
            label[0] == NOT_READ or os.path.splitext(label[0])[1].lower() in AUDIO_SUFFIXES
        ):
            audio = _below(data_root, label.pop(0))
        elif os.path.isdir(video) or audio == video or not os.path.isfile(str(audio)):
            audio = None
        labels.append(label)
        return Clip(video, audio, None)

    clips = _read(Path(path), parse, "'<video> [<audio.wav>] [<label> ...]'")
    for clip in clips if not labels else ():
        values = clip.label if isinstance(clip.label, tuple) else [clip.label]
        labels.append([str(value) for value in values if value is not None])
    return list(zip(clips, labels, strict=True))


def write_list(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a list; a reader sees the old file or the whole new one. Clips without label get 0."""
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
    with whole_file(path) as part, part.open("w", newline="", **options) as file:
        writer = csv.writer(file, delimiter=" ", lineterminator="\n")
        for video, audio, label in clips:
            labels = label if isinstance(label, tuple) else (label or 0,)
            writer.writerow([video, *([] if audio is None else [audio]), *labels])


def wav_of(video: str) -> str:
    """Return the wav of a pre-training video: beside it, for VoxCeleb2 in a tree of its own."""
    return os.path.splitext(video.replace(_VOXCELEB_VIDEO, _VOXCELEB_AUDIO))[0] + ".wav"


def _read(path: Path, parse: Callable[[list[str]], Clip], expected: str) -> Sequence[AnyClip]:
    found = find_list(path)
    if found is None:
        raise FileNotFoundError(f"list '{path}' does not exist, expected a file; check the path")
    if is_packed(found):
        return read_packed(found)
    clips: list[Clip] = []
    fields, end = [""], 0  # end of the row before: a quote left open swallows all lines after it
    with open(found, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=" ", skipinitialspace=True, strict=True)
        try:
            for fields in reader:
                if fields and not fields[-1]:
                    fields.pop()  # of blanks at the end of a line
                if not all(fields):
                    raise ValueError("got an empty field")
                if fields:
                    clips.append(parse(fields))
                end = reader.line_num
        except csv.Error as error:
            raise ValueError(f"{path}:{end + 1}: expected {expected}, got: {error}") from None
        except ValueError as error:
            line = " ".join(fields)[:200]
            form = "; save it as UTF-8" * ("\0" in line)
            raise ValueError(
                f"{path}:{reader.line_num}: expected {expected}, {error}{form}: {line!r}"
            ) from None
    if not clips:
        raise ValueError(f"{path}:1: expected at least one line {expected}, got an empty list")
    return clips


def _checked_count(label: Label, is_class: bool, count: int | None) -> int | None:
    """Return how many classes or targets there are; ValueError for a label that is not of them."""
    if is_class:
        if not isinstance(label, int) or label < 0 or (count is not None and label >= count):
            most = "" if count is None else f" to {count - 1} (--nb_classes {count})"
            hint = "; count classes from 0" if label == count else ""
            raise ValueError(f"got class {label}, expected 0{most or ' or more'}{hint}")
        return count
    if not isinstance(label, tuple) or not label or len(label) != (count or len(label)):
        raise ValueError(
            f"got targets {label}, expected {count or 'some'} numbers (--nb_classes {count})"
        )
    return len(label)


def _below(data_root: str, name: str) -> str:
    return name if name == NOT_READ else os.path.join(data_root, name)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"got {text!r} where an integer belongs") from None


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise ValueError(f"got {text!r} where a finite number belongs")


# Names of classes and outputs, in the order of their numbers in the lists of preprocess/, which is
# that of the published protocols.
DATA_SETS = {
    ("cremad", 6): "ANG DIS FEA HAP NEU SAD",
    ("cremad", 4): "ANG HAP NEU SAD",
    ("mafw", 11): "anger disgust fear happiness neutral sadness surprise contempt anxiety "
    "helplessness disappointment",
    ("dfew", 7): "happy sad neutral angry surprise disgust fear",
    ("mer2023", 6): "neutral angry happy sad worried surprise",
    ("ravdess", 8): "neutral calm happy sad angry fearful disgust surprised",
    ("iemocap", 4): "ang hap neu sad",
    ("mspimprov", 4): "A H N S",
    ("avcaffearousal", 5): "Excited Wide-awake Neutral Dull Calm",
    ("avcaffevalence", 5): "Pleasant Pleased Neutral Unsatisfied Unpleasant",
    ("werewolfxl", 3): "valence arousal dominance",
}


def data_set_names(data_set: str, count: int) -> tuple[str, ...]:
    """Return the names of a known data set's classes, () for an unknown one.

    Case and punctuation do not matter. AVCAffe has two sets: "avcaffe arousal", "avcaffe valence".
    """
    return tuple(DATA_SETS.get((re.sub(r"[^a-z0-9]", "", data_set.lower()), count), "").split())


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read a file of names, one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"'{path}' is no file; expected the names of classes or outputs, one a line"
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise ValueError(
            f"{path}:{line}: expected UTF-8, got other bytes; save it as UTF-8"
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def chosen_names(chosen: Sequence[str], count: int) -> tuple[str, ...]:
    """Read --class_names, `count` different names: themselves, a file of them, or a data set's."""
    names = tuple(chosen)
    if len(names) == 1:
        names = data_set_names(names[0], count) or read_names(names[0])
    if len(names) != count:
        raise ValueError(
            f"--class_names gives {len(names)} names ({', '.join(names)[:80]}), expected {count}, "
            "one for each class or output"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--class_names gives the name '{twice[0]}' twice; names must differ")
    return names


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def names_of_run(settings: dict[str, Any], task: str, count: int) -> tuple[str, ...]:
    """Return the names for a model by the settings it was trained with.

    The flag --class_names comes first, then classes.txt (regression: targets.txt) in the folder of
    the lists or in the one above, then the table of known data sets, then "class 0", "class 1".
    """
    if settings.get("class_names"):
        return chosen_names(settings["class_names"], count)
    word, file = ("class", "classes.txt") if task == "classification" else ("output", "targets.txt")
    folder = Path(settings["data_path"]) if settings.get("data_path") else None
    for path in (folder / file, folder.parent / file) if folder else ():
        if path.is_file():
            names = read_names(path)
            if len(names) == count == len(set(names)):
                return names
            _warn_once(f"{path} is unused: {len(set(names))} different names for {count} outputs")
    known = data_set_names(str(settings.get("data_set") or ""), count)
    return known or tuple(f"{word} {k}" for k in range(count))
