"""The settings of both scripts: frozen dataclasses whose fields are the command-line flags.

A field has the name of the argument that it becomes, of a model's builder or a loss, say; where the
flag is spelled otherwise, the field says so. It also says which values are allowed, and whether a
resumed run may change it. Settings are saved by their flags, in groups.
"""

import itertools
import os
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from hicmae.config.flags import (
    Settings,
    add_arguments,
    as_dict,
    flag_of,
    flat_settings,
    from_dict,
    from_flags,
    harmless,
    new_parser,
    option,
    parse_configs,
    refuse,
)
from hicmae.data.dataset import ClipSettings
from hicmae.data.splits import PATTERNS
from hicmae.models.encoder import FUSION_ORDERS

__all__ = ["add_arguments", "as_dict", "flat_settings", "from_dict", "from_flags", "new_parser",
           "parse_configs"]  # fmt: skip

SHARE, NOT_ALL, PART, NOT_NONE = ">= 0 and <= 1", ">= 0 and < 1", "> 0 and < 1", "> 0 and <= 1"
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
CPU_GEMM = ("auto", "onednn", "mkl")
CORES = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)
WORKERS = min(16, max(CORES // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1))
# By task; the first loss and metric are the defaults, as are these alphas of mixup and cutmix.
LOSSES = {"classification": ("ce",), "regression": ("mse", "mae", "ccc", "pcc")}
METRICS = {
    "classification": ("war", "uar", "acc1", "weighted_f1", "macro_f1", "micro_f1"),
    "regression": ("ccc", "pcc", "acc", "mae", "mse", "rmse"),
}
MIXING = {"classification": (0.8, 1.0), "regression": (0.0, 0.0)}
LOWER_IS_BETTER = ("mae", "mse", "rmse")
FUSION_HELP = "stream that fusion layers update first, for the other to read; both: at once"


@dataclass(frozen=True)
class RunConfig(Settings):
    """Where and how to run."""

    output_dir: str = harmless("", "folder for checkpoints, logs and results", metavar="DIR")
    log_dir: str = harmless("", "folder for TensorBoard files; empty: output_dir", metavar="DIR")
    device: str = harmless("auto", "where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: str = option(
        "auto",
        "of the forward pass; auto: bf16, fp16 on older GPUs, fp32 on a CPU",
        choices=PRECISIONS,
    )
    cpu_gemm: str = harmless("auto", "fp32 products on a CPU; auto: the faster", choices=CPU_GEMM)
    compile: bool = harmless(False, "torch.compile the steps; minutes at first, then faster")
    cuda_graphs: bool = harmless(False, "with --compile on a GPU: replay a pass by one launch")
    checkpoint_activations: bool = harmless(
        False, "compute the blocks again in the backward pass: less memory, same gradients"
    )
    seed: int = option(0, "seed of everything random", ">= 0")
    resume: str = harmless("", "checkpoint file to go on from", metavar="FILE")
    auto_resume: bool = harmless(True, "go on from the newest whole checkpoint in output_dir")
    allow_changes: bool = harmless(False, "go on even with what makes it another run; it is listed")
    save_interval: float = harmless(
        15.0, "minutes of training that may be lost at most; 0: save after every step", ">= 0"
    )
    save_ckpt_freq: int = harmless(10, "keep the checkpoint of every this many epochs", "> 0")
    keep_ckpts: int = harmless(2, "keep this many of the last checkpoints as well", "> 0")
    max_bad_steps: int = harmless(10, "bad steps (not finite) in a row that end training", "> 0")
    deterministic: bool = harmless(False, "only algorithms that repeat bit by bit; slower")
    print_freq: int = harmless(10, "log every this many steps", "> 0")
    image_freq: int = harmless(1, "epochs between pictures in TensorBoard; 0: none", ">= 0")
    num_workers: int = harmless(WORKERS, "processes for each GPU that load clips; 0: none", ">= 0")

    def _check(self) -> None:
        refuse(not self.output_dir, "--output_dir is missing; name the folder for all results")
        alone = self.cuda_graphs and not self.compile
        refuse(alone, "--cuda_graphs replays compiled passes; add --compile")


@dataclass(frozen=True)
class DataConfig(Settings):
    """Clips."""

    # A resumed run compares the clips, wherever they lie.
    data_path: str = harmless("", "list, folder of train.csv, test.csv, or shards", metavar="PATH")
    data_root: str = harmless("", "folder that relative paths start from", metavar="DIR")
    num_samples: int = option(1, "draws from each clip of a batch (repeated sampling)", "> 0")
    roll_mag_aug: bool = option(False, "random gain of the waveform in training")
    max_bad_clips: float = harmless(0.01, "share of unreadable clips that ends training", SHARE)
    clip_timeout: float = harmless(60.0, "seconds until a clip is skipped; 0: no limit", ">= 0")

    def _check(self) -> None:
        refuse(not self.data_path, "--data_path is missing; name the clip list or its folder")


@dataclass(frozen=True)
class ClipConfig(ClipSettings, Settings):
    """Clip geometry."""

    num_frames: int = option(16, "video frames of a clip", "> 0")
    sampling_rate: int = option(4, "frames from one sampled frame to the next", "> 0")
    input_size: int = option(160, "height and width of a video frame in pixels", "> 0")
    input_size_audio: tuple[int, int] = option(
        (256, 128), "spectrogram steps of 10 ms, and mel bins (128 if left out)", "> 0", nargs="+"
    )
    tubelet_size: int = option(2, "video frames of one token", "> 0")

    def _check(self) -> None:
        sizes = self.input_size_audio
        refuse(len(sizes) > 2, f"--input_size_audio takes steps and mel bins, got {sizes}")
        if len(sizes) == 1:
            object.__setattr__(self, "input_size_audio", (sizes[0], 128))
        for flag, size, part, whole in (
            ("num_frames", self.num_frames, self.tubelet_size, "--tubelet_size"),
            ("input_size", self.input_size, 16, "the patch size"),
            *(("input_size_audio", size, 16, "the patch size") for size in sizes),
        ):
            refuse(size % part, f"--{flag} {size} is not a multiple of {whole}, {part}")

    def of_model(self) -> dict[str, Any]:
        """Return the geometry as the arguments of a model."""
        sizes = {"img_size": self.input_size, "img_size_audio": self.input_size_audio}
        return {"num_frames": self.num_frames, "tubelet_size": self.tubelet_size, **sizes}


@dataclass(frozen=True)
class OptimConfig(Settings):
    """Optimisation."""

    batch_size: int = option(40, "clips of one pass on one GPU", "> 0")
    accum_iter: int = option(1, "passes of one step", "> 0", aliases=("update_freq",))
    total_batch: int = option(0, "clips of a step on all GPUs; sets the two above; 0: off", ">= 0")
    epochs: int = option(100, "passes over the training list", "> 0")
    warmup_epochs: int = option(5, "epochs in which the learning rate rises from 0", ">= 0")
    warmup_steps: int = option(-1, "the same in steps; overrides the epochs when above 0")
    lr: float = option(3e-4, "learning rate for 256 clips a step; scales with the clips", ">= 0")
    min_lr: float = option(1e-5, "learning rate at the end, for 256 clips a step", ">= 0")
    weight_decay: float = option(0.05, "AdamW weight decay", ">= 0")
    weight_decay_end: float | None = option(None, "weight decay at the end; none: constant")
    opt_betas: tuple[float, float] = option((0.9, 0.95), "AdamW betas", NOT_ALL, metavar="BETA")
    opt_eps: float = option(1e-8, "AdamW epsilon", "> 0")
    clip_grad: float | None = option(None, "largest gradient norm; none: no clipping", "> 0")

    def _check(self) -> None:
        warmup, epochs = self.warmup_epochs, self.epochs
        refuse(warmup > epochs, f"--warmup_epochs {warmup} is more than --epochs {epochs}")
        both = self.total_batch and self.accum_iter > 1
        refuse(both, "--total_batch chooses --accum_iter; leave one of them out")

    def shared(self, processes: int) -> "OptimConfig":
        """Return the batches that --total_batch means for so many processes.

        Raises:
            ValueError: the total cannot be had in equal passes of about --batch_size clips.
        """
        total, largest = self.total_batch, self.batch_size
        if not total:
            return self
        if (found := _passes(total, processes, largest)) is None:
            more = next(n for n in itertools.count(total) if _passes(n, processes, largest))
            fewer = next((n for n in range(processes, 0, -1) if _passes(total, n, largest)), None)
            raise ValueError(
                f"--total_batch {total} cannot be shared by {processes} process(es) in equal "
                f"passes of about --batch_size {largest}; use --total_batch {more}"
                + (f", or {fewer} process(es)" if fewer else "")
            )
        return replace(self, batch_size=found[0], accum_iter=found[1], total_batch=0)


def _passes(total: int, processes: int, largest: int) -> tuple[int, int] | None:
    """Return clips of a pass and passes of a step that make the total; None where none do."""
    share, rest = divmod(total, processes)
    if rest or not share:
        return None
    batch = next(size for size in range(min(largest, share), 0, -1) if share % size == 0)
    # A share such as 53 has no divisor but 1: too few clips in a pass to contrast or to be fast.
    return (batch, share // batch) if batch == share or batch * 4 >= largest else None


@dataclass(frozen=True)
class PretrainModelConfig(Settings):
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
    skip_connections: bool = option(True, "decoders read these levels; without: self-attention")
    fusion_order: str = option("both", FUSION_HELP, choices=FUSION_ORDERS)
    drop_path_rate: float = option(0.0, "drop path at the last block", NOT_ALL, flag="drop_path")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale", ">= 0")


@dataclass(frozen=True)
class MaskConfig(Settings):
    """Masking."""

    mask_ratio: float = option(0.9, "share of video tokens to hide (tube mask)", PART)
    mask_ratio_audio: float = option(0.8, "share of audio tokens to hide", PART)


@dataclass(frozen=True)
class PretrainLossConfig(Settings):
    """Pre-training loss."""

    loss_weight: float = option(0.0025, "weight of the contrastive loss", ">= 0")
    contrastive_levels: str = option(
        "all", "which of the kept encoder blocks to contrast", choices=("all", "top", "none")
    )
    temperature: float = option(
        0.07, "temperature of the contrastive loss", "> 0", flag="inter_contrastive_temperature"
    )
    gather: bool = option(False, "contrast with the clips of all GPUs", flag="gather_negatives")
    frame_diff: bool = option(
        False, "predict differences to the first frame of a group", flag="use_frame_diff_as_target"
    )
    frame_diff_group_size: int = option(2, "frames of such a group", "> 0")
    target_diff_weight: float | None = option(
        None, "weight of a tubelet's later frames, 1 - w for its first; none: plain mean", SHARE
    )
    normalize_target: bool = option(
        True, "normalise each video patch and channel", aliases=("normlize_target",)
    )
    normalize_target_audio: bool = option(
        True, "normalise each audio patch", aliases=("normlize_target_audio",)
    )

    def _check(self) -> None:
        nothing = self.gather and self.contrastive_levels == "none"
        refuse(nothing, "--gather_negatives needs a contrast, --contrastive_levels has none")


class PretrainConfigs(NamedTuple):
    """All settings of a pre-training run, in the order of ``--help``."""

    run: RunConfig
    data: DataConfig
    clip: ClipConfig
    model: PretrainModelConfig
    mask: MaskConfig
    loss: PretrainLossConfig
    optim: OptimConfig


@dataclass(frozen=True)
class ClassifierConfig(Settings):
    """Classifier."""

    task: str = option("classification", "kind of labels", choices=tuple(LOSSES))
    num_classes: int = option(0, "classes, or regression outputs", flag="nb_classes")
    modality: str = option("av", "streams to read: both, audio, video", choices=("av", "a", "v"))
    model_name: str = option(
        "avit_dim512_patch16_160_a256", "registered name", flag="model", metavar="NAME"
    )
    depth: int = option(10, "blocks of the video encoder", aliases=("encoder_depth",))
    depth_audio: int = option(10, "blocks of the audio encoder", aliases=("encoder_depth_audio",))
    fusion_depth: int = option(2, "layers of the fusion encoder", aliases=("encoder_fusion_depth",))
    hierarchical_fusion: bool = option(True, "the head reads a mix of all layers, else the last")
    fusion_order: str = option("both", FUSION_HELP, choices=FUSION_ORDERS)
    drop_path_rate: float = option(0.1, "drop path at the last block", NOT_ALL, flag="drop_path")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale", ">= 0")
    class_names: tuple[str, ...] = harmless(
        (),
        "names, a file with one a line, or a data set's name; default: classes.txt (regression: "
        "targets.txt) in data_path or above",
        metavar="NAME",
    )
    head_activation: str | None = option(
        None, "function after the head (regression)", choices=("sigmoid", "relu", "tanh")
    )
    finetune: str = option("", "pre-training checkpoint to start from", metavar="FILE")
    allow_partial: bool = option(False, "accept a checkpoint of deeper or shallower encoders")
    layer_decay: float = option(0.75, "learning-rate factor from layer to lower layer", NOT_NONE)
    linear_probe: bool = option(
        False, "train only fc_norm, head, layer weights; wants a large --lr"
    )
    freeze_layers: int = option(0, "lowest blocks of each encoder to freeze; 0: none", ">= 0")

    def _check(self) -> None:
        classes, classifies = self.num_classes, self.task == "classification"
        refuse(classes < 1, "--nb_classes is missing; give the number of classes or outputs")
        refuse(classifies and classes < 2, f"--nb_classes must be at least 2, got {classes}")
        wrong = classifies and self.head_activation
        refuse(wrong, "--head_activation is for --task regression only; leave it out")
        refuse(
            self.modality != "av" and self.fusion_order != "both",
            f"--fusion_order {self.fusion_order} is for --modality av, --modality {self.modality} "
            "has no fusion; leave it out",
        )
        both = self.linear_probe and self.freeze_layers
        refuse(both, "--linear_probe freezes all that --freeze_layers does; give one")
        for stream, flag in (("v", "depth"), ("a", "depth_audio")):
            depth, frozen = getattr(self, flag), self.freeze_layers
            text = f"--freeze_layers {frozen} is more than the {depth} blocks of --{flag}"
            refuse(stream in self.modality and frozen > depth, text)


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """Augmentation of labelled clips."""

    aa: str = option("rand-m7-n4-mstd0.5-inc1", "RandAugment policy of timm; none: off")
    reprob: float = option(0.25, "probability of random erasing", SHARE)
    remode: str = option("pixel", "filling of erased boxes", choices=("pixel", "rand", "const"))
    recount: int = option(1, "erased boxes a clip", "> 0")
    scale: tuple[float, float] = option(
        (0.08, 1.0), "areas of random crops", NOT_NONE, flag="crop_scale", metavar="SHARE"
    )
    flip: float = option(0.5, "probability of a horizontal flip", SHARE)
    mixup: float | None = option(None, "mixup alpha; 0: off (default: 0.8, regression 0)", ">= 0")
    cutmix: float | None = option(None, "cutmix alpha; 0: off (default: 1, regression 0)", ">= 0")
    mixup_prob: float = option(1.0, "probability that a batch is mixed", SHARE)
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", SHARE)
    mixup_audio: bool = option(False, "mix the audio too (the original mixes video and targets)")
    smoothing: float = option(0.1, "label smoothing", NOT_ALL)

    def _check(self) -> None:
        refuse(
            self.scale[0] > self.scale[1],
            f"--crop_scale takes two shares, the smaller one first, got {self.scale}",
        )

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed at all."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class ScoreConfig(Settings):
    """Loss, validation and testing."""

    loss: str = option("", "default: ce, or mse for regression", choices=sum(LOSSES.values(), ()))
    val_metric: str = option(
        "", "picks the best epoch; default: war, or ccc", choices=sum(METRICS.values(), ())
    )
    val_path: str = harmless(
        "", "validation list; default: val.csv in data_path, else test.csv", metavar="FILE"
    )
    val_split: str = option(
        "list",
        "list: validate on --val_path, val.csv or test.csv; speaker, clip: on a part of train.csv, "
        "all clips of some speakers or clips at random",
        choices=("list", "speaker", "clip"),
    )
    val_share: float = option(0.2, "share of train.csv that --val_split holds out", PART)
    label_share: float = option(
        1.0, "share of each class to train on; smaller shares are parts of larger ones", NOT_NONE
    )
    speaker_file: str = harmless(
        "", "csv of clip,speaker; default: clip_speakers.csv in data_path or above", metavar="FILE"
    )
    speaker_pattern: str = harmless(
        "",
        "or a regular expression whose groups in a clip's name make the speaker, or "
        + ", ".join(PATTERNS),
        metavar="REGEX",
    )
    average_clips: int = option(
        0, "score clips with the same first N '_' fields of their names as one; 0: off", ">= 0"
    )
    test_num_segment: int = harmless(2, "temporal views of a test clip", "> 0")
    test_num_crop: int = harmless(2, "spatial views of a test clip", "> 0")
    dist_eval: bool = harmless(True, "share testing among the GPUs")
    eval: bool = harmless(False, "only test the newest or the --resume checkpoint")
    skip_bad_test_clips: bool = harmless(False, "leave unreadable test clips out, and report them")
    export: bool = harmless(True, "write export/last and export/best at the end, for prediction")

    def _check(self) -> None:
        split, by_file, by_pattern = self.val_split, self.speaker_file, self.speaker_pattern
        both = split != "list" and self.val_path
        refuse(both, f"--val_path names a list, --val_split {split} holds clips out; give one")
        name = "--speaker_file" if by_file else "--speaker_pattern"
        unused = split != "speaker" and (by_file or by_pattern)
        refuse(unused, f"{name} is for --val_split speaker; add that or leave it out")
        both = by_file and by_pattern
        refuse(both, "--speaker_file and --speaker_pattern both name speakers; give one")


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
        """Fill in the task's default loss, metric and mixing; ValueError for the other task's."""
        task, score, augment = self.classifier.task, self.score, self.augment
        loss, metric = score.loss or LOSSES[task][0], score.val_metric or METRICS[task][0]
        for flag, value, allowed in (("loss", loss, LOSSES), ("val_metric", metric, METRICS)):
            text = f"--{flag} {value} does not fit --task {task}; use {', '.join(allowed[task])}"
            refuse(value not in allowed[task], text)
        wrong = task == "regression" and augment.mixes
        refuse(wrong, "--mixup and --cutmix are for classification; leave them out or set 0")
        metric = "war" if metric == "acc1" else metric  # another name
        alphas = zip((augment.mixup, augment.cutmix), MIXING[task], strict=True)
        mixup, cutmix = (usual if given is None else given for given, usual in alphas)
        augment = replace(augment, mixup=mixup, cutmix=cutmix)
        return self._replace(score=replace(score, loss=loss, val_metric=metric), augment=augment)


# Flags that a resumed run may change and is still the same run.
GROUPS = {*PretrainConfigs.__annotations__.values(), *FinetuneConfigs.__annotations__.values()}
HARMLESS = {flag_of(item) for g in GROUPS for item in fields(g) if item.metadata["harmless"]}
