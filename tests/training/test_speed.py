"""Levers change time and memory, never what is computed."""

import pytest
import torch

from hicmae.models.losses import pretrain_loss
from hicmae.training.run import checkpoint_activations, compiled
from tests.small_models import clips, pretraining_model


def gradients(network, parameters_of):
    torch.manual_seed(3)  # of stochastic depth
    inputs = clips()
    pretrain_loss(network(*inputs), *inputs).total.backward()
    return {name: p.grad for name, p in parameters_of.named_parameters()}


def test_checkpointed_activations_give_the_same_gradients_bit_by_bit():
    plain, saving = (pretraining_model(drop_path_rate=0.5) for _ in range(2))
    names = list(saving.state_dict())
    checkpoint_activations(saving)
    assert list(saving.state_dict()) == names
    expected, found = gradients(plain, plain), gradients(saving, saving)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_checkpointed_activations_keep_less():
    sizes = {}
    for name in ("plain", "saving"):
        network, kept = pretraining_model(), []
        if name == "saving":
            checkpoint_activations(network)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.numel()), lambda nothing: None
        ):
            network(*clips())
        sizes[name] = sum(kept)
    assert sizes["saving"] < 0.5 * sizes["plain"]


@pytest.mark.slow
def test_compiled_model_agrees_and_keeps_its_names():
    parts = ("encoder_depth", "encoder_depth_audio", "encoder_fusion_depth")
    shallow = {**dict.fromkeys(parts, 1), "decoder_depth": 2, "decoder_depth_audio": 2}
    eager, own = (pretraining_model(**shallow, return_intermediate_features=(0,)) for _ in range(2))
    trained = compiled(own)
    expected, found = gradients(eager, eager), gradients(trained, own)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    assert not any("_orig_mod" in name for name in own.state_dict())
