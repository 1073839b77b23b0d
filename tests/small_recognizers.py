"""A tiny classifier with random weights, its checkpoint, and a sound to be heard."""

from pathlib import Path

import numpy as np
import timm
import torch

from hicmae.inference.clips import Window
from hicmae.inference.recognizer import Prediction

SIZES = {"depth": 2, "depth_audio": 3, "fusion_depth": 1}
CLIP = {"num_frames": 4, "sampling_rate": 8, "input_size": 32, "input_size_audio": (96, 128)}
GEOMETRY = {"num_frames": 4, "img_size": 32, "img_size_audio": (96, 128)}
PRETRAINING = {
    **{"encoder_depth": 2, "encoder_depth_audio": 3, "encoder_fusion_depth": 1},
    **{"decoder_depth": 3, "decoder_depth_audio": 3, "return_intermediate_features": (0, 1)},
    **GEOMETRY,
}
NAMES = ("calm", "glad", "mad")
FPS = 25
GLAD, MAD = (0.1, 0.7, 0.2), (0.1, 0.1, 0.8)  # what a model may say


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


def said(file: str, *shares: tuple[float, ...], names=NAMES, **more: object) -> Prediction:
    """Return a prediction of half-overlapping windows of 1 s; () is a window without an answer."""
    scores = [dict(zip(names, row, strict=bool(row))) for row in shares]
    windows = tuple(
        Window(0.5 * k, 0.5 * k + 1, s, "" if s else "no face") for k, s in enumerate(scores)
    )
    mean = dict(zip(names, np.mean([row for row in shares if row], axis=0).tolist(), strict=True))
    return Prediction(file, **{"task": "classification", "scores": mean, "windows": windows} | more)
