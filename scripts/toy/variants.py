"""The variants of scripts/toy/ablations.py: each one change of the demo's settings."""

from collections.abc import Sequence
from typing import NamedTuple


class Variant(NamedTuple):
    """One change of the baseline.

    Attributes:
        name: of its folders, and for --only.
        title: what it is, in the paper's words where it has some.
        pretrain: flags of run_pretraining.py; None: there is no pre-training.
        finetune: flags of run_finetuning.py.
    """

    name: str
    title: str
    pretrain: Sequence[str] | None = ()
    finetune: Sequence[str] = ()

    @property
    def pretrained_as(self) -> str:
        """Name of the variant whose pre-training it starts from, empty for none."""
        if self.pretrain is None:
            return ""
        return self.name if self.pretrain else BASELINE.name

    @property
    def changes(self) -> str:
        """Its flags on one line."""
        if self.pretrain is None:
            return "no --finetune"
        return " ".join(dict.fromkeys(_pairs(self.pretrain) + _pairs(self.finetune)))


def _pairs(flags: Sequence[str]) -> list[str]:
    """Join every flag with its value."""
    return [f"--{flag}".strip() for flag in " ".join(flags).split("--") if flag]


def _order(name: str) -> dict[str, Sequence[str]]:
    flags = ["--fusion_order", name]
    return {"pretrain": flags, "finetune": flags}


def _masks(video: str, audio: str) -> list[str]:
    return ["--mask_ratio", video, "--mask_ratio_audio", audio]


BASELINE = Variant("baseline", "HiCMAE, with the demo's settings")
VARIANTS = (
    BASELINE,
    Variant("baseline_again", "the same, pre-trained with another seed", ["--seed", "1"]),
    Variant("no_pretraining", "no pre-training", None),
    Variant("no_skips", "no hierarchical skip connections", ["--no-skip_connections"]),
    Variant("no_contrast", "no contrastive loss", ["--contrastive_levels", "none"]),
    Variant("top_contrast", "contrast of the top level only", ["--contrastive_levels", "top"]),
    Variant(
        "no_feature_fusion",
        "no hierarchical feature fusion",
        finetune=["--no-hierarchical_fusion"],
    ),
    Variant("video_first", "fusion: video first", **_order("video_first")),
    Variant("audio_first", "fusion: audio first", **_order("audio_first")),
    Variant("masks_50_50", "masking ratios 0.5 and 0.5", _masks("0.5", "0.5")),
    Variant("masks_90_80", "masking ratios 0.9 and 0.8, the paper's", _masks("0.9", "0.8")),
    Variant("weight_0.025", "loss weight 0.025", ["--loss_weight", "0.025"]),
    Variant("weight_0.1", "loss weight 0.1", ["--loss_weight", "0.1"]),
)
