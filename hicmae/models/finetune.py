"""The classifier (or regressor) for labelled clips and its sizes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hicmae.models.encoder import CrossModalFusion, HubModel, audio_encoder, register, video_encoder
from hicmae.models.layers import Block, LayerNorm, check_sizes, init_linears

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda scores: scores,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
}
MODALITIES = ("av", "a", "v")
SUFFIXES = {"video": "", "audio": "_audio"}  # of the names of a stream's parts


class HiCMAEClassifier(HubModel):
    """Encoders and fusion of the pre-trained model, hierarchical feature fusion, linear head.

    Every block's output is normed and averaged over its tokens; a softmax over learned layer
    weights mixes the L averages to one feature a modality. The last layer's tokens also go through
    the fusion encoder (paper, section 3.4). With one modality the fusion is left out.

    Without hierarchical feature fusion, an ablation of the paper, there are no layer weights: the
    mean of the last layer's tokens takes the place of the mix (our reading), and the head keeps its
    width. With one modality it would read that mean twice, and reads it once.

    The model scores `num_classes`, or outputs of a regression, which `head_activation` bounds:
    None, "sigmoid", "relu" or "tanh". Its modality is "av", "a" (audio only) or "v" (video only).
    The other arguments are those of `HiCMAE`.
    """

    def __init__(
        self,
        embed_dim: int = 512,
        num_heads: int = 8,
        num_classes: int = 6,
        depth: int = 10,
        depth_audio: int = 10,
        fusion_depth: int = 2,
        drop_path_rate: float = 0.0,
        head_activation: str | None = None,
        init_values: float = 0.0,
        modality: str = "av",
        hierarchical_fusion: bool = True,
        fusion_order: str = "both",
        num_frames: int = 16,
        img_size: int | Sequence[int] = 160,
        img_size_audio: Sequence[int] = (256, 128),
        tubelet_size: int = 2,
    ) -> None:
        super().__init__()
        if head_activation not in ACTIVATIONS:
            raise ValueError(f"head_activation is {head_activation!r}, not in {[*ACTIVATIONS]}")
        if modality not in MODALITIES:
            raise ValueError(f"modality is {modality!r}, expected one of {', '.join(MODALITIES)}")
        check_sizes(
            num_classes=num_classes, depth=depth, depth_audio=depth_audio, fusion_depth=fusion_depth
        )
        self.modality = modality
        self.head_activation = head_activation
        stack: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads}
        stack |= {"drop_path": drop_path_rate, "init_values": init_values}
        trunc_normal = partial(nn.init.trunc_normal_, std=0.02)

        def layer_weights(depth: int) -> nn.Parameter | None:
            return nn.Parameter(torch.full((depth,), 1.0 / depth)) if hierarchical_fusion else None

        if "v" in modality:
            self.encoder = video_encoder(num_frames, img_size, tubelet_size, depth=depth, **stack)
            self.video_layer_weights = layer_weights(depth)
            init_linears(self.encoder, trunc_normal)
        if "a" in modality:
            self.encoder_audio = audio_encoder(img_size_audio, depth=depth_audio, **stack)
            self.audio_layer_weights = layer_weights(depth_audio)
            init_linears(self.encoder_audio, trunc_normal)
        if modality == "av":
            self.encoder_fusion = CrossModalFusion(depth=fusion_depth, order=fusion_order, **stack)
            init_linears(self.encoder_fusion, nn.init.xavier_uniform_)
        self.hierarchical_fusion = hierarchical_fusion
        self.repeats_last = modality != "av" and not hierarchical_fusion
        self.num_features = (1 if self.repeats_last else 2 * len(modality)) * embed_dim
        self.fc_norm = LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward(self, video: Tensor | None, audio: Tensor | None) -> Tensor:
        """Return logits or regression outputs (B, K) of normalised clips.

        Video is (B, 3, T, H, W), audio, the log-mel spectrogram, is (B, 1, T, F); what the modality
        leaves out is not read.
        """
        return self.score(self.forward_features(video, audio))

    def score(self, fused: Tensor) -> Tensor:
        """Return (B, K) logits or regression outputs of what the head reads."""
        return ACTIVATIONS[self.head_activation](self.head(fused))

    def forward_features(self, video: Tensor | None, audio: Tensor | None) -> Tensor:
        """Return what the head reads, after `fc_norm`.

        It is (B, 4D): layer-weighted video and audio features, then the means of the fused video
        and audio tokens. With one modality (B, 2D): its layer-weighted feature and its last layer's
        mean; without hierarchical fusion (B, D), the latter alone.
        """
        for name, clip in (("video", video), ("audio", audio)):
            if clip is None and name[0] in self.modality:
                raise ValueError(
                    f"{name} is None, but a model of modality '{self.modality}' reads it; "
                    "create the model with another modality or pass the clip"
                )
        return self.features(video, audio)["fused"]

    def features(self, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        """Return the features of each level; a stream of two may be missing, None.

        The fusion blocks of the other one then skip their cross attention, and the head reads zeros
        in place of its features. Only one encoder is needed.

        Returns:
            video_layers (B, L, D), audio_layers (B, L, D): every block's output, after the
            encoder's norm, averaged over its tokens; video (B, D), audio (B, D): their mix by the
            learned layer weights, or the last layer where there are none; fusion_video (B, D),
            fusion_audio (B, D): averaged tokens of the fusion encoder; fused: what the head reads.
            Those of a stream that is missing or not read are left out.
        """
        given = {"video": video, "audio": audio}
        streams = [name for name in given if name[0] in self.modality]
        found: dict[str, Tensor] = {}
        last: dict[str, Tensor] = {}
        for name in streams:
            if given[name] is not None:
                encoder: Any = getattr(self, f"encoder{SUFFIXES[name]}")
                last[name], levels = encoder(given[name], None, range(len(encoder.blocks)), True)
                found[f"{name}_layers"] = torch.stack(levels, dim=1)
                found[name] = mix_layers(levels, getattr(self, f"{name}_layer_weights"))
        if len(last) == 2:
            last = dict(zip(last, self.encoder_fusion(*last.values()), strict=True))
        elif self.modality == "av":
            for name in last:  # alone: a plain block has no cross attention
                for block in getattr(self.encoder_fusion, f"blocks{SUFFIXES[name]}"):
                    last[name] = Block.forward(block, last[name])
                last[name] = getattr(self.encoder_fusion, f"norm{SUFFIXES[name]}")(last[name])
        means = {name: tokens.mean(dim=1) for name, tokens in last.items()}
        nothing = torch.zeros_like(next(iter(means.values())))
        parts = [means.get(name, nothing) for name in streams]
        if not self.repeats_last:
            parts = [found.get(name, nothing) for name in streams] + parts
        if self.modality == "av":
            found |= {f"fusion_{name}": mean for name, mean in means.items()}
        return found | {"fused": self.fc_norm(torch.cat(parts, dim=-1))}


def mix_layers(levels: list[Tensor], layer_weights: Tensor | None) -> Tensor:
    """Average L pooled levels (B, D) with the softmax of their weights (L,); None: the last."""
    if layer_weights is None:
        return levels[-1]
    return torch.einsum("lbd,l->bd", torch.stack(levels), layer_weights.softmax(dim=0))


# Widths and attention heads, as for `HiCMAE`.
for _sizes in ((128, 4), (256, 4), (384, 6), (512, 8)):
    register(f"avit_dim{_sizes[0]}_patch16_160_a256", HiCMAEClassifier, *_sizes)
