"""Settings that pre-training and fine-tuning share."""

import os
from dataclasses import dataclass
from typing import Any

from hicmae.config.flags import option

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
        """Return the geometry under the names of the data sets."""
        return {
            "num_frames": self.num_frames,
            "sampling_rate": self.sampling_rate,
            "input_size": self.input_size,
            "input_size_audio": self.input_size_audio,
        }

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
