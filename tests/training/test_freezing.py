"""What is frozen stays bit for bit, keeps no graph, and computes the same."""

import pytest
import torch
from torch.nn import functional

from hicmae.training.optim import freeze, make_optimizer, parameter_groups
from hicmae.training.run import checkpoint_activations, compiled
from tests.small_models import classifier, clips

PROBED = ("video_layer_weights", "audio_layer_weights", "fc_norm.", "head.")
FROZEN = {  # of encoders of 2 and 3 blocks, by --freeze_layers; written out by hand
    1: ("encoder.patch_embed.", "encoder.blocks.0.",
        "encoder_audio.patch_embed.", "encoder_audio.blocks.0."),
    2: ("encoder.", "encoder_audio.patch_embed.",
        "encoder_audio.blocks.0.", "encoder_audio.blocks.1."),
}  # fmt: skip


def inputs():
    video, _, audio, _ = clips(4)
    return video, audio


def steps(model, count=2, lr=0.01):
    """Take AdamW steps as fine-tuning does; return the parameters that ended with a gradient."""
    optimizer = make_optimizer(parameter_groups(model, 0.05, 0.75), lr)
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        functional.cross_entropy(model(*inputs()), torch.arange(4)).backward()
        optimizer.step()
    return {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [None, 1, 2])
@pytest.mark.parametrize("modality", ["av", "a", "v"])
def test_what_is_frozen_stays_bit_for_bit_and_all_else_trains(modality, layers):
    """Of a probe, without layers, heads and layer weights train."""
    model = classifier(modality=modality, drop_path_rate=0.5)
    freeze(model, linear_probe=layers is None, layers=layers or 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if layers:
        expected = {name for name in before if not name.startswith(FROZEN[layers])}
    else:
        expected = {name for name in before if name.startswith(PROBED)}
    assert expected < before.keys()
    trained = steps(model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert trained == changed == expected


def test_what_is_frozen_keeps_no_graph():
    def kept(**options):
        model, sizes = classifier().train(), []
        freeze(model, **options)
        note = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()), print)
        with note:
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
