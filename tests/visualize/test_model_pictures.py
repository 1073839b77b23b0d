"""Pictures that run a model over a list: t-SNE, attention, retrieval, layer weights, rebuilding."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from hicmae.data.clip_list import Clip, write_list
from hicmae.training import checkpoint
from hicmae.visualize import Clips, features
from hicmae.visualize.__main__ import main
from hicmae.visualize.clips import batches, choose_lines, open_clips
from tests.small_models import pretraining_model
from tests.small_recognizers import CLIP, NAMES, PRETRAINING, checkpoint_of, classifier


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    return str(checkpoint_of(classifier(), tmp_path_factory.mktemp("finetuned") / "a.pth"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained") / "checkpoint-1.pth"
    loss = {"use_frame_diff_as_target": True, "normalize_target": True}
    masks = {"mask_ratio": 0.5, "mask_ratio_audio": 0.5}
    model = {**PRETRAINING, "model": "pretrain_hicmae_dim128_patch16_160_a256"}
    args = {"clip": CLIP, "model": model, "masks": masks, "loss": loss}
    checkpoint.save(path, {"model": pretraining_model(**PRETRAINING).state_dict(), "args": args})
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


def test_tsne_draws_a_colour_and_marker_a_class():
    labels = np.repeat(np.arange(11), 2)
    place = np.random.default_rng(0).random((22, 2))
    figure = features.tsne_figure({"all": place}, labels, [f"class {k}" for k in range(11)])
    clouds = figure.axes[0].collections
    looks = {(str(c.get_facecolor()), str(c.get_paths()[0].vertices)) for c in clouds}
    assert len(clouds) == len(looks) == 11
    np.testing.assert_array_equal(clouds[3].get_offsets(), place[labels == 3])
    assert len(figure.legends[0].get_texts()) == 11


def test_tsne_lays_out_what_the_head_reads_and_each_stream(finetuned, labelled):
    figure = features.tsne(Clips(finetuned, labelled))
    assert [axes.get_title() for axes in figure.axes] == ["video", "audio", "fused"]
    for axes in figure.axes:
        assert [len(cloud.get_offsets()) for cloud in axes.collections] == [3, 3, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(NAMES)


def test_recall_counts_the_nearest_and_breaks_ties_by_lot():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.5, 0.6, 0.4]])
    assert features.recall_at(similarity, 1) == pytest.approx(1 / 3)
    assert features.recall_at(similarity, 2) == pytest.approx(2 / 3)
    assert features.recall_at(similarity, 3) == 1.0
    for rank in (1, 3, 5):  # features that tell nothing apart score as chance does
        assert features.recall_at(np.ones((5, 5)), rank) == pytest.approx(rank / 5)


def test_recalls_search_both_ways():
    audio, video = np.eye(4), np.eye(4)
    video[3] = video[2]  # two videos look alike: their sounds cannot tell them apart
    found = features.recalls([video], [audio], levels=[9])
    assert found.loc["block 9, audio to video", "R@1"] == pytest.approx(100 * 2.75 / 4)
    assert found.loc["block 9, video to audio", "R@1"] == pytest.approx(75)
    assert found.loc["chance"].tolist() == [25, 100, 100]
    heights = [bar.get_height() for bar in features.retrieval_figure(found, [9]).axes[0].patches]
    assert heights == pytest.approx([68.75, 100, 100])


def test_levels_are_those_that_pretraining_contrasts_of_whole_clips(pretrained, unlabelled):
    opened, levels = open_clips(Clips(pretrained, unlabelled)), (0, 1)
    video, audio = features.pooled_levels(opened, levels)
    (batch,) = batches(opened)
    nothing = torch.zeros_like(batch.video_mask), torch.zeros_like(batch.audio_mask)
    with torch.no_grad():
        output = opened.model(*batch[:4], nothing)
    for level in levels:
        np.testing.assert_allclose(video[level], output.video_levels[level], atol=1e-5)
        np.testing.assert_allclose(audio[level], output.audio_levels[level], atol=1e-5)


def test_reconstruction_of_the_original_authors_files_reads_their_flags(
    pretrained, unlabelled, tmp_path
):
    state = checkpoint.load(pretrained)
    flat = {name: value for group in state["args"].values() for name, value in group.items()}
    flat["normlize_target"] = flat.pop("normalize_target")  # their spelling
    flat |= {"input_size_audio": 96, "weight_decay_end": None, "gpu": 0}  # no flag of this project
    theirs = {"model": state["model"], "args": argparse.Namespace(**flat), "epoch": "best"}
    torch.save(theirs, tmp_path / "theirs.pth")
    source, picture = ["--data_path", unlabelled], tmp_path / "picture.png"
    pictures = []
    for path in (pretrained, str(tmp_path / "theirs.pth")):
        main(["reconstruction", "--checkpoint", path, *source, "--out", str(picture)])
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1]


def test_layer_weights_are_shares_of_each_stream(finetuned, pretrained, tmp_path):
    state = checkpoint.load(finetuned)
    weights = state["model"]["audio_layer_weights"] = torch.tensor([1.0, 0.0, 0.0])
    other = str(tmp_path / "other.pth")
    checkpoint.save(other, state)
    video, audio = features.layer_weights([other, other]).axes
    assert (video.get_title(), audio.get_title()) == ("video encoder", "audio encoder")
    expected = (100 * weights.softmax(0)).tolist()
    assert [bar.get_height() for bar in audio.patches] == pytest.approx(expected)
    assert [bar.get_height() for bar in video.patches] == pytest.approx([50, 50])
    with pytest.raises(ValueError, match="has layer weights {}"):
        features.layer_weights([pretrained])


def test_drawn_lines_are_in_order_without_repeats_and_the_seed_decides():
    drawn, *others = (choose_lines(8, 5, seed) for seed in range(4))
    assert drawn == sorted(set(drawn)) and len(drawn) == 5 and any(o != drawn for o in others)
    assert list(choose_lines(8, 0, 1)) == list(choose_lines(8, 9, 1)) == list(range(8))


def test_commands_draw_at_200_dpi_as_much_as_was_asked_for(
    finetuned, pretrained, labelled, unlabelled, tmp_path, capsys
):
    trained = ["--checkpoint", pretrained, "--data_path", unlabelled]

    def size(*arguments):
        main([*arguments, "--out", str(tmp_path / "picture.png")])
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            return picture.size

    assert size("tsne", "--checkpoint", finetuned, "--data_path", labelled)[0] > 1000
    one, two = (size("reconstruction", *trained, *n) for n in ([], ["--num_clips", "2"]))
    assert two[1] > 1.7 * one[1]
    assert size("retrieval", *trained, "--num_clips", "4")[0] > 600
    tuned = ["--checkpoint", finetuned, "--data_path", labelled, "--num_clips", "2"]
    one, two = (size("attention", *flags) for flags in (trained, tuned))
    assert one[0] > 600 and two[1] > 1.7 * one[1]
    assert size("layer_weights", "--checkpoint", finetuned, finetuned)[0] > 500
    shown = capsys.readouterr().out
    assert "recall in percent among 4 clips" in shown and "block 1, video to audio" in shown
    assert shown.count("video to audio") == shown.count("audio to video") == 2


def test_commands_say_in_one_line_what_does_not_fit(
    finetuned, pretrained, labelled, unlabelled, pretrain_clips, tmp_path, caplog
):
    torch.save({"model": checkpoint.load(pretrained)["model"]}, tmp_path / "bare.pth")
    bare = str(tmp_path / "bare.pth")
    gone = Clip(str(tmp_path / "gone.mp4"), str(tmp_path / "gone.wav"), None)
    few, broken = (str(tmp_path / name) for name in ("few.csv", "broken.csv"))
    write_list(few, pretrain_clips[:1])
    write_list(broken, [*pretrain_clips[:2], gone])
    for picture, model, clips, options, message in (
        ("tsne", finetuned, labelled, "--num_clips 4", "needs at least 5 clips, got 4"),
        ("tsne", pretrained, unlabelled, "", "is of a pretraining, but this picture needs a class"),
        ("tsne", finetuned, labelled, "--output x.bmp", "'x.bmp' must end in .png or .pdf or .svg"),
        ("retrieval", finetuned, unlabelled, "", "has no decoders, but this picture needs a pre-"),
        ("retrieval", pretrained, few, f"--output {few}/x.png", "cannot be made"),
        ("retrieval", pretrained, few, "", "at least 2 clips to choose from, got 1"),
        ("retrieval", pretrained, broken, "", "gone."),
        ("reconstruction", bare, unlabelled, "", "has no settings, but"),
        ("attention", finetuned, broken, "--num_clips 3", "gone."),
        ("reconstruction", pretrained, broken, "--num_clips 3", "gone."),
        ("reconstruction", pretrained, unlabelled, "--device gpu", "--device must be auto, cpu,"),
    ):
        flags = ["--checkpoint", model, "--data_path", clips, *options.split()]
        caplog.clear()
        assert main([picture, "--output", str(tmp_path / "x.png"), *flags]) == 2
        (said,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert "\n" not in said and message in said
    assert not (tmp_path / "x.png").exists()
