"""Lists of clips, and the names of classes and regression outputs.

A list is what the `csv` module calls delimiter " ", quote character '"', minimal quoting, one clip
a line and no header, so that names with spaces, quotes or line breaks survive; several blanks are
one. Bytes of a name that are not UTF-8 survive as well (surrogateescape, as `os` does).

A folder of shards, or the index of one, may take the place of a list; a folder `train` with shards
stands for `train.csv` beside it. `preprocess/pack_clips.py` writes beside each shard `NAME.tar` its
`NAME.index.json`.
"""

import csv
import json
import logging
import math
import operator
import os
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hicmae.data.media import AUDIO_SUFFIXES
from hicmae.data.video import NOT_READ, VOXCELEB2_SIZE, source_box
from hicmae.io import one_line, write_csv

logger = logging.getLogger(__name__)

# VoxCeleb2 as its authors ship it keeps the sound in a tree of its own.
_VOXCELEB_VIDEO, _VOXCELEB_AUDIO = "video/file~/dev/mp4", "audio/file~/dev/aac"

Label = int | tuple[float, ...] | None  # class index, regression targets, none in pre-training

SUFFIX, FORMAT = ".index.json", "hicmae-shard-1"  # of the index of a shard

FIELDS = "fields (blanks separate them; a name with blanks goes in double quotes)"


class Clip(NamedTuple):
    """One line of a list: a video file or a folder of frames, a wav file, a label."""

    video: str
    audio: str | None
    label: Label


class Shard(NamedTuple):
    """A tar file of clips: its path, and its size in bytes.

    With the `source_crop` "voxceleb2" frames are already cut for `input_size`, with "none" they are
    whole; older indexes do not say. `sha256`, of all bytes, tells it from what is packed later.
    """

    path: str
    size: int
    source_crop: str = ""
    input_size: int = 160
    sha256: str = ""


class PackedClip(NamedTuple):
    """A clip in a shard; the first three fields are those of `Clip`, names instead of paths.

    The last three are offset and size in the shard, in bytes, of each member of the clip.
    """

    video: str
    audio: str | None
    label: Label
    shard: Shard
    info: tuple[int, int]
    frames: tuple[int, int]
    wav: tuple[int, int]


AnyClip = Clip | PackedClip


class ClipList(Sequence[Any]):
    """Clips, made when they are asked for: a million of them weigh little, on workers nothing.

    Names are in one array, as a forked worker copies every Python object that it looks at.

    Attributes:
        shards: in which the clips are packed, in order of their names; none where they are files.
        shard_of: (clips,) int32, the shard of each packed clip; clips of a shard are together.
    """

    def __init__(self, indexes: Iterable[Path] = ()) -> None:
        self._text, self._ends, self._labels = bytearray(), array("q", [0]), list[Label]()
        self.shards, self._places, counts = list[Shard](), array("q"), list[int]()
        for shard, rows in map(read_index, indexes):
            self.shards.append(shard)
            counts.append(len(rows))
            for video, audio, label, *places in rows:
                self.add(video, audio, tuple(label) if isinstance(label, list) else label)
                self._places.extend(places)
        numbers = np.arange(len(counts), dtype=np.int32)
        self.shard_of = np.repeat(numbers, counts) if counts else None

    def add(self, video: str, audio: str | None, label: Label) -> None:
        """Add a clip; a file without a wav gets `wav_of` its video."""
        for name in (video, audio or ""):
            self._text += name.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))
        self._labels.append(label)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        """Return a clip, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative numbers, and IndexError
        start, middle, end = self._ends[2 * index : 2 * index + 3]
        video = self._text[start:middle].decode("utf-8", "surrogatepass")
        audio = self._text[middle:end].decode("utf-8", "surrogatepass") or None
        if self.shard_of is None:
            return Clip(video, audio or wav_of(video), self._labels[index])
        numbers, shard = self._places[6 * index : 6 * index + 6], self.shards[self.shard_of[index]]
        places = zip(numbers[::2], numbers[1::2], strict=True)
        return PackedClip(video, audio, self._labels[index], shard, *places)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(map(operator.eq, self, other))  # as they are made: there may be a million


def name_of(clip: AnyClip) -> str:
    """Return what a clip is called: its video, or its sound where the list names no video."""
    return clip.audio if clip.video == NOT_READ and clip.audio else clip.video


def find_list(path: str | Path) -> Path | None:
    """Return a list file, or the shards that stand for it; None where there is neither."""
    path = Path(path)
    if path.is_file() or indexes_of(path):
        return path
    shards = path.with_suffix("")
    return shards if path.suffix == ".csv" and indexes_of(shards) else None


def read_pretrain_list(path: str | Path, data_root: str = "") -> ClipList:
    """Read lines `<video.mp4> <int>`, or `<video.mp4> <audio.wav> <int>`; the integer is ignored.

    Without a second name the wav is `wav_of` the video. `path` is a list, its folder with
    train.csv, a folder of shards, or one index. Relative names are joined to `data_root`.
    """
    path, clips = Path(path), ClipList()
    if path.is_dir() and not indexes_of(path):
        path = path / "train.csv"

    def take(fields: list[str]) -> None:
        if len(fields) not in (2, 3):
            raise ValueError(f"got {len(fields)} {FIELDS}")
        _number(fields[-1], int)
        audio = _below(data_root, fields[1]) if len(fields) == 3 else None
        clips.add(_below(data_root, fields[0]), audio, None)

    form = "'<video.mp4> <int>' or '<video.mp4> <audio.wav> <int>'"
    return _read(path, take, form) or clips


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
    if choice == "auto":
        decided, why = source_crop_of(path), f"by the path of the list, '{path}'"
        if packed:
            decided, why = packed[0].source_crop, "as packed"
    box = source_box(decided, input_size, *VOXCELEB2_SIZE)
    for shard in packed:
        cut = source_box(shard.source_crop, shard.input_size, *VOXCELEB2_SIZE)
        if (shard.source_crop, cut) != (decided, box):
            found = f"--source_crop {shard.source_crop} for --input_size {shard.input_size}"
            wanted = f"--source_crop {decided} and --input_size {input_size}, as all shards"
            text = f"shard '{shard.path}' is packed with {found}, expected {wanted}"
            raise ValueError(f"{text}; pack the films again")
    text = "--source_crop %s (%s): columns %d to %d, rows %d to %d of 224 x 224 frames"
    logger.info(text, decided, why, *box[::2], *box[1::2])
    return decided


def read_labelled_list(
    path: str | Path,
    task: str = "classification",
    num_classes: int | None = None,
    data_root: str = "",
) -> ClipList:
    """Read lines `<video> <audio.wav> <label>`, or several numbers as label for regression.

    `path` and `data_root` are as in `read_pretrain_list`. `num_classes` bounds the class indices;
    for a regression it is the number of targets, which the first line fixes where it is not given.
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    is_class, count, clips = task == "classification", num_classes, ClipList()

    def take(fields: list[str]) -> None:
        nonlocal count
        if len(fields) < 3 or (is_class and len(fields) > 3):
            raise ValueError(f"got {len(fields)} {FIELDS}")
        numbers = [_number(field, int if is_class else float) for field in fields[2:]]
        label: Label = numbers[0] if is_class else tuple(numbers)
        count = _checked_count(label, is_class, count)
        clips.add(_below(data_root, fields[0]), _below(data_root, fields[1]), label)

    label_form = "<class index>" if is_class else "<number> ..."
    packed = _read(Path(path), take, f"'<video> <audio.wav> {label_form}'")
    for clip in packed or ():
        try:
            _checked_count(clip.label, is_class, num_classes)
        except ValueError as error:
            where = f"shard '{clip.shard.path}': clip '{clip.video}'"
            advice = "pack the list with the same --task"
            raise ValueError(f"{where}: {error}, for {task}; {advice}") from None
    return packed or clips


def read_any_list(path: str | Path, data_root: str = "") -> ClipList:
    """Read a list of either stage and task; ValueError of the reader that came furthest.

    A line `<video> <wav> 0` is of a class, though a list of pre-training may have it.
    """
    path, errors = Path(path), {}
    regression = partial(read_labelled_list, task="regression")
    for read in (read_labelled_list, regression, read_pretrain_list):
        try:
            return read(path, data_root=data_root)
        except ValueError as error:
            line = str(error).removeprefix(f"{path}:").partition(":")[0]
            errors[int(line)] = error
    raise errors[max(errors)]


def read_rows(path: str | Path, data_root: str = "") -> list[tuple[AnyClip, list[str]]]:
    """Read lines `<video> [<audio.wav>] [<label> ...]` of either stage, or shards.

    Returns the clips and the fields of their labels. The sound of a line without one is the wav
    beside its video; where there is none, or with a folder of frames, it is the video's own: None.
    """
    rows: list[tuple[AnyClip, list[str]]] = []

    def take(fields: list[str]) -> None:
        video, label = _below(data_root, fields[0]), fields[1:]
        if not label and re.search(r"[\t,;\0]", video) and not os.path.exists(video):
            raise ValueError(f"got 1 {FIELDS}")
        audio: str | None = wav_of(video)
        suffix = os.path.splitext(label[0])[1].lower() if label else ""
        if suffix in AUDIO_SUFFIXES or label[:1] == [NOT_READ]:
            audio = _below(data_root, label.pop(0))
        elif os.path.isdir(video) or audio == video or not os.path.isfile(str(audio)):
            audio = None
        rows.append((Clip(video, audio, None), label))

    for clip in _read(Path(path), take, "'<video> [<audio.wav>] [<label> ...]'") or ():
        values = clip.label if isinstance(clip.label, tuple) else [clip.label]
        rows.append((clip, [str(value) for value in values if value is not None]))
    return rows


def write_list(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a list; a reader sees the old file or the whole new one.

    Clips without label, of pre-training, get 0, and their wav is left out where it is `wav_of`.
    """

    def fields(clip: Clip) -> list[object]:
        video, audio, label = clip
        labels = label if isinstance(label, tuple) else (label or 0,)
        is_known = audio is None or (label is None and audio == wav_of(video))
        return [video, *([] if is_known else [audio]), *labels]

    write_csv(path, (), map(fields, clips), delimiter=" ")


def wav_of(video: str) -> str:
    """Return the wav of a pre-training video: beside it, for VoxCeleb2 in a tree of its own."""
    return os.path.splitext(video.replace(_VOXCELEB_VIDEO, _VOXCELEB_AUDIO))[0] + ".wav"


def _read(path: Path, take: Callable[[list[str]], object], expected: str) -> ClipList | None:
    """Give the fields of each line to `take`, which checks them; shards are returned instead."""
    found = find_list(path)
    if found is None:
        if path.parent.is_file():
            raise FileNotFoundError(f"'{path.parent}' is a file; name the folder of {path.name}")
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"list '{path}' {problem}, expected a file; check the path")
    if indexes_of(found):
        return read_packed(found)
    # `end` is that of the row before: a quote left open swallows all lines after it
    is_empty, fields, end = True, [""], 0
    with open(found, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=" ", skipinitialspace=True, strict=True)
        try:
            for fields in reader:
                if fields and not fields[-1]:
                    fields.pop()  # of blanks at the end of a line
                if not all(fields):
                    raise ValueError("got an empty field")
                if fields:
                    take(fields)
                    is_empty = False
                end = reader.line_num
            if is_empty:
                fields, end = [], 0
                raise ValueError("got an empty list")
        except (csv.Error, ValueError) as error:
            line = " ".join(fields)[:200]
            text = f"got: {error}; check the quotes"
            if isinstance(error, ValueError):
                text = f"{error}: {line!r}".replace(r"\x00", "")
            if "NUL" in str(error) or "\0" in line:  # Python 3.10 refuses those of UTF-16 itself
                text += "; save it as UTF-8"
            raise ValueError(f"{path}:{end + 1}: expected {expected}, {text}") from None
    return None


def indexes_of(path: str | Path) -> list[Path]:
    """Return the indexes of the shards in a folder, or the path of one index; else []."""
    path = Path(path)
    if path.is_dir():
        names = sorted(os.listdir(path))
        return [path / name for name in names if name.endswith(SUFFIX) and name[0] != "."]
    return [path] if path.name.endswith(SUFFIX) and path.is_file() else []


def read_packed(path: str | Path) -> ClipList:
    """Read the clips of a folder of shards, or of one index; ValueError where an index is none."""
    return ClipList(indexes_of(path))


def read_index(path: Path) -> tuple[Shard, list[list[Any]]]:
    """Return the shard of an index, and the rows [video, audio, label, *places] of its clips."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {content['format']!r}")
        facts = {name: content[name] for name in Shard._fields[1:] if name in content}
        return Shard(str(path.parent / content["shard"]), **facts), content["clips"]
    except (OSError, LookupError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        advice = "pack its clips again with pack_clips.py"
        raise ValueError(f"index '{path}' cannot be used: {reason}; {advice}") from None


def _checked_count(label: Label, is_class: bool, count: int | None) -> int | None:
    """Return how many classes or targets there are; ValueError for a label that is not of them."""
    if is_class:
        if not isinstance(label, int) or label < 0 or (count is not None and label >= count):
            most = " or more" if count is None else f" to {count - 1} (--nb_classes {count})"
            hint = "; count classes from 0" if label == count else ""
            raise ValueError(f"got class {label}, expected 0{most}{hint}")
        return count
    if not isinstance(label, tuple) or not label or len(label) != (count or len(label)):
        most = f"{count or 'some'} numbers (--nb_classes {count})"
        raise ValueError(f"got targets {label}, expected {most}")
    return len(label)


def _below(data_root: str, name: str) -> str:
    return name if name == NOT_READ or not data_root else os.path.join(data_root, name)


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        if math.isfinite(value := kind(text)):
            return value
    except (ValueError, OverflowError):
        pass
    expected = "an integer" if kind is int else "a finite number"
    raise ValueError(f"got {text!r} where {expected} belongs")


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
        expected = "expected the names of classes or outputs, one a line"
        raise FileNotFoundError(f"'{path}' is no file; {expected}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}': got other bytes than UTF-8; save it as UTF-8") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def chosen_names(chosen: Sequence[str], count: int) -> tuple[str, ...]:
    """Read --class_names, `count` different names: themselves, a file of them, or a data set's."""
    names = tuple(chosen)
    if len(names) == 1:
        names = data_set_names(names[0], count) or read_names(names[0])
    if len(names) != count:
        text = f"--class_names gives {len(names)} names ({', '.join(names)[:80]})"
        raise ValueError(f"{text}, expected {count}, one for each class or output")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--class_names gives the name '{twice[0]}' twice; names must differ")
    return names


_warn_once = cache(logger.warning)


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
            text = "%s is unused: %d different names for %d outputs"
            _warn_once(text, path, len(set(names)), count)
    known = data_set_names(str(settings.get("data_set") or ""), count)
    return known or tuple(f"{word} {k}" for k in range(count))
