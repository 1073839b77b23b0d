"""What a model has learned: features laid out by t-SNE, retrieval, weights of encoder blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from hicmae.config import PretrainModelConfig
from hicmae.config.flags import from_flags
from hicmae.inference import forward
from hicmae.inference.style import MARKERS, STYLE, colour
from hicmae.models.encoder import pooled_unit
from hicmae.models.layers import split_tokens
from hicmae.models.pretrain import HiCMAE
from hicmae.visualize.clips import Opened, batches, open_clips, open_model

FEWEST = 5  # clips of t-SNE
RANKS = (1, 5, 10)  # of retrieval
LAYER_WEIGHTS = ("video_layer_weights", "audio_layer_weights")
TITLES = {"fusion_video": "fused video", "fusion_audio": "fused audio"}
# Parts of a model's features by its modality; `fused` is all of them, as the head reads it.
PARTS = {
    "av": ("video", "audio", "fusion_video", "fusion_audio", "fused"),
    "v": ("video", "fused"),
    "a": ("audio", "fused"),
}


@torch.inference_mode()
def features_of(opened: Opened) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compute the features of `hicmae.inference` for the centre window of every clip.

    Returns:
        Each of `PARTS` -> (n, D), fused (n, 4D); and (n,) classes or (n, K) targets.
    """
    found, targets = [], []
    for batch in batches(opened):
        found.append(forward.features(opened.model, batch.video, batch.audio))
        targets.append(batch.target)
    return {
        name: torch.cat([parts[name] for parts in found]).float().cpu().numpy()
        for name in PARTS[opened.settings["modality"]]
    }, torch.cat(targets).cpu().numpy()


def embed(vectors: np.ndarray, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Lay standardised vectors (n, D) out in the plane, (n, 2), by t-SNE."""
    perplexity = min(perplexity, (len(vectors) - 1) / 3)  # neighbours that count
    scaled = StandardScaler().fit_transform(vectors)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)


def tsne_figure(
    points: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], target: int = 0
) -> Figure:
    """Draw one panel for each set of features, title -> (n, 2).

    Labels are (n,) classes, or (n, K) regression targets, of which `target` gives the colour.
    """
    is_regression = labels.ndim == 2
    with rc_context(STYLE):
        figure = Figure((2.1 * len(points) + 0.4 * is_regression, 2.75))
        panels = figure.subplots(1, len(points), squeeze=False)[0]
        for axes, (title, place) in zip(panels, points.items(), strict=True):
            if is_regression:
                image = axes.scatter(*place.T, c=labels[:, target], s=9, cmap="viridis")
            for k, name in enumerate(() if is_regression else names):
                # Beyond eight classes the markers move on against the colours.
                marker = MARKERS[(k + k // len(MARKERS)) % len(MARKERS)]
                look: dict[str, Any] = {"marker": marker, "alpha": 0.8, "linewidth": 0}
                axes.scatter(*place[labels == k].T, 11, colour(k), label=name, **look)
            axes.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1")
            axes.set_box_aspect(1)
            axes.spines[:].set_visible(True)
        panels[0].set_ylabel("t-SNE 2")
        if is_regression:
            figure.colorbar(image, ax=list(panels), label=names[target], fraction=0.05)
        else:
            handles, found = panels[0].get_legend_handles_labels()
            columns = min(len(found), max(2, 2 * len(points)))
            look = {"handletextpad": 0.1, "columnspacing": 1.0, "markerscale": 1.4}
            figure.legend(handles, found, loc="outside lower center", ncols=columns, **look)
    return figure


def tsne(
    features: Sequence[str] = (), perplexity: float = 30.0, target: int = 0, **source: Any
) -> Figure:
    """Draw features of labelled clips laid out by t-SNE, coloured by class.

    Features are a panel each, of `PARTS`; without any, each modality and fused. The output `target`
    of a regression gives the colour; the `source` is that of `open_clips`.
    """
    opened = open_clips("fine-tuned", **source)
    names, known = opened.names, PARTS[opened.settings["modality"]]
    unknown = [part for part in features if part not in known]
    if unknown:
        raise ValueError(
            f"--features '{unknown[0]}' is no part of this model's features; use {', '.join(known)}"
        )
    if not 0 <= target < len(names):
        raise ValueError(f"--target {target} is not one of the {len(names)} outputs")
    if target and opened.settings["task"] != "regression":
        raise ValueError(f"--target {target} is for a regression; this model tells classes apart")
    if len(opened.lines) < FEWEST:
        raise ValueError(f"t-SNE needs at least {FEWEST} clips, got {len(opened.lines)}")
    shown = features or (("video", "audio", "fused") if len(known) > 2 else ("fused",))
    values, labels = features_of(opened)
    places = {
        TITLES.get(part, part): embed(values[part], opened.seed, perplexity) for part in shown
    }
    return tsne_figure(places, labels, names, target)


def recall_at(similarity: np.ndarray, rank: int) -> float:
    """Return how often the match is among the `rank` nearest; ties are broken by lot.

    Rows of the similarity (n, n) are what is searched with, columns what is found; matches are on
    its diagonal.
    """
    match = np.diag(similarity)[:, None]
    nearer = (similarity > match).sum(1)
    equal = (similarity == match).sum(1)  # with the match itself
    return float(np.clip((rank - nearer) / equal, 0.0, 1.0).mean())


@torch.inference_mode()
def pooled_levels(
    opened: Opened, levels: Sequence[int], masked: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute the features that pre-training contrasts after the encoder blocks `levels`.

    Returns:
        Of video and audio, one (n, D) array of unit vectors a level; `masked` hides the tokens
        that training would hide.
    """
    streams: tuple[list, list] = ([], [])
    model = cast(HiCMAE, opened.model)
    for batch in batches(opened):
        for found, encoder, clip, mask in (
            (streams[0], model.encoder, batch.video, batch.video_mask),
            (streams[1], model.encoder_audio, batch.audio, batch.audio_mask),
        ):
            split = split_tokens(mask, encoder.patch_embed.num_tokens, "mask")
            visible = split.visible.to(opened.device) if masked else None
            output = encoder(clip, visible, levels)
            found.append([pooled_unit(level).float().cpu() for level in output.levels])
    video, audio = ([torch.cat(p).numpy() for p in zip(*found, strict=True)] for found in streams)
    return video, audio


def recalls(
    video: Sequence[np.ndarray], audio: Sequence[np.ndarray], levels: Sequence[int]
) -> pd.DataFrame:
    """Score both directions at every level.

    Returns:
        level, direction, rank, value: how often the match is among the `rank` nearest, and chance:
        the same for guessing, both in 0..1.
    """
    rows = []
    for level, video_level, audio_level in zip(levels, video, audio, strict=True):
        similarity = audio_level.astype(np.float64) @ video_level.astype(np.float64).T
        for direction, matrix in (("audio to video", similarity), ("video to audio", similarity.T)):
            for rank in RANKS:
                chance = min(rank / len(matrix), 1.0)
                rows.append((level, direction, rank, recall_at(matrix, rank), chance))
    return pd.DataFrame(rows, columns=["level", "direction", "rank", "value", "chance"])


def table(found: pd.DataFrame, num_clips: int) -> str:
    """Lay the figures out as plain text."""
    rows = "block " + found["level"].astype(str) + ", " + found["direction"]
    shown = found.assign(row=rows).pivot_table("value", "row", "rank", sort=False)
    shown.loc["chance"] = found.groupby("rank")["chance"].first()
    shown.columns = pd.Index([f"R@{rank}" for rank in shown], name="level")
    text = (100 * shown).rename_axis(None).to_string(float_format="{:.2f}".format, col_space=7)
    return f"recall in percent among {num_clips} clips\n{text}"


def retrieval_figure(found: pd.DataFrame, num_clips: int) -> Figure:
    """Draw one panel a direction: bars of recall for every level, chance as lines across them."""
    with rc_context(STYLE):
        figure = Figure((5.4, 2.5))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (direction, own) in zip(panels, found.groupby("direction"), strict=True):
            handles = {}
            for number, (rank, scores) in enumerate(own.groupby("rank")):
                place = np.arange(len(scores)) + (number - 1) * 0.27
                values, chance = 100 * scores["value"], 100 * scores["chance"]
                handles[f"R@{rank}"] = axes.bar(place, values, 0.25, color=colour(number))
                edges = place - 0.125, place + 0.125
                line = axes.hlines(chance, *edges, color="black", linewidth=1.5)
            axes.set_xticks(range(len(scores)), scores["level"].astype(str))
            axes.grid(axis="x", visible=False)
            axes.set(title=direction, xlabel="encoder block")
        panels[0].set_ylabel(f"recall (%), {num_clips} clips")
        handles["chance"] = line
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=4)
    return figure


def retrieval(masked: bool = False, **source: Any) -> tuple[Figure, str]:
    """Draw how often sound finds its video among others, and back, by each contrasted level.

    Returns the picture, and the figures as text.
    """
    opened = open_clips("pre-trained", **source)
    count = len(opened.lines)
    if count < 2:
        raise ValueError(f"retrieval needs at least 2 clips to choose from, got {count}")
    levels = from_flags(opened.settings, PretrainModelConfig).return_intermediate_features
    found = recalls(*pooled_levels(opened, levels, masked), levels)
    return retrieval_figure(found, count), table(found, count)


def layer_weights(checkpoint: Sequence[str | Path]) -> Figure:
    """Draw layer weights of fine-tuned checkpoints, e.g. of folds: the mean, each as a point."""
    found: dict[str, list[np.ndarray]] = {}  # (L,) of every checkpoint, by stream
    sizes = []
    for path in checkpoint:
        weights = open_model(path, "cpu", "fine-tuned")[0].state_dict()
        sizes.append({n: len(weights[n]) for n in LAYER_WEIGHTS if n in weights})
        if not sizes[-1]:
            raise ValueError(
                f"'{path}' has no layer weights to draw: it was fine-tuned with "
                "--no-hierarchical_fusion"
            )
        if sizes[-1] != sizes[0]:
            raise ValueError(
                f"'{path}' has blocks {sizes[-1]}, '{checkpoint[0]}' has {sizes[0]}; draw models "
                "of one size and modality together"
            )
        for name in sizes[0]:
            shares = weights[name].double().softmax(dim=0).numpy()
            found.setdefault(name.partition("_")[0], []).append(shares)
    with rc_context(STYLE):
        figure = Figure((2.7 * len(found), 2.2))
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for number, (axes, (stream, each)) in enumerate(zip(panels, found.items(), strict=True)):
            values = 100 * np.stack(each)  # (runs, L)
            places, even = np.arange(values.shape[1]), 100 / values.shape[1]
            axes.bar(places, values.mean(0), 0.7, color=colour(number), alpha=0.85)
            if len(values) > 1:
                runs = axes.plot(places, values.T, "o", color="black", markersize=2.5)
                runs[0].set_label("one run")
            axes.axhline(even, color="black", linestyle="--", linewidth=1, label="equal weights")
            axes.set_xticks(places)
            axes.grid(axis="x", visible=False)
            axes.set(title=f"{stream} encoder", xlabel="encoder block")
            axes.set_ylim(0, max(1.25 * even, 1.15 * float(values.max())))
        panels[0].set_ylabel("layer weight (%)")
        shown = panels[0].get_legend_handles_labels()
        figure.legend(*shown, loc="outside upper center", ncols=2)
    return figure
