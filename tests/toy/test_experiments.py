"""scripts/toy: the tables of the experiments; how runs are made is tested with the demo's."""

import importlib
import json
import re
import shutil
import statistics

import pytest
import torch

import run_finetuning
import run_pretraining
from hicmae.data.clip_list import Clip, write_list
from hicmae.training import checkpoint, trained
from scripts import demo
from scripts.toy import experiments
from tests.conftest import save_frames, save_mp4, save_wav, tone
from tests.small_models import pretraining_model

SMALL = "--device cpu --num_workers 0 --epochs 1 --warmup_epochs 0 --batch_size 8 --precision fp32"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Two folds of 36 and 6 clips, and a checkpoint where the demo keeps its own."""
    root = tmp_path_factory.mktemp("experiments")
    clips, films = [], []
    for k in range(6):
        film = root / f"data/labelled/s{k}/s{k}_c000.mp4"
        wav = save_wav(film.with_suffix(".wav"), tone(25600, 200 + 50 * k))
        clips.append(Clip(save_frames(root / f"faces{k}", 50, (64, 64)), wav, k))
        films.append(Clip(save_mp4(film, 50, (64, 64)), wav, 0))
    for fold in ("fold1", "fold2", "fold1_all"):
        for name, rows in (("train", clips * 6), ("val", clips), ("test", clips)):
            write_list(root / f"data/{fold}/{name}.csv", rows)
    write_list(root / "data/packed/train.csv", films + films[:2])
    (root / "data/classes.txt").write_text("".join(f"class{k}\n" for k in range(6)))
    speakers = "".join(f"faces{k},s{k // 2}\n" for k in range(6))
    (root / "data/meta.csv").write_text("clip,speaker\n" + speakers)
    sizes = {"encoder_depth": 2, "encoder_depth_audio": 2, "encoder_fusion_depth": 1}
    sizes |= {"decoder_depth": 2, "decoder_depth_audio": 2, "return_intermediate_features": (1,)}
    clip = {"num_frames": 4, "input_size": 64, "input_size_audio": (128, 128), "sampling_rate": 16}
    model = pretraining_model(img_size=64, img_size_audio=(128, 128), **sizes)
    (root / "demo/pretrain").mkdir(parents=True)
    state = {"model": model.state_dict(), "epoch": 9, "args": {"clip": clip}}
    torch.save(state, root / "demo/pretrain/checkpoint-9.pth")
    return root


@pytest.fixture
def small(monkeypatch, benchmark):
    """Run an experiment with everything in this process and one epoch each."""

    def make_here(run):
        if run.script == "preprocess/toy_av.py":
            shutil.copytree(benchmark / "data", run.folder)
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        for name in ("command.txt", "log.txt"):
            (run.folder / name).touch()
        script = {"run_pretraining.py": run_pretraining, "run_finetuning.py": run_finetuning}
        script[run.script].main([*run.flags, "--output_dir", str(run.folder)])
        assert (run.folder / run.product).exists()

    def call_here(words, log):
        _, name, *arguments = map(str, words)
        module = importlib.import_module("hicmae.report.__main__" if "report" in name else name)
        assert module.main(arguments) == 0

    monkeypatch.setattr(demo, "make", make_here)
    monkeypatch.setattr(demo, "call", call_here)
    monkeypatch.setitem(checkpoint.BUNDLED, demo.SHIPPED, benchmark / "demo/pretrain")

    def run(name, out, *more):
        places = ["--data", benchmark / "data", "--demo", benchmark / "demo", "--output_dir", out]
        assert experiments.main([name, *map(str, places), "--extra", SMALL, *more]) == 0
        lines = (out / "table.md").read_text().splitlines()
        rows = [line for line, above in zip(lines[2:], lines[1:], strict=False)
                if line.startswith("| ") and above.startswith("|")]  # fmt: skip
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

    return run


def test_starts_compares_random_own_and_shipped_weights(small, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "STARTS", {"probe": experiments.STARTS["probe"]})
    kinds = ["--features", "video_last", "video_last+audio_last"]
    rows = small("starts", tmp_path, "--seeds", "0", "1", "--folds", "1", *kinds)
    assert [row[0] for row in rows] == [*demo.TITLES.values()] * 3  # and the neighbours by kind
    (folder,) = (tmp_path / "probe").glob("own*")
    runs = [folder / f"seed{seed}/fold1" for seed in (0, 1)]
    uars = [json.loads((run / "metrics.json").read_text())["uar"] for run in runs]
    assert rows[1][1] == f"{50 * sum(uars):.1f} ± {100 * statistics.stdev(uars):.1f}"
    config = json.loads((runs[0] / "config.json").read_text())
    assert config["classifier"]["linear_probe"]
    assert config["classifier"]["finetune"].endswith("demo/pretrain/checkpoint-9.pth")
    assert config["data"]["data_path"].endswith("fold1_all")
    assert rows[0][3:] == ["-", "-"] and re.fullmatch(r"[+-]\d+\.\d", rows[1][3])


def test_experiments_need_a_finished_demo(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(experiments, "ABLATIONS", [experiments.Variant("own", experiments.OWN)])
    places = ["--demo", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert experiments.main(["ablations", *places]) == 1
    assert re.search("no checkpoint-<epoch>.pth in '.*pretrain'; run scripts", caplog.text)


@pytest.mark.slow  # made as the others are
def test_ablations_compare_with_the_first_row(small, tmp_path):
    titles = ["no contrastive loss", "no hierarchical feature fusion"]
    more = ["--folds", "1", "--seeds", "0", "--only", *titles]  # epochs are those of --extra
    rows = small("ablations", tmp_path, *more)
    assert [row[0] for row in rows] == ["HiCMAE, with the demo's settings", *titles]
    assert sorted(path.name for path in (tmp_path / "pretrain").iterdir()) == [
        "contrastive_levels_none", "seed_0"]  # fmt: skip
    assert rows[0][-2:] == ["-", "-"] and re.fullmatch(r"[+-]\d+\.\d", rows[1][-2])


@pytest.mark.slow  # made as the others are
def test_contrast_compares_a_single_pass_with_a_second_one(small, tmp_path):
    title = "a second one, 0.5 masked"
    more = ["--folds", "1", "--pretrain_epochs", "1", "--steps", "2", "--only", title]
    rows = small("contrast", tmp_path, "--seeds", "0", "1", *more)
    assert [row[0] for row in rows] == ["one pass, the paper's", title]
    assert rows[0][-1] == "1.00 ± 0.00" and float(rows[1][-1].split()[0]) > 0
    assert all(0 < float(row[-3].split()[0]) <= 100 for row in rows)
    for ratio in (None, 0.5):
        for seed in (0, 1):
            run = tmp_path / f"pretrain/contrast_mask_ratio_{str(ratio).lower()}_seed_{seed}"
            config = json.loads((run / "config.json").read_text())
            assert config["mask"]["contrast_mask_ratio"] == ratio and config["run"]["seed"] == seed
    probes = sorted((tmp_path / "contrast").glob("*/seed*/fold1/config.json"))
    assert len(probes) == 4
    assert all(json.loads(path.read_text())["classifier"]["linear_probe"] for path in probes)


def test_modalities_scores_streams_alone_and_together(small, tmp_path):
    rows = small("modalities", tmp_path, "--seeds", "0", "--folds", "1")
    assert [row[0] for row in rows] == ["audio and video", "video", "audio"]
    for row, name in zip(rows, ("", "_modality_v", "_modality_a"), strict=True):
        (run,) = (tmp_path / "modalities").glob(f"*pretrained{name}/seed0/fold1")
        uar = json.loads((run / "metrics.json").read_text())["uar"]
        assert row[1] == f"{100 * uar:.1f}"


def test_imbalance_compares_ways_and_the_average_of_weights(small, tmp_path):
    rows = small("imbalance", tmp_path, "--seeds", "0", "--folds", "1")
    ways = ["--class_weights balanced", "--class_weights effective", "--balanced_sampler"]
    assert [row[0] for row in rows] == ["nothing done about it", *ways, "--ema 0.99"]
    labels = [line.split()[-1] for line in (tmp_path / "data/fold1_long/train.csv").open()]
    assert [labels.count(str(k)) for k in range(6)] == [6, 4, 2, 2, 1, 1]


def test_ship_writes_small_models_that_load_by_name(small, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setattr(experiments, "SHIP_FLAGS", "")
    small("ship", tmp_path / "out")
    for name, stage in (("toy", "classification"), ("toy_pretrained", "pretraining")):
        monkeypatch.setitem(checkpoint.BUNDLED, name, tmp_path / "packaged" / name)
        found = trained.read(name)
        assert found.settings["task"] == stage and found.settings["num_frames"] == 4
        assert {weight.dtype for weight in found.weights.values()} == {torch.float32}
        run = tmp_path / "out" / ("finetune" if name == "toy" else "pretrain")
        whole = trained.read(experiments.last_checkpoint(run)).weights
        assert all(torch.equal(whole[key].half().float(), w) for key, w in found.weights.items())
