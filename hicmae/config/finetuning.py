"""Settings of fine-tuning: classifier, augmentation, loss and testing."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hicmae.config.common import (
    FUSION_ORDER_HELP,
    check_not_negative,
    check_positive,
    check_share,
)
from hicmae.config.flags import option
from hicmae.data.speakers import PATTERNS
from hicmae.models.encoder import FUSION_ORDERS

CLASSIFICATION_METRICS = ("uar", "war", "acc1", "weighted_f1", "macro_f1", "micro_f1")
REGRESSION_METRICS = ("ccc", "pcc", "acc", "mae", "mse", "rmse")
LOWER_IS_BETTER = ("mae", "mse", "rmse")


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier."""

    task: str = option("classification", "kind of labels", choices=("classification", "regression"))
    nb_classes: int = option(0, "number of classes, or of regression outputs", metavar="K")
    modality: str = option(
        "av", "streams to read: audio-visual, audio, video", choices=("av", "a", "v")
    )
    model: str = option("avit_dim512_patch16_160_a256", "registered model name", metavar="NAME")
    depth: int = option(10, "blocks of the video encoder", aliases=("encoder_depth",))
    depth_audio: int = option(10, "blocks of the audio encoder", aliases=("encoder_depth_audio",))
    fusion_depth: int = option(
        2, "layers of the cross-modal fusion encoder", aliases=("encoder_fusion_depth",)
    )
    hierarchical_fusion: bool = option(
        True, "the head reads a learned mix of all layers; without: of the last layer only"
    )
    fusion_order: str = option("both", FUSION_ORDER_HELP, choices=FUSION_ORDERS)
    drop_path: float = option(0.1, "stochastic depth of the last block")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale")
    class_names: tuple[str, ...] = option(
        (),
        "names of the classes or outputs for the exported model, or a file with one a line; "
        "default: classes.txt (regression: targets.txt) in data_path or the folder above",
        metavar="NAME",
    )
    head_activation: str | None = option(
        None, "function after the head (regression)", choices=("sigmoid", "relu", "tanh")
    )
    finetune: str = option("", "pre-training checkpoint to start from", metavar="FILE")
    allow_partial: bool = option(
        False, "accept a checkpoint whose encoders are deeper or shallower than the model's"
    )
    layer_decay: float = option(0.75, "learning-rate factor from one layer to the one below")
    linear_probe: bool = option(
        False,
        "train the head (fc_norm, head) and the layer weights only; encoders and fusion stay as "
        "they are; wants a larger --lr than full fine-tuning",
    )
    freeze_layers: int = option(
        0,
        "keep the patch embedding and the first N blocks of each encoder as they are, with N = "
        "depth its norm too; everything above trains; 0: train all",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.nb_classes < 1:
            raise ValueError("--nb_classes is missing; give the number of classes or outputs")
        if self.task == "classification" and self.nb_classes < 2:
            raise ValueError(f"--nb_classes must be at least 2, got {self.nb_classes}")
        if self.task == "classification" and self.head_activation:
            raise ValueError("--head_activation is for --task regression only; leave it out")
        if self.modality != "av" and self.fusion_order != "both":
            raise ValueError(
                f"--fusion_order {self.fusion_order} is for --modality av, --modality "
                f"{self.modality} has no fusion; leave it out"
            )
        check_share(self, "drop_path", upper_open=True)
        check_not_negative(self, "init_values")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        self._check_freezing()

    def _check_freezing(self) -> None:
        check_not_negative(self, "freeze_layers")
        if self.linear_probe and self.freeze_layers:
            raise ValueError(
                "--linear_probe freezes all blocks, --freeze_layers the first ones; give one"
            )
        for stream, flag in (("v", "depth"), ("a", "depth_audio")):
            depth = getattr(self, flag)
            if stream in self.modality and self.freeze_layers > depth:
                raise ValueError(
                    f"--freeze_layers {self.freeze_layers} is more than the {depth} blocks of "
                    f"--{flag}; give at most {depth}"
                )

    def model_options(self) -> dict[str, Any]:
        """Return the settings under the names of the model builder."""
        return {
            "num_classes": self.nb_classes,
            "depth": self.depth,
            "depth_audio": self.depth_audio,
            "fusion_depth": self.fusion_depth,
            "drop_path_rate": self.drop_path,
            "head_activation": self.head_activation,
            "init_values": self.init_values,
            "modality": self.modality,
            "hierarchical_fusion": self.hierarchical_fusion,
            "fusion_order": self.fusion_order,
        }


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of labelled clips."""

    aa: str = option(
        "rand-m7-n4-mstd0.5-inc1", "RandAugment policy of timm; none: off", metavar="POLICY"
    )
    reprob: float = option(0.25, "probability of random erasing")
    remode: str = option("pixel", "filling of erased boxes", choices=("pixel", "rand", "const"))
    recount: int = option(1, "erased boxes a clip")
    crop_scale: tuple[float, float] = option(
        (0.08, 1.0), "smallest and largest area of the random resized crop", metavar="SHARE"
    )
    flip: float = option(0.5, "probability of a horizontal flip")
    mixup: float | None = option(None, "mixup alpha; 0: off (default: 0.8, in regression 0)")
    cutmix: float | None = option(None, "cutmix alpha; 0: off (default: 1.0, in regression 0)")
    mixup_prob: float = option(1.0, "probability that a batch is mixed")
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on")
    mixup_audio: bool = option(False, "mix the audio too (the original mixes video and targets)")
    smoothing: float = option(0.1, "label smoothing")

    def __post_init__(self) -> None:
        check_share(self, "reprob", "flip", "mixup_prob", "mixup_switch_prob")
        check_share(self, "smoothing", upper_open=True)
        for name in ("mixup", "cutmix"):
            if getattr(self, name) is not None:
                check_not_negative(self, name)
        check_positive(self, "recount")
        low_high = self.crop_scale
        if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] <= 1:
            raise ValueError(
                f"--crop_scale takes two shares, 0 < smallest <= largest <= 1, got {low_high}"
            )

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed at all."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class ScoreConfig:
    """Loss, validation and testing."""

    loss: str = option(
        "",
        "ce for classes (default); mse (default), mae, ccc, pcc for regression",
        choices=("ce", "mse", "mae", "ccc", "pcc"),
    )
    val_metric: str = option(
        "",
        "metric that picks the best epoch (default: war, or ccc for regression)",
        choices=(*CLASSIFICATION_METRICS, *REGRESSION_METRICS),
    )
    val_path: str = option(
        "", "validation list; default: val.csv in data_path, else test.csv", metavar="FILE"
    )
    val_split: str = option(
        "list",
        "validation clips: list = those of --val_path, val.csv or test.csv; speaker, clip = held "
        "out of train.csv, all clips of some speakers, or clips at random",
        choices=("list", "speaker", "clip"),
    )
    val_share: float = option(0.2, "share of train.csv that --val_split speaker or clip holds out")
    label_share: float = option(
        1.0,
        "share of the training clips to train on, of each class alike, drawn by --seed after "
        "--val_split; a smaller share is part of a larger one",
    )
    speaker_file: str = option(
        "",
        "csv file with the columns clip,speaker; default: clip_speakers.csv in data_path or the "
        "folder above",
        metavar="FILE",
    )
    speaker_pattern: str = option(
        "",
        "instead of a file: regular expression whose groups, in a clip's name, make the speaker, "
        f"or the name of a data set: {', '.join(PATTERNS)}",
        metavar="REGEX",
    )
    average_clips: int = option(
        0,
        "score clips with the same first N '_' fields of their names as one, by their mean scores "
        "(AVCAffe: 3); 0: each clip for itself",
        metavar="N",
    )
    test_num_segment: int = option(2, "temporal views of a test clip")
    test_num_crop: int = option(2, "spatial views of a test clip")
    dist_eval: bool = option(True, "share testing among the GPUs")
    eval: bool = option(False, "only test the newest or the --resume checkpoint")
    skip_bad_test_clips: bool = option(False, "leave unreadable test clips out and report them")
    export: bool = option(
        True, "write export/last and export/best, with which hicmae-predict works, at the end"
    )

    def __post_init__(self) -> None:
        check_positive(self, "test_num_segment", "test_num_crop")
        check_not_negative(self, "average_clips")
        if not 0 < self.val_share < 1:
            raise ValueError(f"--val_share must be between 0 and 1, got {self.val_share}")
        if not 0 < self.label_share <= 1:
            raise ValueError(f"--label_share must be above 0 and at most 1, got {self.label_share}")
        if self.val_split != "list" and self.val_path:
            raise ValueError(
                f"--val_path names a list, --val_split {self.val_split} holds clips out; give one"
            )
        named = [n for n in ("speaker_file", "speaker_pattern") if getattr(self, n)]
        if named and self.val_split != "speaker":
            raise ValueError(f"--{named[0]} is for --val_split speaker; add that or leave it out")
        if len(named) == 2:
            raise ValueError("--speaker_file and --speaker_pattern both name speakers; give one")


def complete(
    classifier: ClassifierConfig, score: ScoreConfig, augment: AugmentConfig
) -> tuple[ScoreConfig, AugmentConfig]:
    """Fill in the task's default loss, metric and mixing; refuse those of the other task.

    Raises:
        ValueError: a loss or metric of the other task, or mixing in regression.
    """
    regression = classifier.task == "regression"
    losses = ("mse", "mae", "ccc", "pcc") if regression else ("ce",)
    metrics = REGRESSION_METRICS if regression else CLASSIFICATION_METRICS
    loss, metric = score.loss or losses[0], score.val_metric or ("ccc" if regression else "war")
    _one_of("loss", loss, losses, classifier.task)
    _one_of("val_metric", metric, metrics, classifier.task)
    if regression and augment.mixes:
        raise ValueError("--mixup and --cutmix are for classification; leave them out or set 0")
    score = replace(score, loss=loss, val_metric="war" if metric == "acc1" else metric)
    mixup, cutmix = (0.0, 0.0) if regression else (0.8, 1.0)
    return score, replace(
        augment,
        mixup=mixup if augment.mixup is None else augment.mixup,
        cutmix=cutmix if augment.cutmix is None else augment.cutmix,
    )


def _one_of(flag: str, value: str, allowed: Iterable[str], task: str) -> None:
    if value not in allowed:
        raise ValueError(f"--{flag} {value} does not fit --task {task}; use {', '.join(allowed)}")
