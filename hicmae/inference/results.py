"""What a model says about a clip, and how it is written down."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hicmae.io import whole_file


@dataclass(frozen=True)
class WindowResult:
    """What is said about a stretch of a clip.

    Attributes:
        start, end: seconds from the first frame.
        scores: probability by class, or value by output; {} where nothing can be said.
        status: why not, or what was missing; "" where nothing was.
    """

    start: float
    end: float
    scores: dict[str, float]
    status: str = ""

    @property
    def label(self) -> str | None:
        """The likeliest class; for values the one that is largest."""
        return max(self.scores, key=self.scores.__getitem__) if self.scores else None


@dataclass(frozen=True)
class Prediction:
    """What a model says about one face, or the voice, of a clip.

    Attributes:
        file: the clip.
        task: "classification" or "regression".
        scores: mean over the windows: probability by class name, or value by output name.
        windows: in order of time; they overlap.
        person: 0 for the main face; others with faces="all".
        notes: what the user should know, e.g. that there was no sound.
        boxes: (n, 5) seconds, left, top, right, bottom of the face in pixels; (0, 5) without.
    """

    file: str
    task: str
    scores: dict[str, float]
    windows: tuple[WindowResult, ...]
    person: int = 0
    notes: tuple[str, ...] = ()
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 5)), repr=False, compare=False)

    @property
    def label(self) -> str | None:
        """The likeliest class; None in regression."""
        if self.task == "regression":
            return None
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability by class; {} in regression."""
        return {} if self.task == "regression" else self.scores

    @property
    def values(self) -> dict[str, float]:
        """Value by output; {} in classification."""
        return self.scores if self.task == "regression" else {}

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last window."""
        return self.windows[-1].end

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        kind = "values" if self.task == "regression" else "probabilities"
        windows = [
            {"start": round(w.start, 3), "end": round(w.end, 3), kind: w.scores, "status": w.status}
            for w in self.windows
        ]
        return {
            "file": self.file,
            "status": "done",
            "person": self.person,
            "duration": round(self.duration, 3),
            "label": self.label,
            kind: self.scores,
            "notes": list(self.notes),
            "windows": windows,
        }


@dataclass(frozen=True)
class Failure:
    """Why nothing can be said about a clip."""

    file: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"file": self.file, "status": "failed", "reason": self.reason}


Result = Prediction | Failure


def write_csv(path: str | Path, results: Iterable[Result], names: Sequence[str]) -> None:
    """Write a row for each result: file, person, status, reason, seconds, label, scores."""
    header = ["file", "person", "status", "reason", "seconds", "label", *names]
    rows: list[list[Any]] = [header]
    for result in results:
        if isinstance(result, Failure):
            rows.append([result.file, "", "failed", result.reason, "", "", *[""] * len(names)])
            continue
        scores = [f"{result.scores[name]:.6f}" for name in names]
        seconds, notes = f"{result.duration:.2f}", "; ".join(result.notes)
        rows.append(
            [result.file, result.person, "done", notes, seconds, result.label or "", *scores]
        )
    _write_rows(path, rows)


def write_windows_csv(path: str | Path, results: Iterable[Result], names: Sequence[str]) -> None:
    """Write a row for each window of each result: file, person, start, end, label, scores."""
    rows: list[list[Any]] = [["file", "person", "start", "end", "status", "label", *names]]
    for result in results:
        if isinstance(result, Failure):
            continue
        for window in result.windows:
            scores = [f"{window.scores[n]:.6f}" if window.scores else "" for n in names]
            label = (window.label or "") if result.task == "classification" else ""
            span = f"{window.start:.3f}", f"{window.end:.3f}"
            rows.append([result.file, result.person, *span, window.status, label, *scores])
    _write_rows(path, rows)


def write_json(path: str | Path, results: Iterable[Result]) -> None:
    """Write all there is, windows too, as a list of objects."""
    content = [result.to_dict() for result in results]
    with whole_file(path) as part:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def table(results: Iterable[Result], names: Sequence[str]) -> str:
    """Return a text table for the terminal: a row for each result."""
    rows = [["file", "s", *_headings(names), "note"]]
    for result in results:
        name = Path(result.file).name
        if isinstance(result, Failure):
            rows.append([name, "", *[""] * len(_headings(names)), result.reason])
            continue
        if result.person:
            name += f" (person {result.person + 1})"
        rows.append([name, f"{result.duration:.1f}", *_cells(result), "; ".join(result.notes)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _headings(names: Sequence[str]) -> list[str]:
    return ["answer"] if not names else ["answer", "next"]


def _cells(result: Prediction) -> list[str]:
    """Return the two likeliest classes, or all values in one cell."""
    if result.task == "regression":
        return ["  ".join(f"{name} {value:.3f}" for name, value in result.values.items()), ""]
    best = sorted(result.scores.items(), key=lambda item: -item[1])[:2]
    return [f"{name} {100 * p:.1f} %" for name, p in best]


def _write_rows(path: str | Path, rows: list[list[Any]]) -> None:
    with (
        whole_file(path) as part,
        open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
