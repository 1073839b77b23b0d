"""Who is in a clip: by a table beside the lists, or by the clip's name."""

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

FILE = "clip_speakers.csv"  # what the list scripts of preprocess/ write: clip,speaker

# Data sets whose clips are named after their speakers.
PATTERNS = {
    "crema-d": r"^(10\d\d)_[A-Z]{3}_",
    "ravdess": r"^0[123]-0[12]-0[1-8]-0[12]-0[12]-0[12]-(\d\d)",
    "msp-improv": r"S\d\d[AHNS]-([FM]0[1-6])-",
    "iemocap": r"^(Ses0[1-5])[FM]_\w+_([FM])\w+",
    "werewolf-xl": r"^(\d\d_\d\d)_\d+",
    "avcaffe": r"^(aiim\d{3})_",
}

_ENDING = re.compile(r"(?:_aligned|\.[A-Za-z]\w{1,3})$")


def base_name(path: str) -> str:
    """Return a clip's own name: the last part of its path without `.mp4`, `_aligned` and such."""
    return _ENDING.sub("", PurePath(path).name)


def find_speakers(
    videos: Sequence[str], folder: Path, data_root: str = "", file: str = "", pattern: str = ""
) -> list[str]:
    """Return the speaker of each clip.

    Args:
        videos: names of the clips of a list.
        folder: of that list; `clip_speakers.csv` is looked for in it and in the one above.
        data_root: folder that relative names of the table start from, as in lists.
        file: another table.
        pattern: regular expression, or key of `PATTERNS`, to use instead of a table.

    Raises:
        ValueError: a speaker is unknown; the message says which clip's, or how to name speakers.
    """
    if pattern:
        return _by_pattern(videos, PATTERNS.get(pattern, pattern))
    beside = (path for path in (folder / FILE, folder.absolute().parent / FILE) if path.is_file())
    table = Path(file) if file else next(beside, None)
    if table is None:
        raise ValueError(
            f"--val_split speaker does not know who speaks: neither '{folder}' nor the folder "
            f"above holds {FILE}; make the lists again by their script, which writes it, or give "
            "--speaker_file (csv, columns clip,speaker) or --speaker_pattern (a regular "
            f"expression, or {', '.join(PATTERNS)})"
        )
    return _by_table(videos, read_speakers(table, data_root), table)


def read_speakers(path: Path, data_root: str = "") -> dict[str, str]:
    """Read the columns `clip` and `speaker` of a csv file; others are ignored.

    A clip is listed by its name and, as in lists, by its name below `data_root`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--speaker_file '{path}' does not exist")
    speakers: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if not {"clip", "speaker"} <= set(reader.fieldnames or ()):
            header = ",".join(reader.fieldnames or ())
            raise ValueError(f"{path}:1: expected the columns clip,speaker, got '{header[:80]}'")
        for row in reader:
            clip, speaker = ((row[name] or "").strip() for name in ("clip", "speaker"))
            where = f"{path}:{reader.line_num}"
            if not clip or not speaker:
                raise ValueError(f"{where}: expected a clip and its speaker, got {row}")
            for name in (clip, os.path.join(data_root, clip)):
                if speakers.setdefault(name, speaker) != speaker:
                    raise ValueError(
                        f"{where}: '{name}' has speaker '{speaker}', but '{speakers[name]}' "
                        "before; expected one"
                    )
    return speakers


def _by_table(videos: Sequence[str], speakers: dict[str, str], table: Path) -> list[str]:
    """Look clips up by their whole name, else by `base_name` where that is clear."""
    short: dict[str, set[str]] = {}
    for name, speaker in speakers.items():
        short.setdefault(base_name(name), set()).add(speaker)
    others = Counter(base_name(video) for video in {*videos} - speakers.keys())
    found = []
    for video in videos:
        name = base_name(video)
        known = {speakers[video]} if video in speakers else short.get(name, set())
        if len(known) > 1 or (known and others[name] > 1 and video not in speakers):
            raise ValueError(
                f"'{table}' leaves the speaker of '{video}' open: '{name}' is the name of several "
                "clips; give whole names, as in the list"
            )
        found.append(next(iter(known), ""))
    _check_known(videos, found, f"'{table}' has no line for it")
    return found


def _by_pattern(videos: Sequence[str], pattern: str) -> list[str]:
    """Search the last part of each name, the whole of it where the pattern holds a slash."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--speaker_pattern '{pattern}' is no regular expression: {error}"
        ) from error
    if not expression.groups:
        raise ValueError(
            f"--speaker_pattern '{pattern}' has no group, expected one around the speaker, "
            r"e.g. '^(\d{4})_'"
        )
    whole = "/" in pattern
    matches = [expression.search(v if whole else PurePath(v).name) for v in videos]
    found = ["".join(group or "" for group in m.groups()) if m else "" for m in matches]
    _check_known(videos, found, f"--speaker_pattern '{pattern}' does not match it")
    return found


def _check_known(videos: Sequence[str], speakers: Sequence[str], reason: str) -> None:
    unknown = [video for video, speaker in zip(videos, speakers, strict=True) if not speaker]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(videos)} clips have no known speaker, first "
            f"'{unknown[0]}': {reason}"
        )
