"""Matrix products by oneDNN against torch's own operators."""

import pytest
import torch
import torch.nn.functional as F

from hicmae.models import cpu_gemm as onednn
from hicmae.models.layers import Linear, linear


@pytest.fixture
def choice():
    """Restore the process-wide choice afterwards."""
    before = onednn._Choice.name
    yield onednn.choose_cpu_gemm
    onednn.choose_cpu_gemm(before)


def gradients(compute, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = compute(*leaves)
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn(output.shape, generator=generator)
    return output, torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize("shape", [(6,), (2, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("outputs", [4, 9])
def test_linear_and_its_gradients_equal_torch(shape, outputs):
    torch.manual_seed(0)
    tensors = torch.randn(*shape), torch.randn(outputs, 6), torch.randn(outputs)
    mine, theirs = gradients(onednn.linear, *tensors), gradients(F.linear, *tensors)
    torch.testing.assert_close(mine, theirs)


def test_linear_reads_values_that_do_not_lie_in_order():
    values, weight = torch.randn(5, 3, 12).transpose(0, 1)[..., ::2], torch.randn(4, 6)
    torch.testing.assert_close(onednn.linear(values, weight), F.linear(values, weight))


def test_attention_and_its_gradients_equal_torch():
    torch.manual_seed(0)
    query = torch.randn(2, 7, 3, 8).transpose(1, 2)
    key, value = (torch.randn(2, 5, 3, 8).transpose(1, 2) for _ in range(2))
    mine = gradients(onednn.attention, query, key, value)
    theirs = gradients(F.scaled_dot_product_attention, query, key, value)
    torch.testing.assert_close(mine, theirs)


def test_attention_reads_the_parts_of_one_product():
    tokens = torch.randn(2, 5, 3 * 24)
    parts = [part.view(2, 5, 3, 8).transpose(1, 2) for part in tokens.chunk(3, dim=-1)]
    torch.testing.assert_close(onednn.attention(*parts), F.scaled_dot_product_attention(*parts))


def test_parameters_without_gradient_get_none():
    values, weight = torch.randn(2, 6), torch.randn(4, 6, requires_grad=True)
    onednn.linear(values, weight).sum().backward()
    assert values.grad is None and weight.grad is not None


def test_only_float32_outside_autocast_is_served(choice):
    choice("onednn")
    assert onednn.serves(torch.zeros(1))
    assert not onednn.serves(torch.zeros(1, dtype=torch.float64))
    assert not onednn.serves(torch.zeros(1, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.serves(torch.zeros(1))
        assert Linear(2, 3)(torch.ones(1, 2)).dtype == torch.bfloat16
    choice("mkl")
    assert not onednn.serves(torch.zeros(1))
    values, weight = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(linear(values, weight), F.linear(values, weight))


@pytest.mark.parametrize(
    "capability, vendor, expected",
    [
        ("AVX512", "vendor_id : AuthenticAMD", "onednn"),
        ("AVX512", "vendor_id : GenuineIntel", "mkl"),
        ("AVX2", "vendor_id : AuthenticAMD", "mkl"),
    ],
)
def test_auto_follows_the_processor(choice, monkeypatch, capability, vendor, expected):
    choice("auto")
    onednn._is_faster.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(onednn, "_vendor", lambda: vendor)
    assert onednn.cpu_gemm() == expected
    onednn._is_faster.cache_clear()


def test_attention_of_few_scores_or_many_threads_stays_with_torch(monkeypatch):
    small, large = torch.zeros(1, 1, 26, 8), torch.zeros(1, 1, 800, 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert onednn.pays_for_attention(large, large)
    assert not onednn.pays_for_attention(large, small)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert not onednn.pays_for_attention(large, large)


def test_unknown_or_missing_libraries_are_refused(choice, monkeypatch):
    with pytest.raises(ValueError, match="--cpu_gemm must be one of auto, onednn, mkl, got 'blas'"):
        choice("blas")
    monkeypatch.setattr(onednn, "_is_built_in", lambda: False)
    with pytest.raises(ValueError, match="this build of torch has no oneDNN"):
        choice("onednn")
