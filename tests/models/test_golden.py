"""Our models against float64 values of the original code, and the plain ones of tests/plain."""

import pytest
import timm
import torch

from hicmae.config import CLASSIFIERS, FUSION_ORDERS, PRETRAINING
from hicmae.models import encoder
from hicmae.models.losses import pretrain_loss
from tests.golden_inputs import golden, golden_clips, relative_error, set_golden_weights
from tests.plain.model import plain_like
from tests.plain.training import pretraining_losses, score_views
from tests.small_models import classifier, clips, pretraining_model

MODEL = golden("golden_model")
SHAPES = golden("state_dict_shapes")
LOSSES = ("loss", "loss_video", "loss_audio", "loss_contrastive")
MILLIONS = {  # parameters, as published
    "avit_dim256_patch16_160_a256": 20.47,
    "avit_dim384_patch16_160_a256": 45.65,
    "avit_dim512_patch16_160_a256": 80.79,
    "pretrain_hicmae_dim512_patch16_160_a256": 99.61,
}


def our_pretraining():
    depths = {"encoder_depth": 4, "encoder_depth_audio": 4, "encoder_fusion_depth": 1}
    depths |= {"decoder_depth": 3, "decoder_depth_audio": 3}
    options = {"return_intermediate_features": (1, 3), **depths}
    return set_golden_weights(
        timm.create_model("pretrain_hicmae_dim384_patch16_160_a256", **options)
    )


@pytest.mark.parametrize("kind", ["diff", "nodiff"])
def test_pretraining_equals_the_original(kind):
    expected, inputs = MODEL[f"pretrain_small_{kind}"], golden_clips(2, 11)
    model = our_pretraining()
    output = model(*inputs)
    losses = pretrain_loss(output, *inputs, frame_diff=kind == "diff")
    losses.total.backward()
    for name, value in zip(LOSSES, losses, strict=True):
        assert value.item() == pytest.approx(expected[name], rel=1e-9)
    video, audio = (part.detach() for part in output[:2])
    assert video.shape == (2, 720, 1536) and audio.shape == (2, 102, 256)
    assert relative_error(video[:, ::97, ::151], expected["recon_video_sample"]) < 1e-9
    assert relative_error(audio[:, ::17, ::31], expected["recon_audio_sample"]) < 1e-9
    assert video.sum().item() == pytest.approx(expected["recon_video_sum"], rel=1e-6)
    assert video.abs().sum().item() == pytest.approx(expected["recon_video_abs"], rel=1e-9)
    assert audio.abs().sum().item() == pytest.approx(expected["recon_audio_abs"], rel=1e-9)
    for pair, known in zip(zip(*output[2:], strict=True), expected["logits"], strict=True):
        assert relative_error((pair[0] @ pair[1].T / 0.07).detach(), known) < 1e-9
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-6)


def test_float32_losses_stay_within_1e_4_of_float64():
    video, video_mask, audio, audio_mask = golden_clips(2, 11)
    inputs = video.float(), video_mask, audio.float(), audio_mask
    with torch.no_grad():
        loss = pretrain_loss(our_pretraining().float()(*inputs), *inputs, frame_diff=True)
    for name, value in zip(LOSSES, loss, strict=True):
        assert value.item() == pytest.approx(MODEL["pretrain_small_diff"][name], rel=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_classifier_equals_the_original(dtype, tolerance):
    options = {"num_classes": 6, "depth": 3, "depth_audio": 3, "fusion_depth": 1}
    model = timm.create_model("avit_dim256_patch16_160_a256", **options)
    model = set_golden_weights(model).eval().to(dtype)
    video, audio = (clip.to(dtype) for clip in golden_clips(2, 21)[::2])
    expected = MODEL["finetune_small"]
    with torch.no_grad():
        features = model.forward_features(video, audio)
        assert relative_error(model(video, audio), expected["logits"]) < tolerance
    assert features.shape == (2, 4 * 256)
    assert relative_error(features[:, ::83], expected["feature_sample"]) < tolerance
    assert features.abs().sum().item() == pytest.approx(expected["feature_abs"], rel=tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_has_the_names_and_shapes_of_released_checkpoints(name):
    with torch.device("meta"):  # without values
        ours = timm.create_model(name, **({"num_classes": 6} if name.startswith("avit") else {}))
    assert {key: list(value.shape) for key, value in ours.state_dict().items()} == SHAPES[name]
    count = sum(parameter.numel() for parameter in ours.parameters()) / 1e6
    assert count == pytest.approx(MILLIONS.get(name, count), abs=0.006)


def test_what_flags_allow_is_what_models_know():
    registered = timm.list_models("*_patch16_160_a256")
    assert sorted(PRETRAINING + CLASSIFIERS) == sorted(registered)
    assert FUSION_ORDERS == encoder.FUSION_ORDERS


def assert_same_gradients(ours, plain):
    known = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, known[name].grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("init_values", [0.0, 0.3])
@pytest.mark.parametrize("frame_diff", [True, False])
def test_fast_pretraining_equals_plain_in_float64(init_values, frame_diff):
    ours = pretraining_model(init_values=init_values).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain, inputs = plain_like(ours), clips(3, torch.float64)
    output = ours(*inputs)
    loss = pretrain_loss(output, *inputs, frame_diff=frame_diff)
    *expected, seen = pretraining_losses(plain, *inputs, frame_diff=frame_diff)
    for value, known in zip(loss, expected, strict=True):
        assert value.item() == pytest.approx(known.item(), rel=1e-10)
    torch.testing.assert_close(output[:2], seen[:2], rtol=1e-10, atol=1e-10)
    loss.total.backward()
    expected[0].backward()
    assert_same_gradients(ours, plain)


def test_fast_classifier_equals_plain_in_float64():
    ours = classifier().double()
    plain = plain_like(ours)
    video, _, audio, _ = clips(3, torch.float64)
    scores, expected = ours(video, audio), plain(video, audio)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    scores.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(ours, plain)
    views = [(video, audio), (video + 1, audio)]
    expected = torch.stack([ours(*view) for view in views]).softmax(dim=-1)
    torch.testing.assert_close(score_views(plain, views, "cpu"), expected.detach().float())
