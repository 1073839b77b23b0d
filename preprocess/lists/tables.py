"""Plain tables of what the lists hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from preprocess.lists.clips import LeftOut
from preprocess.lists.probe import Measured

FEW_SPEAKERS = 24  # more are summed up; speakers.csv has them all

Folds = Mapping[str, Mapping[str, Sequence[Measured]]]


def ascii_table(rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows, the first being the header: first column left, others right."""
    # Names are shown as Python writes them where ASCII has no sign for them: one clip, one line.
    cells = [[ascii(str(value))[1:-1] for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for index, row in enumerate(cells):
        first, *others = zip(row, widths, strict=True)
        parts = [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in others]
        lines.append("  ".join(parts).rstrip())
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def fold_table(folds: Folds, labels: Sequence[str]) -> str:
    """Return clips, speakers, minutes and classes (or means of targets) of every list."""
    rows: list[list[object]] = [["list", "clips", "speakers", "minutes", *labels]]
    for fold, parts in folds.items():
        for part, clips in parts.items():
            speakers = {m.clip.speaker for m in clips} - {None}
            minutes = f"{sum(m.seconds for m in clips) / 60:.1f}"
            rows.append(
                [f"{fold}/{part}", len(clips), len(speakers) or "-", minutes]
                + _label_cells(clips, len(labels))
            )
    return ascii_table(rows)


def speaker_rows(clips: Iterable[Measured], labels: Sequence[str]) -> list[list[object]]:
    """Return the table of speakers: clips, minutes, classes (or means of targets)."""
    groups: dict[str, list[Measured]] = {}
    for measured in clips:
        if measured.clip.speaker is not None:
            groups.setdefault(measured.clip.speaker, []).append(measured)
    rows: list[list[object]] = [["speaker", "clips", "minutes", *labels]]
    for speaker, own in sorted(groups.items()):
        minutes = f"{sum(m.seconds for m in own) / 60:.1f}"
        rows.append([speaker, len(own), minutes, *_label_cells(own, len(labels))])
    return rows


def speaker_table(rows: Sequence[Sequence[object]]) -> str:
    """Lay out few speakers; sum up many."""
    counts = sorted(int(str(row[1])) for row in rows[1:])
    if not counts:
        return "speakers: not known for this data set"
    if len(counts) <= FEW_SPEAKERS:
        return ascii_table(rows)
    return (
        f"{len(counts)} speakers with {counts[0]} to {counts[-1]} clips each, "
        f"median {counts[len(counts) // 2]}; all of them are in speakers.csv"
    )


def duration_line(clips: Sequence[Measured]) -> str:
    """Return the total, mean, shortest and longest duration, and the frames of a clip."""
    seconds = [m.seconds for m in clips]
    frames = [m.frames for m in clips]
    return (
        f"{len(clips)} clips, {sum(seconds) / 3600:.2f} h; a clip lasts {min(seconds):.2f} to "
        f"{max(seconds):.2f} s, mean {sum(seconds) / len(clips):.2f} s, and has {min(frames)} to "
        f"{max(frames)} frames"
    )


def left_out_table(left_out: Sequence[LeftOut]) -> str:
    """Return how many clips were left out for which reason, with an example each."""
    counts = Counter(clip.reason for clip in left_out)
    rows: list[list[object]] = [["left out", "clips", "for example"]]
    for reason, count in counts.most_common():
        example = next(clip.clip for clip in left_out if clip.reason == reason)
        rows.append([reason, count, example[:60]])
    return ascii_table(rows) if counts else "nothing was left out"


def _label_cells(clips: Sequence[Measured], num_labels: int) -> list[object]:
    """Return clips of each class, or the mean of each target."""
    if clips and isinstance(clips[0].clip.label, tuple):
        columns = zip(*(m.clip.label for m in clips), strict=True)
        return [f"{sum(column) / len(clips):.3f}" for column in columns]
    counts = Counter(m.clip.label for m in clips)
    return [counts[index] for index in range(num_labels)]
