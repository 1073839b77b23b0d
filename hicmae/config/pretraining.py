"""Settings of pre-training: model, masks, loss."""

from dataclasses import dataclass
from typing import Any

from hicmae.config.common import (
    FUSION_ORDER_HELP,
    check_not_negative,
    check_positive,
    check_share,
)
from hicmae.config.flags import option
from hicmae.models.encoder import FUSION_ORDERS


@dataclass(frozen=True)
class PretrainModelConfig:
    """Pre-training model."""

    model: str = option(
        "pretrain_hicmae_dim512_patch16_160_a256", "registered model name", metavar="NAME"
    )
    encoder_depth: int = option(10, "blocks of the video encoder")
    encoder_depth_audio: int = option(10, "blocks of the audio encoder")
    decoder_depth: int = option(4, "blocks of the video decoder: one more than kept levels")
    decoder_depth_audio: int = option(4, "blocks of the audio decoder: one more than kept levels")
    encoder_fusion_depth: int = option(2, "layers of the cross-modal fusion encoder")
    return_intermediate_features: tuple[int, ...] = option(
        (3, 6, 9), "encoder blocks (from 0) that feed decoders and contrast", metavar="BLOCK"
    )
    skip_connections: bool = option(
        True,
        "decoder blocks after the first read these encoder blocks; without: plain self-attention",
    )
    fusion_order: str = option("both", FUSION_ORDER_HELP, choices=FUSION_ORDERS)
    drop_path: float = option(0.0, "stochastic depth of the last block")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale")

    def __post_init__(self) -> None:
        check_share(self, "drop_path", upper_open=True)
        check_not_negative(self, "init_values")

    def model_options(self) -> dict[str, Any]:
        """Return the settings under the names of the model builder."""
        return {
            "encoder_depth": self.encoder_depth,
            "encoder_depth_audio": self.encoder_depth_audio,
            "decoder_depth": self.decoder_depth,
            "decoder_depth_audio": self.decoder_depth_audio,
            "encoder_fusion_depth": self.encoder_fusion_depth,
            "return_intermediate_features": self.return_intermediate_features,
            "skip_connections": self.skip_connections,
            "fusion_order": self.fusion_order,
            "drop_path_rate": self.drop_path,
            "init_values": self.init_values,
        }


@dataclass(frozen=True)
class MaskConfig:
    """Masking."""

    mask_ratio: float = option(0.9, "share of video tokens hidden from the encoder (tube mask)")
    mask_ratio_audio: float = option(0.8, "share of audio tokens hidden from the encoder")

    def __post_init__(self) -> None:
        for flag in ("mask_ratio", "mask_ratio_audio"):
            if not 0.0 < getattr(self, flag) < 1.0:
                raise ValueError(f"--{flag} must be between 0 and 1, got {getattr(self, flag)}")


@dataclass(frozen=True)
class PretrainLossConfig:
    """Pre-training loss."""

    loss_weight: float = option(0.0025, "weight of the contrastive loss")
    contrastive_levels: str = option(
        "all",
        "encoder blocks to contrast: all of --return_intermediate_features, the top one, or none",
        choices=("all", "top", "none"),
    )
    inter_contrastive_temperature: float = option(0.07, "temperature of the contrastive loss")
    gather_negatives: bool = option(False, "contrast with the clips of all GPUs")
    use_frame_diff_as_target: bool = option(
        False, "predict differences to the first frame of each group (on in the VoxCeleb2 script)"
    )
    frame_diff_group_size: int = option(2, "frames of such a group")
    target_diff_weight: float | None = option(
        None, "weight of a tubelet's later frames, 1 - w for its first; none: plain mean"
    )
    normalize_target: bool = option(
        True, "normalise each video patch and channel", aliases=("normlize_target",)
    )
    normalize_target_audio: bool = option(
        True, "normalise each audio patch", aliases=("normlize_target_audio",)
    )

    def __post_init__(self) -> None:
        check_not_negative(self, "loss_weight")
        check_positive(self, "inter_contrastive_temperature", "frame_diff_group_size")
        if self.gather_negatives and self.contrastive_levels == "none":
            raise ValueError(
                "--gather_negatives is for a contrastive loss, --contrastive_levels none has none; "
                "leave one of them out"
            )
        if self.target_diff_weight is not None:
            check_share(self, "target_diff_weight")

    def loss_options(self) -> dict[str, Any]:
        """Return the settings under the names of `pretrain_loss`."""
        return {
            "loss_weight": self.loss_weight,
            "contrastive_levels": self.contrastive_levels,
            "temperature": self.inter_contrastive_temperature,
            "gather": self.gather_negatives,
            "frame_diff": self.use_frame_diff_as_target,
            "frame_diff_group_size": self.frame_diff_group_size,
            "target_diff_weight": self.target_diff_weight,
            "normalize_target": self.normalize_target,
            "normalize_target_audio": self.normalize_target_audio,
        }
