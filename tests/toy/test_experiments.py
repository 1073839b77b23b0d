"""scripts/toy: a run is made once, goes on, or starts over; the tables of the experiments."""

import importlib
import json
import re

import pytest
import timm
import torch

import run_finetuning
import run_pretraining
from hicmae.data.clip_list import Clip, write_list
from scripts import demo
from scripts.demo import Run
from scripts.toy import experiments
from tests.conftest import save_frames, save_mp4, save_wav, tone

# Notes how often it was called with which flags; fails when told to.
SCRIPT = """
import json, sys
from pathlib import Path
flags = sys.argv[1:]
folder = Path(flags[flags.index("--output_dir") + 1])
calls = folder / "calls.json"
seen = json.loads(calls.read_text()) if calls.exists() else []
calls.write_text(json.dumps([*seen, flags]))
if "--fail" in flags:
    sys.exit(3)
if "--half" not in flags:
    (folder / "metrics_best.json").write_text("{}")
"""
SMALL = "--device cpu --num_workers 0 --epochs 1 --warmup_epochs 0 --batch_size 8 --precision fp32"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of stand-ins."""
    (tmp_path / "run_finetuning.py").write_text(SCRIPT)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    return tmp_path


def calls(folder):
    return json.loads((folder / "calls.json").read_text())


def test_a_finished_run_is_not_made_again_and_another_command_starts_over(root):
    runs = [Run(root / name, "run_finetuning.py", ["--data_path", "d"]) for name in "ab"]
    experiments.run_all(runs)
    experiments.run_all(runs)
    usual = demo.FLAGS["run_finetuning.py"]
    assert calls(root / "b") == [[*usual, "--data_path", "d", "--output_dir", str(root / "b")]]
    experiments.run_all(runs, "--epochs 2")
    assert [demo.flag_value(flags, "--epochs") for flags in calls(root / "a")] == ["2"]


@pytest.mark.parametrize("flag, path", [("--finetune", "checkpoint-9.pth"), ("--data_path", "f1")])
def test_a_run_starts_over_when_that_which_it_starts_from_had_another_command(flag, path, root):
    run = Run(root / "a", "run_finetuning.py", [flag, str(root / "first" / path)])
    (root / "first").mkdir()
    for command in ("x", "x", "y"):
        (root / "first/command.txt").write_text(command)
        demo.make(run)
        assert len(calls(root / "a")) == 1
        assert (root / "a/command.txt").read_text().endswith(command)


def test_a_failed_run_names_its_log(root, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        experiments.run_all([Run(root / "a", "run_finetuning.py", ["--fail"])])
    assert end.value.code == 3
    error = capsys.readouterr().err
    assert re.search("run_finetuning.py stopped with code 3; see '.*a/console.log'", error)
    with pytest.raises(SystemExit, match=r"no checkpoint-<epoch>.pth in '.*nothing'; run scripts"):
        experiments.last_checkpoint(tmp_path / "nothing")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Two folds of 36 and 6 clips, and a checkpoint where the demo keeps its own."""
    root = tmp_path_factory.mktemp("experiments")
    clips = []
    for k in range(6):
        wav = save_wav(root / f"{k}.wav", tone(25600, 200 + 50 * k))
        clips.append(Clip(save_frames(root / f"faces{k}", 50, (64, 64)), wav, k))
    for fold in ("fold1", "fold2", "fold1_all"):
        for name, rows in (("train", clips * 6), ("val", clips), ("test", clips)):
            write_list(root / f"data/{fold}/{name}.csv", rows)
    films = [Clip(save_mp4(root / f"{k}.mp4", 50, (64, 64)), clips[k].audio, 0) for k in range(6)]
    write_list(root / "data/packed/train.csv", films + films[:2])
    (root / "data/classes.txt").write_text("".join(f"class{k}\n" for k in range(6)))
    speakers = "".join(f"faces{k},s{k // 2}\n" for k in range(6))
    (root / "data/meta.csv").write_text("clip,speaker\n" + speakers)
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


@pytest.fixture
def small(monkeypatch, benchmark):
    """Run an experiment with everything in this process and one epoch each."""

    def make_here(run, quiet):
        script = {"run_pretraining.py": run_pretraining, "run_finetuning.py": run_finetuning}
        script[run.script].main([*run.flags, "--output_dir", str(run.folder)])
        assert (run.folder / run.product).exists()

    def call_here(words, log):
        _, name, *arguments = map(str, words)
        module = importlib.import_module("hicmae.report.__main__" if "report" in name else name)
        module.main(arguments)

    monkeypatch.setattr(demo, "make", make_here)
    monkeypatch.setattr(demo, "call", call_here)

    def run(name, out, *more):
        places = ["--data", benchmark / "data", "--demo", benchmark / "demo", "--output_dir", out]
        experiments.main([name, *map(str, places), "--extra", SMALL, *more])
        rows = (out / "table.md").read_text().splitlines()[2:]
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

    return run


def test_labels_compares_starts_and_kinds(small, tmp_path):
    rows = small("labels", tmp_path, "--seeds", "0", "--shares", "1")
    kinds = ("full fine-tuning", "linear probe", "10-NN")
    assert [row[0] for row in rows] == [
        f"{start}, {kind}" for kind in kinds for start in ("10 epochs", "random")
    ]
    for row, kind in zip(rows[:4:2], ("full_fine-tuning", "linear_probe"), strict=True):
        run = tmp_path / f"10_epochs_{kind}" / "share100/fold1_seed0"
        uar = json.loads((run / "metrics.json").read_text())["uar"]
        assert row[1] == f"{100 * uar:.1f}"
        config = json.loads((run / "config.json").read_text())
        assert config["classifier"]["linear_probe"] == (kind == "linear_probe")
        assert config["classifier"]["finetune"].endswith("demo/pretrain/checkpoint-9.pth")
    assert len((tmp_path / "lists/fold1/val.csv").read_text().splitlines()) == 1
    assert (tmp_path / "results.csv").read_text().startswith("start,kind,share,fold,seed,uar\n")


def test_few_labels_are_seen_in_more_epochs(tmp_path):
    write_list(tmp_path / "train.csv", [Clip(f"v{k}", f"{k}.wav", k % 6) for k in range(504)])
    lengths = {}
    for share in (1.0, 0.1):
        flags = experiments.label_flags(share, 0, experiments.FULL, tmp_path, None)
        lengths[share] = int(demo.flag_value(flags, "--epochs"))
    assert lengths == {1.0: demo.FINETUNE_EPOCHS, 0.1: 200}
    probe = experiments.label_flags(1.0, 0, experiments.PROBE, tmp_path, None, "--epochs 2")
    assert "--linear_probe" in probe and "--epochs" not in probe and "--finetune" not in probe
    with pytest.raises(SystemExit, match="leaves 25 clips, fewer than one batch"):
        experiments.label_flags(0.05, 0, experiments.FULL, tmp_path, None)


def test_ablations_share_the_baselines_pretraining_and_compare_with_it(small, tmp_path):
    variants = ["no_feature_fusion", "no_contrast"]
    rows = small("ablations", tmp_path, "--folds", "1", "--only", *variants)
    titles = ["HiCMAE, with the demo's settings", "no contrastive loss"]
    assert [row[0] for row in rows] == [*titles, "no hierarchical feature fusion"]
    assert sorted(path.name for path in (tmp_path / "pretrain").iterdir()) == [
        "baseline", "no_contrast"]  # fmt: skip
    baseline, no_contrast, no_fusion = rows
    assert baseline[2:6] == no_fusion[2:6]
    assert no_contrast[4:6] == ["-", "-"] and float(baseline[4]) > 0
    assert baseline[-2:] == ["-", "-"] and re.fullmatch(r"[+-]\d+\.\d", no_fusion[-2])


def test_modalities_scores_streams_alone_and_missing(small, benchmark, tmp_path):
    flags = ["--data_path", str(benchmark / "data/fold1"), *SMALL.split()]
    usual = demo.FLAGS["run_finetuning.py"]
    run_finetuning.main([*usual, *flags, "--output_dir", str(benchmark / "demo/folds/fold1")])
    rows = small("modalities", tmp_path)
    assert [row[:2] for row in rows[:3]] == [
        ["audio", "33.3"], ["video", "50.0"], ["audio and video", "100.0"]]  # fmt: skip
    uar = json.loads((benchmark / "demo/folds/fold1/metrics.json").read_text())["uar"]
    assert rows[2][2] == f"{100 * uar:.2f}"
    missing = {row[0]: row[1:] for row in rows[6:]}
    assert list(missing) == list(experiments.MISSING)
    assert missing["both streams"][0] == f"{100 * uar:.2f}"
