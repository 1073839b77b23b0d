"""Features of labelled clips, laid out in the plane by t-SNE."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from hicmae.visualize.features import draw_lines, feature_names, features, open_model, read_clips
from hicmae.visualize.style import MARKERS, OKABE_ITO, STYLE, check_format, save_figure

FEWEST = 5  # clips
TITLES = {"fusion_video": "fused video", "fusion_audio": "fused audio"}


def embed(vectors: np.ndarray, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Lay vectors out in the plane.

    Args:
        vectors: (n, width); every column is standardised.
        seed: of the optimisation.
        perplexity: about how many neighbours count; lowered for few vectors.

    Returns:
        (n, 2).
    """
    if len(vectors) < FEWEST:
        raise ValueError(f"t-SNE needs at least {FEWEST} clips, got {len(vectors)}")
    perplexity = min(perplexity, (len(vectors) - 1) / 3)
    scaled = StandardScaler().fit_transform(vectors)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)


def tsne_figure(
    points: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], target: int = 0
) -> Figure:
    """Draw one panel for each set of features.

    Args:
        points: title of a panel -> (n, 2).
        labels: (n,) classes, or (n, K) regression targets.
        names: of the classes or outputs.
        target: which regression output gives the colour.
    """
    with plt.rc_context(STYLE):
        size = (2.1 * len(points) + (0.4 if labels.ndim == 2 else 0.0), 2.75)
        figure, panels = plt.subplots(
            1, len(points), figsize=size, squeeze=False, layout="constrained"
        )
        for axes, (title, place) in zip(panels[0], points.items(), strict=True):
            if labels.ndim == 2:
                image = axes.scatter(*place.T, c=labels[:, target], s=9, cmap="viridis")
            else:
                _draw_classes(axes, place, labels, names)
            axes.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1")
            axes.set_box_aspect(1)
            axes.spines[:].set_visible(True)
        panels[0, 0].set_ylabel("t-SNE 2")
        if labels.ndim == 2:
            figure.colorbar(image, ax=list(panels[0]), label=names[target], fraction=0.05)
        else:
            handles, found = panels[0, 0].get_legend_handles_labels()
            columns = min(len(found), max(2, 2 * len(points)))
            figure.legend(
                handles, found, loc="outside lower center", ncols=columns,
                handletextpad=0.1, columnspacing=1.0, markerscale=1.4,
            )  # fmt: skip
    return figure


def _draw_classes(axes: Axes, place: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        own = labels == k
        # A marker and a colour each: beyond eight classes the markers move on against the colours.
        marker = MARKERS[(k + k // len(OKABE_ITO)) % len(MARKERS)]
        colour = OKABE_ITO[k % len(OKABE_ITO)]
        x, y = place[own].T
        axes.scatter(x, y, s=11, marker=marker, color=colour, alpha=0.8, linewidth=0, label=name)


def tsne(
    checkpoint_file: str | Path,
    data_path: str | Path,
    output: str | Path,
    parts: Sequence[str] = (),
    num_clips: int = 0,
    data_root: str = "",
    device: str = "auto",
    seed: int = 0,
    perplexity: float = 30.0,
    target: int = 0,
) -> Path:
    """Lay out the features of a list by a fine-tuned checkpoint.

    Args:
        checkpoint_file: of fine-tuning.
        data_path: labelled list, or its folder with test.csv.
        output: picture to write.
        parts: panels, of `features.feature_names`; none: each modality, and fused.
        num_clips: that many are drawn from the list; 0: all.
        data_root: folder that relative paths in the list start from.
        device: where to compute.
        seed: of the draw and of t-SNE.
        perplexity: about how many neighbours count.
        target: which output of a regression gives the colour.
    """
    check_format(output)
    opened = open_model(checkpoint_file, device, "fine-tuned")
    config = opened.config
    known = feature_names(config.modality)
    unknown = [part for part in parts if part not in known]
    if unknown:
        choices = ", ".join(known)
        raise ValueError(
            f"--features '{unknown[0]}' is no part of this model's features; use {choices}"
        )
    if not 0 <= target < len(config.names):
        raise ValueError(f"--target {target} is not one of the {len(config.names)} outputs")
    shown = parts or (("video", "audio", "fused") if config.modality == "av" else ("fused",))
    listed = read_clips(config, data_path, data_root)
    clips = [listed[k] for k in draw_lines(len(listed), num_clips, seed)]
    if len(clips) < FEWEST:
        raise ValueError(f"t-SNE needs at least {FEWEST} clips, '{data_path}' has {len(clips)}")
    found = features(opened, clips)
    places = {TITLES.get(p, p): embed(found.values[p], seed, perplexity) for p in shown}
    return save_figure(tsne_figure(places, found.labels, config.names, target), output)
