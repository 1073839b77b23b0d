"""Properties of the two models that golden values alone do not show."""

import pytest
import timm
import torch

import hicmae  # noqa: F401

# Every axis and depth differs, so a swapped one cannot pass.
GEOMETRY = {"num_frames": 4, "img_size": (32, 48), "img_size_audio": (64, 32), "tubelet_size": 2}
DEPTHS = {
    "encoder_depth": 3,
    "encoder_depth_audio": 4,
    "decoder_depth": 3,
    "decoder_depth_audio": 3,
    "encoder_fusion_depth": 2,
    "return_intermediate_features": (0, 2),
}


def pretraining_model(**options):
    torch.manual_seed(0)
    name = "pretrain_hicmae_dim128_patch16_160_a256"
    return timm.create_model(name, **{**GEOMETRY, **DEPTHS, **options})


def classifier(**options):
    torch.manual_seed(0)
    options = {"num_classes": 5, "depth": 2, "depth_audio": 3, **GEOMETRY, **options}
    return timm.create_model("avit_dim128_patch16_160_a256", **options)


def clips(batch=2):
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(batch, 3, 4, 32, 48, generator=generator)
    audio = torch.randn(batch, 1, 64, 32, generator=generator)
    video_mask = torch.zeros(batch, 12, dtype=torch.bool)
    video_mask[:, [0, 2, 3, 6, 8, 9]] = True
    audio_mask = torch.zeros(batch, 8, dtype=torch.bool)
    audio_mask[:, [1, 2, 5]] = True
    return video, video_mask, audio, audio_mask


def fill_masked_patches(video, value):
    """Overwrite what the mask of `clips` hides."""
    video = video.clone()
    for token in (0, 2, 3, 6, 8, 9):
        t, cell = divmod(token, 6)
        y, x = divmod(cell, 3)
        video[:, :, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = value
    return video


def test_masked_pixels_never_reach_the_encoder():
    model = pretraining_model()
    video, video_mask, audio, audio_mask = clips()
    outputs = [
        model(fill_masked_patches(video, value), video_mask, audio, audio_mask)
        for value in (0.0, 100.0)
    ]
    torch.testing.assert_close(outputs[0].video, outputs[1].video, rtol=0, atol=0)
    torch.testing.assert_close(outputs[0].audio, outputs[1].audio, rtol=0, atol=0)


def test_visible_pixels_of_either_stream_change_both_predictions():
    model = pretraining_model()
    video, video_mask, audio, audio_mask = clips()
    base = model(video, video_mask, audio, audio_mask)
    for other in (
        model(video + 1, video_mask, audio, audio_mask),
        model(video, video_mask, audio + 1, audio_mask),
    ):
        assert not torch.allclose(base.video, other.video)
        assert not torch.allclose(base.audio, other.audio)


def test_levels_are_unit_vectors_of_one_stream_each():
    model = pretraining_model()
    video, video_mask, audio, audio_mask = clips()
    base = model(video, video_mask, audio, audio_mask)
    other = model(video, video_mask, audio + 1, audio_mask)
    assert len(base.video_levels) == len(base.audio_levels) == 2
    for level in base.video_levels + base.audio_levels:
        torch.testing.assert_close(level.norm(dim=-1), torch.ones(2))
    for mine, theirs in zip(base.video_levels, other.video_levels, strict=True):
        assert torch.equal(mine, theirs)


def test_a_mask_on_the_cpu_as_split_tokens_gives_the_same_output():
    from hicmae.models.layers import split_tokens

    model = pretraining_model()
    video, video_mask, audio, audio_mask = clips()
    split = split_tokens(video_mask, 12, "video_mask")
    split_audio = split_tokens(audio_mask, 8, "audio_mask")
    base = model(video, video_mask, audio, audio_mask)
    same = model(video, split, audio, split_audio)
    assert torch.equal(base.video, same.video) and torch.equal(base.audio, same.audio)


def test_every_parameter_of_pretraining_gets_a_gradient():
    from hicmae.models.losses import pretrain_loss

    model = pretraining_model(init_values=0.1)
    inputs = clips()
    pretrain_loss(model(*inputs), *inputs).total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("modality", ["av", "a", "v"])
def test_every_parameter_of_the_classifier_gets_a_gradient(modality):
    model = classifier(modality=modality)
    video, _, audio, _ = clips()
    model(video, audio).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_swapped_streams_are_refused():
    model = classifier()
    video, _, audio, _ = clips()
    with pytest.raises(ValueError, match=r"video has shape \(2, 1, 64, 32\), expected \(B, 3, 4"):
        model(audio, video)


@pytest.mark.parametrize("modality, width", [("av", 4), ("a", 2), ("v", 2)])
def test_one_modality_needs_only_its_own_stream(modality, width):
    model = classifier(modality=modality).eval()
    video, _, audio, _ = clips()
    streams = {"video": video if "v" in modality else None, "audio": None}
    given = {**streams, "audio": audio if "a" in modality else None}
    assert model(**given).shape == (2, 5)
    assert model.forward_features(**given).shape == (2, width * 128)
    streams = {n.split(".")[0] for n, _ in model.named_parameters()}
    assert ("encoder" in streams) == ("v" in modality)
    assert ("encoder_audio" in streams) == ("a" in modality)
    assert ("encoder_fusion" in streams) == (modality == "av")


def test_a_missing_stream_is_named():
    video, _, _, _ = clips()
    with pytest.raises(ValueError, match="audio is None, but a model of modality 'av' reads it"):
        classifier()(video, None)


def test_layer_weights_choose_the_level_they_favour():
    model = classifier(modality="v").eval()
    video, _, _, _ = clips()
    levels = model.encoder(video, None, range(2), pool=True).levels
    model.fc_norm = torch.nn.Identity()
    with torch.no_grad():
        model.video_layer_weights.copy_(torch.tensor([50.0, -50.0]))
    features = model.forward_features(video, None)
    torch.testing.assert_close(features[:, :128], levels[0])
    torch.testing.assert_close(features[:, 128:], levels[1])  # mean of the last layer's tokens


def test_initialisation_follows_the_spec():
    model = timm.create_model("pretrain_hicmae_dim256_patch16_160_a256", **DEPTHS)
    qkv = model.encoder.blocks[0].attn.qkv.weight
    bound = (6 / (256 + 3 * 256)) ** 0.5
    assert qkv.abs().max() <= bound and qkv.abs().max() > 0.98 * bound
    assert model.mask_token.abs().max() <= 0.02 and model.mask_token.std() > 0.005
    assert not model.encoder.blocks[0].attn.q_bias.any()
    assert not model.decoder.head.bias.any()
    tuned = timm.create_model("avit_dim256_patch16_160_a256", num_classes=3, depth=2)
    assert tuned.encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    fused = tuned.encoder_fusion.blocks[0].attn.qkv.weight
    assert fused.abs().max() > 0.98 * bound
    assert torch.allclose(tuned.video_layer_weights, torch.tensor(0.5))
    assert tuned.head.bias.any(), "the head keeps torch's default"


def test_position_tables_follow_the_geometry_and_stay_out_of_the_state_dict():
    model = classifier()
    assert model.encoder.positions.shape == (12, 128)
    assert model.encoder_audio.positions.shape == (8, 128)
    assert not [name for name in model.state_dict() if "position" in name]
    longer = classifier(num_frames=8)
    longer.load_state_dict(model.state_dict())
    assert longer.encoder.positions.shape == (24, 128)


@pytest.mark.parametrize(
    "activation, low, high", [("sigmoid", 0, 1), ("tanh", -1, 1), ("relu", 0, float("inf"))]
)
def test_head_activation_bounds_the_outputs(activation, low, high):
    model = classifier(head_activation=activation)
    with torch.no_grad():
        model.head.weight.mul_(50)
    video, _, audio, _ = clips()
    output = model(video, audio)
    assert output.min() >= low and output.max() <= high


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoder_depth": 2}, r"decoder_depth is 2, expected 3"),
        ({"decoder_depth_audio": 4}, r"decoder_depth_audio is 4, expected 3"),
        ({"return_intermediate_features": (2, 0)}, "expected ascending block indices from 0 to 2"),
        ({"return_intermediate_features": (0, 3)}, "expected ascending block indices from 0 to 2"),
        ({"encoder_fusion_depth": 0}, "encoder_fusion_depth must be at least 1, got 0"),
        ({"img_size": 40}, r"video size \(4, 40, 40\) is not a positive multiple"),
    ],
)
def test_impossible_pretraining_models_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pretraining_model(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"head_activation": "softmax"}, "head_activation is 'softmax', expected one of None"),
        ({"modality": "video"}, "modality is 'video', expected one of av, a, v"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"pretrained": True}, "no weights are hosted"),
    ],
)
def test_impossible_classifiers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options)
