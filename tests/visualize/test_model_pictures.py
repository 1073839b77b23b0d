"""Pictures that run a model over a list: t-SNE, attention, retrieval, layer weights, rebuilding."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from hicmae.config import PretrainConfigs
from hicmae.config.flags import as_dict, from_dict
from hicmae.data.clip_list import Clip, write_list
from hicmae.pretraining import make_model
from hicmae.training import checkpoint
from hicmae.visualize.__main__ import main
from hicmae.visualize.attention import look
from hicmae.visualize.clips import batches, clips_figure, open_clips
from hicmae.visualize.features import (
    features_of,
    layer_weights,
    pooled_levels,
    recall_at,
    recalls,
    retrieval_figure,
    tsne_figure,
)
from tests.small_models import classifier

CLIP = {"num_frames": 4, "sampling_rate": 2, "input_size": 32, "input_size_audio": (32, 128)}
NAMES = ("anger", "joy", "fear")


def save_classifier(path, modality="av", weights=(0.0, 1.0)):
    sizes = {"img_size": 32, "img_size_audio": (32, 128), "depth_audio": 2, "fusion_depth": 1}
    model = classifier(num_classes=3, modality=modality, **sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layer_weights"):
                parameter.copy_(torch.tensor(weights))
    args = {**CLIP, "task": "classification", "class_names": NAMES, "modality": modality}
    checkpoint.save(path, {"model": model.state_dict(), "args": args, "epoch": 0})
    return str(path)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("finetuned") / "checkpoint-0.pth")


def pretrain_configs():
    settings = {
        "data_path": "x", "num_samples": 2, "model": "pretrain_hicmae_dim128_patch16_160_a256",
        "encoder_depth": 2, "encoder_depth_audio": 2, "decoder_depth": 3, "decoder_depth_audio": 3,
        "encoder_fusion_depth": 1, "return_intermediate_features": (0, 1), "mask_ratio": 0.5,
        "mask_ratio_audio": 0.5, "use_frame_diff_as_target": True,
    }  # fmt: skip
    return from_dict(PretrainConfigs, {"output_dir": "out", **settings, **CLIP})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.manual_seed(0)
    configs = pretrain_configs()
    path = tmp_path_factory.mktemp("pretrained") / "checkpoint-1.pth"
    state = {"model": make_model(configs).state_dict(), "args": as_dict(configs), "epoch": 1}
    checkpoint.save(path, state)
    return str(path)


@pytest.fixture
def labelled(tmp_path, labelled_clips):
    """Return a folder with a test list of eight clips, twice four files."""
    clips = [clip._replace(label=k % 3) for k, clip in enumerate(labelled_clips * 2)]
    write_list(tmp_path / "lists" / "test.csv", clips)
    return str(tmp_path / "lists")


@pytest.fixture
def unlabelled(tmp_path, pretrain_clips):
    write_list(tmp_path / "pretrain.csv", pretrain_clips)
    return str(tmp_path / "pretrain.csv")


def test_features_are_the_parts_of_what_the_head_reads(finetuned, labelled):
    opened = open_clips("", finetuned, labelled)
    values, labels = features_of(opened)
    assert {name: part.shape for name, part in values.items()} == {
        "video": (8, 128), "audio": (8, 128), "fused": (8, 512)
    }  # fmt: skip
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_allclose(values["fused"][:4], values["fused"][4:], atol=1e-5)
    assert np.ptp(values["fused"][:4], axis=0).max() > 1e-3


def test_tsne_draws_a_colour_and_marker_a_class_or_the_chosen_output():
    labels = np.repeat(np.arange(11), 2)
    place = np.random.default_rng(0).random((22, 2))
    figure = tsne_figure({"all": place}, labels, [f"class {k}" for k in range(11)])
    clouds = figure.axes[0].collections
    looks = {(str(c.get_facecolor()), str(c.get_paths()[0].vertices)) for c in clouds}
    assert len(clouds) == len(looks) == 11
    np.testing.assert_array_equal(clouds[3].get_offsets(), place[labels == 3])
    assert len(figure.legends[0].get_texts()) == 11
    targets = np.random.default_rng(0).random((9, 2))
    figure = tsne_figure({"all": targets}, targets, ["valence", "arousal"], target=1)
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), targets[:, 1])
    assert figure.axes[1].get_ylabel() == "arousal"


def test_attention_is_drawn_over_frames_and_spectrogram(finetuned, labelled, tmp_path):
    opened = open_clips("", finetuned, labelled)
    looked = look(opened._replace(lines=[1, 2]))
    title, own, crossed = looked[0]
    truth, _, guess = title.label.splitlines()
    assert truth == "joy" and guess in NAMES and title.heat is None
    assert own.video.shape == (3, 4, 32, 32) and own.audio.shape == (32, 128)
    assert own.heat.shape == crossed.heat.shape == (2, 2, 2)
    assert own.heat_audio.shape == crossed.heat_audio.shape == (2, 8)
    figure = clips_figure(looked)
    images = [axes.images[-1] for axes in figure.axes if axes.images]
    maps = [image.get_array() for image in images if image.get_alpha() is not None]
    assert len(maps) == 2 * 2 * (4 + 1)
    for frame in range(4):
        np.testing.assert_allclose(maps[frame], own.heat[frame // 2])
    np.testing.assert_allclose(maps[4], own.heat_audio.T)
    np.testing.assert_allclose(maps[5], crossed.heat[0])
    assert images[4].origin == "lower"
    for modality, panels in (("v", 4), ("a", 1)):
        path = save_classifier(tmp_path / f"{modality}.pth", modality)
        (rows,) = look(open_clips("", path, labelled, clip=0))
        drawn = [axes for axes in clips_figure([rows]).axes if axes.images]
        assert len(rows) == 2 and len(drawn) == 2 * panels  # the input and its own attention


def test_recall_counts_the_nearest_and_breaks_ties_by_lot():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.5, 0.6, 0.4]])
    assert recall_at(similarity, 1) == pytest.approx(1 / 3)
    assert recall_at(similarity, 2) == pytest.approx(2 / 3)
    assert recall_at(similarity, 3) == 1.0
    for rank in (1, 3, 5):  # features that tell nothing apart score as chance does
        assert recall_at(np.ones((5, 5)), rank) == pytest.approx(rank / 5)


def test_recalls_search_both_ways():
    audio, video = np.eye(4), np.eye(4)
    video[3] = video[2]  # two videos look alike: their sounds cannot tell them apart
    found = recalls([video], [audio], levels=[9])
    assert found.loc["block 9, audio to video", "R@1"] == pytest.approx(100 * 2.75 / 4)
    assert found.loc["block 9, video to audio", "R@1"] == pytest.approx(75)
    assert found.loc["chance"].tolist() == [25, 100, 100]
    heights = [bar.get_height() for bar in retrieval_figure(found, [9]).axes[0].patches]
    assert heights == pytest.approx([68.75, 100, 100])


def test_levels_are_those_that_pretraining_contrasts(pretrained, unlabelled):
    opened, levels = open_clips("pre-trained", pretrained, unlabelled), (0, 1)
    video, audio = pooled_levels(opened, levels, masked=True)
    configs = pretrain_configs()
    model = make_model(configs).eval()
    model.load_state_dict(checkpoint.load(pretrained)["model"])
    (batch,) = batches(opened)
    with torch.no_grad():
        output = model(batch.video, batch.video_mask, batch.audio, batch.audio_mask)
    for level in levels:
        np.testing.assert_allclose(video[level], output.video_levels[level], atol=1e-5)
        np.testing.assert_allclose(audio[level], output.audio_levels[level], atol=1e-5)
    whole, _ = pooled_levels(opened, levels, masked=False)
    assert np.abs(whole[1] - video[1]).max() > 1e-4


def test_layer_weights_are_shares_of_each_stream(finetuned, tmp_path):
    other = save_classifier(tmp_path / "other.pth", weights=(1.0, 0.0))
    expected = 100 * np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    video, audio = layer_weights([finetuned, other]).axes
    assert (video.get_title(), audio.get_title()) == ("video encoder", "audio encoder")
    assert [bar.get_height() for bar in video.patches] == pytest.approx([50, 50])
    points = [line.get_ydata().tolist() for line in audio.lines[:2]]
    assert points == [pytest.approx(expected), pytest.approx(expected[::-1])]


def test_reconstruction_of_the_original_authors_files_reads_their_flags(
    pretrained, unlabelled, tmp_path
):
    state = checkpoint.load(pretrained)
    flat = {name: value for group in state["args"].values() for name, value in group.items()}
    flat["normlize_target"] = flat.pop("normalize_target")  # their spelling
    flat["input_size_audio"] = 32  # one number
    flat["weight_decay_end"] = None
    flat["gpu"] = 0  # no flag of this project
    theirs = {"model": state["model"], "args": argparse.Namespace(**flat), "epoch": "best"}
    torch.save(theirs, tmp_path / "theirs.pth")
    pictures = []
    for path in (pretrained, str(tmp_path / "theirs.pth")):
        out = tmp_path / "picture.png"
        main(["reconstruction", "--checkpoint", path, "--data_path", unlabelled, "--out", str(out)])
        pictures.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*pictures)


def test_drawn_lines_are_in_order_without_repeats_and_the_seed_decides(finetuned, labelled):
    def lines(**choice):
        return list(open_clips("", finetuned, labelled, **choice).lines)

    drawn, *others = (lines(num_clips=5, seed=seed) for seed in range(4))
    assert drawn == sorted(set(drawn)) and len(drawn) == 5 and any(o != drawn for o in others)
    assert lines() == lines(num_clips=9) == list(range(8)) and lines(clip=1) == [1]


def test_commands_draw_at_200_dpi_as_much_as_was_asked_for(
    finetuned, pretrained, labelled, unlabelled, tmp_path, capsys
):
    tuned = ["--checkpoint", finetuned, "--data_path", labelled]
    trained = ["--checkpoint", pretrained, "--data_path", unlabelled]

    def size(*arguments):
        main([*arguments, "--out", str(tmp_path / "picture.png")])
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            return picture.size

    assert size("tsne", *tuned)[0] > 1000
    assert min(size("attention", *model)[0] for model in (tuned, trained)) > 600
    one, two = (size("reconstruction", *trained, *n) for n in ([], ["--num_clips", "2"]))
    assert two[1] > 1.7 * one[1]
    assert size("layer_weights", "--checkpoint", finetuned, finetuned)[0] > 500
    assert size("retrieval", *trained, "--num_clips", "4")[0] > 600
    shown = capsys.readouterr().out
    assert "recall in percent among 4 clips" in shown and "block 1, video to audio" in shown
    assert shown.count(" to ") == 2 * 2


def test_commands_say_in_one_line_what_does_not_fit(
    finetuned, pretrained, labelled, unlabelled, pretrain_clips, tmp_path, capsys
):
    torch.save({"model": {"encoder.norm.weight": torch.ones(128)}}, tmp_path / "bare.pth")
    bare, video = str(tmp_path / "bare.pth"), save_classifier(tmp_path / "v.pth", "v")
    gone = Clip(str(tmp_path / "gone.mp4"), str(tmp_path / "gone.wav"), None)
    few, broken = (str(tmp_path / name) for name in ("few.csv", "broken.csv"))
    write_list(few, pretrain_clips[:1])
    write_list(broken, [*pretrain_clips[:2], gone])
    for picture, model, clips, options, message in (
        ("tsne", finetuned, labelled, "--target 3", "--target 3 is not one of the 3"),
        ("tsne", finetuned, labelled, "--num_clips 4", "needs at least 5 clips, got 4"),
        ("tsne", pretrained, unlabelled, "", "is pre-trained, but this picture needs a fine-tuned"),
        ("tsne", finetuned, labelled, "--output x.bmp", "'x.bmp' must end in .png or .pdf or .svg"),
        ("attention", finetuned, labelled, "--clip 70", "--clip 70 is not in the list of 8 clips"),
        ("retrieval", finetuned, labelled, "", "is fine-tuned, but this picture needs a pre-"),
        ("retrieval", pretrained, few, f"--output {few}/x.png", "is or lies below a file"),
        ("retrieval", pretrained, few, "", "at least 2 clips to choose from, got 1"),
        ("retrieval", pretrained, broken, "", "gone."),
        ("reconstruction", finetuned, unlabelled, "", "is fine-tuned and has no decoders"),
        ("reconstruction", bare, unlabelled, "", "holds no settings, but"),
        ("reconstruction", pretrained, broken, "--clip 2", "gone."),
        ("reconstruction", pretrained, unlabelled, "--clip 9", "--clip 9 is not in the list of 5"),
        ("reconstruction", pretrained, unlabelled, "--device gpu", "--device must be auto, cpu,"),
        ("layer_weights", pretrained, "", "", "needs a fine-tuned one"),
        ("layer_weights", finetuned, "", video, "draw models of one size and modality together"),
    ):
        lists = ["--data_path", clips] if clips else []
        with pytest.raises(SystemExit) as stopped:
            main([picture, "--output", str(tmp_path / "x.png"), *lists,
                  "--checkpoint", model, *options.split()])  # fmt: skip
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "x.png").exists()
