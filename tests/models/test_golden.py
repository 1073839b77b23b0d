"""Both models against float64 values of the original code."""

import pytest
import timm
import torch

import hicmae  # noqa: F401
from hicmae.models.losses import pretrain_loss
from tests.golden_inputs import golden, golden_clips, relative_error, set_golden_weights

MODEL = golden("golden_model")
SHAPES = golden("state_dict_shapes")
SMALL = {
    "encoder_depth": 4,
    "encoder_depth_audio": 4,
    "decoder_depth": 3,
    "decoder_depth_audio": 3,
    "encoder_fusion_depth": 1,
    "return_intermediate_features": (1, 3),
}


def small_pretraining_model():
    model = timm.create_model("pretrain_hicmae_dim384_patch16_160_a256", **SMALL)
    return set_golden_weights(model)


@pytest.fixture(scope="module", params=["pretrain_small_diff", "pretrain_small_nodiff"])
def pretraining(request):
    model = small_pretraining_model()
    video, video_mask, audio, audio_mask = golden_clips(2, 11)
    output = model(video, video_mask, audio, audio_mask)
    loss = pretrain_loss(
        output, video, video_mask, audio, audio_mask, frame_diff=request.param.endswith("_diff")
    )
    loss.total.backward()
    return MODEL[request.param], model, output, loss


def test_pretraining_losses_equal_the_original(pretraining):
    expected, _, _, loss = pretraining
    for name, value in (
        ("loss", loss.total),
        ("loss_video", loss.video),
        ("loss_audio", loss.audio),
        ("loss_contrastive", loss.contrast),
    ):
        assert value.item() == pytest.approx(expected[name], rel=1e-9)


def test_reconstructions_equal_the_original(pretraining):
    expected, _, output, _ = pretraining
    assert output.video.shape == (2, 720, 1536)
    assert output.audio.shape == (2, 102, 256)
    video, audio = output.video.detach(), output.audio.detach()
    assert relative_error(video[:, ::97, ::151], expected["recon_video_sample"]) < 1e-9
    assert relative_error(audio[:, ::17, ::31], expected["recon_audio_sample"]) < 1e-9
    assert video.sum().item() == pytest.approx(expected["recon_video_sum"], rel=1e-6)
    assert video.abs().sum().item() == pytest.approx(expected["recon_video_abs"], rel=1e-9)
    assert audio.abs().sum().item() == pytest.approx(expected["recon_audio_abs"], rel=1e-9)


def test_contrastive_logits_equal_the_original(pretraining):
    expected, _, output, _ = pretraining
    for level, logits in enumerate(expected["logits"]):
        video, audio = output.video_levels[level], output.audio_levels[level]
        assert relative_error((video @ audio.T / 0.07).detach(), logits) < 1e-9


def test_gradient_of_every_parameter_equals_the_original(pretraining):
    expected, model, _, _ = pretraining
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == expected["grad_norm"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(expected["grad_norm"][name], rel=1e-6), name


def test_float32_losses_stay_within_1e_4_of_float64():
    model = small_pretraining_model().float()
    video, video_mask, audio, audio_mask = golden_clips(2, 11)
    video, audio = video.float(), audio.float()
    with torch.no_grad():
        output = model(video, video_mask, audio, audio_mask)
        loss = pretrain_loss(output, video, video_mask, audio, audio_mask)
    expected = MODEL["pretrain_small_diff"]
    parts = (loss.total, loss.video, loss.audio, loss.contrast)
    names = ("loss", "loss_video", "loss_audio", "loss_contrastive")
    for name, value in zip(names, parts, strict=True):
        assert value.item() == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_classifier_equals_the_original(dtype, tolerance):
    model = timm.create_model(
        "avit_dim256_patch16_160_a256", num_classes=6, depth=3, depth_audio=3, fusion_depth=1
    )
    model = set_golden_weights(model).eval().to(dtype)
    video, _, audio, _ = golden_clips(2, 21)
    video, audio = video.to(dtype), audio.to(dtype)
    expected = MODEL["finetune_small"]
    with torch.no_grad():
        features = model.forward_features(video, audio)
        assert relative_error(model(video, audio), expected["logits"]) < tolerance
    assert features.shape == (2, 4 * 256)
    assert relative_error(features[:, ::83], expected["feature_sample"]) < tolerance
    assert features.abs().sum().item() == pytest.approx(expected["feature_abs"], rel=tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_has_the_names_and_shapes_of_released_checkpoints(name):
    options = {"num_classes": 6} if name.startswith("avit") else {}
    model = timm.create_model(name, **options)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == SHAPES[name]


@pytest.mark.parametrize(
    "name, millions",
    [
        ("avit_dim256_patch16_160_a256", 20.47),
        ("avit_dim384_patch16_160_a256", 45.65),
        ("avit_dim512_patch16_160_a256", 80.79),
        ("pretrain_hicmae_dim512_patch16_160_a256", 99.61),
    ],
)
def test_models_have_the_published_number_of_parameters(name, millions):
    options = {"num_classes": 6} if name.startswith("avit") else {}
    model = timm.create_model(name, **options)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.006)
