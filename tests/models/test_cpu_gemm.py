"""Matrix products by oneDNN against torch's own operators."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hicmae.models import cpu_gemm
from hicmae.models.losses import pretrain_loss
from tests.small_models import clips, pretraining_model


@pytest.fixture
def products(monkeypatch):
    """Count the products by oneDNN; attention counts however small it is."""
    seen = []
    monkeypatch.setattr(cpu_gemm, "MIN_SCORES", 1)
    for name in ("linear", "attention"):
        compute = getattr(cpu_gemm, name)

        def counted(*tensors, name=name, compute=compute, **named):
            seen.append(name)
            return compute(*tensors, **named)

        monkeypatch.setattr(cpu_gemm, name, counted)
    return seen


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
    torch.testing.assert_close(gradients(cpu_gemm.linear, *tensors), gradients(F.linear, *tensors))


def test_linear_reads_values_that_do_not_lie_in_order_and_gives_gradients_where_asked():
    values = torch.randn(5, 3, 12).transpose(0, 1)[..., ::2]
    weight = torch.randn(4, 6, requires_grad=True)
    output = cpu_gemm.linear(values, weight)
    torch.testing.assert_close(output, F.linear(values, weight))
    output.sum().backward()
    assert values.grad is None and weight.grad is not None


@pytest.mark.parametrize("one_product", [False, True], ids=["parts", "one product"])
def test_attention_and_its_gradients_equal_torch(one_product):
    torch.manual_seed(0)
    parts = [torch.randn(2, n, 24) for n in (7, 5, 5)]
    if one_product:  # strided, as attention takes them from qkv
        parts = torch.randn(2, 5, 3 * 24).chunk(3, dim=-1)
    heads = [part.unflatten(2, (3, 8)).transpose(1, 2) for part in parts]
    mine = gradients(cpu_gemm.attention, *heads)
    torch.testing.assert_close(mine, gradients(F.scaled_dot_product_attention, *heads))


def test_every_product_of_an_installed_model_is_onednns_and_the_result_is_torchs(products):
    torchs, ours = (pretraining_model(cpu_gemm=name) for name in ("mkl", "onednn"))
    inputs = clips()
    pretrain_loss(torchs(*inputs), *inputs).total.backward()
    assert products == []
    pretrain_loss(ours(*inputs), *inputs).total.backward()
    blocks, crosses = (3 + 4) + 2 * 2 + 2 * 3, 2 * 2 + 2 * 2  # self-attention and MLP; cross
    assert products.count("attention") == blocks + crosses
    # Two embeddings, two heads, and each modality's fused tokens and two levels projected.
    assert products.count("linear") == 4 * blocks + 3 * crosses + 2 + 2 + 2 * 3
    known = dict(torchs.named_parameters())
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - known[name].grad).abs().max() / known[name].grad.abs().max()
        assert error < 1e-4, name


def test_only_float32_outside_autocast_is_served(products):
    model = pretraining_model(cpu_gemm="onednn")
    inputs = clips()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*inputs).video.dtype == torch.bfloat16
    video, video_mask, audio, audio_mask = clips(dtype=torch.float64)
    copy.deepcopy(model).double()(video, video_mask, audio, audio_mask)
    assert products == []
    with torch.no_grad():
        copy.deepcopy(model).requires_grad_(False)(*inputs)
    assert products


@pytest.mark.parametrize(
    "capability, vendor, expected",
    [("AVX512", "AuthenticAMD", "onednn"), ("AVX512", "GenuineIntel", "mkl"),
     ("AVX2", "AuthenticAMD", "mkl")],
)  # fmt: skip
def test_auto_follows_the_processor(monkeypatch, tmp_path, capability, vendor, expected):
    cpu_gemm._is_faster.cache_clear()
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu_gemm, "CPU", tmp_path / "cpuinfo")
    assert cpu_gemm.library("auto") == expected
    cpu_gemm._is_faster.cache_clear()


def test_a_missing_library_is_refused(monkeypatch):
    monkeypatch.setattr(cpu_gemm, "_is_built_in", lambda: False)
    with pytest.raises(ValueError, match="this build of torch has no oneDNN"):
        pretraining_model(cpu_gemm="onednn")
