"""Matrix products by oneDNN, where torch's own choice on a CPU is the slower one.

In float32 torch multiplies matrices by MKL, which leaves AVX-512 unused on processors that Intel
did not make. oneDNN, the other library inside torch, uses it: the same float32 arithmetic at twice
the speed on an AMD EPYC (``python scripts/benchmark.py``). `install` gives it to a finished model,
whose layers know nothing of it. GPUs, float64, autocast and compiled graphs keep torch's operators.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hicmae.models.layers import Attention, PatchEmbed

CHOICES = ("auto", "onednn", "mkl")
CPU = Path("/proc/cpuinfo")  # where Linux says whose it is
MIN_SCORES = 200 * 200  # attention with fewer scores a head is left to torch's one operator
MAX_THREADS = 8  # more threads share heads better than they share the products of one head

Model = TypeVar("Model", bound=nn.Module)


def install(model: Model, choice: str = "auto") -> Model:
    """Let the layers of a model, which is returned, compute float32 products by a `library`."""
    layers = model.modules() if library(choice) == "onednn" else ()
    for layer in layers:
        if isinstance(layer, (nn.Linear, Attention, PatchEmbed)):
            # An instance's own method hides that of its class.
            layer.forward = functools.partial(_forward, layer.forward)  # type: ignore[method-assign]
    return model


def _forward(forward: Callable[..., Tensor], values: Tensor, *others: Any, **named: Any) -> Tensor:
    """Run a layer, by oneDNN where its input allows that."""
    if serves(values):
        with _Products():
            return forward(values, *others, **named)
    return forward(values, *others, **named)


def serves(tensor: Tensor) -> bool:
    """Return whether products with this tensor can be oneDNN's."""
    if torch.compiler.is_compiling() or tensor.dtype != torch.float32:
        return False
    return tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class _Products(TorchFunctionMode):
    """While it is on, a layer's products and attention are those of this module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return linear(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and torch.get_num_threads() <= MAX_THREADS:
            query, key, _ = args
            if query.shape[-2] * key.shape[-2] >= MIN_SCORES:
                return attention(*args)
        return func(*args, **(kwargs or {}))


def library(choice: str) -> str:
    """Return the library of float32 products on this CPU, "onednn" or "mkl" (torch's own choice).

    "auto" is oneDNN exactly on x86 processors with AVX-512 that Intel did not make. ValueError for
    another name, or where this build of torch has no oneDNN.
    """
    if choice not in CHOICES:
        raise ValueError(f"--cpu_gemm must be one of {', '.join(CHOICES)}, got '{choice}'")
    if choice == "onednn" and not _is_built_in():
        raise ValueError("--cpu_gemm onednn: this build of torch has no oneDNN; use mkl or auto")
    if choice == "auto":
        return "onednn" if _is_faster() else "mkl"
    return choice


@functools.cache
def _is_built_in() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _is_faster() -> bool:
    # By the processor's name: a choice by timing would make two runs differ in their last digits.
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    name = CPU.read_text(encoding="utf-8") if CPU.exists() else platform.processor()
    return wide and _is_built_in() and "Intel" not in name


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ right.T + bias; a transposed `right` is read as it lies, `left` is copied."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        rows, inputs = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, values))
        grad_values = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_values = _product(rows, weight.t()).view_as(values)
        if ctx.needs_input_grad[1]:
            if rows.shape[1] <= inputs.shape[1]:  # copy the narrower side
                grad_weight = _product(rows.t(), inputs.t())
            else:
                grad_weight = _product(inputs.t(), rows.t()).t()
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        return grad_values, grad_weight, grad_bias


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute what `torch.nn.functional.linear` does, (..., in) to (..., out)."""
    return _Linear.apply(values, weight, bias)


class _Attention(torch.autograd.Function):
    """Head by head; the weights are computed again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = _like_tokens(query)
        # oneDNN is fast only where the rows of a matrix follow each other in memory.
        query = (query * query.shape[-1] ** -0.5).contiguous()
        key, value = key.contiguous(), value.contiguous()
        for head in np.ndindex(query.shape[:2]):  # (clip, head)
            weights = _product(query[head], key[head]).softmax(dim=-1)
            output[head] = _product(weights, value[head].t())
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, output = ctx.saved_tensors
        grad_query, grad_key, grad_value = (_like_tokens(part) for part in (query, key, value))
        mean = (grad * output).sum(dim=-1, keepdim=True)  # of the weights' gradients, by weight
        grad = grad.contiguous()
        for head in np.ndindex(query.shape[:2]):  # (clip, head)
            weights = _product(query[head], key[head]).softmax(dim=-1)
            grad_value[head] = _product(grad[head].t(), weights.t()).t()
            scores = _product(grad[head], value[head]).sub_(mean[head]).mul_(weights)
            grad_query[head] = _product(scores, key[head].t())
            grad_key[head] = _product(query[head].t(), scores.t()).t()
        return grad_query.mul_(query.shape[-1] ** -0.5), grad_key, grad_value


def _like_tokens(tensor: Tensor) -> Tensor:
    """Return uninitialised (B, heads, N, head width) that lies in memory as (B, N, D)."""
    batch, heads, length, width = tensor.shape
    return tensor.new_empty(batch, length, heads, width).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute what `scaled_dot_product_attention` does, on (B, heads, N, head width)."""
    return _Attention.apply(query, key, value)
