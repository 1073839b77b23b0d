"""How clips are read: one table for Python and for flags, which waits for no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from hicmae.config import Refused, Settings, option

FACES = ("auto", "largest", "all", "cut")
PROTOCOLS = ("windows", "test")
MISSING = ("error", "zeros", "drop")


@dataclass(frozen=True)
class Options(Settings):
    """How clips are read."""

    faces: str = option(
        "auto",
        "auto: cut the main face out of videos, take folders of frames as they are; largest: "
        "always cut out the main face: large, near the middle, there for long; all: an answer for "
        "each person; cut: frames are faces",
        choices=FACES,
    )
    window: float | None = option(
        None, "seconds of a sliding window; none: what the model saw at once in training", "> 0"
    )
    overlap: float | None = option(None, "seconds windows share; none: half of one", ">= 0")
    protocol: str = option(
        "windows",
        "windows: slide over the clip; test: the views of run_finetuning.py's test, whose numbers "
        "it gives",
        choices=PROTOCOLS,
    )
    missing_modality: str = option(
        "error",
        "what a model of both streams does without one: error: refuse the clip; zeros: black "
        "frames or silence; drop: leave it out",
        choices=MISSING,
    )

    def _refused(self) -> Refused:
        for item in fields(self):
            if choices := item.metadata["rest"].get("choices"):
                check_choice(item.name, getattr(self, item.name), choices)
        return {}


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
