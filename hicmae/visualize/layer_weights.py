"""How much of each encoder block the classifier takes: the learned layer weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hicmae.visualize.features import open_model
from hicmae.visualize.style import MARKERS, OKABE_ITO, STYLE, check_format, save_figure

STREAMS = ("video", "audio")


def layer_weights_of(checkpoint_file: str | Path) -> dict[str, np.ndarray]:
    """Return the share of every block, stream by stream; the shares of a stream sum to 1."""
    model = open_model(checkpoint_file, "cpu", "fine-tuned").model
    weights = model.state_dict()
    names = {stream: f"{stream}_layer_weights" for stream in STREAMS}
    shares = {
        stream: torch.softmax(weights[name].double(), dim=0).numpy()
        for stream, name in names.items()
        if name in weights
    }
    if not shares:
        raise ValueError(
            f"'{checkpoint_file}' has no layer weights to draw: it was fine-tuned with "
            "--no-hierarchical_fusion"
        )
    return shares


def layer_weights_figure(runs: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draw the mean share of each block over runs, every run as a point.

    Args:
        runs: stream -> (L,) shares of each run.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(runs), figsize=(2.7 * len(runs), 2.2), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for number, (axes, (stream, shares)) in enumerate(
            zip(panels[0], runs.items(), strict=True)
        ):
            values = 100 * np.stack(shares)  # (runs, L)
            blocks = np.arange(values.shape[1])
            axes.bar(blocks, values.mean(0), 0.7, color=OKABE_ITO[number], alpha=0.85)
            if len(values) > 1:
                spread = np.linspace(-0.2, 0.2, len(values))
                for shift, own in zip(spread, values, strict=True):
                    axes.plot(blocks + shift, own, MARKERS[0], color="black", markersize=2.5)
            even = 100 / values.shape[1]
            line = axes.axhline(even, color="black", linestyle="--", linewidth=1)
            axes.set_xticks(blocks)
            axes.grid(axis="x", visible=False)
            axes.set(title=f"{stream} encoder", xlabel="encoder block")
            axes.set_ylim(0, max(1.25 * even, 1.15 * float(values.max())))
        panels[0, 0].set_ylabel("layer weight (%)")
        points = [Line2D([], [], color="black", marker="o", markersize=2.5, linestyle="")]
        several = len(shares) > 1
        figure.legend(
            [line, *points[:several]], ["equal weights", *["one run"][:several]],
            loc="outside upper center", ncols=2,
        )  # fmt: skip
    return figure


def layer_weights(checkpoints: Sequence[str | Path], output: str | Path) -> Path:
    """Draw the layer weights of one or several fine-tuned checkpoints, e.g. of all folds."""
    check_format(output)
    found = [layer_weights_of(path) for path in checkpoints]
    for path, shares in zip(checkpoints, found, strict=True):
        shapes = {stream: len(values) for stream, values in shares.items()}
        first = {stream: len(values) for stream, values in found[0].items()}
        if shapes != first:
            raise ValueError(
                f"'{path}' has blocks {shapes}, '{checkpoints[0]}' has {first}; draw models of "
                "one size and modality together"
            )
    runs = {stream: [shares[stream] for shares in found] for stream in found[0]}
    return save_figure(layer_weights_figure(runs), output)
