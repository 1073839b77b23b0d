"""Views of clips through a model in batches, also where one stream is missing.

A model of both streams that gets one only answers in one of two ways:

- "zeros": black frames or digital silence take the place of what is missing;
- "drop": the missing stream is left out: the fusion blocks of the other one skip their cross
  attention, and the head reads zeros for the missing features. Only one encoder is needed.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hicmae.data.audio import HOP, SAMPLE_RATE, WINDOW, fbank
from hicmae.data.media import Source
from hicmae.data.video import normalise
from hicmae.inference.clips import Options, PreparedClip, View, prepare, views_of
from hicmae.inference.model import ModelConfig, Preprocessing
from hicmae.io import UnreadableClip
from hicmae.models.finetune import ACTIVATIONS, HiCMAEClassifier
from hicmae.models.layers import CSBlock

# From batches of video (B, 3, T, H, W) and audio (B, 1, T, F), None where missing, to results.
Compute = Callable[[Tensor | None, Tensor | None], dict[str, Tensor]]
OpenClip = Callable[[], Source]


Rows = dict[tuple[int, int], list[dict[str, np.ndarray]]]  # of each view, by (person, window)


@dataclass
class Pending:
    """A clip, or why it cannot be read, with what was computed of its views so far."""

    clip: PreparedClip | UnreadableClip
    rows: Rows = field(default_factory=lambda: defaultdict(list))
    waiting: int = 0  # views without a result


@dataclass
class BatchRunner:
    """Fills batches with views of clips that come one after the other.

    Attributes:
        config: of the model.
        streams: what is read.
        compute: what the model does with a batch.
        device: where it does so.
        batch_size: views of a batch.
        progress: show progress bars.
        batches: views that wait; those of one batch have the same streams.
    """

    config: ModelConfig
    streams: str
    compute: Compute
    device: torch.device
    batch_size: int
    progress: bool = False
    batches: dict[tuple[bool, bool], list[tuple[Pending, View]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def run(
        self, opens: Sequence[OpenClip], options: Options
    ) -> Iterator[tuple[PreparedClip | UnreadableClip, Rows]]:
        """Yield each clip and its results, in order, as soon as all its views are computed."""
        queue: deque[Pending] = deque()
        several = self.progress and len(opens) > 1
        for open_clip in tqdm(opens, "clips", disable=not several):
            self._read(queue, open_clip, options)
            while queue and not queue[0].waiting:
                yield queue[0].clip, queue.popleft().rows
        for batch in self.batches.values():
            self._compute(batch)
        yield from ((pending.clip, pending.rows) for pending in queue)

    def _read(self, queue: deque[Pending], open_clip: OpenClip, options: Options) -> None:
        """Prepare a clip and hand its views to the batches."""
        try:
            clip = prepare(open_clip(), self.config, self.streams, options)
        except UnreadableClip as error:
            queue.append(Pending(error))
            return
        pending = Pending(clip)
        queue.append(pending)
        views = views_of(clip, self.config, self.streams, options.missing_modality != "error")
        total = len(clip.windows) * clip.num_people * clip.num_crops
        try:
            for view in tqdm(views, "windows", total, leave=False, disable=not self.progress):
                batch = self.batches[view.video is None, view.audio is None]
                batch.append((pending, view))
                pending.waiting += 1
                if len(batch) == self.batch_size:
                    self._compute(batch)
        except UnreadableClip as error:
            pending.clip = error
        clip.release()  # many clips may wait for their batch

    @torch.inference_mode()
    def _compute(self, batch: list[tuple[Pending, View]]) -> None:
        """Compute the views of a batch, and empty it."""
        if not batch:
            return
        video = self._stacked([view.video for _, view in batch])
        audio = self._stacked([view.audio for _, view in batch])
        results = self.compute(None if video is None else normalise(video), audio)
        arrays = {name: value.float().cpu().numpy() for name, value in results.items()}
        for index, (pending, view) in enumerate(batch):
            row = {name: array[index] for name, array in arrays.items()}
            pending.rows[view.person, view.window].append(row)
            pending.waiting -= 1
        batch.clear()

    def _stacked(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        given = [part for part in parts if part is not None]
        return torch.stack(given).to(self.device) if given else None


def scores(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> Tensor:
    """Return (B, K) logits or regression outputs.

    Args:
        model: classifier.
        video: (B, 3, T, H, W) normalised; None where it is missing or not read.
        audio: (B, 1, T, F) normalised; None likewise.
    """
    model = cast(HiCMAEClassifier, model)
    given = {stream for stream, clip in (("v", video), ("a", audio)) if clip is not None}
    if given == set(model.modality):
        return model(video, audio)
    fused = features(model, video, audio)["fused"]
    return ACTIVATIONS[model.head_activation](model.head(fused))


def features(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
    """Return the features of each level.

    Returns:
        video_layers (B, L, D), audio_layers (B, L, D): every block's output, after the encoder's
        norm, averaged over its tokens; video (B, D), audio (B, D): their mix by the learned layer
        weights, or the last layer where the model has none; fusion_video (B, D), fusion_audio
        (B, D): averaged tokens of the fusion encoder; fused: what the head reads. Those of a stream
        that is missing or not read are left out.
    """
    if video is None and audio is None:
        raise ValueError("neither video nor audio is given")
    lacks_one = model.modality == "av" and (video is None or audio is None)
    outputs = _one_stream(model, video, audio) if lacks_one else _observed(model, video, audio)
    found: dict[str, Tensor] = {}
    for stream, name in (("video", "encoder"), ("audio", "encoder_audio")):
        if name in outputs:
            found[f"{stream}_layers"] = torch.stack(outputs[name].levels, dim=1)
            found[stream] = _mixed(model, stream, found[f"{stream}_layers"])
    for stream, tokens in outputs.get("encoder_fusion", {}).items():
        found[f"fusion_{stream}"] = tokens.mean(dim=1)
    return found | {"fused": outputs["fc_norm"]}


def _observed(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Any]:
    """Run the model as it is and keep what its parts return, by their names."""
    seen: dict[str, Any] = {}
    parts = ("encoder", "encoder_audio", "encoder_fusion", "fc_norm")
    handles = [
        getattr(model, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in parts
        if getattr(model, name, None) is not None
    ]
    try:
        cast(HiCMAEClassifier, model).forward_features(video, audio)
    finally:
        for handle in handles:
            handle.remove()
    if "encoder_fusion" in seen:
        seen["encoder_fusion"] = dict(zip(("video", "audio"), seen["encoder_fusion"], strict=True))
    return seen


def _one_stream(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Any]:
    """Run the parts of a model of both streams that one stream alone needs."""
    model = cast(HiCMAEClassifier, model)
    stream, name, clip = ("video", "encoder", video)
    fusion, norm = model.encoder_fusion.blocks, model.encoder_fusion.norm
    if video is None:
        stream, name, clip = ("audio", "encoder_audio", audio)
        fusion, norm = model.encoder_fusion.blocks_audio, model.encoder_fusion.norm_audio
    encoder = getattr(model, name)
    output = encoder(clip, None, range(len(encoder.blocks)), pool=True)
    tokens = output.tokens
    for block in fusion:
        tokens = _without_context(cast(CSBlock, block), tokens)
    tokens = norm(tokens)
    weighted = _mixed(model, stream, torch.stack(output.levels, dim=1))
    mean = tokens.mean(dim=1)
    nothing = torch.zeros_like(mean)
    parts = [weighted, nothing, mean, nothing]  # video, audio, fused video, fused audio
    if stream == "audio":
        parts = [nothing, weighted, nothing, mean]
    fused = model.fc_norm(torch.cat(parts, dim=-1))
    return {name: output, "encoder_fusion": {stream: tokens}, "fc_norm": fused}


def _without_context(block: CSBlock, tokens: Tensor) -> Tensor:
    """Run a block of the fusion encoder without its cross attention."""
    attended = block.attn(block.norm1(tokens))
    tokens = tokens + (attended if block.gamma_1 is None else block.gamma_1 * attended)
    mapped = block.mlp(block.norm2(tokens))
    return tokens + (mapped if block.gamma_2 is None else block.gamma_2 * mapped)


def _mixed(model: nn.Module, stream: str, layers: Tensor) -> Tensor:
    """Mix layers (B, L, D) by the model's weights of a stream, if it has any, to (B, D)."""
    weights = getattr(model, f"{stream}_layer_weights")
    if weights is None:  # without hierarchical feature fusion
        return layers[:, -1]
    return torch.einsum("bld,l->bd", layers, weights.softmax(dim=0))


def stand_in(stream: str, count: int, clip: Preprocessing, device: torch.device) -> Tensor:
    """Return black frames or digital silence in place of a missing stream, normalised."""
    if stream == "v":
        size = (count, 3, clip.num_frames, clip.input_size, clip.input_size)
        return normalise(torch.zeros(size, dtype=torch.uint8, device=device))
    steps, mel_bins = clip.input_size_audio
    silence = fbank(torch.zeros(steps * HOP + WINDOW), SAMPLE_RATE, mel_bins, steps)
    return silence.to(device).expand(count, -1, -1, -1)
