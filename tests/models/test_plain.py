"""The plain rendition of tests/plain: it passes the golden values, and the fast models equal it."""

import pytest
import torch

from hicmae.models.losses import pretrain_loss
from tests.golden_inputs import golden, golden_clips, relative_error, set_golden_weights
from tests.plain.model import PlainClassifier, PlainPretraining
from tests.plain.training import contrast_logits, pretraining_losses, score_views
from tests.small_models import GEOMETRY, classifier, clips, pretraining_model

MODEL = golden("golden_model")
SHAPES = golden("state_dict_shapes")
SIZES = {"dim256": (256, 4, 128, 2), "dim384": (384, 6, 192, 3), "dim512": (512, 8, 384, 6)}


@pytest.mark.parametrize("kind", ["diff", "nodiff"])
def test_plain_pretraining_equals_the_original(kind):
    sizes = {"depth": 4, "depth_audio": 4, "fusion_depth": 1, "keep": (1, 3)}
    model = set_golden_weights(PlainPretraining(*SIZES["dim384"], **sizes))
    expected = MODEL[f"pretrain_small_{kind}"]
    *losses, output = pretraining_losses(model, *golden_clips(2, 11), frame_diff=kind == "diff")
    losses[0].backward()
    names = ("loss", "loss_video", "loss_audio", "loss_contrastive")
    for name, value in zip(names, losses, strict=True):
        assert value.item() == pytest.approx(expected[name], rel=1e-9)
    video, audio, features, features_audio = output
    assert relative_error(video.detach()[:, ::97, ::151], expected["recon_video_sample"]) < 1e-9
    assert relative_error(audio.detach()[:, ::17, ::31], expected["recon_audio_sample"]) < 1e-9
    for logits, *pair in zip(expected["logits"], features, features_audio, strict=True):
        assert relative_error(contrast_logits(*pair).detach(), logits) < 1e-9
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-6)


def test_plain_classifier_equals_the_original():
    model = PlainClassifier(256, 4, 6, depth=3, depth_audio=3, fusion_depth=1)
    model = set_golden_weights(model).eval()
    video, _, audio, _ = golden_clips(2, 21)
    expected = MODEL["finetune_small"]
    with torch.no_grad():
        assert relative_error(model(video, audio), expected["logits"]) < 1e-9
        features = model.forward_features(video, audio)
    assert features.abs().sum().item() == pytest.approx(expected["feature_abs"], rel=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_plain_models_have_the_names_and_shapes_of_released_checkpoints(name):
    width, heads, *decoder = SIZES[name.split("_")[1 if name.startswith("avit") else 2]]
    if name.startswith("avit"):
        model = PlainClassifier(width, heads, 6)
    else:
        model = PlainPretraining(width, heads, *decoder)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == SHAPES[name]


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
    sizes = {"depth": 3, "depth_audio": 4, "fusion_depth": 2, "keep": (0, 2)}
    plain = PlainPretraining(128, 4, 64, 2, init_values=init_values, **sizes, **GEOMETRY).double()
    plain.load_state_dict(ours.state_dict())
    inputs = clips(3, torch.float64)
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
    plain = PlainClassifier(128, 4, num_classes=5, depth=2, depth_audio=3, **GEOMETRY).double()
    plain.load_state_dict(ours.state_dict())
    video, _, audio, _ = clips(3, torch.float64)
    scores, expected = ours(video, audio), plain(video, audio)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    scores.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(ours, plain)
    views = [(video, audio), (video + 1, audio)]
    expected = torch.stack([ours(*view) for view in views]).softmax(dim=-1)
    torch.testing.assert_close(score_views(plain, views, "cpu"), expected.detach().float())
