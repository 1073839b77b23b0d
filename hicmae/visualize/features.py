"""Models and clips of the pictures below; features laid out by t-SNE; learned layer weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from torch import nn

from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import AnyClip, read_labelled_list, read_pretrain_list
from hicmae.data.dataset import ClipSettings, PretrainClips, TestClips
from hicmae.inference import forward
from hicmae.inference.model import ModelConfig, load_model
from hicmae.inference.style import MARKERS, STYLE, colour
from hicmae.io import choose_device

FEWEST = 5  # clips of t-SNE
TITLES = {"fusion_video": "fused video", "fusion_audio": "fused audio"}
SCRIPTS = {"pre-trained": "run_pretraining.py", "fine-tuned": "run_finetuning.py"}


class Opened(NamedTuple):
    """A model of either stage, on its device, and what it is shown."""

    model: nn.Module
    config: ModelConfig
    device: torch.device
    clips: Sequence[AnyClip]
    seed: int | None  # of windows, crops and masks


@dataclass(frozen=True)
class Source:
    """A checkpoint and the clips of a list that it is shown."""

    checkpoint: str | Path  # of this project or of the original authors, an export, or a run
    data_path: str | Path  # list that fits it, or its folder
    data_root: str = ""  # start of relative paths in the list
    device: str = "auto"
    clip: int | None = None  # this line of the list, from 0; None: draw some
    num_clips: int = 0  # that many are drawn; 0: all
    seed: int | None = 0  # of draw, windows, crops and masks; None: a reconstruction's training's

    def open(self, stage: str | None = None) -> Opened:
        """Load the model, see `open_model`, and choose the clips.

        They are of the list, or of test.csv (pre-training: train.csv) in a folder.
        """
        model, config, device = open_model(self.checkpoint, self.device, stage)
        path, pretraining = Path(self.data_path), config.task == "pretraining"
        if path.is_dir():
            path = path / ("train.csv" if pretraining else "test.csv")
        listed: Sequence[AnyClip]
        if pretraining:
            listed = read_pretrain_list(path, self.data_root)
        else:
            listed = read_labelled_list(path, config.task, len(config.names), self.data_root)
        clips = [listed[k] for k in self.lines(len(listed))]
        return Opened(model, config, device, clips, self.seed)

    def lines(self, length: int) -> list[int]:
        """Choose lines of a list, drawn without replacement, in the list's order."""
        if self.clip is not None:
            if not 0 <= self.clip < length:
                raise ValueError(f"--clip {self.clip} is not in the list of {length} clips")
            return [self.clip]
        if self.num_clips < 0:
            raise ValueError(f"--num_clips must not be negative, got {self.num_clips}")
        if not 0 < self.num_clips < length:
            return list(range(length))
        rng = np.random.default_rng(self.seed)
        return sorted(rng.choice(length, self.num_clips, replace=False).tolist())


def open_model(
    path: str | Path, device: str = "auto", stage: str | None = None
) -> tuple[nn.Module, ModelConfig, torch.device]:
    """Load a checkpoint; the stage "fine-tuned" or "pre-trained" refuses the other one."""
    chosen = choose_device(device)
    model, config = load_model(path, device=chosen)
    found = "pre-trained" if config.task == "pretraining" else "fine-tuned"
    if stage not in (None, found):
        raise ValueError(
            f"checkpoint '{path}' is {found}, but this picture needs a {stage} one; give a "
            f"checkpoint of {SCRIPTS[stage]}"
        )
    return model, config, chosen


def batches(opened: Opened, batch_size: int = 16) -> Iterator[Any]:
    """Yield a `ViewBatch` of centre windows, or in pre-training a `PretrainBatch` of crops.

    Raises:
        ValueError: naming a clip that cannot be read.
    """
    config, clips = opened.config, opened.clips
    clip, trained = config.preprocessing, config.training.get("settings", {})
    settings = ClipSettings(
        clip.num_frames, clip.sampling_rate, clip.input_size, clip.input_size_audio
    )
    dataset: TestClips | PretrainClips
    if config.task == "pretraining":
        dataset = PretrainClips(
            clips,
            settings,
            tubelet_size=clip.tubelet_size,
            mask_ratio=trained.get("mask_ratio", 0.9),
            mask_ratio_audio=trained.get("mask_ratio_audio", 0.8),
            seed=opened.seed or 0,
        )
    else:
        dataset = TestClips(
            clips, settings, task=config.task, centre=True, modality=config.modality
        )
    for start in range(0, len(clips), batch_size):
        chosen = range(start, min(start + batch_size, len(clips)))
        try:
            items: list[Any] = [dataset[ClipIndex(0, k)] for k in chosen]
        except RuntimeError as error:
            raise ValueError(f"{error}") from error
        batch = dataset.collate(items).to(opened.device)
        if batch.skipped:  # in pre-training another clip stands in for it, which would be its twin
            raise ValueError(f"a clip cannot be read: {batch.skipped[0].reason}")
        yield batch


def feature_names(modality: str) -> tuple[str, ...]:
    """Name the parts of a model's features; `fused` is all of them, as the head reads it."""
    if modality == "av":
        return ("video", "audio", "fusion_video", "fusion_audio", "fused")
    return ("video" if modality == "v" else "audio", "fused")


@torch.inference_mode()
def features_of(opened: Opened) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compute the features of `hicmae.inference` for the centre window of every clip.

    Returns:
        Each of `feature_names` -> (n, D), fused (n, 4D); and (n,) classes or (n, K) targets.
    """
    found, targets = [], []
    for batch in batches(opened):
        found.append(forward.features(opened.model, batch.video, batch.audio))
        targets.append(batch.target)
    return {
        name: torch.cat([parts[name] for parts in found]).float().cpu().numpy()
        for name in feature_names(opened.config.modality)
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
    source: Source, features: Sequence[str] = (), perplexity: float = 30.0, target: int = 0
) -> Figure:
    """Lay out the features of a labelled list by a fine-tuned checkpoint.

    Features are a panel each, of `feature_names`; without any, each modality and fused. The
    output `target` of a regression gives the colour.
    """
    opened = source.open("fine-tuned")
    config = opened.config
    known = feature_names(config.modality)
    unknown = [part for part in features if part not in known]
    if unknown:
        raise ValueError(
            f"--features '{unknown[0]}' is no part of this model's features; use {', '.join(known)}"
        )
    if not 0 <= target < len(config.names):
        raise ValueError(f"--target {target} is not one of the {len(config.names)} outputs")
    count = len(opened.clips)
    if count < FEWEST:
        raise ValueError(
            f"t-SNE needs at least {FEWEST} clips, got {count} of '{source.data_path}'"
        )
    shown = features or (("video", "audio", "fused") if config.modality == "av" else ("fused",))
    values, labels = features_of(opened)
    places = {TITLES.get(p, p): embed(values[p], source.seed or 0, perplexity) for p in shown}
    return tsne_figure(places, labels, config.names, target)


def layer_weights_of(checkpoint: str | Path) -> dict[str, np.ndarray]:
    """Return the share of every block, (L,) for each stream; shares of a stream sum to 1."""
    weights = open_model(checkpoint, "cpu", "fine-tuned")[0].state_dict()
    shares = {
        stream: weights[f"{stream}_layer_weights"].double().softmax(dim=0).numpy()
        for stream in ("video", "audio")
        if f"{stream}_layer_weights" in weights
    }
    if not shares:
        raise ValueError(
            f"'{checkpoint}' has no layer weights to draw: it was fine-tuned with "
            "--no-hierarchical_fusion"
        )
    return shares


def layer_weights_figure(runs: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draw the mean share of each block over runs, stream -> (L,) of each, every run as a point."""
    with rc_context(STYLE):
        figure = Figure((2.7 * len(runs), 2.2))
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for number, (axes, (stream, shares)) in enumerate(zip(panels, runs.items(), strict=True)):
            values = 100 * np.stack(shares)  # (runs, L)
            blocks, even = np.arange(values.shape[1]), 100 / values.shape[1]
            axes.bar(blocks, values.mean(0), 0.7, color=colour(number), alpha=0.85)
            if len(values) > 1:
                for shift, own in zip(np.linspace(-0.2, 0.2, len(values)), values, strict=True):
                    axes.plot(blocks + shift, own, "o", color="black", markersize=2.5)
            line = axes.axhline(even, color="black", linestyle="--", linewidth=1)
            axes.set_xticks(blocks)
            axes.grid(axis="x", visible=False)
            axes.set(title=f"{stream} encoder", xlabel="encoder block")
            axes.set_ylim(0, max(1.25 * even, 1.15 * float(values.max())))
        panels[0].set_ylabel("layer weight (%)")
        handles = {"equal weights": line}
        if len(shares) > 1:
            point = Line2D([], [], color="black", marker="o", markersize=2.5, linestyle="")
            handles["one run"] = point
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2)
    return figure


def layer_weights(checkpoint: Sequence[str | Path]) -> Figure:
    """Draw the layer weights of one or several fine-tuned checkpoints, e.g. of all folds."""
    found = [layer_weights_of(path) for path in checkpoint]
    sizes = [{stream: len(values) for stream, values in shares.items()} for shares in found]
    for path, blocks in zip(checkpoint, sizes, strict=True):
        if blocks != sizes[0]:
            raise ValueError(
                f"'{path}' has blocks {blocks}, '{checkpoint[0]}' has {sizes[0]}; draw models of "
                "one size and modality together"
            )
    return layer_weights_figure({name: [shares[name] for shares in found] for name in found[0]})
