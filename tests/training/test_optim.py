"""Parameter groups and schedule against the original's golden values; what is frozen stays so."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from hicmae.config import RunConfig
from hicmae.models.losses import pretrain_loss
from hicmae.training.loop import as_trained
from hicmae.training.optim import (
    cosine_schedule,
    freeze,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from tests.small_models import classifier as small
from tests.small_models import clips, pretraining_model

GOLDEN = Path(__file__).parents[1] / "golden"
PROBED = ("video_layer_weights", "audio_layer_weights", "fc_norm.", "head.")


def by_name(groups):
    return {n: (g["lr_scale"], g["weight_decay"]) for g in groups for n in g["names"]}


def classifier(width=128, **changes):
    options = {"num_classes": 6, "depth": 3, "depth_audio": 3, "fusion_depth": 2} | changes
    return timm.create_model(f"avit_dim{width}_patch16_160_a256", **options)


def test_classifier_groups_equal_the_golden_scales_and_decays():
    golden = json.loads((GOLDEN / "golden_optim.json").read_text())
    expected = golden["finetune_dim256_depth3_fusion2_decay0.75_wd0.05"]
    ours = by_name(parameter_groups(classifier(256), 0.05, layer_decay=0.75))
    assert ours.keys() == expected.keys()
    assert all(ours[name] == pytest.approx(tuple(expected[name]), abs=1e-15) for name in ours)
    # Here the audio encoder is the deeper one; groups of equal scale and decay are one.
    model = classifier(depth_audio=5)
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    assert len({(g["lr_scale"], g["weight_decay"]) for g in groups}) == len(groups) == 2 * 9
    named = dict(model.named_parameters())
    assert sorted(n for g in groups for n in g["names"]) == sorted(named)
    assert all(named[n] is p for g in groups for n, p in zip(g["names"], g["params"], strict=True))
    scales = {name: scale for name, (scale, _) in by_name(groups).items()}
    assert scales["encoder.blocks.2.norm1.bias"] == 0.5**5  # 8 - 3
    assert scales["encoder_fusion.blocks_audio.1.mlp.fc1.weight"] == 0.5**1  # 5 + 1 + 1
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(model.requires_grad_(False), 0.05)


def test_pretraining_groups_differ_from_the_original_only_in_the_audio_mask_token():
    golden = json.loads((GOLDEN / "golden_optim.json").read_text())["pretrain_dim384_small_wd0.05"]
    depths = {"encoder_depth": 4, "encoder_depth_audio": 4, "encoder_fusion_depth": 1}
    depths |= {"decoder_depth": 3, "decoder_depth_audio": 3}
    name = "pretrain_hicmae_dim384_patch16_160_a256"
    model = timm.create_model(name, **depths, return_intermediate_features=(1, 3))
    ours = by_name(parameter_groups(model, 0.05))
    assert ours.keys() == golden.keys()
    different = {name for name in ours if ours[name] != tuple(golden[name])}
    assert different == {"mask_token_audio"}
    assert ours["mask_token_audio"] == (1.0, 0.0)


def test_schedule_equals_the_golden_values():
    golden = json.loads((GOLDEN / "golden_data.json").read_text())["schedule"]
    values = cosine_schedule(**golden["args"])
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, golden["values"], rtol=1e-12, atol=0)


def test_schedules_at_the_edges_have_one_value_a_step():
    by_steps = cosine_schedule(1.0, 0.1, 4, 5, warmup_epochs=3, warmup_steps=5)
    np.testing.assert_array_equal(by_steps, cosine_schedule(1.0, 0.1, 4, 5, warmup_epochs=1))
    only_warm = cosine_schedule(1.0, 0.1, 2, 3, warmup_epochs=2)
    assert only_warm.tolist() == pytest.approx(np.linspace(0, 1, 6))
    with pytest.raises(ValueError, match="15 steps .* 10 steps.*--warmup_epochs"):
        cosine_schedule(1.0, 0.1, 2, 5, warmup_epochs=3)


def test_learning_rate_is_scaled_by_group_and_decay_changes_only_where_there_is_some():
    optimizer = make_optimizer(parameter_groups(classifier(), 0.05, 0.75), lr=1e-3)
    rates = [[group["lr"] for group in optimizer.param_groups]]
    set_learning_rate(optimizer, 2e-4, weight_decay=0.2)
    rates.append([group["lr"] for group in optimizer.param_groups])
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert rates == [[lr * scale for scale in scales] for lr in (1e-3, 2e-4)]
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.2}


def trains(name, layers):
    """Tell of a parameter whether it is trained; of all layers of an encoder its norm is not."""
    if not layers:
        return name.startswith(PROBED)
    lowest = [
        f"{part}.{k}." for part in ("encoder.blocks", "encoder_audio.blocks") for k in range(layers)
    ]
    norm = {2: "encoder.norm.", 3: "encoder_audio.norm."}.get(layers, "encoder.patch_embed.")
    return not name.startswith(
        ("encoder.patch_embed.", "encoder_audio.patch_embed.", norm, *lowest)
    )


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("modality", ["av", "a", "v"])
def test_what_is_frozen_stays_bit_for_bit_and_all_else_trains(modality, layers):
    model = small(modality=modality, drop_path_rate=0.0 if layers else 0.5)
    freeze(model, layers)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = {name for name in before if trains(name, layers)}
    assert expected < before.keys()
    optimizer = make_optimizer(parameter_groups(model, 0.05, 0.75), 0.01)
    video, _, audio, _ = clips(4)
    for _ in range(2):
        functional.cross_entropy(model.train()(video, audio), torch.arange(4)).backward()
        optimizer.step()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert trained == changed == expected
    # What is frozen has no stochastic depth, either.
    once, again = (model.train()(video, audio) for _ in range(2))
    assert torch.equal(once, again) and torch.equal(once, model.eval()(video, audio))


# Levers of time and memory change neither gradients nor names.

SHALLOW = {"encoder_depth": 1, "encoder_depth_audio": 1, "encoder_fusion_depth": 1,
           "decoder_depth": 2, "decoder_depth_audio": 2,
           "return_intermediate_features": (0,)}  # fmt: skip


def with_levers(model, **levers):
    return as_trained(model, RunConfig(output_dir="unused", **levers), torch.device("cpu"))


def gradients(drop, **levers):
    """Return names and gradients of a shallow model."""
    model = pretraining_model(**SHALLOW, drop_path_rate=drop)
    trained = with_levers(model, **levers).train()
    torch.manual_seed(3)  # of stochastic depth
    pretrain_loss(trained(*clips()), *clips()).total.backward()
    return list(model.state_dict()), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "lever, drop, rtol, atol",
    [
        ("checkpoint_activations", 0.5, 0, 0),
        # Compiled, stochastic depth draws otherwise.
        pytest.param("compile", 0.0, 1e-3, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_levers_change_no_gradient_and_no_name(lever, drop, rtol, atol):
    names, expected = gradients(drop)
    found_names, found = gradients(drop, **{lever: True})
    assert found_names == names
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol)


def test_checkpointed_activations_keep_less():
    sizes = []
    for saves in (False, True):
        network, kept = with_levers(pretraining_model(), checkpoint_activations=saves), []
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda x, kept=kept: kept.append(x.numel()), lambda nothing: None):
            network(*clips())
        sizes.append(sum(kept))
    assert sizes[1] < 0.5 * sizes[0]
