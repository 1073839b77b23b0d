"""Attention maps: the weights that the layers use, followed through the encoders."""

import pytest
import torch

from hicmae.models.layers import Attention
from hicmae.visualize.attention import attention_weights, looks, recorded_attention, rollout
from tests.small_models import classifier, clips

DIM, HEADS, BATCH = 24, 3, 2


def randomised(layer):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def values_of(layer, tokens):
    """Return the values that a layer attends to, (B, heads, N, D / heads)."""
    projection = layer.kv if hasattr(layer, "kv") else layer.qkv
    values = tokens @ projection.weight[-DIM:].T + layer.v_bias
    return values.unflatten(2, (HEADS, -1)).transpose(1, 2)


@pytest.mark.parametrize("crossed", [False, True])
def test_weights_give_the_output_of_the_layer(crossed):
    layer, tokens = randomised(Attention(DIM, HEADS, crossed)), torch.randn(BATCH, 7, DIM)
    context = [torch.randn(BATCH, 8, DIM)] * crossed
    weights = attention_weights(layer, tokens, *context)
    assert weights.shape == (BATCH, HEADS, 7, 8 if crossed else 7)
    mixed = (weights @ values_of(layer, (context or [tokens])[0])).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.proj(mixed), layer(tokens, *context), rtol=1e-4, atol=1e-5)


def test_rollout_multiplies_layers_with_their_residual_connections():
    first, second = torch.rand(2, 1, 3, 3).softmax(-1)
    one = torch.eye(3)
    expected = (0.5 * second + 0.5 * one) @ (0.5 * first + 0.5 * one)
    torch.testing.assert_close(rollout([first, second]), expected)
    torch.testing.assert_close(rollout([first, second]).sum(-1), torch.ones(1, 3))


@torch.inference_mode()
def test_every_attention_layer_is_recorded_and_the_answer_stays():
    model, clip = randomised(classifier(depth=3, depth_audio=2)).eval(), clips()[::2]
    expected = model(*clip)
    with recorded_attention(model) as maps:
        torch.testing.assert_close(model(*clip), expected, rtol=0, atol=0)
    before = dict(maps)
    model(*clip)
    assert all(maps[name] is weights for name, weights in before.items())  # the hooks are gone
    assert maps["encoder.blocks.2.attn"].shape == (2, 12, 12)
    assert maps["encoder_audio.blocks.1.attn"].shape == (2, 8, 8)
    assert maps["encoder_fusion.blocks.1.cross_attn"].shape == (2, 12, 8)
    assert maps["encoder_fusion.blocks_audio.0.cross_attn"].shape == (2, 8, 12)
    assert len(maps) == 3 + 2 + 2 * 2 * 2
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    found = looks(maps)  # mean over the readers, in units of even attention
    sizes = {"video": 12, "audio": 8, "audio by video": 8, "video by audio": 12}
    assert {name: len(values[0]) for name, values in found.items()} == sizes
    for values in found.values():
        torch.testing.assert_close(values.mean(-1), torch.ones(2))
    own = rollout([maps[f"encoder.blocks.{k}.attn"] for k in range(3)])
    torch.testing.assert_close(found["video"], 12 * own.mean(1))
    crossed = [maps[f"encoder_fusion.blocks_audio.{k}.cross_attn"].mean(1) for k in range(2)]
    torch.testing.assert_close(found["video by audio"], 6 * (crossed[0] + crossed[1]))
