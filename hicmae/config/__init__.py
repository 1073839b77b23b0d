"""The settings of both scripts: frozen dataclasses whose fields are the command-line flags.

A field has the name of the argument that it becomes, of a model's builder or a loss, say; where the
flag is spelled otherwise, the field says so. Settings are saved by their flags, in groups.
"""

import itertools
import os
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from hicmae.config.flags import (
    OneLineParser,
    add_arguments,
    all_flags,
    as_dict,
    check,
    check_not_negative,
    check_positive,
    check_share,
    flag_of,
    from_dict,
    from_flags,
    harmless,
    new_parser,
    option,
    parse_configs,
)
from hicmae.data.dataset import ClipSettings
from hicmae.data.splits import PATTERNS
from hicmae.models.encoder import FUSION_ORDERS

__all__ = ["OneLineParser", "add_arguments", "all_flags", "as_dict", "from_dict", "from_flags",
           "new_parser", "parse_configs"]  # fmt: skip

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
CPU_GEMM = ("auto", "onednn", "mkl")
CLASSIFICATION_METRICS = ("uar", "war", "acc1", "weighted_f1", "macro_f1", "micro_f1")
REGRESSION_METRICS = ("ccc", "pcc", "acc", "mae", "mse", "rmse")
REGRESSION_LOSSES: tuple[str, ...] = ("mse", "mae", "ccc", "pcc")
LOWER_IS_BETTER = ("mae", "mse", "rmse")
FUSION_ORDER_HELP = (
    "stream that each fusion layer updates first, so that the other one reads the result; "
    "both: each reads the other's input"
)
# Rules for `check`
BETWEEN = (lambda value: 0 < value < 1, "be between 0 and 1")
BELOW_ONE = (lambda value: 0 <= value < 1, "be a share, 0 <= value < 1")
ABOVE_ZERO = (lambda value: 0 < value <= 1, "be above 0 and at most 1")


# Settings of both scripts


@dataclass(frozen=True)
class RunConfig:
    """Where and how to run."""

    output_dir: str = harmless("", "folder for checkpoints, logs and results", metavar="DIR")
    log_dir: str = harmless("", "folder for TensorBoard files; empty: output_dir", metavar="DIR")
    device: str = harmless("auto", "where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: str = option(
        "auto", "of the forward pass; auto: bf16 where a GPU has it, else fp32", choices=PRECISIONS
    )
    cpu_gemm: str = harmless(
        "auto", "library of fp32 products on a CPU; auto: the faster one", choices=CPU_GEMM
    )
    compile: bool = harmless(False, "torch.compile the steps; minutes at first, then faster")
    cuda_graphs: bool = harmless(False, "with --compile on a GPU: replay a pass by one launch")
    checkpoint_activations: bool = harmless(
        False, "compute the blocks again in the backward pass: less memory, same gradients"
    )
    seed: int = option(0, "seed of everything random")
    resume: str = harmless("", "checkpoint file to go on from", metavar="FILE")
    auto_resume: bool = harmless(True, "go on from the newest whole checkpoint in output_dir")
    allow_changes: bool = harmless(
        False, "go on even with settings or clips that make it another run; they are listed"
    )
    save_interval: float = harmless(
        15.0, "minutes of training that may be lost at most; 0: save after every step"
    )
    save_ckpt_freq: int = harmless(10, "keep the checkpoint of every this many epochs")
    keep_ckpts: int = harmless(2, "keep this many of the last checkpoints as well")
    max_bad_steps: int = harmless(
        10, "steps in a row without finite loss and gradients at which training stops"
    )
    deterministic: bool = harmless(False, "only algorithms that repeat bit by bit; slower")
    print_freq: int = harmless(10, "log every this many steps")
    image_freq: int = harmless(1, "pictures in TensorBoard every this many epochs; 0: none")
    num_workers: int = harmless(
        min(8, os.cpu_count() or 1), "processes that load clips, for each GPU; 0: none"
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("--output_dir is missing; name the folder for checkpoints and results")
        if self.cuda_graphs and not self.compile:
            raise ValueError("--cuda_graphs replays compiled passes; add --compile")
        check_positive(self, "save_ckpt_freq", "keep_ckpts", "print_freq", "max_bad_steps")
        check_not_negative(self, "seed", "num_workers", "image_freq", "save_interval")


@dataclass(frozen=True)
class DataConfig:
    """Clips."""

    # A resumed run compares the clips, wherever they lie.
    data_path: str = harmless(
        "", "list, folder with train.csv (fine-tuning: and test.csv), or shards", metavar="PATH"
    )
    data_root: str = harmless("", "folder that relative paths start from", metavar="DIR")
    num_samples: int = option(1, "draws from each clip a batch holds (repeated sampling)")
    roll_mag_aug: bool = option(False, "random gain of the waveform in training")
    max_bad_clips: float = harmless(0.01, "share of unreadable clips at which training stops")
    clip_timeout: float = harmless(60.0, "seconds after which a clip is skipped; 0: no limit")

    def __post_init__(self) -> None:
        if not self.data_path:
            raise ValueError("--data_path is missing; name the clip list or its folder")
        check_positive(self, "num_samples")
        check_share(self, "max_bad_clips")
        check_not_negative(self, "clip_timeout")


@dataclass(frozen=True)
class ClipConfig(ClipSettings):
    """Clip geometry."""

    num_frames: int = option(16, "video frames of a clip")
    sampling_rate: int = option(4, "frames from one sampled frame to the next")
    input_size: int = option(160, "height and width of a video frame in pixels")
    input_size_audio: tuple[int, int] = option(
        (256, 128), "spectrogram steps of 10 ms, and mel bins (128 if left out)", metavar="N"
    )
    tubelet_size: int = option(2, "video frames of one token")

    def __post_init__(self) -> None:
        check_positive(self, "num_frames", "sampling_rate", "input_size", "tubelet_size")
        sizes = self.input_size_audio
        if len(sizes) > 2 or any(size <= 0 for size in sizes):
            raise ValueError(
                f"--input_size_audio takes steps and mel bins, two positive numbers, got {sizes}"
            )
        if len(sizes) == 1:
            object.__setattr__(self, "input_size_audio", (sizes[0], 128))
        for flag, size, part, whole in (
            ("num_frames", self.num_frames, self.tubelet_size, "--tubelet_size"),
            ("input_size", self.input_size, 16, "the patch size"),
            *(("input_size_audio", size, 16, "the patch size") for size in sizes),
        ):
            if size % part:
                raise ValueError(f"--{flag} {size} is not a multiple of {whole}, {part}")

    def of_model(self) -> dict[str, Any]:
        """Return the geometry as the arguments of a model."""
        size, size_audio = self.input_size, self.input_size_audio
        sizes = {"img_size": size, "img_size_audio": size_audio}
        return {"num_frames": self.num_frames, "tubelet_size": self.tubelet_size, **sizes}


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    batch_size: int = option(40, "clips of one pass on one GPU")
    accum_iter: int = option(1, "passes of one step (accumulation)", aliases=("update_freq",))
    total_batch: int = option(
        0, "clips of one step on all GPUs: chooses accum_iter, lowers batch_size if it must; 0: off"
    )
    epochs: int = option(100, "passes over the training list")
    warmup_epochs: int = option(5, "epochs in which the learning rate rises from 0")
    warmup_steps: int = option(-1, "the same in steps; overrides the epochs when above 0")
    lr: float = option(3e-4, "learning rate for a total batch of 256; scales with the total batch")
    min_lr: float = option(1e-5, "learning rate at the end, for a total batch of 256")
    weight_decay: float = option(0.05, "AdamW weight decay")
    weight_decay_end: float | None = option(None, "weight decay at the end; none: constant")
    opt_betas: tuple[float, float] = option((0.9, 0.95), "AdamW betas", metavar="BETA")
    opt_eps: float = option(1e-8, "AdamW epsilon")
    clip_grad: float | None = option(None, "largest gradient norm; none: no clipping")

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "accum_iter", "epochs", "opt_eps", "clip_grad")
        check_not_negative(self, "total_batch", "warmup_epochs", "lr", "min_lr", "weight_decay")
        if len(self.opt_betas) != 2 or any(not 0 <= beta < 1 for beta in self.opt_betas):
            raise ValueError(f"--opt_betas takes two numbers in [0, 1), got {self.opt_betas}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"--warmup_epochs {self.warmup_epochs} is more than --epochs {self.epochs}"
            )
        if self.total_batch and self.accum_iter > 1:
            raise ValueError("--total_batch chooses --accum_iter; leave one of them out")

    def shared(self, processes: int) -> "OptimConfig":
        """Return the batches that --total_batch means for so many processes.

        Raises:
            ValueError: the total cannot be had in equal passes of about --batch_size clips.
        """
        if not self.total_batch:
            return self
        total, largest = self.total_batch, self.batch_size
        if (found := _passes(total, processes, largest)) is None:
            more = next(n for n in itertools.count(total) if _passes(n, processes, largest))
            fewer = next((n for n in range(processes, 0, -1) if _passes(total, n, largest)), None)
            raise ValueError(
                f"--total_batch {total} cannot be shared by {processes} process(es) in equal "
                f"passes of about --batch_size {largest}; use --total_batch {more}"
                + (f", or {fewer} process(es)" if fewer else "")
            )
        batch_size, accum_iter = found
        return replace(self, batch_size=batch_size, accum_iter=accum_iter, total_batch=0)


def _passes(total: int, processes: int, largest: int) -> tuple[int, int] | None:
    """Return clips of a pass and passes of a step that make the total; None where none do."""
    share, rest = divmod(total, processes)
    if rest or not share:
        return None
    batch = next(size for size in range(min(largest, share), 0, -1) if share % size == 0)
    # A share such as 53 has no divisor but 1: too few clips in a pass to contrast or to be fast.
    return (batch, share // batch) if batch == share or batch * 4 >= largest else None


# Settings of pre-training


@dataclass(frozen=True)
class PretrainModelConfig:
    """Pre-training model."""

    model_name: str = option(
        "pretrain_hicmae_dim512_patch16_160_a256", "registered name", flag="model", metavar="NAME"
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
        True, "decoder blocks after the first read these levels; without: plain self-attention"
    )
    fusion_order: str = option("both", FUSION_ORDER_HELP, choices=FUSION_ORDERS)
    drop_path_rate: float = option(0.0, "stochastic depth of the last block", flag="drop_path")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale")

    def __post_init__(self) -> None:
        check(self, ("drop_path_rate",), *BELOW_ONE)
        check_not_negative(self, "init_values")


@dataclass(frozen=True)
class MaskConfig:
    """Masking."""

    mask_ratio: float = option(0.9, "share of video tokens hidden from the encoder (tube mask)")
    mask_ratio_audio: float = option(0.8, "share of audio tokens hidden from the encoder")

    def __post_init__(self) -> None:
        check(self, ("mask_ratio", "mask_ratio_audio"), *BETWEEN)


@dataclass(frozen=True)
class PretrainLossConfig:
    """Pre-training loss."""

    loss_weight: float = option(0.0025, "weight of the contrastive loss")
    contrastive_levels: str = option(
        "all", "which of the kept encoder blocks to contrast", choices=("all", "top", "none")
    )
    temperature: float = option(
        0.07, "temperature of the contrastive loss", flag="inter_contrastive_temperature"
    )
    gather: bool = option(False, "contrast with the clips of all GPUs", flag="gather_negatives")
    frame_diff: bool = option(
        False,
        "predict differences to the first frame of each group (on in the VoxCeleb2 script)",
        flag="use_frame_diff_as_target",
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
        check_positive(self, "temperature", "frame_diff_group_size")
        check_share(self, "target_diff_weight")
        if self.gather and self.contrastive_levels == "none":
            raise ValueError("--gather_negatives needs a contrast, --contrastive_levels has none")


class PretrainConfigs(NamedTuple):
    """All settings of a pre-training run, in the order of ``--help``."""

    run: RunConfig
    data: DataConfig
    clip: ClipConfig
    model: PretrainModelConfig
    mask: MaskConfig
    loss: PretrainLossConfig
    optim: OptimConfig


# Settings of fine-tuning


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier."""

    task: str = option("classification", "kind of labels", choices=("classification", "regression"))
    num_classes: int = option(0, "classes, or regression outputs", flag="nb_classes", metavar="K")
    modality: str = option("av", "streams to read: both, audio, video", choices=("av", "a", "v"))
    model_name: str = option(
        "avit_dim512_patch16_160_a256", "registered name", flag="model", metavar="NAME"
    )
    depth: int = option(10, "blocks of the video encoder", aliases=("encoder_depth",))
    depth_audio: int = option(10, "blocks of the audio encoder", aliases=("encoder_depth_audio",))
    fusion_depth: int = option(
        2, "layers of the cross-modal fusion encoder", aliases=("encoder_fusion_depth",)
    )
    hierarchical_fusion: bool = option(
        True, "the head reads a learned mix of all layers; without: of the last layer only"
    )
    fusion_order: str = option("both", FUSION_ORDER_HELP, choices=FUSION_ORDERS)
    drop_path_rate: float = option(0.1, "stochastic depth of the last block", flag="drop_path")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale")
    class_names: tuple[str, ...] = harmless(
        (),
        "names of the classes or outputs, a file with one a line, or a data set's name; default: "
        "classes.txt (regression: targets.txt) in data_path or the folder above",
        metavar="NAME",
    )
    head_activation: str | None = option(
        None, "function after the head (regression)", choices=("sigmoid", "relu", "tanh")
    )
    finetune: str = option("", "pre-training checkpoint to start from", metavar="FILE")
    allow_partial: bool = option(False, "accept a checkpoint of deeper or shallower encoders")
    layer_decay: float = option(0.75, "learning-rate factor from one layer to the one below")
    linear_probe: bool = option(
        False, "train fc_norm, head and layer weights only; wants a larger --lr"
    )
    freeze_layers: int = option(
        0, "blocks of each encoder to keep as they are, with all below; 0: train all", metavar="N"
    )

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError("--nb_classes is missing; give the number of classes or outputs")
        if self.task == "classification" and self.num_classes < 2:
            raise ValueError(f"--nb_classes must be at least 2, got {self.num_classes}")
        if self.task == "classification" and self.head_activation:
            raise ValueError("--head_activation is for --task regression only; leave it out")
        if self.modality != "av" and self.fusion_order != "both":
            raise ValueError(
                f"--fusion_order {self.fusion_order} is for --modality av, --modality "
                f"{self.modality} has no fusion; leave it out"
            )
        if self.linear_probe and self.freeze_layers:
            raise ValueError("--linear_probe freezes all that --freeze_layers does; give one")
        check(self, ("drop_path_rate",), *BELOW_ONE)
        check(self, ("layer_decay",), *ABOVE_ZERO)
        check_not_negative(self, "init_values", "freeze_layers")
        for stream, flag in (("v", "depth"), ("a", "depth_audio")):
            depth = getattr(self, flag)
            if stream in self.modality and self.freeze_layers > depth:
                raise ValueError(
                    f"--freeze_layers {self.freeze_layers} is more than the {depth} blocks of "
                    f"--{flag}; give at most {depth}"
                )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of labelled clips."""

    aa: str = option("rand-m7-n4-mstd0.5-inc1", "RandAugment policy of timm; none: off")
    reprob: float = option(0.25, "probability of random erasing")
    remode: str = option("pixel", "filling of erased boxes", choices=("pixel", "rand", "const"))
    recount: int = option(1, "erased boxes a clip")
    scale: tuple[float, float] = option(
        (0.08, 1.0), "areas of the random resized crop", flag="crop_scale", metavar="SHARE"
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
        check(self, ("smoothing",), *BELOW_ONE)
        check_not_negative(self, "mixup", "cutmix")
        check_positive(self, "recount")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"--crop_scale takes two shares, 0 < smallest <= largest <= 1, got {self.scale}"
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
        choices=("ce", *REGRESSION_LOSSES),
    )
    val_metric: str = option(
        "",
        "metric that picks the best epoch (default: war, or ccc for regression)",
        choices=(*CLASSIFICATION_METRICS, *REGRESSION_METRICS),
    )
    val_path: str = harmless(
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
        1.0, "share of each class's training clips to train on; smaller ones are parts of larger"
    )
    speaker_file: str = harmless(
        "",
        "csv file, columns clip,speaker; default: clip_speakers.csv in data_path or above",
        metavar="FILE",
    )
    speaker_pattern: str = harmless(
        "",
        "instead of a file: regular expression whose groups, in a clip's name, make the speaker, "
        f"or the name of a data set: {', '.join(PATTERNS)}",
        metavar="REGEX",
    )
    average_clips: int = option(
        0, "score clips with the same first N '_' fields of their names as one; 0: off", metavar="N"
    )
    test_num_segment: int = harmless(2, "temporal views of a test clip")
    test_num_crop: int = harmless(2, "spatial views of a test clip")
    dist_eval: bool = harmless(True, "share testing among the GPUs")
    eval: bool = harmless(False, "only test the newest or the --resume checkpoint")
    skip_bad_test_clips: bool = harmless(False, "leave unreadable test clips out, and report them")
    export: bool = harmless(True, "write export/last and export/best at the end, for prediction")

    def __post_init__(self) -> None:
        check_positive(self, "test_num_segment", "test_num_crop")
        check_not_negative(self, "average_clips")
        check(self, ("val_share",), *BETWEEN)
        check(self, ("label_share",), *ABOVE_ZERO)
        if self.val_split != "list" and self.val_path:
            raise ValueError(
                f"--val_path names a list, --val_split {self.val_split} holds clips out; give one"
            )
        if (self.speaker_file or self.speaker_pattern) and self.val_split != "speaker":
            name = "speaker_file" if self.speaker_file else "speaker_pattern"
            raise ValueError(f"--{name} is for --val_split speaker; add that or leave it out")
        if self.speaker_file and self.speaker_pattern:
            raise ValueError("--speaker_file and --speaker_pattern both name speakers; give one")


class FinetuneConfigs(NamedTuple):
    """All settings of a fine-tuning run, in the order of ``--help``."""

    run: RunConfig
    data: DataConfig
    clip: ClipConfig
    classifier: ClassifierConfig
    augment: AugmentConfig
    optim: OptimConfig
    score: ScoreConfig

    def completed(self) -> "FinetuneConfigs":
        """Fill in the task's default loss, metric and mixing.

        Raises:
            ValueError: a loss or metric of the other task, or mixing in regression.
        """
        task, score, augment = self.classifier.task, self.score, self.augment
        losses: tuple[str, ...] = ("ce",)
        metrics, metric = CLASSIFICATION_METRICS, "war"
        mixup, cutmix = 0.8, 1.0
        if task == "regression":
            losses, metrics, metric = REGRESSION_LOSSES, REGRESSION_METRICS, "ccc"
            mixup, cutmix = 0.0, 0.0
        score = replace(score, loss=score.loss or losses[0], val_metric=score.val_metric or metric)
        for flag, allowed in (("loss", losses), ("val_metric", metrics)):
            if (value := getattr(score, flag)) not in allowed:
                raise ValueError(
                    f"--{flag} {value} does not fit --task {task}; use {', '.join(allowed)}"
                )
        if task == "regression" and augment.mixes:
            raise ValueError("--mixup and --cutmix are for classification; leave them out or set 0")
        augment = replace(
            augment,
            mixup=mixup if augment.mixup is None else augment.mixup,
            cutmix=cutmix if augment.cutmix is None else augment.cutmix,
        )
        if score.val_metric == "acc1":  # another name
            score = replace(score, val_metric="war")
        return self._replace(score=score, augment=augment)


# Flags that a resumed run may change and is still the same run.
HARMLESS = frozenset(
    flag_of(item)
    for configs in (PretrainConfigs, FinetuneConfigs)
    for config in configs.__annotations__.values()
    for item in fields(config)
    if item.metadata["harmless"]
)
