"""The ablations of the paper: what each switch changes in models, losses and loading."""

import pytest
import torch
from torch.nn import functional

from hicmae.models import encoder
from hicmae.models.encoder import FUSION_ORDERS, EncoderOutput
from hicmae.models.losses import contrasted, pretrain_loss
from hicmae.training.checkpoint import load_pretrained
from tests.models.test_models import classifier, clips, pretraining_model

STREAMS = {"av": ("video", "audio"), "v": ("video",), "a": ("audio",)}


def names(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# Fusion order


@pytest.mark.parametrize("order", FUSION_ORDERS)
def test_fusion_updates_the_streams_in_the_order_asked_for(order):
    torch.manual_seed(0)
    fusion = encoder.CrossModalFusion(32, depth=2, num_heads=2, order=order).eval()
    video, audio = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    v, a = video, audio
    for block, block_audio in zip(fusion.blocks, fusion.blocks_audio, strict=True):
        read_by_audio = block(v, a) if order == "video_first" else v
        read_by_video = block_audio(a, v) if order == "audio_first" else a
        v, a = block(v, read_by_video), block_audio(a, read_by_audio)
    found = fusion(video, audio)
    torch.testing.assert_close(found, (fusion.norm(v), fusion.norm_audio(a)), rtol=0, atol=0)


def test_fusion_orders_differ_in_what_they_compute_and_share_all_weights():
    models = [pretraining_model(fusion_order=order) for order in FUSION_ORDERS]
    assert names(models[0]) == names(models[1]) == names(models[2]) == names(pretraining_model())
    outputs = [model(*clips()) for model in models]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[one].video, outputs[other].video)
        assert not torch.allclose(outputs[one].audio, outputs[other].audio)
    with pytest.raises(ValueError, match="fusion_order is 'late', expected one of .*video_first"):
        classifier(fusion_order="late")


def test_the_first_stream_of_one_fusion_layer_is_the_same_as_without_an_order():
    both, first = (classifier(fusion_depth=1, fusion_order=o).eval() for o in FUSION_ORDERS[:2])
    video, _, audio, _ = clips()
    for model in (both, first):
        model.fc_norm = torch.nn.Identity()
    kept, changed = (model.forward_features(video, audio) for model in (both, first))
    assert torch.equal(kept[:, : 3 * 128], changed[:, : 3 * 128])
    assert not torch.allclose(kept[:, 3 * 128 :], changed[:, 3 * 128 :])  # the fused audio


# Skip connections


def test_decoders_without_skips_are_of_plain_blocks_and_of_any_depth():
    plain = pretraining_model(skip_connections=False)
    whole = names(pretraining_model())
    cross = {name for name in whole if name.startswith("decoder") and "cross" in name}
    assert cross and names(plain) == {n: s for n, s in whole.items() if n not in cross}
    model = pretraining_model(skip_connections=False, decoder_depth=1, decoder_depth_audio=4)
    assert (len(model.decoder.blocks), len(model.decoder_audio.blocks)) == (1, 4)
    model(*clips())
    with pytest.raises(ValueError, match="decoder_depth_audio must be at least 1, got 0"):
        pretraining_model(skip_connections=False, decoder_depth_audio=0)


@pytest.mark.parametrize("skip_connections", [True, False])
def test_reconstruction_reaches_kept_levels_through_skips_alone(skip_connections, monkeypatch):
    model = pretraining_model(skip_connections=skip_connections)
    levels = {}
    for name in ("encoder", "encoder_audio"):
        whole = getattr(model, name).forward

        def cut(*inputs, name=name, whole=whole):
            output = whole(*inputs)
            levels[name] = [level.detach().requires_grad_() for level in output.levels]
            return EncoderOutput(output.tokens, levels[name])

        monkeypatch.setattr(getattr(model, name), "forward", cut)
    output = model(*clips())
    (output.video.sum() + output.audio.sum()).backward()
    for level in levels["encoder"] + levels["encoder_audio"]:
        assert (level.grad is not None and bool(level.grad.any())) == skip_connections
    contrast = sum((v * a).sum() for v, a in zip(*output[2:], strict=True))
    contrast.backward()
    for level in levels["encoder"] + levels["encoder_audio"]:
        assert level.grad.any(), "the contrast reads every level in either case"


# Contrast


def info_nce(video, audio):
    logits = video @ audio.T / 0.07
    pairs = torch.arange(len(video))
    forth, back = (functional.cross_entropy(x, pairs) for x in (logits, logits.T))
    return (forth + back) / 2


def test_the_contrast_is_of_the_chosen_levels():
    inputs = clips(3)
    output = pretraining_model()(*inputs)
    single = [info_nce(v, a) for v, a in zip(output.video_levels, output.audio_levels, strict=True)]
    losses = {
        which: pretrain_loss(output, *inputs, loss_weight=0.3, contrastive_levels=which)
        for which in ("all", "top", "none")
    }
    torch.testing.assert_close(losses["all"].contrast, single[0] + single[1])
    torch.testing.assert_close(losses["top"].contrast, single[1])
    assert not torch.allclose(single[0], single[1])
    assert losses["none"].contrast is None
    rebuilding = losses["all"].video + losses["all"].audio
    torch.testing.assert_close(losses["all"].total, rebuilding + 0.3 * (single[0] + single[1]))
    torch.testing.assert_close(losses["top"].total, rebuilding + 0.3 * single[1])
    assert torch.equal(losses["none"].total, rebuilding)
    with pytest.raises(ValueError, match="contrastive_levels is 'first', expected one of 'all'"):
        pretrain_loss(output, *inputs, contrastive_levels="first")


def test_levels_keep_their_own_numbers():
    assert [list(contrasted(3, which)) for which in ("all", "top", "none")] == [[0, 1, 2], [2], []]


# Hierarchical feature fusion


@pytest.mark.parametrize("modality", STREAMS)
def test_without_feature_fusion_no_weight_is_that_of_a_layer(modality):
    whole, last = (
        names(classifier(modality=modality, hierarchical_fusion=on)) for on in (True, False)
    )
    assert whole.keys() - last.keys() == {f"{s}_layer_weights" for s in STREAMS[modality]}
    width = 4 * 128 if modality == "av" else 128
    assert last["head.weight"] == (5, width) and last["fc_norm.weight"] == (width,)


@pytest.mark.parametrize("modality", STREAMS)
def test_without_feature_fusion_the_last_layer_stands_for_all(modality):
    model = classifier(modality=modality, hierarchical_fusion=False).eval()
    model.fc_norm = torch.nn.Identity()
    clip = dict(zip(("video", "audio"), clips()[::2], strict=True))
    parts = {"video": "encoder", "audio": "encoder_audio"}
    last = [
        getattr(model, parts[stream])(clip[stream], None, ()).tokens for stream in STREAMS[modality]
    ]
    expected = [tokens.mean(dim=1) for tokens in last]
    if modality == "av":
        expected += [tokens.mean(dim=1) for tokens in model.encoder_fusion(*last)]
    found = model.forward_features(**clip)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("hierarchical_fusion", [True, False])
def test_only_with_feature_fusion_lower_levels_change_the_answer(hierarchical_fusion, monkeypatch):
    model = classifier(hierarchical_fusion=hierarchical_fusion).eval()
    video, _, audio, _ = clips()
    before = model(video, audio)
    whole = model.encoder.forward

    def noisy(*inputs, **options):
        output = whole(*inputs, **options)
        lower = [torch.randn_like(level) for level in output.levels[:-1]]
        return EncoderOutput(output.tokens, [*lower, output.levels[-1]])

    monkeypatch.setattr(model.encoder, "forward", noisy)
    assert torch.equal(model(video, audio), before) != hierarchical_fusion


# Gradients


@pytest.mark.parametrize(
    ("order", "skip_connections", "which"),
    [
        ("both", True, "none"),
        ("both", False, "none"),
        ("video_first", True, "top"),
        ("audio_first", False, "all"),
    ],
)
def test_every_parameter_of_a_pretraining_variant_gets_a_gradient(order, skip_connections, which):
    model = pretraining_model(
        init_values=0.1, fusion_order=order, skip_connections=skip_connections
    )
    inputs = clips()
    pretrain_loss(model(*inputs), *inputs, contrastive_levels=which).total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("order", "modality"),
    [("both", "av"), ("video_first", "av"), ("audio_first", "av"), ("both", "a"), ("both", "v")],
)
def test_every_parameter_of_a_classifier_variant_gets_a_gradient(order, modality):
    model = classifier(modality=modality, hierarchical_fusion=False, fusion_order=order)
    video, _, audio, _ = clips()
    model(video, audio).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# Loading


def state(model, **settings):
    return {"model": model.state_dict(), "args": {"model": settings}}


DEPTHS = {"depth": 3, "depth_audio": 4, "fusion_depth": 2}


def test_another_fusion_order_than_in_pretraining_is_told(caplog):
    model = classifier(**DEPTHS, fusion_order="video_first")

    def warnings():
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    for settings, count in (
        ({"fusion_order": "video_first"}, 0),
        ({"fusion_order": "both"}, 1),
        ({"mask_ratio": 0.9}, 1),  # of an earlier version, which knew no other order
    ):
        caplog.clear()
        load_pretrained(model, state(pretraining_model(), **settings))
        assert len(warnings()) == count
    text = "was trained with --fusion_order both, this model has --fusion_order video_first"
    assert text in warnings()[0]
    caplog.clear()
    load_pretrained(model, pretraining_model().state_dict())  # without settings
    load_pretrained(classifier(depth=3, modality="v"), state(pretraining_model(), fusion_order="?"))
    assert warnings() == []


def test_a_test_with_another_variant_than_in_training_is_refused():
    first = classifier(fusion_order="audio_first")
    saved = state(first, fusion_order="audio_first")
    load_pretrained(first, saved, require_all=True)
    with pytest.raises(ValueError, match="--fusion_order audio_first, this model has.*both; test"):
        load_pretrained(classifier(), saved, require_all=True)
    for modality in STREAMS:
        whole = state(classifier(modality=modality))
        last = classifier(modality=modality, hierarchical_fusion=False)
        with pytest.raises(ValueError, match="has layer weights, which this model does not read"):
            load_pretrained(last, whole, require_all=True)
        with pytest.raises(ValueError, match="lacks weights of the model: .*layer_weights"):
            load_pretrained(classifier(modality=modality), state(last), require_all=True)


def test_decoders_of_the_other_kind_are_left_over_or_new():
    with_skips, without = pretraining_model(), pretraining_model(skip_connections=False)
    report = load_pretrained(without, with_skips.state_dict())
    assert report.new == () and report.unused and all("cross" in n for n in report.unused)
    report = load_pretrained(with_skips, without.state_dict())
    assert report.unused == () and report.new and all("cross" in n for n in report.new)
    assert "new, keep their initial values: decoder.* (20), decoder_audio.* (20)" in report.text()
