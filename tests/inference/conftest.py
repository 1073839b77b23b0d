"""A tiny model with random weights in every form that inference reads, and small clips."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import hicmae  # noqa: F401  (registers the models)
from hicmae import EmotionRecognizer
from tests.conftest import save_frames, save_wav
from tests.preprocess.media_files import pictures, save_media

SIZES = {"depth": 2, "depth_audio": 3, "fusion_depth": 1}
CLIP = {"num_frames": 4, "sampling_rate": 8, "input_size": 32, "input_size_audio": (96, 128)}
GEOMETRY = {"num_frames": 4, "img_size": 32, "img_size_audio": (96, 128)}
NAMES = ("calm", "glad", "mad")
FPS = 25


def speech(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Return noise whose loudness changes, so that no stretch of it is like another."""
    rng, count = np.random.default_rng(seed), round(seconds * rate)
    return (0.2 * rng.normal(size=count) * np.linspace(0.1, 1, count)).clip(-1, 1)


def checkpoint_of(model: torch.nn.Module, path: Path, **settings: object) -> Path:
    """Save a model as a fine-tuning run does, with its settings."""
    groups = {"clip": CLIP, "classifier": {**SIZES, "class_names": NAMES}, "more": settings}
    torch.save({"model": model.state_dict(), "epoch": 3, "args": groups}, path)
    return path


def classifier(seed: int = 0, **options: object) -> torch.nn.Module:
    """Return a classifier that is not indifferent."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "avit_dim128_patch16_160_a256", **{"num_classes": 3, **SIZES, **GEOMETRY, **options}
    )
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints: av, a, v, regression, pretrained and authors .pth."""
    folder = tmp_path_factory.mktemp("models")
    for modality in ("av", "a", "v"):
        checkpoint_of(classifier(modality=modality), folder / f"{modality}.pth")
    checkpoint_of(
        classifier(head_activation="tanh"),
        folder / "regression.pth",
        task="regression",
        head_activation="tanh",
    )
    pretrained = timm.create_model(
        "pretrain_hicmae_dim128_patch16_160_a256",
        encoder_depth=2,
        encoder_depth_audio=3,
        encoder_fusion_depth=1,
        decoder_depth=2,
        decoder_depth_audio=2,
        return_intermediate_features=(1,),
        **GEOMETRY,
    )
    state = {"model": pretrained.state_dict(), "epoch": 0, "args": {"clip": CLIP}}
    torch.save(state, folder / "pretrained.pth")
    args = argparse.Namespace(
        **CLIP | {"input_size_audio": 96}, data_set="CREMA-D", nb_classes=6, test_num_segment=3
    )
    six = classifier(num_classes=6).state_dict()
    torch.save({"model": six, "epoch": "best", "args": args}, folder / "authors.pth")
    return folder


@pytest.fixture
def recognizer(models: Path) -> Callable[..., EmotionRecognizer]:
    """Return a maker of recognizers by the name of a checkpoint."""
    return lambda name="av", **options: EmotionRecognizer.from_checkpoint(
        models / f"{name}.pth", device="cpu", **options
    )


@pytest.fixture
def clip(tmp_path: Path) -> tuple[str, str]:
    """A folder of 60 frames and its wav, 2.4 s."""
    folder = save_frames(tmp_path / "faces", 60, (48, 48))
    return folder, save_wav(tmp_path / "faces.wav", speech(60 / FPS))


@pytest.fixture
def video(tmp_path: Path) -> str:
    """A video of 4 s without a face, with sound."""
    return str(save_media(tmp_path / "clip.mp4", pictures(100), speech(4.0)[None], fps=FPS))
