"""Weights and inputs that the golden values were computed with, made from formulas and names."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """Read one of the JSON files."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def set_golden_weights(model: nn.Module) -> nn.Module:
    """Give a model its golden float64 weights, drawn from the name of each parameter."""
    state = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        rng = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
        draw = rng.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            draw = 1 + 0.1 * draw
        elif len(shape) >= 2:
            draw = draw / math.sqrt(math.prod(shape[1:]))
        elif "layer_weights" not in name:
            draw = 0.02 * draw
        state[name] = torch.from_numpy(draw)
    model.double().load_state_dict(state)
    return model


def golden_clips(batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return video, video mask, audio and audio mask, the clips in float64."""
    t, y, x = np.ix_(np.linspace(0, 3, 16), np.linspace(0, 5, 160), np.linspace(0, 7, 160))
    noise = np.random.RandomState(seed).standard_normal((batch, 3, 16, 160, 160))
    video = 0.3 * noise + np.sin(x + t) * np.cos(y)
    noise = np.random.RandomState(seed + 1).standard_normal((batch, 1, 256, 128))
    audio = 0.5 * noise + np.linspace(-1, 1, 128)
    rng = np.random.RandomState(seed + 2)
    video_mask = np.zeros((batch, 8, 100), bool)
    audio_mask = np.zeros((batch, 128), bool)
    for b in range(batch):
        video_mask[b][:, rng.permutation(100)[:90]] = True
        audio_mask[b, rng.permutation(128)[:102]] = True
    masks = torch.from_numpy(video_mask.reshape(batch, 800)), torch.from_numpy(audio_mask)
    return torch.from_numpy(video), masks[0], torch.from_numpy(audio), masks[1]


def relative_error(value: Any, expected: Any) -> float:
    """Return the largest |value - expected| over the largest |expected|."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape
    return float(np.abs(value - expected).max() / np.abs(expected).max())
