"""k-NN evaluation: votes as a plain loop counts them, and the command on real files."""

import json

import numpy as np
import pytest

from hicmae import EmotionRecognizer, knn
from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from hicmae.report.__main__ import main as report
from preprocess import pack_clips
from tests.conftest import save_frames, save_wav
from tests.small_recognizers import speech
from tests.small_runs import rows as csv_rows


def counted(train, labels, test, k, num_classes, temperature):
    """Weighted votes of Wu et al. (2018), one clip after the other."""
    shares = np.zeros((len(test), num_classes))
    for row, query in zip(shares, test, strict=True):
        similar = [float(query @ t / np.linalg.norm(query) / np.linalg.norm(t)) for t in train]
        for index in sorted(range(len(train)), key=lambda i: -similar[i])[:k]:
            row[labels[index]] += np.exp(similar[index] / temperature)
        row /= row.sum()
    return shares


@pytest.mark.parametrize("k", [1, 4, 23])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_equal_a_plain_loop(k, temperature, monkeypatch):
    monkeypatch.setattr(knn, "TEMPERATURE", temperature)
    features = np.random.default_rng(0).normal(size=(34, 5)).astype(np.float32)
    train, test = features[:23], features[23:]
    labels = np.random.default_rng(2).integers(0, 3, 23) + np.arange(23) % 2  # 0..3, 4 is missing
    expected = counted(train, labels, test, k, 5, temperature)
    np.testing.assert_allclose(knn.vote(train, labels, test, k, 5), expected, rtol=1e-4, atol=1e-6)


def test_joined_kinds_weigh_alike():
    found = {"a": np.array([[3.0, 4.0]]), "b": np.array([[0.0, 200.0]])}
    np.testing.assert_allclose(knn.joined(found, "a+b"), [[0.6, 0.8, 0, 1]])
    np.testing.assert_array_equal(knn.joined(found, "a"), [[3, 4]])
    with pytest.raises(ValueError, match="--features a[+]c: this model has no 'c', expected a, b"):
        knn.joined(found, "a+c")


def test_speakers_lose_what_their_clips_share():
    found = {"a": np.array([[1.0, 5.0], [3.0, 5.0], [10.0, 0.0]])}
    alone = knn.without_speakers(found, ["ann", "ann", "bob"])
    np.testing.assert_array_equal(alone["a"], [[-1, 0], [1, 0], [0, 0]])


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    """Ten training clips of three classes, and the first four of them to classify."""
    root, clips = tmp_path_factory.mktemp("knn"), []
    for k in range(10):
        faces = save_frames(root / f"faces{k}", 20 + 3 * k, (40, 40))
        clips.append(Clip(faces, save_wav(root / f"{k}.wav", speech(1.2, seed=k)), k % 3))
    write_list(root / "fold1/train.csv", clips)
    write_list(root / "fold1/test.csv", clips[:4])
    return root / "fold1"


def run(*arguments):
    return knn.main([*map(str, arguments), "--device", "cpu"])


KINDS = {
    "av": ["fused"],
    "a": ["fused"],
    "authors": ["fused"],
    "pretrained": ["video_last", "audio_last", "fusion_video", "fusion_audio"],
}


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_is_its_own_nearest_neighbour(name, models, fold, capsys):
    assert run("--checkpoint", models / f"{name}.pth", "--data_path", fold) == 0
    lines = capsys.readouterr().out.splitlines()
    head, _, *rows = [line.replace(" ", "").strip("|").split("|") for line in lines]
    assert head == ["features", "k", "UAR", "WAR"]
    expected = [[kind, k] for kind in KINDS[name] for k in ("1", "5", "10")]
    assert [row[:2] for row in rows] == expected
    heard = [row for row in rows if row[0] != "video_last"]  # the faces look all the same
    assert {tuple(row[2:]) for row in heard if row[1] == "1"} == {("100.00", "100.00")}


def test_a_fold_of_shards_answers_as_its_lists_do(models, fold, tmp_path, capsys):
    for name in ("train", "test"):
        packed = ["--output_dir", str(tmp_path / name), "--task", "classification"]
        assert pack_clips.main([str(fold / f"{name}.csv"), *packed, "--num_workers", "1"]) == 0
    capsys.readouterr()
    printed = []
    for path in (fold, tmp_path):
        assert run("--checkpoint", models / "av.pth", "--data_path", path, "--k", 1, 3) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_features_are_those_of_the_recognizer(models, fold):
    recognizer = EmotionRecognizer.from_checkpoint(models / "av.pth", "cpu")
    clip = read_labelled_list(fold / "test.csv")[2]
    found = knn.extract(recognizer, [clip])
    whole = recognizer.features(clip.video, audio=clip.audio, protocol="test").mean()
    np.testing.assert_allclose(found["fused"], whole["fused"][None], rtol=1e-5, atol=1e-6)
    last = whole["audio_layers"][-1:]
    np.testing.assert_allclose(found["audio_last"], last, rtol=1e-5, atol=1e-6)
    assert last.shape == (1, 128) and not np.allclose(last, whole["audio_layers"][:1])


def test_the_report_reads_what_is_written(models, fold, tmp_path, capsys):
    out = tmp_path / "knn"
    arguments = ["--checkpoint", models / "v.pth", "--data_path", fold, "--output_dir", out]
    assert run(*arguments, "--k", 1, 3, "--features", "video_last") == 0
    folder = out / "video_last/k3/fold1"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["k"], metrics["training_clips"], metrics["clips"]) == (3, 10, 4)
    hits = [row["label"] == row["prediction"] for row in csv_rows(folder / "pred.csv")]
    assert np.mean(hits) == metrics["war"]
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f"{100 * metrics['uar']:.2f}" in printed
    report([str(out / "video_last/k3"), "--resamples", "0"])
    assert f"{100 * metrics['uar']:.2f}" in capsys.readouterr().out


BAD_COMMANDS = (
    (["--by_speaker"], "speakers are asked for, but neither"),
    (["--k", "11"], "--k must be 1 to 10, the number of training clips, got 11"),
    (["--features", "fuse", "--k", "1"], "this model has no 'fuse', expected video_last,"),
    (["--data_path", "BROKEN", "--k", "1"], "no.wav"),
)


@pytest.mark.parametrize("arguments, message", BAD_COMMANDS)
def test_bad_commands_and_clips_end_in_one_line(arguments, message, models, fold, tmp_path, caplog):
    clips = read_labelled_list(fold / "train.csv")
    write_list(tmp_path / "train.csv", [*clips[:3], clips[0]._replace(audio="no.wav")])
    write_list(tmp_path / "test.csv", clips[:1])
    base = ["--checkpoint", models / "av.pth", "--data_path", fold]
    assert run(*base, *(tmp_path if word == "BROKEN" else word for word in arguments)) == 2
    assert message in caplog.text
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
