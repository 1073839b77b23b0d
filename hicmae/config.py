"""Command-line flags made from the fields of frozen dataclasses, so each setting stands once.

Settings that pre-training and fine-tuning share.

Settings of pre-training: model, masks, loss.

Settings of fine-tuning: classifier, augmentation, loss and testing.
"""

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn, TypeVar

from hicmae.data.dataset import ClipSettings
from hicmae.data.splits import PATTERNS
from hicmae.models.encoder import FUSION_ORDERS

Config = TypeVar("Config")


Configs = TypeVar("Configs")


def option(
    default: Any,
    description: str,
    *,
    choices: Sequence[Any] | None = None,
    aliases: Sequence[str] = (),
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: value without the flag; None makes the flag optional with no value.
        description: one line for ``--help``; the default is appended.
        choices: the allowed values.
        aliases: other spellings of the flag, without dashes.
        metavar: how the value is called in ``--help``.
    """
    metadata = {"help": description, "choices": choices, "aliases": aliases, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad flag in one line instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and say where the flags are described."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def new_parser(description: str) -> OneLineParser:
    """Make a parser that knows neither abbreviated flags nor flags nobody declared."""
    return OneLineParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _value_type(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value and whether the flag takes several."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def add_arguments(parser: argparse.ArgumentParser, config: type, **defaults: Any) -> None:
    """Add one titled group of flags, one for each field of a dataclass.

    Args:
        parser: gets the group; its title is the first line of the dataclass's docstring.
        config: a dataclass whose fields were declared with `option`.
        defaults: other defaults than the fields' own, by field name.
    """
    title = (config.__doc__ or config.__name__).splitlines()[0].rstrip(".")
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        default = defaults.get(field.name, field.default)
        names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
        value_type, several = _value_type(hints[field.name])
        options: dict[str, Any] = {"default": default, "dest": field.name}
        options["help"] = field.metadata["help"].replace("%", "%%") + _shown(default)
        if value_type is bool:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
            continue
        options |= {"type": value_type, "choices": field.metadata["choices"]}
        options["metavar"] = field.metadata["metavar"] or (
            None if options["choices"] else value_type.__name__.upper()
        )
        if several:
            options["nargs"] = "+"
        group.add_argument(*names, **options)


def _shown(default: Any) -> str:
    if default in (None, ""):
        return ""
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f" (default: {default})"


def from_args(args: argparse.Namespace, config: type[Config]) -> Config:
    """Build the dataclass from parsed flags; its `__post_init__` checks them.

    Raises:
        ValueError: from the dataclass's own checks.
    """
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # any dataclass will do
        value = getattr(args, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**values)


def parse_configs(
    parser: argparse.ArgumentParser, configs: type[Configs], argv: Sequence[str] | None
) -> Configs:
    """Parse the command line; a setting that fails its dataclass's check ends the run.

    Args:
        parser: knows the flags of all the dataclasses.
        configs: NamedTuple whose fields are annotated with the dataclasses.
        argv: replaces the command line.

    Raises:
        SystemExit: code 2 after one line that says what is wrong.
    """
    args = parser.parse_args(argv)
    try:
        return configs(**{n: from_args(args, c) for n, c in configs.__annotations__.items()})
    except ValueError as error:
        parser.error(str(error))


def as_dict(configs: NamedTuple) -> dict[str, dict[str, Any]]:
    """Return the settings as plain dicts, for JSON and for checkpoints."""
    return {name: dataclasses.asdict(config) for name, config in configs._asdict().items()}


CPU_GEMM = ("auto", "onednn", "mkl")


FUSION_ORDER_HELP = (
    "stream that each fusion layer updates first, so that the other one reads the result; "
    "both: each reads the other's input"
)


def check_positive(config: Any, *names: str) -> None:
    """Refuse settings that are not above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name} must be greater than 0, got {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """Refuse settings below 0."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(config, name)}")


def check_share(config: Any, *names: str, upper_open: bool = False) -> None:
    """Refuse settings outside 0..1; with `upper_open` 1 is refused too."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or (upper_open and value == 1):
            bound = "0 <= value < 1" if upper_open else "0 <= value <= 1"
            raise ValueError(f"--{name} must be a share, {bound}, got {value}")


@dataclass(frozen=True)
class RunConfig:
    """Where and how to run."""

    output_dir: str = option("", "folder for checkpoints, logs and results", metavar="DIR")
    log_dir: str = option("", "folder for TensorBoard files; empty: output_dir", metavar="DIR")
    device: str = option("auto", "where to compute", choices=("auto", "cuda", "cpu"))
    precision: str = option(
        "auto",
        "arithmetic of the forward pass; auto: bf16 on a GPU that has it, else fp32",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    cpu_gemm: str = option(
        "auto",
        "library of fp32 matrix products on a CPU; auto: oneDNN on AVX-512 processors that Intel "
        "did not make, else mkl",
        choices=CPU_GEMM,
    )
    compile: bool = option(False, "torch.compile the training steps; minutes at first, then faster")
    cuda_graphs: bool = option(False, "with --compile on a GPU: replay a pass by one launch")
    checkpoint_activations: bool = option(
        False, "compute the blocks again in the backward pass: less memory, same gradients"
    )
    seed: int = option(0, "seed of everything random")
    resume: str = option("", "checkpoint file to go on from", metavar="FILE")
    auto_resume: bool = option(True, "go on from the newest whole checkpoint in output_dir")
    allow_changes: bool = option(
        False, "go on even with settings or clips that make it another run; they are listed"
    )
    save_interval: float = option(
        15.0, "minutes of training that may be lost at most; 0: save after every step"
    )
    save_ckpt_freq: int = option(10, "keep the checkpoint of every this many epochs")
    keep_ckpts: int = option(2, "keep this many of the last checkpoints as well")
    max_bad_steps: int = option(
        10, "steps in a row without finite loss and gradients at which training stops"
    )
    deterministic: bool = option(False, "only algorithms that repeat a run bit by bit; slower")
    print_freq: int = option(10, "log every this many steps")
    image_freq: int = option(1, "pictures in TensorBoard every this many epochs; 0: none")
    num_workers: int = option(
        min(8, os.cpu_count() or 1), "processes that load clips, for each rank; 0: none"
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("--output_dir is missing; name the folder for checkpoints and results")
        if self.cuda_graphs and not self.compile:
            raise ValueError("--cuda_graphs replays compiled passes; add --compile")
        check_positive(self, "save_ckpt_freq", "keep_ckpts", "print_freq", "max_bad_steps")
        check_not_negative(self, "seed", "num_workers", "image_freq", "save_interval")


@dataclass(frozen=True)
class ClipConfig:
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
        multiples = (
            ("num_frames", self.num_frames, "tubelet_size", self.tubelet_size),
            ("input_size", self.input_size, "the patch size", 16),
            *(("input_size_audio", size, "the patch size", 16) for size in self.input_size_audio),
        )
        for flag, value, divisor_name, divisor in multiples:
            if value % divisor:
                raise ValueError(f"--{flag} {value} is not a multiple of {divisor_name}, {divisor}")

    def dataset_options(self) -> dict[str, Any]:
        """Return the geometry as the data sets take it."""
        settings = ClipSettings(
            self.num_frames, self.sampling_rate, self.input_size, self.input_size_audio
        )
        return {"settings": settings}

    def model_options(self) -> dict[str, Any]:
        """Return the geometry under the names of the model builders."""
        return {
            "num_frames": self.num_frames,
            "img_size": self.input_size,
            "img_size_audio": self.input_size_audio,
            "tubelet_size": self.tubelet_size,
        }


@dataclass(frozen=True)
class DataConfig:
    """Clips."""

    data_path: str = option(
        "",
        "pre-training: the list file, its folder with train.csv, or a folder of shards; "
        "fine-tuning: the folder with train.csv and test.csv, or with shards in train/ and test/",
        metavar="PATH",
    )
    data_root: str = option("", "folder that relative paths in the lists start from", metavar="DIR")
    num_samples: int = option(1, "draws from each clip a batch holds (repeated sampling)")
    roll_mag_aug: bool = option(False, "random gain of the waveform in training")
    max_bad_clips: float = option(0.01, "share of unreadable clips at which training stops")
    clip_timeout: float = option(
        60.0, "seconds after which a clip that is still being read is skipped; 0: no limit"
    )

    def __post_init__(self) -> None:
        if not self.data_path:
            raise ValueError("--data_path is missing; name the clip list or its folder")
        check_positive(self, "num_samples")
        check_share(self, "max_bad_clips")
        check_not_negative(self, "clip_timeout")


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    batch_size: int = option(40, "clips of one step on one GPU")
    accum_iter: int = option(
        1, "batches whose gradients are added up to one step", aliases=("update_freq",)
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
        check_positive(self, "batch_size", "accum_iter", "epochs", "opt_eps")
        check_not_negative(self, "warmup_epochs", "lr", "min_lr", "weight_decay")
        if len(self.opt_betas) != 2 or any(not 0 <= beta < 1 for beta in self.opt_betas):
            raise ValueError(f"--opt_betas takes two numbers in [0, 1), got {self.opt_betas}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"--warmup_epochs {self.warmup_epochs} is more than --epochs {self.epochs}"
            )
        if self.clip_grad is not None:
            check_positive(self, "clip_grad")

    def scaled(self, learning_rate: float, world_size: int) -> float:
        """Scale a learning rate by the total batch over 256 (linear scaling rule)."""
        return learning_rate * self.batch_size * self.accum_iter * world_size / 256


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


# Flags that choose where and how a run computes, or when it looks, saves and tests; every other
# flag says what is trained. Paths are judged by the clips that are found there.
HARMLESS = frozenset(
    "output_dir log_dir device deterministic compile cuda_graphs cpu_gemm"
    " checkpoint_activations num_workers clip_timeout resume auto_resume allow_changes"
    " save_interval save_ckpt_freq keep_ckpts print_freq image_freq max_bad_steps max_bad_clips"
    " data_path data_root val_path speaker_file speaker_pattern test_num_segment test_num_crop"
    " dist_eval eval export class_names skip_bad_test_clips".split()
)


# Flags that earlier versions did not have, with what those did.
BEFORE = {
    "skip_connections": True,
    "contrastive_levels": "all",
    "hierarchical_fusion": True,
    "fusion_order": "both",
    "linear_probe": False,
    "freeze_layers": 0,
    "label_share": 1.0,
}


def all_flags(groups: Any) -> dict[str, Any]:
    """Return all flags by name; {} for the settings of other programs."""
    if not isinstance(groups, Mapping):
        return {}
    flags: Iterable[Mapping[str, Any]] = (g for g in groups.values() if isinstance(g, Mapping))
    return {
        name: list(value) if isinstance(value, tuple) else value
        for group in flags
        for name, value in group.items()
    }
