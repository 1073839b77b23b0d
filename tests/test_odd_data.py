"""One odd data set through every command.

Its folder, clips and classes have blanks, quotes and bytes that are not UTF-8 in their names; some
clips have one stream only, "-" stands for the other one; a class is absent in the test. The tools
of preprocess/ have such a test of their own.
"""

import json
import os
import shlex

import numpy as np
import pytest

import run_finetuning
import run_pretraining
from hicmae import knn
from hicmae.data.clip_list import Clip, read_labelled_list, read_names, write_list
from hicmae.inference import cli, style
from hicmae.report.__main__ import main as report
from hicmae.visualize.__main__ import main as visualize
from tests.conftest import save_frames, save_mp4, save_wav
from tests.small_runs import FINETUNE, PRETRAIN, finetune, pretrain, rows

BYTES = os.fsdecode(b"caf\xe9")  # not UTF-8
STEMS = [f"{BYTES} 1", 'a "quoted"', "it's b", "plain"]
LISTS = {"av": "fold", "a": "sounds", "v": "faces"}  # by modality
CLASSES = ["sehr glücklich", 'a "!"', r"it's <$\sad_%$>"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Lists `lists`, `fold`, `sounds` (no faces), `faces` (no sounds) below an odd folder."""
    root = tmp_path_factory.mktemp("odd") / f"the 'set' {BYTES}"
    plain = tmp_path_factory.mktemp("plain")
    root.mkdir()
    films, clips = [], []
    for k, stem in enumerate(STEMS):
        frames = 34 + 5 * k
        noise = np.random.default_rng(k).normal(0, 0.1, frames * 640).astype(np.float32)
        wav, film = root / f"{stem}.wav", root / f"{stem}.mp4"
        os.rename(save_wav(plain / "a.wav", noise), wav)  # libraries that write want UTF-8
        os.rename(save_mp4(plain / "a.mp4", frames, (64, 40)), film)
        films.append(Clip(str(film), None, 0))
        folder = save_frames(root / f"faces {stem}", frames, (40, 40))
        clips.append(Clip(folder, str(wav), k % 3))
    write_list(root / "lists/train.csv", films)
    sounds = [clip._replace(video="-") for clip in clips]
    faces = [clip._replace(audio="-") for clip in clips]
    for name, part in (("fold", clips), ("sounds", sounds), ("faces", faces)):
        write_list(root / name / "train.csv", part[:3])
        write_list(root / name / "test.csv", part[:1] + part[3:])  # of class 0 alone
        write_list(root / name / "all.csv", part * 2)
        text = "".join(f"{name}\n" for name in CLASSES)
        (root / name / "classes.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def pretrained(odd):
    return pretrain(odd, odd / "pretrained")


@pytest.fixture(scope="module")
def runs(odd, pretrained):
    """Return fine-tuned runs by modality, each the only fold of an experiment."""
    checkpoint = ["--finetune", str(pretrained / "checkpoint-0.pth")]
    finetune(odd, odd / "av/fold1", *checkpoint)
    held_out = ["--val_split", "clip", "--val_share", "0.4"]
    for modality, name in (("a", "sounds"), ("v", "faces")):
        flags = ["--modality", modality, *held_out]
        finetune(odd, odd / modality / "fold1", *flags, fold=name)
    return {modality: odd / modality / "fold1" for modality in ("av", "a", "v")}


def clips_of_test(odd, modality):
    """Return the names of the test clips: those of the stream that is read."""
    clips = read_labelled_list(odd / "fold/test.csv")
    return [clip.audio if modality == "a" else clip.video for clip in clips]


@pytest.mark.parametrize("modality", ["av", "a"])
def test_training_and_eval_name_the_clips_by_the_stream_they_read(modality, odd, runs, tmp_path):
    names = clips_of_test(odd, modality)
    assert [row["clip"] for row in rows(runs[modality] / "pred.csv")] == names
    if modality == "a":
        held = {row["clip"] for row in rows(runs[modality] / "val_clips.csv")}
        assert held and held < {clip.audio for clip in read_labelled_list(odd / "fold/train.csv")}
    metrics = json.loads((runs[modality] / "metrics.json").read_text())
    assert metrics["recall"][1:] == [None, None], "absent classes have no recall"
    flags, out = ["--finetune", str(runs[modality]), "--modality", modality], tmp_path / BYTES
    finetune(odd, out, "--eval", *flags, fold=LISTS[modality])
    (path,) = [*out.rglob("pred.csv")]
    assert [row["clip"] for row in rows(path)] == names


@pytest.mark.parametrize("modality", ["av", "a", "v"])
def test_knn_and_extract_read_what_training_reads(modality, odd, runs, tmp_path, capsys):
    data = odd / LISTS[modality]
    model = ["--checkpoint", str(runs[modality]), "--device", "cpu", "--data_path"]
    out = tmp_path / BYTES
    assert knn.main([*model, str(data), "--k", "1", "2", "--output_dir", str(out)]) == 0
    paths = [*out.rglob("pred.csv")]
    assert paths
    for path in paths:
        assert [row["clip"] for row in rows(path)] == clips_of_test(odd, modality)
    root = ["--data_root", str(odd)]  # the names are whole
    assert cli.extract([*model, str(data / "test.csv"), *root, "--output", str(out / "f.npz")]) == 0
    found = np.load(out / "f.npz")
    assert [*found["clip"]] == clips_of_test(odd, modality) and [*found["label"]] == [0, 0]


def test_predictions_and_pictures_of_films_with_odd_names(odd, runs, tmp_path, capsys):
    out, film = tmp_path / f"out {BYTES}", odd / f"{STEMS[0]}.mp4"
    files = {"csv": "p.csv", "windows_csv": "w.csv", "json": "p.json", "plot": "p.png"}
    files["overlay"] = "p.mp4"
    flags = [word for flag, name in files.items() for word in (f"--{flag}", str(out / name))]
    model = ["--checkpoint", str(runs["av"]), "--device", "cpu", "--faces", "cut"]
    wav = ["--audio", str(film.with_suffix(".wav"))]
    assert cli.predict([str(film), *wav, *model, *flags]) == 0
    assert [row["file"] for row in rows(out / "p.csv")] == [str(film)]
    assert json.loads((out / "p.json").read_text(encoding="utf-8"))[0]["file"] == str(film)
    assert {path.name for path in out.iterdir()} == {*files.values()}
    several = [str(odd / f"{stem}.mp4") for stem in STEMS[:2]]
    mute = ["--missing_modality", "drop", "--plot", str(out / "all.png")]
    assert cli.predict([*several, *model, *mute]) == 0
    assert len([*out.glob("all-*.png")]) == 2


def test_a_sound_is_answered_as_in_the_test_of_its_run(odd, runs, tmp_path, capsys):
    row, path = rows(runs["a"] / "pred.csv")[0], tmp_path / "p.json"
    flags = ["--checkpoint", str(runs["a"] / "checkpoint-0.pth"), "--device", "cpu"]
    assert cli.predict([row["clip"], "--protocol", "test", *flags, "--json", str(path)]) == 0
    (answer,) = json.loads(path.read_text(encoding="utf-8"))
    expected = [float(row[f"p{k}"]) for k in range(3)]
    assert [*answer["probabilities"].values()] == pytest.approx(expected, abs=1e-5)


def test_class_names_of_another_encoding_are_refused_with_their_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError, match="names.txt.: .*UTF-8"):
        read_names(path)


def test_a_report_is_whole_and_shows_absent_classes_as_absent(odd, runs, capsys):
    folder = odd / "av"
    report([str(folder), "--resamples", "20"])
    assert {path.name for path in folder.glob("report.*")} == {
        "report.md", "report.tex", "report.html", "report.json"}  # fmt: skip
    texts = {end: (folder / f"report.{end}").read_text("utf-8") for end in ("tex", "html", "json")}
    assert r"\$\textbackslash{}sad\_\%\$" in texts["tex"] and r"&lt;$\sad" in texts["html"]
    assert json.dumps(CLASSES[2], ensure_ascii=False) in texts["json"]
    report([str(odd / "av"), str(odd / "v"), "--resamples", "20"])
    assert "av" in capsys.readouterr().out


PICTURES = [
    ("confusion", "{av}/pred.csv"),
    ("curves", "{av} {a}"),
    ("radar", "'odd set={root}/av' --metrics recall"),
    ("tsne", "--checkpoint {av} --data_path {root}/fold/all.csv --device cpu"),
    ("retrieval", "--checkpoint {pre} --data_path {root}/lists --device cpu"),
    ("reconstruction", "--checkpoint {pre} --data_path {root}/lists --device cpu"),
]


@pytest.mark.parametrize(("picture", "flags"), PICTURES, ids=[name for name, _ in PICTURES])
def test_every_picture_is_drawn(picture, flags, odd, pretrained, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 40)
    places = {"root": odd, "pre": pretrained / "checkpoint-0.pth", **runs}
    words = [word.format(**places) for word in shlex.split(flags)]
    path = tmp_path / f"{BYTES}.png"
    visualize([picture, *words, "--output", str(path)])
    assert path.stat().st_size > 1000


def test_output_that_cannot_be_written_ends_in_one_line(odd, runs, tmp_path, caplog, capsys):
    (tmp_path / "file").touch()
    bad, run, fold = str(tmp_path / "file" / BYTES), str(runs["av"]), str(odd / "fold")
    film, model = str(odd / "plain.mp4"), ["--checkpoint", run, "--device", "cpu"]
    for command in (
        lambda: knn.main([*model, "--data_path", fold, "--k", "1", "--output_dir", bad]),
        lambda: cli.extract([*model, "--data_path", fold, "--output", f"{bad}/x.npz"]),
        lambda: cli.predict([*model, film, "--csv", f"{bad}/x.csv"]),
        lambda: cli.predict([*model, film, "--overlay", f"{bad}/x.mp4"]),
        lambda: cli.export([run, bad]),
        lambda: report([str(odd / "av"), "--html", f"{bad}/x.html", "--resamples", "20"]),
        lambda: visualize(["curves", run, "--output", f"{bad}/x.png"]),
    ):
        caplog.clear()
        capsys.readouterr()
        try:
            code = command()
        except SystemExit as end:
            code = end.code
        said = [*caplog.messages, *capsys.readouterr().err.splitlines()]
        assert code == 2
        assert [line for line in said if "error: " in line and "file" in line], said
    for main, flags in ((run_finetuning.main, [*FINETUNE, "--nb_classes", "3"]),
                        (run_pretraining.main, PRETRAIN)):  # fmt: skip
        with pytest.raises(OSError, match="cannot be made .Not a directory"):
            main([*flags, "--epochs", "1", "--data_path", fold, "--output_dir", bad])
