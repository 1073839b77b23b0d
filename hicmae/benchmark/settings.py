"""Flags that the three model benchmarks share, and the models they describe."""

import re
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch

import hicmae  # noqa: F401  (registers the models)
from hicmae.config import CPU_GEMM, check_not_negative, check_positive, option
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.models.pretrain import HiCMAE
from hicmae.training.run import Precision, choose_precision

SIZES = {"t": 256, "s": 384, "b": 512}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark."""

    model: str = option("b", "t, s, b, or a registered model's name", metavar="SIZE")
    batch_size: tuple[int, ...] = option((4,), "clips of a step; the best of several is reported")
    device: str = option("auto", "where to compute", choices=("auto", "cuda", "cpu"))
    precision: str = option("auto", "arithmetic of ours", choices=("auto", "fp32", "fp16", "bf16"))
    compile: bool = option(False, "torch.compile ours")
    cuda_graphs: bool = option(False, "with --compile: replay a pass by one launch")
    checkpoint_activations: bool = option(False, "compute blocks again in the backward pass")
    cpu_gemm: str = option("auto", "library of fp32 products on a CPU", choices=CPU_GEMM)
    steps: int = option(20, "measured steps of each variant")
    warmup: int = option(3, "steps before that")
    seed: int = option(0, "seed of weights, clips and masks")
    plain: bool = option(True, "measure the plain baseline of tests/plain too, in turns")
    peer: bool = option(True, "where transformers is installed: pre-train its VideoMAE too")
    memory: bool = option(True, "measure peak memory, each variant in a process of its own")
    peaks: bool = option(True, "measure the device's matrix products and copies too")
    errors: bool = option(True, "compare with float64")
    profile: bool = option(False, "show the operators that take most of the time")
    depth: int = option(10, "blocks of each modality encoder")
    fusion_depth: int = option(2, "layers of the fusion encoder")
    levels: tuple[int, ...] = option((3, 6, 9), "encoder blocks that feed the decoders")
    num_frames: int = option(16, "frames of a clip")
    input_size: int = option(160, "height and width of a frame")
    input_size_audio: tuple[int, ...] = option((256, 128), "spectrogram steps and mel bins")

    def __post_init__(self) -> None:
        check_positive(self, "steps", "depth", "fusion_depth", "num_frames", "input_size")
        check_not_negative(self, "warmup", "seed")
        if any(size < 1 for size in self.batch_size):
            raise ValueError(f"--batch_size must be at least 1, got {list(self.batch_size)}")
        if self.cuda_graphs and not self.compile:
            raise ValueError("--cuda_graphs replays compiled passes; add --compile")
        if len(self.input_size_audio) != 2:
            raise ValueError(
                f"--input_size_audio takes steps and mel bins, got {list(self.input_size_audio)}"
            )

    @property
    def width(self) -> int:
        """Return the encoder width D."""
        found = re.search(r"dim(\d+)", self.model)
        width = SIZES.get(self.model.lower(), int(found[1]) if found else 0)
        if not timm.is_model(f"avit_dim{width}_patch16_160_a256"):
            raise ValueError(f"--model {self.model} is not known; use t, s, b or a registered name")
        return width

    def geometry(self) -> dict[str, Any]:
        """Return the clip geometry under the names of the model builders."""
        return {
            "num_frames": self.num_frames,
            "img_size": self.input_size,
            "img_size_audio": self.input_size_audio,
        }

    def pretraining_model(self) -> HiCMAE:
        """Create the pre-training model."""
        model = timm.create_model(
            f"pretrain_hicmae_dim{self.width}_patch16_160_a256",
            encoder_depth=self.depth,
            encoder_depth_audio=self.depth,
            encoder_fusion_depth=self.fusion_depth,
            decoder_depth=len(self.levels) + 1,
            decoder_depth_audio=len(self.levels) + 1,
            return_intermediate_features=self.levels,
            cpu_gemm=self.cpu_gemm,
            **self.geometry(),
        )
        return cast(HiCMAE, model)

    def classifier(self, drop_path: float = 0.0) -> HiCMAEClassifier:
        """Create the classifier of six classes, as for CREMA-D."""
        model = timm.create_model(
            f"avit_dim{self.width}_patch16_160_a256",
            num_classes=6,
            depth=self.depth,
            depth_audio=self.depth,
            fusion_depth=self.fusion_depth,
            drop_path_rate=drop_path,
            cpu_gemm=self.cpu_gemm,
            **self.geometry(),
        )
        return cast(HiCMAEClassifier, model)


def prepare_device(config: BenchmarkConfig) -> Precision:
    """Choose device and precision as training does.

    Raises:
        ValueError, RuntimeError: what the machine cannot do.
    """
    config.width  # noqa: B018  (an unknown size is an error before anything is measured)
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise RuntimeError("--device cuda, but torch sees no GPU; use --device cpu")
    device = torch.device("cpu" if config.device == "cpu" or not has_gpu else "cuda")
    if config.cuda_graphs and device.type == "cpu":
        raise ValueError("--cuda_graphs needs a GPU; leave it out")
    return choose_precision(config.precision, device)
