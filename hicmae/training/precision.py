"""Arithmetic of the forward pass: fp32, bf16 without a scaler, fp16 with one."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(NamedTuple):
    """What the forward pass computes in, and on which device."""

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of a forward pass; it does nothing in fp32."""
        enabled = self.name != "fp32"
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=enabled)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler fp16 needs; for the others it passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def choose_precision(name: str, device: torch.device) -> Precision:
    """Resolve "auto" and refuse what the device cannot do.

    Args:
        name: "auto", "fp32", "bf16" or "fp16".
        device: where the model runs.

    Raises:
        ValueError: fp16 without a GPU, or bf16 on a GPU that lacks it.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        name = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and not on_gpu:
        raise ValueError("--precision fp16 needs a GPU, got --device cpu; use bf16 or fp32")
    if name == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError("--precision bf16 is not supported by this GPU; use fp16 or fp32")
    return Precision(name, device)
