"""The official label files of IEMOCAP: when who says what with which emotion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from preprocess.lists.annotations import matched, read_lines

LINE = r"\[([\d.]+) - ([\d.]+)\]\s+(Ses0([1-5])([FM])_\w+_([FM])\w+)\s+(\w+)\s+\[.*\]"
FORM = "'[<start> - <end>] <utterance> <emotion> [<v>, <a>, <d>]'"


class Utterance(NamedTuple):
    """What one actor says, from `start` to `end` in seconds of the dialogue.

    `speaker` is "Ses01F" and so on; `marked` tells the actor with the face markers, after whom the
    dialogue is named.
    """

    name: str
    start: float
    end: float
    emotion: str
    speaker: str
    marked: bool


def read_utterances(path: str) -> Iterator[Utterance]:
    """Yield the utterances of a label file, passing over headings and the votes of raters."""
    for where, line in read_lines(path):
        if line.startswith("["):
            match = matched(LINE, line, where, FORM)
            start, end, name, session, marked, gender, emotion = match.groups()
            times = float(start), float(end)
            yield Utterance(name, *times, emotion, f"Ses0{session}{gender}", marked == gender)
