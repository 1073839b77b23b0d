"""The plain rendition of tests/plain: it passes the golden values, and the fast models equal it."""

import pytest
import timm
import torch

import hicmae  # noqa: F401
from hicmae.models import cpu_gemm as onednn
from hicmae.models.losses import pretrain_loss
from tests.golden_inputs import golden, golden_clips, relative_error, set_golden_weights
from tests.plain.model import PlainClassifier, PlainPretraining
from tests.plain.training import contrast_logits, pretraining_losses, score_views

MODEL = golden("golden_model")
SHAPES = golden("state_dict_shapes")
SIZES = {"dim256": (256, 4, 128, 2), "dim384": (384, 6, 192, 3), "dim512": (512, 8, 384, 6)}
SMALL = {"depth": 4, "depth_audio": 4, "fusion_depth": 1, "keep": (1, 3)}


@pytest.mark.parametrize("kind", ["diff", "nodiff"])
def test_plain_pretraining_equals_the_original(kind):
    model = set_golden_weights(PlainPretraining(*SIZES["dim384"], **SMALL))
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


GEOMETRY = {"num_frames": 4, "img_size": (32, 48), "img_size_audio": (64, 32)}


def small_pair(init_values=0.0, dtype=torch.float64):
    """Return our model and the plain one with the same random weights, layer scale included."""
    torch.manual_seed(0)
    ours = timm.create_model(
        "pretrain_hicmae_dim128_patch16_160_a256",
        encoder_depth=3,
        encoder_depth_audio=4,
        decoder_depth=3,
        decoder_depth_audio=3,
        encoder_fusion_depth=2,
        return_intermediate_features=(0, 2),
        init_values=init_values,
        **GEOMETRY,
    ).to(dtype)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = PlainPretraining(
        128,
        4,
        64,
        2,
        depth=3,
        depth_audio=4,
        fusion_depth=2,
        keep=(0, 2),
        init_values=init_values,
        **GEOMETRY,
    ).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def small_clips(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(3, 3, 4, 32, 48, generator=generator, dtype=dtype)
    audio = torch.randn(3, 1, 64, 32, generator=generator, dtype=dtype)
    video_mask = torch.stack([torch.randperm(12, generator=generator) < 7 for _ in range(3)])
    audio_mask = torch.stack([torch.randperm(8, generator=generator) < 5 for _ in range(3)])
    return video, video_mask, audio, audio_mask


@pytest.mark.parametrize("init_values", [0.0, 0.3])
@pytest.mark.parametrize("frame_diff", [True, False])
def test_fast_pretraining_equals_plain_in_float64(init_values, frame_diff):
    ours, plain = small_pair(init_values)
    clips = small_clips()
    output = ours(*clips)
    loss = pretrain_loss(output, *clips, frame_diff=frame_diff)
    *expected, seen = pretraining_losses(plain, *clips, frame_diff=frame_diff)
    for value, known in zip(loss, expected, strict=True):
        assert value.item() == pytest.approx(known.item(), rel=1e-10)
    for value, known in zip(output[:2], seen[:2], strict=True):
        torch.testing.assert_close(value, known, rtol=1e-10, atol=1e-10)
    loss.total.backward()
    expected[0].backward()
    known = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, known[name].grad, rtol=1e-9, atol=1e-10)


def small_classifiers(dtype=torch.float64):
    torch.manual_seed(0)
    options = {"num_classes": 5, "depth": 2, "depth_audio": 3, **GEOMETRY}
    ours = timm.create_model("avit_dim128_patch16_160_a256", **options).to(dtype)
    plain = PlainClassifier(128, 4, **options).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def test_fast_classifier_equals_plain_in_float64():
    ours, plain = small_classifiers()
    video, _, audio, _ = small_clips()
    scores, expected = ours(video, audio), plain(video, audio)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    scores.square().sum().backward()
    expected.square().sum().backward()
    known = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, known[name].grad, rtol=1e-9, atol=1e-10)


def test_plain_scoring_takes_the_views_one_by_one():
    ours, plain = small_classifiers(torch.float32)
    video, _, audio, _ = small_clips(torch.float32)
    scores = score_views(plain, [(video, audio), (video + 1, audio)], "cpu")
    with torch.no_grad():
        expected = torch.stack([ours.eval()(video, audio), ours(video + 1, audio)]).softmax(dim=-1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["onednn", "mkl"])
def gemm(request, monkeypatch):
    """Compute float32 products by one library, attention included however small it is."""
    monkeypatch.setattr(onednn, "MIN_SCORES", 1)
    before = onednn._Choice.name
    onednn.choose_cpu_gemm(request.param)
    yield request.param
    onednn.choose_cpu_gemm(before)


def test_either_library_gives_the_plain_result_in_float32(gemm):
    ours, plain = small_pair(dtype=torch.float32)
    clips = small_clips(torch.float32)
    pretrain_loss(ours(*clips), *clips).total.backward()
    pretraining_losses(plain, *clips)[0].backward()
    known = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - known[name].grad).abs().max() / known[name].grad.abs().max()
        assert error < 1e-4, name
