"""From what was computed of a clip's views to its predictions or features."""

from dataclasses import dataclass, field

import numpy as np

from hicmae.data.clip_list import UnreadableClip
from hicmae.inference.batches import Computed
from hicmae.inference.model_config import ModelConfig
from hicmae.inference.results import Prediction, WindowResult
from hicmae.inference.views import PreparedClip


@dataclass(frozen=True)
class Features:
    """Features of a clip's windows.

    Attributes:
        file: the clip.
        start, end: (W,) seconds of each window.
        arrays: by name of the level, float32 (W, L, D) for every block of an encoder, else (W, D);
            see `EmotionRecognizer.features`.
    """

    file: str
    start: np.ndarray
    end: np.ndarray
    arrays: dict[str, np.ndarray] = field(repr=False)

    def mean(self) -> dict[str, np.ndarray]:
        """Return the mean over the windows by level, (L, D) or (D,)."""
        return {name: array.mean(axis=0) for name, array in self.arrays.items()}


def predictions_of(computed: Computed, config: ModelConfig) -> list[Prediction]:
    """Average the views of each window, and the windows, for each person.

    Raises:
        UnreadableClip: the clip could not be read, or no window could be answered.
    """
    clip = _readable(computed)
    answers = []
    for person in range(clip.num_people):
        windows, means = [], []
        for number, window in enumerate(clip.windows):
            views = [row["scores"].astype(float) for row in computed.rows.get((person, number), [])]
            if views:
                means.append(np.mean(views, axis=0))
            scores = _named(config, means[-1]) if views else {}
            status = clip.missing.get((person, number), "")
            windows.append(WindowResult(window.start, window.end, scores, status))
        if means:
            answers.append(
                Prediction(
                    file=clip.source.path,
                    task=config.task,
                    scores=_named(config, np.mean(means, axis=0)),
                    windows=tuple(windows),
                    person=person,
                    notes=tuple(clip.notes),
                    boxes=_boxes(clip, person),
                )
            )
    if not answers:
        raise _nothing_seen(clip)
    return answers


def features_of(computed: Computed) -> Features:
    """Average the views of each window.

    Raises:
        UnreadableClip: the clip could not be read, or no window has all that is needed.
    """
    clip = _readable(computed)
    keys = sorted(computed.rows)
    if not keys:
        raise _nothing_seen(clip)
    views = [computed.rows[key] for key in keys]
    # Levels that all windows have: in some a stream may be missing.
    names = [name for name in views[0][0] if all(name in rows[0] for rows in views)]
    windows = [clip.windows[window] for _, window in keys]
    return Features(
        file=clip.source.path,
        start=np.array([window.start for window in windows]),
        end=np.array([window.end for window in windows]),
        arrays={
            name: np.stack([np.mean([row[name] for row in rows], axis=0) for rows in views])
            for name in names
        },
    )


def _readable(computed: Computed) -> PreparedClip:
    if isinstance(computed.clip, UnreadableClip):
        raise computed.clip
    return computed.clip


def _nothing_seen(clip: PreparedClip) -> UnreadableClip:
    reasons = ", ".join(sorted(set(clip.missing.values()))) or "it has no window"
    return UnreadableClip(
        f"'{clip.source.path}' has no window with all that the model reads: {reasons}; "
        "missing_modality 'zeros' or 'drop' lets a model of both streams answer from one"
    )


def _named(config: ModelConfig, scores: np.ndarray) -> dict[str, float]:
    return dict(zip(config.names, scores.tolist(), strict=True))


def _boxes(clip: PreparedClip, person: int) -> np.ndarray:
    """Return the (n, 5) times and boxes at which a person was seen."""
    if clip.people is None or clip.looked_at is None:
        return np.empty((0, 5))
    found = clip.people[person]
    times = clip.source.times[clip.looked_at.indices]
    return np.column_stack([times, found.boxes])[found.seen]
