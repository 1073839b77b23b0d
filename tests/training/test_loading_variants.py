"""Weights of one variant of a model in another one: what is said, and what is refused."""

import pytest

from hicmae.training.transfer import load_pretrained
from tests.small_models import classifier, pretraining_model


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
    for modality in ("av", "a", "v"):
        whole = state(classifier(modality=modality))
        last = classifier(modality=modality, hierarchical_fusion=False)
        with pytest.raises(ValueError, match="has layer weights, which this model does not read"):
            load_pretrained(last, whole, require_all=True)
        with pytest.raises(ValueError, match="lacks weights of the model: .*layer_weights"):
            load_pretrained(classifier(modality=modality), state(last), require_all=True)


def test_decoders_of_the_other_kind_are_left_over_or_new(caplog):
    caplog.set_level("INFO")
    with_skips, without = pretraining_model(), pretraining_model(skip_connections=False)
    report = load_pretrained(without, with_skips.state_dict())
    assert report.new == () and report.unused and all("cross" in n for n in report.unused)
    report = load_pretrained(with_skips, without.state_dict())
    assert report.unused == () and report.new and all("cross" in n for n in report.new)
    assert "new, keep their initial values: decoder.* (20), decoder_audio.* (20)" in caplog.text
