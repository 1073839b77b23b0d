"""The settings of both scripts: frozen dataclasses whose fields `config.flags` makes flags."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from hicmae.config.flags import Settings, flag_of, harmless, option
from hicmae.data.splits import PATTERNS, SPEAKER_FILE
from hicmae.data.video import MODALITIES, SOURCE_CROPS
from hicmae.io import count_cores

SHARE, NOT_ALL, PART, NOT_NONE = ">= 0 and <= 1", ">= 0 and < 1", "> 0 and < 1", "> 0 and <= 1"
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
CPU_GEMM = ("auto", "onednn", "mkl")
WORKERS = min(16, max(count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1))
FUSION_ORDERS = ("both", "video_first", "audio_first")
WIDTHS = (128, 256, 384, 512)  # of the registered models
PRETRAINING = tuple(f"pretrain_hicmae_dim{width}_patch16_160_a256" for width in WIDTHS)
CLASSIFIERS = tuple(f"avit_dim{width}_patch16_160_a256" for width in WIDTHS)
CONTRASTED, ACTIVATIONS = ("all", "top", "none"), ("sigmoid", "relu", "tanh")
CLASS_METRICS = ("uar", "war", "weighted_f1", "macro_f1", "micro_f1")
NUMBER_METRICS = ("pcc", "ccc", "acc", "mae", "mse", "rmse")
# By task; the first loss is the default.
LOSSES = {"classification": ("ce",), "regression": ("mse", "mae", "ccc", "pcc")}
METRICS = {"classification": (*CLASS_METRICS, "acc1"), "regression": NUMBER_METRICS}
ALL_METRICS = sum(METRICS.values(), ())
FUSION_HELP = "stream that fusion layers update first, for the other to read; both: at once"
LEVELS_HELP = "encoder blocks, from 0, whose outputs are contrasted and read by decoders"
CROP_HELP = "cut 224 x 224 films to the face; auto: if the list's path says voxceleb2"
CONTRAST_MASK_HELP = "share of tokens to hide in a second pass, which is contrasted instead"
WEIGHTS_HELP = "of classes in the loss; balanced: 1 / clips; effective: milder (beta 0.999)"
SPLIT_HELP = "validate on a list, or on speakers or clips held out of train.csv"
PATTERN_HELP = f"expression whose groups in a clip's name are the speaker; or {', '.join(PATTERNS)}"
AUDIO_TARGET = "normlize_target_audio"  # as the original spells it
LOWER_IS_BETTER = ("mae", "mse", "rmse")
CLASS_WEIGHTS = ("none", "balanced", "effective")


class RunConfig(Settings):
    """Where and how to run."""

    output_dir: str = harmless("", "folder for checkpoints, logs and results", metavar="DIR")
    log_dir: str = harmless("", "folder for TensorBoard files; empty: output_dir", metavar="DIR")
    device: str = harmless("auto", "where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: str = option("auto", "auto: bf16, fp16 on older GPUs", choices=PRECISIONS)
    tf32: bool = option(False, "fp32 products and convolutions of a GPU in TF32: faster, 10 bits")
    cpu_gemm: str = harmless("auto", "fp32 products on a CPU; auto: the faster", choices=CPU_GEMM)
    compile: bool = harmless(False, "torch.compile the steps; minutes at first, then faster")
    cuda_graphs: bool = harmless(False, "with --compile on a GPU: replay a pass by one launch")
    checkpoint_activations: bool = harmless(False, "compute blocks twice to save memory; exact")
    seed: int = option(0, "seed of everything random", ">= 0")
    resume: str = harmless("", "checkpoint to go on from, with its clips and model", metavar="FILE")
    auto_resume: bool = harmless(True, "go on from the newest whole checkpoint in output_dir")
    allow_changes: bool = harmless(False, "go on even with what makes it another run; it is listed")
    save_interval: float = harmless(15.0, "minutes from save to save; 0: after each step", ">= 0")
    save_ckpt_freq: int = harmless(10, "keep the checkpoint of every this many epochs", "> 0")
    keep_ckpts: int = harmless(2, "keep this many of the last checkpoints as well", "> 0")
    max_bad_steps: int = harmless(10, "bad steps (not finite) in a row that end training", "> 0")
    deterministic: bool = harmless(False, "only algorithms that repeat bit by bit; slower")
    print_freq: int = harmless(10, "log every this many steps", "> 0")
    image_freq: int = harmless(1, "epochs between pictures in TensorBoard; 0: none", ">= 0")
    num_workers: int = harmless(WORKERS, "processes for each GPU that load clips; 0: none", ">= 0")

    def _check(self) -> None:
        if not self.output_dir:
            raise ValueError("--output_dir is missing; name the folder for all results")
        if self.cuda_graphs and not self.compile:
            raise ValueError("--cuda_graphs replays compiled passes; add --compile")


class DataConfig(Settings):
    """Clips."""

    # A resumed run compares the clips, wherever they lie.
    data_path: str = harmless("", "a list, a folder of lists, or of shards", metavar="PATH")
    data_root: str = harmless("", "folder that relative paths start from", metavar="DIR")
    num_samples: int = option(1, "draws from each clip of a batch (repeated sampling)", "> 0")
    roll_mag_aug: bool = option(False, "random gain of the waveform in training (0.5 to 1.5)")
    max_bad_clips: float = harmless(0.01, "share of unreadable clips that ends training", SHARE)
    clip_timeout: float = harmless(60.0, "seconds until a clip is skipped; 0: no limit", ">= 0")

    def _check(self) -> None:
        if not self.data_path:
            raise ValueError("--data_path is missing; name the clip list or its folder")


class PretrainDataConfig(DataConfig):
    """Clips."""

    source_crop: str = option("auto", CROP_HELP, choices=SOURCE_CROPS)


class ClipConfig(Settings):
    """Clip geometry."""

    num_frames: int = option(16, "video frames of a clip", "> 0")
    sampling_rate: int = option(4, "frames from one sampled frame to the next", "> 0")
    input_size: int = option(160, "height and width of a video frame in pixels", "> 0")
    input_size_audio: tuple[int, int] = option((256, 128), "10ms steps, mel bins", "> 0", nargs="+")
    tubelet_size: int = option(2, "video frames of one token", "> 0")

    def __post_init__(self) -> None:
        if len(self.input_size_audio) == 1:
            object.__setattr__(self, "input_size_audio", (*self.input_size_audio, 128))
        super().__post_init__()

    def _check(self) -> None:
        sizes, frames, tubelet = self.input_size_audio, self.num_frames, self.tubelet_size
        if len(sizes) != 2:
            raise ValueError(f"--input_size_audio takes steps and mel bins, got {sizes}")
        if frames % tubelet:
            raise ValueError(f"--num_frames {frames} is no multiple of --tubelet_size, {tubelet}")
        if any(size % 16 for size in (self.input_size, *sizes)):
            given = f"--input_size {self.input_size} and --input_size_audio {sizes}"
            raise ValueError(f"{given} must be multiples of the patch size, 16")

    def of_model(self) -> dict[str, Any]:
        """Return the geometry as the arguments of a model."""
        sizes = {"img_size": self.input_size, "img_size_audio": self.input_size_audio}
        return {"num_frames": self.num_frames, "tubelet_size": self.tubelet_size, **sizes}


class OptimConfig(Settings):
    """Optimisation."""

    batch_size: int = option(40, "clips of one pass on one GPU", "> 0")
    accum_iter: int = option(1, "passes of one step", "> 0", aliases=("update_freq",))
    total_batch: int = option(0, "clips of a step on all GPUs; sets the two above; 0: off", ">= 0")
    epochs: int = option(100, "passes over the training list", "> 0")
    warmup_epochs: int = option(5, "epochs in which the learning rate rises from 0", ">= 0")
    warmup_steps: int = option(-1, "the same in steps; overrides the epochs when above 0")
    lr: float = option(3e-4, "learning rate for 256 clips a step; scales with the clips", "> 0")
    min_lr: float = option(1e-5, "learning rate at the end, for 256 clips a step", ">= 0")
    weight_decay: float = option(0.05, "AdamW weight decay", ">= 0")
    weight_decay_end: float | None = option(None, "weight decay at the end; none: constant", ">= 0")
    opt_betas: tuple[float, float] = option((0.9, 0.95), "AdamW betas", NOT_ALL, metavar="BETA")
    opt_eps: float = option(1e-8, "AdamW epsilon", "> 0")
    clip_grad: float | None = option(None, "largest gradient norm; none: no clipping", "> 0")

    def _check(self) -> None:
        if self.total_batch and self.accum_iter > 1:
            raise ValueError("--total_batch chooses --accum_iter; leave one out")
        if (end := self.weight_decay_end) and not self.weight_decay:
            raise ValueError(f"--weight_decay_end {end} needs a --weight_decay above 0, got 0")


class PretrainModelConfig(Settings):
    """Pre-training model."""

    model_name: str = option(PRETRAINING[-1], "registered name", flag="model", choices=PRETRAINING)
    encoder_depth: int = option(10, "blocks of the video encoder")
    encoder_depth_audio: int = option(10, "blocks of the audio encoder")
    decoder_depth: int = option(4, "blocks of the video decoder: one more than kept levels")
    decoder_depth_audio: int = option(4, "blocks of the audio decoder: one more than kept levels")
    encoder_fusion_depth: int = option(2, "layers of the cross-modal fusion encoder")
    return_intermediate_features: tuple[int, ...] = option((3, 6, 9), LEVELS_HELP)
    skip_connections: bool = option(True, "decoders read these levels; without: self-attention")
    fusion_order: str = option("both", FUSION_HELP, choices=FUSION_ORDERS)
    drop_path_rate: float = option(0.0, "drop path at the last block", NOT_ALL, flag="drop_path")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale", ">= 0")


class MaskConfig(Settings):
    """Masking."""

    mask_ratio: float = option(0.9, "share of video tokens to hide (tube mask)", PART)
    mask_ratio_audio: float = option(0.8, "share of audio tokens to hide", PART)
    contrast_mask_ratio: float | None = option(None, CONTRAST_MASK_HELP, ">= 0 and < 1")


class PretrainLossConfig(Settings):
    """Pre-training loss."""

    loss_weight: float = option(0.0025, "weight of the contrastive loss", ">= 0")
    contrastive_levels: str = option("all", "which of these levels to contrast", choices=CONTRASTED)
    temperature: float = option(0.07, "of InfoNCE", "> 0", flag="inter_contrastive_temperature")
    gather: bool = option(False, "contrast with the clips of all GPUs", flag="gather_negatives")
    frame_diff: bool = option(False, "rebuild frame differences", flag="use_frame_diff_as_target")
    frame_diff_group_size: int = option(2, "frames of such a group, a tubelet", "> 0")
    target_diff_weight: float | None = option(None, "weight of their later frames, 0 to 1", SHARE)
    normalize_target: bool = option(True, "normalise video patches", aliases=("normlize_target",))
    normalize_target_audio: bool = option(True, "the same of audio", aliases=(AUDIO_TARGET,))

    def _check(self) -> None:
        if self.gather and self.contrastive_levels == "none":
            raise ValueError("--gather_negatives needs a contrast, --contrastive_levels has none")
        if self.target_diff_weight is not None and not self.frame_diff:
            raise ValueError("--target_diff_weight is of no use; add --use_frame_diff_as_target")


class PretrainConfigs(NamedTuple):
    """All settings of a pre-training run, in the order of ``--help``."""

    run: RunConfig
    data: PretrainDataConfig
    clip: ClipConfig
    model: PretrainModelConfig
    mask: MaskConfig
    loss: PretrainLossConfig
    optim: OptimConfig


class ClassifierConfig(Settings):
    """Classifier."""

    task: str = option("classification", "kind of labels", choices=tuple(LOSSES))
    num_classes: int = option(0, "classes, or regression outputs", flag="nb_classes")
    modality: str = option("av", "streams to read: both, audio, video", choices=MODALITIES)
    model_name: str = option(CLASSIFIERS[-1], "registered name", flag="model", choices=CLASSIFIERS)
    depth: int = option(10, "blocks of the video encoder", aliases=("encoder_depth",))
    depth_audio: int = option(10, "blocks of the audio encoder", aliases=("encoder_depth_audio",))
    fusion_depth: int = option(2, "layers of the fusion encoder", aliases=("encoder_fusion_depth",))
    hierarchical_fusion: bool = option(True, "the head reads a mix of all layers, else the last")
    fusion_order: str = option("both", FUSION_HELP, choices=FUSION_ORDERS)
    drop_path_rate: float = option(0.1, "drop path at the last block", NOT_ALL, flag="drop_path")
    init_values: float = option(0.0, "start of the layer-scale gammas; 0: no layer scale", ">= 0")
    class_names: tuple[str, ...] = harmless((), "names, or a file of them", metavar="NAME")
    head_activation: str | None = option(None, "of regression outputs", choices=ACTIVATIONS)
    finetune: str = option("", "pre-training checkpoint to start from", metavar="FILE")
    allow_partial: bool = option(False, "accept a checkpoint of deeper or shallower encoders")
    layer_decay: float = option(0.75, "learning-rate factor from layer to lower layer", NOT_NONE)
    linear_probe: bool = option(False, "train only fc_norm, head, layer weights; raise --lr")
    freeze_layers: int = option(0, "lowest blocks of each encoder that stay as they are", ">= 0")

    def _check(self) -> None:
        least = 1 if self.task == "regression" else 2
        if self.num_classes < least:
            raise ValueError(f"--nb_classes must be at least {least}, got {self.num_classes}")
        if self.head_activation and self.task != "regression":
            raise ValueError("--head_activation is for --task regression; leave it out")
        if self.fusion_order != "both" and self.modality != "av":
            raise ValueError(f"--fusion_order is for --modality av, got {self.modality}; drop it")
        if self.linear_probe and self.freeze_layers:
            raise ValueError("--linear_probe freezes all blocks, --freeze_layers some; give one")
        layers, depths = self.freeze_layers, {"v": self.depth, "a": self.depth_audio}
        if layers > (most := min(depths[stream] for stream in self.modality)):
            raise ValueError(f"--freeze_layers must be at most {most}, all blocks, got {layers}")


class AugmentConfig(Settings):
    """Augmentation of labelled clips."""

    aa: str = option("rand-m7-n4-mstd0.5-inc1", "RandAugment policy of timm; none: off")
    reprob: float = option(0.25, "probability of random erasing", SHARE)
    remode: str = option("pixel", "what fills erased boxes", choices=("pixel", "rand", "const"))
    recount: int = option(1, "erased boxes a clip", "> 0")
    scale: tuple[float, float] = option((0.08, 1.0), "areas of crops", NOT_NONE, flag="crop_scale")
    flip: float = option(0.5, "probability of a horizontal flip", SHARE)
    mixup: float | None = option(None, "mixup alpha; 0: off (default: 0.8, regression 0)", ">= 0")
    cutmix: float | None = option(None, "cutmix alpha; 0: off (default: 1, regression 0)", ">= 0")
    mixup_prob: float = option(1.0, "probability that a batch is mixed", SHARE)
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", SHARE)
    mixup_audio: bool = option(False, "mix the audio too (the original mixes video and targets)")
    smoothing: float = option(0.1, "label smoothing", NOT_ALL)

    def _check(self) -> None:
        low, high = self.scale
        if low > high:
            raise ValueError(f"--crop_scale takes two shares, the smaller first, got {low} {high}")


class ScoreConfig(Settings):
    """Loss, validation and testing."""

    loss: str = option("", "default: ce, or mse for regression", choices=sum(LOSSES.values(), ()))
    class_weights: str = option("none", WEIGHTS_HELP, choices=CLASS_WEIGHTS)
    balanced_sampler: bool = option(False, "draw all classes equally often in training")
    ema: float = option(0.0, "decay of a tested moving average of weights; 0: none", NOT_ALL)
    val_metric: str = option("", "chooses the best epoch; default: war, ccc", choices=ALL_METRICS)
    val_path: str = harmless("", "validation list; default: val.csv or test.csv", metavar="FILE")
    val_split: str = option("list", SPLIT_HELP, choices=("list", "speaker", "clip"))
    val_share: float = option(0.2, "share of train.csv that --val_split holds out", PART)
    label_share: float = option(1.0, "share of each class to train on, nested", NOT_NONE)
    speaker_file: str = harmless("", "csv with clip,speaker; default: with lists", metavar="FILE")
    speaker_pattern: str = harmless("", PATTERN_HELP, metavar="REGEX")
    average_clips: int = option(0, "clips alike in the first N '_' fields are one; 0: off", ">= 0")
    test_num_segment: int = harmless(2, "temporal views of a test clip", "> 0")
    test_num_crop: int = harmless(2, "without effect: test frames are squashed to squares", "> 0")
    dist_eval: bool = harmless(True, "without effect: testing is always shared among GPUs")
    eval: bool = harmless(False, "only test the newest or --resume checkpoint, as it was trained")
    skip_bad_test_clips: bool = harmless(False, "leave unreadable test clips out, and report them")
    export: bool = harmless(True, "write export/last and export/best at the end, for prediction")

    def _check(self) -> None:
        if self.val_split != "list" and self.val_path:
            raise ValueError(f"--val_path and --val_split {self.val_split}; give one")
        if self.speaker_file and self.speaker_pattern:
            raise ValueError("--speaker_file and --speaker_pattern both name speakers; give one")
        if self.val_split != "speaker" and (self.speaker_file or self.speaker_pattern):
            flag = "--speaker_file" if self.speaker_file else "--speaker_pattern"
            raise ValueError(f"{flag} is for --val_split speaker; add that or leave it out")
        if self.class_weights != "none" and self.balanced_sampler:
            raise ValueError("--class_weights and --balanced_sampler even out classes; give one")


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
        regresses = task == "regression"
        loss = score.loss or LOSSES[task][0]
        metric = score.val_metric or ("ccc" if regresses else "war")
        for flag, value, allowed in (("loss", loss, LOSSES), ("val_metric", metric, METRICS)):
            if value not in allowed[task]:
                fitting = ", ".join(allowed[task])
                raise ValueError(f"--{flag} {value} does not fit --task {task}; use {fitting}")
        if regresses and (augment.mixup or augment.cutmix):
            raise ValueError("--mixup and --cutmix are for classification; leave out or set 0")
        if regresses and (score.class_weights != "none" or score.balanced_sampler):
            raise ValueError("--class_weights and --balanced_sampler are for classification")
        metric = "war" if metric == "acc1" else metric  # another name
        if augment.mixup is None:
            augment = replace(augment, mixup=0.0 if regresses else 0.8)
        if augment.cutmix is None:
            augment = replace(augment, cutmix=0.0 if regresses else 1.0)
        return self._replace(score=replace(score, loss=loss, val_metric=metric), augment=augment)


class ResamplingConfig(Settings):
    """intervals and tests."""

    resamples: int = option(5000, "draws; 0: none", ">= 0")
    confidence: float = option(95.0, "coverage in percent", "> 0 and < 100")
    seed: int = option(0, "of the draws", ">= 0")
    by_speaker: bool = option(False, f"draw speakers, of {SPEAKER_FILE} beside the run's lists")
    speaker_file: str = option("", "the same by a csv with clip,speaker", metavar="FILE")
    speaker_pattern: str = option("", f"the same: {PATTERN_HELP}", metavar="REGEX")

    def _check(self) -> None:
        if sum(map(bool, (self.by_speaker, self.speaker_file, self.speaker_pattern))) > 1:
            raise ValueError("give one of --by_speaker, --speaker_file and --speaker_pattern")


FACES_HELP = """auto: cut the main face out of videos, take folders of frames as they are; largest:
 always cut out the main face; all: an answer for each person; cut: frames are faces"""
PROTOCOL_HELP = "windows: slide over the clip; test: the views and numbers of run_finetuning.py"
MISSING_HELP = """what a model of both streams does without one: error: refuse the clip; zeros:
 black frames or silence; drop: leave it out"""
SPEAKER_HELP = """with --faces all, who has the sound; the others are judged by the picture: lips:
 whose lips move with it; contrast: whose picture is like it to --speaker_checkpoint; auto: contrast
 where that is given, else lips; none: everybody"""


class Options(Settings):
    """How inference reads clips: flags of its commands and arguments of the recognizer."""

    faces: str = option("auto", FACES_HELP, choices=("auto", "largest", "all", "cut"))
    window: float | None = option(None, "seconds of a sliding window; none: as in training", "> 0")
    overlap: float | None = option(None, "seconds windows share; none: half of one", ">= 0")
    protocol: str = option("windows", PROTOCOL_HELP, choices=("windows", "test"))
    missing_modality: str = option("error", MISSING_HELP, choices=("error", "zeros", "drop"))
    min_confidence: float = option(0.0, "least probability to be sure", SHARE)
    speaker: str = option("none", SPEAKER_HELP, choices=("none", "auto", "lips", "contrast"))

    def _check(self) -> None:
        for item in fields(self):
            if choices := item.metadata["rest"].get("choices"):
                check_choice(item.name, getattr(self, item.name), choices)
        if self.speaker != "none" and self.faces != "all":
            raise ValueError(f"--speaker {self.speaker} needs --faces all, got {self.faces}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


# Flags that a resumed run may change and is still the same run.
GROUPS = {*PretrainConfigs.__annotations__.values(), *FinetuneConfigs.__annotations__.values()}
HARMLESS = {flag_of(item) for g in GROUPS for item in fields(g) if item.metadata["harmless"]}
# Defaults; what is "auto" has been chosen by the time settings are saved.
USUAL = {flag_of(i): i.default for g in GROUPS for i in fields(g) if i.default != "auto"}
