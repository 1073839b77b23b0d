"""scripts/toy/ablations.py: what it runs, and how it tells the figures; runs are stand-ins."""

import importlib
import json
from functools import cache

import pytest

import run_finetuning
import run_pretraining
from hicmae.config import FinetuneConfigs, PretrainConfigs, parse_configs
from tests.report.fold_files import write_csv, write_predictions
from tests.small_runs import ROOT

LABELS = [k % 6 for k in range(24)]
SCRIPTS = {
    "run_pretraining.py": (run_pretraining, PretrainConfigs),
    "run_finetuning.py": (run_finetuning, FinetuneConfigs),
}


@cache
def demo_flags(script):
    return importlib.import_module("runs").demo_flags(script)


def settings_of(run):
    """Parse a run's command line as its script does."""
    script, configs = SCRIPTS[run.script]
    flags = demo_flags(run.script)
    output = ["--output_dir", str(run.folder)]
    return parse_configs(script.build_parser(), configs, [*flags, *run.flags, *output])


@pytest.fixture
def ablations(monkeypatch):
    """The script as a module with `calls`, and runs that leave what real ones do.

    A variant's model is wrong about as many clips as its number says, in every class.
    """
    monkeypatch.syspath_prepend(str(ROOT / "scripts/toy"))
    module = importlib.import_module("ablations")
    calls = []

    def stand_in(runs, jobs, extra):
        calls.append(list(runs))
        for run in runs:
            run.folder.mkdir(parents=True, exist_ok=True)
            if run.script == "run_pretraining.py":
                leave_pretraining(run, settings_of(run).loss.contrastive_levels)
            else:
                number = [v.name for v in module.VARIANTS].index(run.folder.parts[-3])
                clips = [f"clips/{run.folder.name}_{k}" for k in range(24)]
                guesses = [(label + (k < number)) % 6 for k, label in enumerate(LABELS)]
                write_predictions(run.folder / "pred.csv", clips, LABELS, guesses, 6)
                (run.folder / "config.json").write_text("{}")

    monkeypatch.setattr(module, "run_all", stand_in)
    monkeypatch.setattr(module, "RESAMPLES", 300)
    module.calls = calls
    return module


def leave_pretraining(run, levels):
    (run.folder / run.product).touch()
    config = {"optim": {"batch_size": 8}, "data": {"num_samples": 4}}
    (run.folder / "config.json").write_text(json.dumps(config))
    line = {"train_loss_video": 0.9, "train_loss_audio": 0.8}
    if levels != "none":
        line |= {"train_loss_contrastive": 6.9, "train_contrastive_acc_1": 0.25}
    (run.folder / "log.txt").write_text(json.dumps(line) + "\n")


@pytest.fixture
def data(tmp_path):
    """A benchmark of two folds, as far as the script looks at it."""
    clips = [(f"fold{fold}_{k}", f"s{k // 3}") for fold in (1, 2) for k in range(24)]
    write_csv(tmp_path / "data/meta.csv", [["clip", "speaker"], *map(list, clips)])
    for fold in (1, 2):
        write_csv(tmp_path / f"data/fold{fold}/train.csv", [["x"]])
    return tmp_path / "data"


def results(out):
    return {row["name"]: row for row in json.loads((out / "results.json").read_text())}


def test_all_variants_are_run_once_in_two_phases_and_told(ablations, data, tmp_path, capsys):
    out = tmp_path / "out"
    ablations.main(["--data", str(data), "--out", str(out), "--folds", "1", "2"])
    pretraining, finetuning = ablations.calls
    names = [variant.name for variant in ablations.VARIANTS]
    shared = {"no_pretraining", "no_feature_fusion"}
    assert [r.folder.name for r in pretraining] == [name for name in names if name not in shared]
    places = [run.folder.relative_to(out / "finetune").as_posix() for run in finetuning]
    assert places == [f"{name}/seed0/fold{k}" for name in names for k in (1, 2)]
    text = capsys.readouterr().out
    assert text == (out / "table.md").read_text()
    lines = text.splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[2:15]] == [
        variant.title for variant in ablations.VARIANTS
    ]
    assert lines[2].endswith("| 0.9000 | 0.8000 | 6.9000 | 25.0 | 100.0 ± 0.0 | 100.0 ± 0.0 "
                             "| 0.0 | - | - |")  # fmt: skip
    assert "| `no --finetune` | - | - | - | - | 91.7 ± 0.0 |" in lines[4]  # the third: 2 of 24
    assert "none` | 0.9000 | 0.8000 | - | - |" in lines[6]
    assert lines[14].split(" | ")[9] == "-50.0"  # the last one of thirteen: 12 of 24


def test_flags_of_every_variant_are_known_and_change_what_they_say(ablations, data, tmp_path):
    ablations.main(["--data", str(data), "--out", str(tmp_path / "out")])
    pretraining = {r.folder.name: settings_of(r) for r in ablations.calls[0]}
    base = pretraining["baseline"]
    assert not pretraining["no_skips"].model.skip_connections
    assert pretraining["top_contrast"].loss.contrastive_levels == "top"
    assert pretraining["video_first"].model.fusion_order == "video_first"
    assert pretraining["masks_90_80"].mask.mask_ratio == 0.9
    assert pretraining["baseline_again"].run.seed != base.run.seed
    for name, configs in pretraining.items():
        changed = [
            field
            for field in ("data", "clip", "model", "mask", "loss", "optim")
            if getattr(configs, field) != getattr(base, field)
        ]
        assert len(changed) == (name not in ("baseline", "baseline_again")), name
    finetuning = {r.folder.parts[-3]: settings_of(r) for r in ablations.calls[1]}
    assert not finetuning["no_feature_fusion"].classifier.hierarchical_fusion
    assert finetuning["no_pretraining"].classifier.finetune == ""
    for name, configs in finetuning.items():
        order = name if name.endswith("_first") else "both"
        assert configs.classifier.fusion_order == order
        own = name not in ("no_pretraining", "no_feature_fusion")
        if name != "no_pretraining":
            folder = name if own else "baseline"
            assert f"/pretrain/{folder}/checkpoint-" in configs.classifier.finetune
        assert configs.optim == finetuning["baseline"].optim


def test_a_choice_of_variants_comes_with_the_baseline(ablations, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--folds", "2", "--seeds", "3", "4"]
    ablations.main([*arguments, "--only", "no_feature_fusion", "--extra", "--epochs 1"])
    pretraining, finetuning = ablations.calls
    assert [run.product for run in pretraining] == ["checkpoint-0.pth"]
    assert [settings_of(run).run.seed for run in finetuning] == [3, 4, 3, 4]
    found = results(out)
    assert list(found) == ["baseline", "no_feature_fusion"]
    assert found["baseline"]["difference"] is None
    row = found["no_feature_fusion"]
    assert row["uar"] == row["war"] == [pytest.approx(0.75)] * 2
    assert row["difference"] == pytest.approx(-0.25)
    text = (out / "table.md").read_text()
    assert "over 2 run(s): folds 2, seeds 3 4 of fine-tuning" in text
    assert "by\nchance 3.1 %" in text


def test_folds_of_an_earlier_call_are_not_pooled_with_others(ablations, data, tmp_path):
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--only", "no_contrast"]
    ablations.main(arguments)
    with pytest.raises(SystemExit, match="seed0' holds fold2 of an earlier call; name all"):
        ablations.main([*arguments, "--folds", "1"])


def test_intervals_are_those_of_drawn_speakers(ablations, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--only", "no_contrast"]
    ablations.main(arguments)
    width = results(out)["no_contrast"]["half_width"]
    clips = [(f"fold{fold}_{k}", k) for fold in (1, 2) for k in range(24)]
    write_csv(data / "meta.csv", [["clip", "speaker"], *map(list, clips)])
    ablations.main(arguments)
    single = results(out)["no_contrast"]["half_width"]
    assert 0 < single < width, "errors fall on the same speakers"


def test_the_list_shows_flags_and_starts_nothing(ablations, capsys):
    ablations.main(["--list"])
    text = capsys.readouterr().out
    assert "| no_skips | no hierarchical skip connections | --no-skip_connections |" in text
    assert "| audio_first | fusion: audio first | --fusion_order audio_first |" in text
    assert len(text.splitlines()) == 15 and ablations.calls == []


def test_a_benchmark_that_is_not_there_is_named(ablations, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablations.main(["--data", str(tmp_path), "--only", "no_skips"])
    assert "make it with preprocess/toy_av.py" in capsys.readouterr().err
