"""What a model has learned: features laid out by t-SNE, retrieval, weights of encoder blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from hicmae.data.clip_list import find_list, read_labelled_list
from hicmae.inference.model import load_model
from hicmae.inference.recognizer import EmotionRecognizer
from hicmae.inference.style import MARKERS, colour, styled
from hicmae.knn import extract
from hicmae.models.layers import pooled_unit
from hicmae.visualize import Clips
from hicmae.visualize.clips import Opened, batches, choose_lines, open_clips

FEWEST = 5  # clips of t-SNE
RANKS = (1, 5, 10)  # of retrieval
DIRECTIONS = ("audio to video", "video to audio")


@styled
def tsne_figure(
    points: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> Figure:
    """Draw one panel for each set of features, title -> (n, 2), of clips of the classes (n,)."""
    figure = Figure((2.1 * len(points), 2.75))
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (title, place) in zip(panels, points.items(), strict=True):
        for k, name in enumerate(names):
            # Beyond eight classes the markers move on against the colours.
            marker = MARKERS[(k + k // len(MARKERS)) % len(MARKERS)]
            look: dict[str, Any] = {"marker": marker, "alpha": 0.8, "linewidth": 0}
            axes.scatter(*place[labels == k].T, 11, colour(k), label=name, **look)
        axes.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1", box_aspect=1)
        axes.spines[:].set_visible(True)
    panels[0].set_ylabel("t-SNE 2")
    handles = panels[0].get_legend_handles_labels()
    columns = min(len(handles[0]), max(2, 2 * len(points)))
    figure.legend(*handles, loc="outside lower center", ncols=columns)
    return figure


def tsne(asked: Clips) -> Figure:
    """Draw standardised features of labelled clips laid out by t-SNE, coloured by class.

    The clips are of a list, or of test.csv in a folder.
    """
    place, seed, checkpoint = Path(asked.data_path), asked.seed or 0, asked.checkpoint
    load = EmotionRecognizer.from_checkpoint
    recognizer = load(checkpoint, asked.device, "fp32", progress=True)
    if (task := recognizer.config.task) != "classification":
        text = f"checkpoint '{checkpoint}' is of a {task}, but this picture needs a classifier"
        raise ValueError(f"{text}; give a checkpoint of run_finetuning.py")
    path = place / "test.csv" if place.is_dir() and not find_list(place) else place
    listed = read_labelled_list(path, "classification", len(recognizer.names), asked.data_root)
    clips = [listed[line] for line in choose_lines(len(listed), asked.num_clips, seed)]
    if len(clips) < FEWEST:
        raise ValueError(f"t-SNE needs at least {FEWEST} clips, got {len(clips)}")
    features = extract(recognizer, clips)
    method = TSNE(perplexity=min(30, (len(clips) - 1) / 3), init="pca", random_state=seed)
    points: dict[str, np.ndarray] = {}
    for name in ("video", "audio", "fused"):
        if name in features:
            points[name] = method.fit_transform(StandardScaler().fit_transform(features[name]))
    return tsne_figure(points, np.array([clip.label for clip in clips]), recognizer.names)


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
def pooled_levels(opened: Opened, levels: Sequence[int]) -> list[list[np.ndarray]]:
    """Compute what pre-training contrasts after the encoder blocks `levels`, of whole clips.

    Returns, of video and audio, one (n, D) array of unit vectors a level.
    """
    encoders = {"video": opened.model.encoder, "audio": opened.model.encoder_audio}
    found: dict[str, list] = {stream: [] for stream in encoders}  # of each batch its levels
    for batch in batches(opened):
        for stream, encoder in encoders.items():
            output = encoder(getattr(batch, stream), None, levels)
            found[stream].append([pooled_unit(level).float().cpu() for level in output.levels])
    return [[torch.cat(p).numpy() for p in zip(*parts, strict=True)] for parts in found.values()]


def recalls(
    video: Sequence[np.ndarray], audio: Sequence[np.ndarray], levels: Sequence[int]
) -> pd.DataFrame:
    """Return how often the match is among the nearest, in percent, a column a rank.

    A row is one direction at one level; the last one is what guessing scores.
    """
    found = {}
    for direction, *streams in zip(DIRECTIONS, (audio, video), (video, audio), strict=True):
        for level, *pair in zip(levels, *streams, strict=True):
            searched, others = (vectors.astype(np.float64) for vectors in pair)
            similarity = searched @ others.T
            scores = [100 * recall_at(similarity, rank) for rank in RANKS]
            found[f"block {level}, {direction}"] = scores
    found["chance"] = [min(100 * rank / len(similarity), 100.0) for rank in RANKS]
    return pd.DataFrame(found, index=[f"R@{rank}" for rank in RANKS]).T


@styled
def retrieval_figure(found: pd.DataFrame, levels: Sequence[int]) -> Figure:
    """Draw one panel a direction: bars of recall for every level, chance as lines across them."""
    figure = Figure((5.4, 2.5))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        scores = found[found.index.str.endswith(direction)]
        for number, name in enumerate(scores):
            place = np.arange(len(scores)) + (number - 1) * 0.27
            axes.bar(place, scores[name], 0.25, color=colour(number), label=name)
            chance, look = found.loc["chance", name], {"color": "black", "linewidth": 1.5}
            line = axes.hlines([chance] * len(place), place - 0.125, place + 0.125, **look)
        axes.set_xticks(range(len(levels)), list(map(str, levels)))
        axes.grid(axis="x", visible=False)
        axes.set(title=direction, xlabel="encoder block")
    panels[0].set_ylabel("recall (%)")
    line.set_label("chance")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def retrieval(asked: Clips) -> tuple[Figure, str]:
    """Draw how often sound finds its video among others, and back, by each contrasted level.

    Returns the picture, and the figures as text.
    """
    opened = open_clips(asked)
    count = len(opened.lines)
    if count < 2:
        raise ValueError(f"retrieval needs at least 2 clips to choose from, got {count}")
    levels = opened.model.level_blocks
    video, audio = pooled_levels(opened, levels)
    found = recalls(video, audio, levels)
    text = found.to_string(float_format="{:.2f}".format, col_space=7)
    return retrieval_figure(found, levels), f"recall in percent among {count} clips\n{text}"


@styled
def layer_weights(checkpoint: Sequence[str | Path]) -> Figure:
    """Draw layer weights of fine-tuned checkpoints, e.g. of folds: the mean, each as a point."""
    runs = []  # (L,) by stream
    for path in checkpoint:
        model, config = load_model(path)
        weights = {} if config.task == "pretraining" else model.state_dict()
        names = [name for name in weights if name.endswith("_layer_weights")]
        runs.append({name: weights[name].double().softmax(dim=0).numpy() for name in names})
        sizes, first = ({n: len(w) for n, w in run.items()} for run in (runs[-1], runs[0]))
        if sizes != first or not sizes:
            text = f"'{path}' has layer weights {sizes}, '{checkpoint[0]}' has {first}; draw models"
            text += " of one size and modality, fine-tuned with hierarchical fusion"
            raise ValueError(text)
    figure = Figure((2.7 * len(runs[0]), 2.2))
    panels = figure.subplots(1, len(runs[0]), sharey=True, squeeze=False)[0]
    for number, (axes, name) in enumerate(zip(panels, runs[0], strict=True)):
        values = 100 * np.stack([run[name] for run in runs])  # (runs, L)
        places, even = np.arange(values.shape[1]), 100 / values.shape[1]
        axes.bar(places, values.mean(0), 0.7, color=colour(number), alpha=0.85)
        if len(values) > 1:
            points = axes.plot(places, values.T, "o", color="black", markersize=2.5)
            points[0].set_label("one run")
        axes.axhline(even, color="black", linestyle="--", linewidth=1, label="equal weights")
        axes.set_xticks(places)
        axes.grid(axis="x", visible=False)
        axes.set(title=f"{name.partition('_')[0]} encoder", xlabel="encoder block")
    panels[0].set_ylabel("layer weight (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
