"""Levers change time and memory, never what is computed."""

import pytest
import timm
import torch

import hicmae  # noqa: F401
from hicmae.models.losses import pretrain_loss
from hicmae.training.run import checkpoint_activations, compiled
from tests.small_models import DEPTHS, GEOMETRY, clips


def model(**options):
    torch.manual_seed(0)
    name = "pretrain_hicmae_dim128_patch16_160_a256"
    return timm.create_model(name, **{**GEOMETRY, **DEPTHS, **options})


def gradients(network, parameters_of):
    torch.manual_seed(3)  # of stochastic depth
    inputs = clips()
    pretrain_loss(network(*inputs), *inputs).total.backward()
    return {name: p.grad for name, p in parameters_of.named_parameters()}


def test_checkpointed_activations_give_the_same_gradients_bit_by_bit():
    plain, saving = model(drop_path_rate=0.5), model(drop_path_rate=0.5)
    names = list(saving.state_dict())
    checkpoint_activations(saving)
    assert list(saving.state_dict()) == names
    expected, found = gradients(plain, plain), gradients(saving, saving)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_checkpointed_activations_keep_less():
    def kept(network):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()), lambda nothing: None
        ):
            network(*clips())
        return sum(sizes)

    saving = model()
    checkpoint_activations(saving)
    assert kept(saving) < 0.5 * kept(model())


SHALLOW = {
    "encoder_depth": 1,
    "encoder_depth_audio": 1,
    "encoder_fusion_depth": 1,
    "decoder_depth": 2,
    "decoder_depth_audio": 2,
    "return_intermediate_features": (0,),
}


@pytest.mark.slow
def test_compiled_model_agrees_and_keeps_its_names():
    eager, own = model(**SHALLOW), model(**SHALLOW)
    trained = compiled(own)
    expected, found = gradients(eager, eager), gradients(trained, own)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    assert not any("_orig_mod" in name for name in own.state_dict())
