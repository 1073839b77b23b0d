import json
import shutil

import pytest
import torch
from safetensors import safe_open

from hicmae import EmotionRecognizer
from hicmae.data.clip_list import Clip, chosen_names, names_of_run, write_list
from hicmae.inference import cli
from hicmae.inference.export import export_checkpoint, export_run
from hicmae.inference.model import Undrawn, load_model
from hicmae.training.checkpoint import find
from tests.conftest import save_frames, save_wav
from tests.small_recognizers import NAMES, classifier, speech
from tests.small_runs import finetune, rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A fold of four clips at 20 frames a second, and classes.txt beside it."""
    root = tmp_path_factory.mktemp("data")
    clips = []
    for k in range(4):
        frames = 30 + 20 * k
        wav = save_wav(root / f"{k}.wav", speech(frames / 20, seed=k))
        clips.append(Clip(save_frames(root / f"faces{k}", frames, (40, 40 + 8 * k)), wav, k % 3))
    (root / "fold").mkdir()
    (root / "classes.txt").write_text("calm\nglad\nmäd\n", encoding="utf-8")
    for name in ("train", "val", "test"):
        write_list(root / "fold" / f"{name}.csv", clips)
    return root


def test_a_finished_run_answers_as_its_best_epoch_did_in_its_test(data, tmp_path):
    run = finetune(data, tmp_path / "run", "--class_names", *"xyz")
    assert {path.name for path in (run / "export").iterdir()} == {"last", "best"}
    recognizer = EmotionRecognizer.from_checkpoint(run, device="cpu")
    assert recognizer.names == ("x", "y", "z")
    for k, row in enumerate(rows(run / "pred_best.csv")):
        wav = str(data / f"{k}.wav")
        answer = recognizer.predict(row["clip"], audio=wav, protocol="test")
        assert answer.label == recognizer.names[int(row["prediction"])]
        scores = [float(row[f"p{k}"]) for k in range(3)]
        # pred.csv has six decimals
        assert list(answer.probabilities.values()) == pytest.approx(scores, abs=1e-6)


def test_an_export_says_all_that_inference_needs(data, tmp_path):
    run = finetune(data, tmp_path / "run", "--no-export")
    assert not (run / "export").exists()
    # the folder of a run works without its export
    assert EmotionRecognizer.from_checkpoint(run).names == ("calm", "glad", "mäd")
    assert cli.export([str(run), str(run / "export")]) == 0
    config = json.loads((run / "export" / "last" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "calm", "1": "glad", "2": "mäd"}
    assert (config["task"], config["modality"]) == ("classification", "av")
    assert config["architecture"]["model"] == "avit_dim128_patch16_160_a256"
    assert config["architecture"]["depth_audio"] == 2
    clip = config["preprocessing"]
    assert (clip["num_frames"], clip["sampling_rate"], clip["input_size"]) == (4, 8, 32)
    assert clip["input_size_audio"] == [64, 128]
    assert clip["frame_rate"] == pytest.approx(20, abs=0.01)  # measured on the training clips
    assert config["training"]["settings"]["data_path"] == str(data / "fold")
    assert config["training"]["epoch"] == 0 and "war" in config["training"]["scores"]
    assert not list((run / "export").rglob(".part-*"))
    with safe_open(run / "export" / "last" / "model.safetensors", "np") as file:
        assert "head.weight" in file.keys()


def test_wrong_names_stop_a_run_before_training(data, tmp_path):
    with pytest.raises(ValueError, match="--class_names gives 2 names .x, y., expected 3"):
        finetune(data, tmp_path / "a", "--class_names", "x", "y")
    with pytest.raises(FileNotFoundError, match="'nowhere.txt' is no file; expected the names"):
        finetune(data, tmp_path / "a", "--class_names", "nowhere.txt")
    assert not list((tmp_path / "a").glob("*.pth"))


def test_names_are_found_in_order(tmp_path, caplog):
    (tmp_path / "fold").mkdir()
    settings = {"data_path": str(tmp_path / "fold")}
    assert names_of_run(settings, "classification", 2) == ("class 0", "class 1")
    assert names_of_run(settings, "regression", 1) == ("output 0",)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "targets.txt").write_text("valence\n")
    assert names_of_run(settings, "classification", 2) == ("a", "b")
    assert names_of_run(settings, "regression", 1) == ("valence",)
    assert names_of_run(settings, "classification", 3) == ("class 0", "class 1", "class 2")
    assert "classes.txt is unused: 2 different names for 3 outputs" in caplog.text
    assert names_of_run({"data_set": "MAFW"}, "classification", 11)[7] == "contempt"
    assert chosen_names(["crema-d"], 4) == ("ANG", "HAP", "NEU", "SAD")
    assert chosen_names(["IEMOCAP"], 4) == ("ang", "hap", "neu", "sad")
    assert chosen_names(["AVCAffe valence"], 5)[0] == "Pleasant"
    with pytest.raises(ValueError, match="gives the name 'a' twice"):
        chosen_names(["a", "b", "a"], 3)


def test_the_authors_checkpoint_is_understood(models, tmp_path, clip):
    folder = export_checkpoint(models / "authors.pth", tmp_path / "out")
    recognizer = EmotionRecognizer.from_checkpoint(folder)
    assert recognizer.names == ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    config = recognizer.config
    assert config.test_num_segment == 3
    assert config.preprocessing.input_size_audio == (96, 128)
    assert config.training["epoch"] == "best"
    (frames, wav), state = clip, torch.get_rng_state()
    with Undrawn():  # torch 2.14 draws until all values are within bounds
        assert torch.full((3,), 9.0).normal_().abs().max() <= 2
    answers = [
        EmotionRecognizer.from_checkpoint(path).predict(frames, audio=wav)
        for path in (models / "authors.pth", folder, folder / "model.safetensors")
    ]
    assert torch.equal(torch.get_rng_state(), state)  # no weights are drawn only to be replaced
    assert answers[0] == answers[1] == answers[2]


def test_weights_alone_are_enough_with_a_few_flags(tmp_path, caplog):
    torch.save(classifier().state_dict(), tmp_path / "bare.pth")
    export_checkpoint(tmp_path / "bare.pth", tmp_path / "assumed", num_frames=4, input_size=32)
    assert "assuming --sampling_rate 4, --input_size_audio 256 128" in caplog.text
    flags = ["--num_frames", "4", "--sampling_rate", "8", "--input_size", "32"]
    flags += ["--input_size_audio", "96", "128", "--class_names", *NAMES, "--frame_rate", "30"]
    assert cli.export([str(tmp_path / "bare.pth"), str(tmp_path / "out"), *flags]) == 0
    _, config = load_model(tmp_path / "out")
    assert config.names == NAMES and config.preprocessing.frame_rate == 30
    assert config.preprocessing.clip_seconds == pytest.approx(32 / 30)


def test_a_weights_file_carries_its_description_but_config_json_beside_it_wins(models, tmp_path):
    folder = export_checkpoint(models / "av.pth", tmp_path / "out")
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    assert EmotionRecognizer.from_checkpoint(tmp_path / "alone.safetensors").names == NAMES
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("glad", "cheerful"))
    assert EmotionRecognizer.from_checkpoint(folder).names == ("calm", "cheerful", "mad")
    command = [str(folder), str(tmp_path / "renamed"), "--class_names", "x", "y", "z"]
    assert cli.export(command) == 0
    assert EmotionRecognizer.from_checkpoint(tmp_path / "renamed").names == ("x", "y", "z")
    assert cli.export([*command[:2], "--num_frames", "8"]) == 2  # config.json says it already


def test_a_folder_means_its_best_weights(tmp_path):
    better = ("checkpoint-2.pth", "checkpoint-10.pth", "export/last/model.safetensors")
    for name in (*better, "export/best/model.safetensors", "model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert find(tmp_path) == tmp_path / name


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"encoder.norm.weight": torch.ones(100)}}, "network is 'avit_dim100_"),
        ({"model": {"backbone.weight": torch.ones(1)}}, "holds no HiCMAE model"),
        ({"epoch": 1}, "holds no weights"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(tmp_path, content, message, caplog):
    """Damaged and dangerous files are those of tests/training."""
    torch.save(content, tmp_path / "a.pth")
    assert cli.export([str(tmp_path / "a.pth"), str(tmp_path / "out")]) == 2
    assert message in caplog.records[-1].message and "\n" not in caplog.records[-1].message
    assert not (tmp_path / "out").exists()


def test_broken_exports_are_said_in_one_line(models, tmp_path):
    folder = export_checkpoint(models / "av.pth", tmp_path / "out")
    config, text = folder / "config.json", (folder / "config.json").read_text()
    for told, wrong, message in (
        (text, "{", "out.config.json' describes no model of this project: Expecting"),
        ('"task"', '"tusk"', "describes no model of this project: it lacks 'task'"),
        ('_version": 1', '_version": 9', "format 'hicmae' 9, expected 'hicmae' up to 1"),
        ('"depth": 2', '"depth": "2"', "depth is '2', expected int"),
        ('"modality": "av"', '"modality": "x"', "modality 'x', expected"),
        ('"depth": 2', '"depth": 4', "do not fit its description: 27 are miss"),
    ):
        config.write_text(text.replace(told, wrong))
        with pytest.raises(ValueError, match=message):
            EmotionRecognizer.from_checkpoint(folder)
    config.write_text(json.dumps(json.loads(text) | {"training": None}))
    assert EmotionRecognizer.from_checkpoint(folder).config.modality == "av"
    with pytest.raises(FileNotFoundError, match="holds no checkpoint-<epoch>.pth to export"):
        export_run(tmp_path)
