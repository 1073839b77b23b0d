"""scripts/toy/labels.py: the experiment on a few small clips, with its runs in this process."""

import importlib
import json
import shlex

import pytest
import timm
import torch
from PIL import Image

import run_finetuning
import run_pretraining
from hicmae.data.clip_list import Clip, write_list
from tests.conftest import save_frames, save_mp4, save_wav
from tests.small_recognizers import speech
from tests.small_runs import ROOT

SMALL = "--device cpu --num_workers 0 --epochs 1 --warmup_epochs 0 --batch_size 8 --precision fp32"


@pytest.fixture
def labels(monkeypatch):
    """The script as a module; its runs are not processes of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts/toy"))
    module = importlib.import_module("labels")
    runs = importlib.import_module("runs")

    def run_here(chosen, jobs=1, extra=""):
        for run in chosen:
            script = {"run_pretraining.py": run_pretraining, "run_finetuning.py": run_finetuning}
            flags = [*runs.demo_flags(run.script), *run.flags, *shlex.split(extra)]
            script[run.script].main([*flags, "--output_dir", str(run.folder)])
            assert (run.folder / run.product).exists()

    monkeypatch.setattr(module, "run_all", run_here)
    return module


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A fold of 36, 12 and 6 clips, and a checkpoint where the demo keeps its own."""
    root = tmp_path_factory.mktemp("labels")
    clips = [
        Clip(
            save_frames(root / f"faces{k}", 50, (64, 64)),
            save_wav(root / f"{k}.wav", speech(1.6, seed=k)),
            k % 6,
        )
        for k in range(12)
    ]
    for name, rows in (("train", clips * 3), ("val", clips), ("test", clips[:6])):
        write_list(root / f"data/fold1/{name}.csv", rows)
    films = [Clip(save_mp4(root / f"{k}.mp4", 50, (64, 64)), clips[k].audio, 0) for k in range(8)]
    write_list(root / "data/pretrain.csv", films)
    (root / "data/classes.txt").write_text("".join(f"class{k}\n" for k in range(6)))
    torch.manual_seed(0)
    sizes = {"encoder_depth": 2, "encoder_depth_audio": 2, "encoder_fusion_depth": 1}
    sizes |= {"decoder_depth": 2, "decoder_depth_audio": 2, "return_intermediate_features": (1,)}
    clip = {"num_frames": 4, "input_size": 64, "input_size_audio": (128, 128), "sampling_rate": 16}
    geometry = {"num_frames": 4, "img_size": 64, "img_size_audio": (128, 128)}
    model = timm.create_model("pretrain_hicmae_dim128_patch16_160_a256", **sizes, **geometry)
    (root / "demo/pretrain").mkdir(parents=True)
    state = {"model": model.state_dict(), "epoch": 9, "args": {"clip": clip}}
    torch.save(state, root / "demo/pretrain/checkpoint-9.pth")
    return root


def arguments(benchmark, out, *more):
    places = {"--data": benchmark / "data", "--demo": benchmark / "demo", "--out": out}
    places["--figure"] = out / "labels.png"
    return [*(str(part) for pair in places.items() for part in pair), "--extra", SMALL, *more]


def test_the_experiment_writes_a_table_all_scores_and_a_plot(labels, benchmark, tmp_path, capsys):
    labels.main(arguments(benchmark, tmp_path, "--seeds", "0", "--shares", "1"))
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    names = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
    assert names == [
        "pre-trained for 10 epochs, full fine-tuning",
        "from scratch, full fine-tuning",
        "pre-trained for 10 epochs, linear probe",
        "random weights, linear probe",
        "pre-trained for 10 epochs, 10-NN",
        "random weights, 10-NN",
    ]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["init"], row["kind"]) for row in rows[:2]] == [
        ("pretrained", "full"),
        ("scratch", "full"),
    ]
    for row in rows[:4]:
        run = tmp_path / f"{row['init']}_{row['kind']}" / "share100/fold1_seed0"
        assert 100 * json.loads((run / "metrics.json").read_text())["uar"] == row["uar"]
        config = json.loads((run / "config.json").read_text())
        assert config["score"]["label_share"] == 1
        assert config["classifier"]["linear_probe"] == (row["kind"] == "probe")
        assert bool(config["classifier"]["finetune"]) == (row["init"] == "pretrained")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.width > 600
    lists = tmp_path / "lists/test/fold1"
    assert len((lists / "val.csv").read_text().splitlines()) == 1
    assert (lists / "test.csv").read_text() == (benchmark / "data/fold1/test.csv").read_text()


def test_a_longer_pretraining_is_made_and_stands_beside_the_demos(labels, benchmark, tmp_path):
    more = ["--seeds", "0", "--shares", "1", "--longer", "2", "--kinds", "probe", "knn"]
    labels.main(arguments(benchmark, tmp_path, *more))
    text = (tmp_path / "table.md").read_text()
    names = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
    assert names == [
        "pre-trained for 10 epochs, linear probe",
        "pre-trained for 2 epochs, linear probe",
        "random weights, linear probe",
        "pre-trained for 10 epochs, 10-NN",
        "pre-trained for 2 epochs, 10-NN",
        "random weights, 10-NN",
    ]
    pretraining = json.loads((tmp_path / "pretrain2/config.json").read_text())
    assert (pretraining["optim"]["epochs"], pretraining["optim"]["batch_size"]) == (2, 8)
    for init, start in (
        ("longer", tmp_path / "pretrain2/checkpoint-1.pth"),
        ("pretrained", benchmark / "demo/pretrain/checkpoint-9.pth"),
        ("scratch", ""),
    ):
        run = tmp_path / f"{init}_probe" / "share100/fold1_seed0"
        config = json.loads((run / "config.json").read_text())
        assert config["classifier"]["finetune"] == str(start)


@pytest.mark.parametrize("kind", ["full", "probe"])
def test_few_labels_are_seen_in_more_epochs(labels, benchmark, tmp_path, kind):
    numbers = labels.copy_lists(benchmark / "data/fold1", tmp_path, "test.csv")
    rows = [Clip(f"v{k}", f"{k}.wav", k % 6) for k in range(504)]
    write_list(numbers / "train.csv", rows)
    epochs = [
        labels.epochs_of(labels.Setting("pretrained", kind, share, 1, 0), numbers)
        for share in (1.0, 0.3, 0.1)
    ]
    least = labels.LEAST_STEPS if kind == "full" else labels.PROBE_STEPS
    steps = [504 // 32, 150 // 32, 48 // 32]
    floors = [40 if kind == "full" else 1] * 3
    assert epochs == [
        max(floor, -(-least // step)) for floor, step in zip(floors, steps, strict=True)
    ]
    with pytest.raises(SystemExit, match="leaves 24 clips, expected a batch of 32 or more"):
        labels.epochs_of(labels.Setting("scratch", kind, 0.05, 1, 0), numbers)


def test_a_run_takes_its_length_from_the_script_or_from_extra(labels, benchmark, tmp_path):
    lists = labels.copy_lists(benchmark / "data/fold1", tmp_path, "test.csv")
    setting = labels.Setting("pretrained", "probe", 1, 1, 2)
    flags = {}
    for extra in ("", "--epochs 2"):
        args = labels.make_parser().parse_args(["--out", str(tmp_path), "--extra", extra])
        flags[extra] = labels.make_run(setting, args, lists, benchmark / "start.pth").flags
    words = " ".join(flags[""])
    assert f"--epochs {labels.PROBE_STEPS} --warmup_steps 30" in words
    assert f"--linear_probe --lr {labels.PROBE_LR}" in words and "--seed 2" in words
    assert "--epochs" not in flags["--epochs 2"] and "--warmup_steps" not in flags["--epochs 2"]


def test_validation_scores_stand_in_for_the_test_when_asked(labels, benchmark, tmp_path):
    folder = labels.copy_lists(benchmark / "data/fold1", tmp_path, "val.csv")
    assert (folder / "test.csv").read_text() == (benchmark / "data/fold1/val.csv").read_text()


def test_mean_and_deviation_are_over_seeds_and_folds(labels):
    runs = (0.1, 1, 0, 20), (0.1, 1, 1, 30), (0.1, 2, 0, 40), (1, 1, 0, 50)
    found = {
        labels.Setting("scratch", "full", share, fold, seed): value
        for share, fold, seed, value in runs
    }
    line = labels.summarise(found)["scratch", "full"]
    assert line[0.1] == (30, 10, 3)
    assert labels.shown(line[0.1]) == "30.0 ± 10.0" and labels.shown(line[1]) == "50.0"
