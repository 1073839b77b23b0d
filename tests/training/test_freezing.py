"""What is frozen stays bit for bit, keeps no graph, and computes the same."""

import pytest
import torch
from torch.nn import functional

from hicmae.training.optim import freeze, make_optimizer, parameter_groups
from hicmae.training.run import checkpoint_activations, compiled
from tests.small_models import classifier, clips

PROBED = ("video_layer_weights", "audio_layer_weights", "fc_norm.", "head.")


def inputs():
    video, _, audio, _ = clips(4)
    return video, audio


def steps(model, count=2, lr=0.01):
    """Take AdamW steps as fine-tuning does; return the parameters that ended with a gradient."""
    optimizer = make_optimizer(parameter_groups(model, 0.05, 0.75), lr)
    target = torch.arange(4)
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        functional.cross_entropy(model(*inputs()), target).backward()
        optimizer.step()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def changed(model, before):
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def in_frozen_layers(name, layers, depths):
    """Tell by its name whether --freeze_layers keeps a parameter; written out by hand."""
    for encoder, depth in depths.items():
        if name.startswith(f"{encoder}."):
            first = [f"{encoder}.patch_embed.", *(f"{encoder}.blocks.{k}." for k in range(layers))]
            norm = layers == depth and name.startswith(f"{encoder}.norm.")
            return norm or any(name.startswith(prefix) for prefix in first)
    return False


@pytest.mark.parametrize("modality", ["av", "a", "v"])
def test_a_probe_trains_heads_and_layer_weights_and_nothing_else(modality):
    model = classifier(modality=modality, drop_path_rate=0.5)
    freeze(model, linear_probe=True)
    before = copies(model)
    expected = {name for name in before if name.startswith(PROBED)}
    assert steps(model) == changed(model, before) == expected


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("modality", ["av", "a", "v"])
def test_frozen_layers_stay_bit_for_bit_and_all_others_train(modality, layers):
    model = classifier(modality=modality, drop_path_rate=0.3)
    freeze(model, layers=layers)
    before = copies(model)
    depths = {"encoder": 2, "encoder_audio": 3}
    frozen = {name for name in before if in_frozen_layers(name, layers, depths)}
    assert frozen
    assert ("encoder.norm.weight" in frozen) == (layers == 2 and "v" in modality)
    assert "encoder_audio.norm.weight" not in frozen
    assert steps(model) == changed(model, before) == before.keys() - frozen


def test_what_is_frozen_keeps_no_graph():
    def kept(**options):
        model = classifier().train()
        freeze(model, **options)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()), lambda nothing: None
        ):
            model(*inputs())
        return sum(sizes)

    whole, part, probe = kept(), kept(layers=2), kept(linear_probe=True)
    assert probe < 0.01 * whole
    assert probe < part < 0.7 * whole
    model = classifier()
    freeze(model, layers=1)
    tokens = model.encoder.blocks[0](model.encoder.patch_embed(inputs()[0]))
    assert tokens.grad_fn is None and model.encoder.blocks[1](tokens).grad_fn is not None


@pytest.mark.parametrize("options", [{"linear_probe": True}, {"layers": 2}])
def test_frozen_modules_have_no_stochastic_depth(options):
    model, whole = (classifier(drop_path_rate=0.9, depth_audio=2).train() for _ in range(2))
    freeze(model, **options)
    video, audio = inputs()
    levels = range(2)
    frozen = [model.encoder(video, None, levels).tokens for _ in range(2)]
    assert torch.equal(*frozen)
    assert torch.equal(frozen[0], whole.eval().encoder(video, None, levels).tokens)
    fused = [model.encoder_fusion(frozen[0], frozen[0])[0] for _ in range(2)]
    assert torch.equal(*fused) == ("linear_probe" in options)
    assert list(model.state_dict()) == list(whole.state_dict())
    if "linear_probe" in options:
        assert torch.equal(model.train()(video, audio), whole(video, audio))


@pytest.mark.parametrize("options", [{"linear_probe": True}, {"layers": 1}])
def test_checkpointed_activations_train_the_same(options):
    plain, saving = classifier(), classifier()
    for model in (plain, saving):
        freeze(model, **options)
    checkpoint_activations(saving)
    steps(plain)
    steps(saving)
    for mine, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"linear_probe": True}, {"layers": 1}])
def test_a_compiled_model_has_the_same_gradients(options):
    plain, own = (classifier(depth=1, depth_audio=2, fusion_depth=1) for _ in range(2))
    for model in (plain, own):
        freeze(model, **options)
        trained = compiled(model) if model is own else model
        functional.cross_entropy(trained.train()(*inputs()), torch.arange(4)).backward()
    for mine, other in zip(own.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None) == (not mine.requires_grad)
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)
