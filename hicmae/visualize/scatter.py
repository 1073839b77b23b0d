"""Predicted against true values of a regression."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hicmae.visualize.style import OKABE_ITO, STYLE

MANY = 2000  # points above which their density is drawn instead


def scatter_figure(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw one panel an output, with the line on which a prediction is right.

    Args:
        truth: (n, K).
        predicted: (n, K).
        names: K outputs.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(names), figsize=(2.5 * len(names), 2.7), squeeze=False, layout="constrained"
        )
        for k, (axes, name) in enumerate(zip(panels[0], names, strict=True)):
            both = np.concatenate((truth[:, k], predicted[:, k]))
            low, high = float(both.min()), float(both.max())
            pad = 0.04 * (high - low) or 0.5
            limits = (low - pad, high + pad)
            if len(truth) > MANY:
                axes.hexbin(truth[:, k], predicted[:, k], gridsize=40, bins="log", cmap="viridis")
            else:
                axes.plot(truth[:, k], predicted[:, k], "o", color=OKABE_ITO[0], ms=2.5, alpha=0.5)
            axes.plot(limits, limits, "--", color="#888888", linewidth=1)
            axes.set(xlim=limits, ylim=limits, aspect="equal", title=name, xlabel="true value")
        panels[0, 0].set_ylabel("predicted value")
    return figure
