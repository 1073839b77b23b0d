"""The picture of a clip's scores over time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from hicmae.inference.files import whole_file
from hicmae.inference.results import Prediction
from hicmae.visualize.style import OKABE_ITO, STYLE, save_figure

MOST_LINES = len(OKABE_ITO)  # more classes than colours: shades instead of lines
DASHES = ("-", "--", "-.", ":")  # besides the colours, for prints and for eyes that see none


def draw_timeline(predictions: Sequence[Prediction], path: str | Path) -> Path:
    """Draw the scores of each window over time, one panel for each prediction.

    Up to eight classes or outputs are lines at the middles of the windows, more are shades. Grey
    marks time about which nothing can be said.

    Args:
        predictions: of one model.
        path: .png, .pdf or .svg.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not predictions:
        raise ValueError("no clip was answered, so there is no timeline to draw")
    names = list(predictions[0].scores)
    height = 2.2 if len(names) <= MOST_LINES else 0.8 + 0.17 * len(names)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(predictions),
            1,
            figsize=(7.5, height * len(predictions) + 0.4),
            squeeze=False,
            layout="constrained",
        )
        for panel, prediction in zip(axes[:, 0], predictions, strict=True):
            (_lines if len(names) <= MOST_LINES else _shades)(panel, prediction, names)
            panel.set_xlim(0, prediction.duration)
            panel.set_title(_title(prediction), loc="left")
        axes[-1, 0].set_xlabel("time (s)")
        with whole_file(path) as part:
            save_figure(figure, part)
    return Path(path)


def _lines(panel: Axes, prediction: Prediction, names: Sequence[str]) -> None:
    """Draw a line for each class or output; the likeliest class is named by a strip below."""
    centres, scores = _scores(prediction, names)
    marker = "o" if len(centres) <= 40 else None
    for k, name in enumerate(names):
        panel.plot(
            centres,
            scores[:, k],
            color=OKABE_ITO[k],
            linestyle=DASHES[k % len(DASHES)],
            marker=marker,
            markersize=3,
            label=name,
        )
    for window in prediction.windows:
        if not window.scores:
            panel.axvspan(window.start, window.end, color="#dddddd", linewidth=0)
    if prediction.task == "classification":
        panel.set_ylim(-0.08, 1.02)
        panel.set_ylabel("probability")
        for left, right, index in _stretches(prediction, scores):
            panel.axvspan(left, right, 0, 0.06 / 1.1, color=OKABE_ITO[index], linewidth=0)
    else:
        panel.set_ylabel("value")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _shades(panel: Axes, prediction: Prediction, names: Sequence[str]) -> None:
    """Draw a row of shades for each class or output."""
    centres, scores = _scores(prediction, names)
    edges = _edges(centres, prediction.duration)
    image = panel.pcolormesh(
        edges,
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(scores.T),
        cmap="cividis",
        vmin=0 if prediction.task == "classification" else None,
    )
    panel.set_facecolor("#dddddd")
    panel.grid(False)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    what = "probability" if prediction.task == "classification" else "value"
    panel.figure.colorbar(image, ax=panel, label=what, pad=0.01)


def _scores(prediction: Prediction, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles (W,) of the windows and their scores (W, K), nan where there are none."""
    centres = np.array([(window.start + window.end) / 2 for window in prediction.windows])
    rows = [[window.scores.get(name, np.nan) for name in names] for window in prediction.windows]
    return centres, np.array(rows, float)


def _edges(centres: np.ndarray, duration: float) -> np.ndarray:
    """Return where each window's share of the time axis begins and ends, (W + 1,)."""
    return np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [duration]])


def _stretches(prediction: Prediction, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return start, end and likeliest class of each window's share of the time axis."""
    centres = np.array([(window.start + window.end) / 2 for window in prediction.windows])
    edges = _edges(centres, prediction.duration)
    return [
        (edges[k], edges[k + 1], int(row.argmax()))
        for k, row in enumerate(scores)
        if not np.isnan(row).any()
    ]


def _title(prediction: Prediction) -> str:
    person = f", person {prediction.person + 1}" if prediction.person else ""
    if prediction.label is None:
        values = ", ".join(f"{name} {value:.2f}" for name, value in prediction.scores.items())
        return f"{Path(prediction.file).name}{person}: {values}"
    share = 100 * prediction.scores[prediction.label]
    return f"{Path(prediction.file).name}{person}: {prediction.label} ({share:.0f} %)"
