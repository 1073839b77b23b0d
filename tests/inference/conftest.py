"""The tiny model in every form that inference reads, and small clips."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hicmae import EmotionRecognizer
from tests.conftest import save_frames, save_wav
from tests.preprocess.media_files import pictures, save_media
from tests.small_models import pretraining_model
from tests.small_recognizers import CLIP, FPS, PRETRAINING, checkpoint_of, classifier, speech


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints: av, a, v, regression, pretrained and authors .pth."""
    folder = tmp_path_factory.mktemp("models")
    for modality in ("av", "a", "v"):
        checkpoint_of(classifier(modality=modality), folder / f"{modality}.pth")
    regression = classifier(head_activation="tanh")
    regression.head.weight.data *= 0.2  # outputs about as large as those that are trained
    told = {"task": "regression", "head_activation": "tanh"}
    checkpoint_of(regression, folder / "regression.pth", **told)
    state = {"model": pretraining_model(**PRETRAINING).state_dict(), "epoch": 0}
    levels = {"return_intermediate_features": [0, 1]}
    torch.save(state | {"args": {"clip": CLIP, "model": levels}}, folder / "pretrained.pth")
    args = argparse.Namespace(
        **CLIP | {"input_size_audio": 96}, data_set="CREMA-D", nb_classes=6, test_num_segment=3
    )
    six = classifier(num_classes=6).state_dict()
    numbers = {"param_groups": [{"lr": np.float64(1e-3), "weight_decay": np.float64(0.05)}]}
    state = {"model": six, "optimizer": numbers, "epoch": "best", "args": args}
    torch.save(state, folder / "authors.pth")
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
