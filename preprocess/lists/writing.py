"""All files that are made of clips: lists, the tables beside them, the reasons for leaving out."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from hicmae.data.clip_list import Clip, write_list
from hicmae.data.splits import SPEAKER_FILE
from hicmae.io import whole_file, write_whole
from preprocess.lists.clips import Candidate

if TYPE_CHECKING:  # imported where tables are made: no --help should wait for it
    import pandas as pd

logger = logging.getLogger(__name__)

Lists = Mapping[str, Sequence[Candidate]]  # by name, such as "split01/train" or "test"


def in_list(clip: Candidate, relative_to: str | None) -> Clip:
    """Return a clip as a list holds it: with absolute paths, or relative to training's --data_root.

    `relative_to` is that folder; None for absolute ones.
    """
    name = os.path.abspath if relative_to is None else partial(os.path.relpath, start=relative_to)
    return Clip(name(clip.video), name(clip.audio), clip.label)


def write_lists(
    output: Path, lists: Lists, labels: Sequence[str], relative_to: str | None = None
) -> None:
    """Write NAME.csv of each list, the names of its labels, and clip_speakers.csv.

    Nothing is written where a list is empty or repeats a clip, or where it shares a clip or a
    speaker with another one of its folder. `labels` go to classes.txt, or targets.txt of a
    regression. The speakers serve --val_split speaker. For `relative_to` see `in_list`.
    """
    check_lists(output, lists)
    speakers: dict[str, str] = {}
    for name, clips in lists.items():
        lines = [in_list(clip, relative_to) for clip in clips]
        write_list(output / f"{name}.csv", lines)
        known = zip(lines, clips, strict=True)
        speakers |= {line.video: clip.speaker for line, clip in known if clip.speaker is not None}
    if speakers:
        write_csv(output / SPEAKER_FILE, ["clip", "speaker"], speakers.items())
    else:
        (output / SPEAKER_FILE).unlink(missing_ok=True)
    if labels:
        kind = "targets" if isinstance(lines[0].label, tuple) else "classes"
        write_whole(output / f"{kind}.txt", "".join(f"{label}\n" for label in labels))


def check_lists(output: Path, lists: Lists) -> None:
    """Refuse lists that are empty, repeat a clip, or share a clip or a speaker in one folder."""
    for name, clips in lists.items():
        path = f"'{output / name}.csv'"
        if not clips:
            raise ValueError(f"no clip is left for {path}, expected at least one; see left_out.csv")
        twice = [clip for clip, count in Counter(c.name for c in clips).items() if count > 1]
        if twice:
            raise ValueError(
                f"{len(twice)} clips are twice in {path}, expected each once: {some(twice)}; "
                "check the files named so"
            )
    for one, other in combinations(lists, 2):
        for things, trait in (("clips", "name"), ("speakers", "speaker")):
            first, second = ({getattr(c, trait) for c in lists[name]} for name in (one, other))
            shared = (first & second) - {None}
            if shared and os.path.dirname(one) == os.path.dirname(other):
                raise ValueError(
                    f"{output}: {len(shared)} {things} are in {one}.csv and in {other}.csv, "
                    f"expected none: {some(shared)}; check the split and the names"
                )


def some(names: Iterable[str], shown: int = 5) -> str:
    """Name a few of many, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(map(repr, ordered[:shown])) + more


def write_left_out(output: Path, clips: Iterable[Candidate]) -> bool:
    """Write left_out.csv, also where nothing was left out, and log how many for which reason.

    Returns whether something was left out.
    """
    path, left_out = output / "left_out.csv", [clip for clip in clips if clip.reason]
    rows = ((clip.name, clip.reason, clip.detail) for clip in left_out)
    write_csv(path, ["clip", "reason", "detail"], rows)
    if left_out:
        import pandas as pd

        first = {clip.reason: clip.name[:60] for clip in reversed(left_out)}
        counts = Counter(clip.reason for clip in left_out).most_common()
        lines = [(count, first[reason]) for reason, count in counts]
        index = pd.Index([reason for reason, _ in counts], dtype=object)
        table = pd.DataFrame(lines, index, ["left out", "for example"], dtype=object)
        logger.info("%s\n(all of them, with details: %s)", table_text(table), path)
    else:
        logger.info("nothing was left out")
    return bool(left_out)


def write_csv(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Write a table whole or not at all; names may hold bytes that are not UTF-8."""
    with (
        whole_file(path) as part,
        open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def as_table(lists: Lists) -> pd.DataFrame:
    """Return a row for each line of each list: the column `list` and the fields of the clip."""
    import pandas as pd

    rows = [(name, *clip) for name, clips in lists.items() for clip in clips]
    return pd.DataFrame(rows, columns=["list", *Candidate._fields], dtype=object)


def totals(clips: pd.DataFrame, by: str, labels: Sequence[str]) -> pd.DataFrame:
    """Count the clips of `as_table`, their speakers, minutes and classes, by a column.

    Of a regression there are the means of the targets. Rows are in the order of the clips.
    """
    groups, label = clips.groupby(by, sort=False), clips["label"]
    table = groups.agg(clips=("name", "size"), speakers=("speaker", "nunique"))
    table["minutes"] = [f"{sum(clip.seconds) / 60:.1f}" for _, clip in groups]
    targets = isinstance(label.iloc[0], tuple)
    for k, name in enumerate(labels):
        value = label.str[k] if targets else label == k
        sums = value.groupby(clips[by], sort=False)
        table[name] = sums.agg(lambda v: f"{sum(v) / len(v):.3f}") if targets else sums.sum()
    return table


def table_text(table: pd.DataFrame) -> str:
    """Lay out a table for the terminal, a line a row, in ASCII whatever its names hold."""

    def plain(value: object) -> str:
        return ascii(str(value))[1:-1]

    shown = table.rename(index=plain, columns=plain).rename_axis(index=None, columns=None)
    return shown.map(plain).to_string()
