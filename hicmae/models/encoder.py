"""The modality encoders and the cross-modal fusion encoder (paper, section 3.2)."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_model
from torch import Tensor, nn

from hicmae.io import HUB_FILES, hub_error, hub_folder, one_line
from hicmae.models import layers
from hicmae.models.cpu_gemm import install
from hicmae.models.layers import PATCH_SIZE, PatchEmbed

HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
FUSION_ORDERS = ("both", "video_first", "audio_first")
CARD = """---
{{ card_data }}
---

# HiCMAE, a network

Weights and arguments of a class in `hicmae.models`, whose `from_pretrained` reads them. It expects
normalised clips. `hicmae-export` writes a card with training, scores and licence. A recognised
expression is not a felt emotion: do not decide about people by it. Method: {{ paper_url }}
"""


class EncoderOutput(NamedTuple):
    """What a modality encoder returns; every tensor went through the encoder's one final norm."""

    tokens: Tensor  # (B, V, D) after the last block
    levels: list[Tensor]  # the kept blocks, shallow first: (B, V, D) each, or (B, D) when pooled


class ModalityEncoder(nn.Module):
    """A ViT without class token over the visible tokens of one modality.

    It has `depth` blocks; the options are those of `stack`.
    """

    def __init__(self, patch_embed: PatchEmbed, depth: int, **options: Any) -> None:
        super().__init__()
        embed_dim = patch_embed.proj.out_channels
        self.patch_embed = patch_embed
        self.blocks = layers.stack([layers.Block] * depth, embed_dim, **options)
        self.norm = layers.LayerNorm(embed_dim)
        positions = layers.sincos_positions(patch_embed.num_tokens, embed_dim)
        self.positions = nn.Buffer(positions, persistent=False)

    def forward(
        self, clip: Tensor, visible: Tensor | None, level_blocks: Sequence[int], pool: bool = False
    ) -> EncoderOutput:
        """Encode the tokens at the positions `visible` (B, V), or all N, of a normalised clip.

        The outputs of `level_blocks`, 0-based and ascending, are kept; `pool` averages each over
        its tokens, to (B, D).
        """
        positions = self.positions if visible is None else self.positions[visible]
        tokens = self.patch_embed(clip, visible) + positions
        levels, last = [], len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            normed = self.norm(tokens) if index == last or index in level_blocks else tokens
            if index in level_blocks:
                levels.append(normed.mean(dim=1) if pool else normed)
        return EncoderOutput(normed, levels)


def video_encoder(
    num_frames: int, img_size: int | Sequence[int], tubelet_size: int, embed_dim: int, **stack: Any
) -> ModalityEncoder:
    """Build the encoder of (B, 3, T, H, W) clips in tubelets of tubelet_size x 16 x 16."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    size, patch_size = (num_frames, height, width), (tubelet_size, PATCH_SIZE, PATCH_SIZE)
    return ModalityEncoder(PatchEmbed(size, patch_size, 3, embed_dim, "video"), **stack)


def audio_encoder(img_size_audio: Sequence[int], embed_dim: int, **stack: Any) -> ModalityEncoder:
    """Build the encoder of (B, 1, T, F) spectrograms in patches of 16 x 16."""
    patch_size = (PATCH_SIZE, PATCH_SIZE)
    return ModalityEncoder(PatchEmbed(img_size_audio, patch_size, 1, embed_dim, "audio"), **stack)


class CrossModalFusion(nn.Module):
    """Layers in which the modalities read each other; the options are those of `stack`.

    By the order "both", each stream reads the other's input to the layer; by "video_first" and
    "audio_first", that stream does, and the other one then reads its output. All three have the
    same parameters.
    """

    def __init__(self, embed_dim: int, depth: int, order: str = "both", **options: Any) -> None:
        super().__init__()
        if order not in FUSION_ORDERS:
            raise ValueError(f"fusion_order is {order!r}, expected one of {FUSION_ORDERS}")
        self.order = order
        self.blocks = layers.stack([layers.CSBlock] * depth, embed_dim, **options)
        self.blocks_audio = layers.stack([layers.CSBlock] * depth, embed_dim, **options)
        self.norm = layers.LayerNorm(embed_dim)
        self.norm_audio = layers.LayerNorm(embed_dim)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the streams (B, Nv, D) and (B, Na, D); same shapes, after a norm each."""
        for block, block_audio in zip(self.blocks, self.blocks_audio, strict=True):
            if self.order == "audio_first":
                audio = block_audio(audio, video)
                video = block(video, audio)
            else:
                mixed = block(video, audio)
                audio = block_audio(audio, video if self.order == "both" else mixed)
                video = mixed
        return self.norm(video), self.norm_audio(audio)


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="hicmae",
    license="other",
    paper_url="https://arxiv.org/abs/2401.05698",
    tags=["emotion-recognition", "audio-visual"],
    model_card_template=CARD,
):
    """A network with `save_pretrained`, `push_to_hub` and `from_pretrained` of model hubs.

    config.json holds the arguments of its class, as that of an export does among other things, so
    that exports load as well.
    """

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments it was made with and the defaults of the others, as JSON has them."""
        told: Any = self._hub_mixin_config or {}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in told.items()}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # its options are listed here
        cls, name: str | Path, **options: Any
    ) -> Any:
        """Read a model from a folder, or by its name on huggingface.co, in evaluation mode.

        `options` say where: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`;
        or they replace arguments. OSError, in one line, where there is none.
        """
        where = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        folder = hub_folder(name, **where)
        if lacking := [file for file in HUB_FILES[:2] if not (folder / file).is_file()]:
            raise FileNotFoundError(
                f"'{name}' holds no {lacking[0]}, expected {' and '.join(HUB_FILES[:2])}; name a "
                "folder that save_pretrained or hicmae-export made"
            )
        told = json.loads((folder / HUB_FILES[0]).read_text(encoding="utf-8")) | options
        known = inspect.signature(cls).parameters  # an export tells more
        model = cls(**{key: value for key, value in told.items() if key in known})
        try:
            load_model(model, folder / HUB_FILES[1])
        except RuntimeError as error:  # names and shapes on many lines
            raise ValueError(
                f"the weights in '{folder}' do not fit {cls.__name__} by the arguments in its "
                f"{HUB_FILES[0]} ({one_line(error)[:100]}); expected a folder of this class; "
                "export earlier ones again with hicmae-export"
            ) from None
        return install(model).eval()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put the model on huggingface.co; the options are those of `PyTorchModelHubMixin`."""
        try:
            return super().push_to_hub(repo_id, **options)
        except Exception as error:  # of requests or httpx, by version
            raise hub_error(repo_id, error) from error


BUILDERS: dict[str, Callable[..., Any]] = {}  # of all sizes, by the names that timm has for them


def register(name: str, model: type[nn.Module], *sizes: int) -> None:
    """Register a model under a name, its first arguments being these sizes.

    `timm.create_model` passes the others on; `cpu_gemm` is the library of float32 products on a
    CPU, see `install`.
    """

    def make(pretrained: bool = False, cpu_gemm: str = "auto", **options: Any) -> nn.Module:
        if pretrained:
            raise ValueError(
                "pretrained=True: no weights are hosted for HiCMAE; create the model without it "
                "and load a file with hicmae.training.trained.load_pretrained (--finetune)"
            )
        for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(unused, None)
        return install(model(*sizes, **options), cpu_gemm)

    make.__name__, make.__module__ = name, model.__module__
    BUILDERS[name] = make
