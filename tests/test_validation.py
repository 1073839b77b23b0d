"""Validation on clips held out of the training list; results that no process count changes."""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import run_finetuning
import run_pretraining
from hicmae import EmotionRecognizer, finetuning, pretraining
from hicmae.config import FinetuneConfigs, PretrainConfigs
from hicmae.config.flags import given_flags, parse_configs
from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from hicmae.data.dataset import TestClips
from hicmae.data.splits import Lists, base_name
from hicmae.inference.export import export_run
from hicmae.inference.model import load_model
from hicmae.training import checkpoint, loop
from hicmae.training.evaluate import calibration, fit_temperature, predict
from hicmae.training.run import choose_precision
from hicmae.training.state import make_state
from tests.conftest import free_port, save_frames, save_wav
from tests.small_runs import FINETUNE, lines, rows, run_ranks

CPU = choose_precision("fp32", torch.device("cpu"))
SPEAKERS = ("ann", "bob", "cem", "dia")
BY_SPEAKER = ["--val_split", "speaker", "--speaker_pattern", "^([a-z]+)_", "--val_share"]


def arguments_of(folder, out, *arguments):
    return [*FINETUNE, "--data_path", str(folder), "--output_dir", str(out), "--nb_classes", "2",
            "--warmup_epochs", "0", "--epochs", "2", "--no-export", *arguments]  # fmt: skip


def finetune(*arguments):
    run_finetuning.main(arguments_of(*arguments))


def parse(*arguments):
    parser = run_finetuning.build_parser()
    return parse_configs(parser, FinetuneConfigs, given_flags(parser, arguments_of(*arguments)))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Clips of four speakers, two classes each; fold `task` names them as AVCAffe does."""
    root = tmp_path_factory.mktemp("validation")
    clips, numbers = [], []
    for k in range(8):
        frames = 30 + 5 * k
        noise = np.random.default_rng(k).normal(0, 0.1, frames * 640).astype(np.float32)
        name = f"{SPEAKERS[k // 2]}_task_{k % 2}_{k}"
        wav = save_wav(root / f"{name}.wav", noise)
        folder = save_frames(root / f"{name}_aligned", frames)
        clips.append(Clip(folder, wav, k % 2))
        numbers.append(Clip(folder, wav, (0.1 * k, 1 - 0.1 * k)))
    gone = [Clip(str(root / f"gone{k}"), str(root / f"gone{k}.wav"), 0) for k in range(2)]
    for name, train, test in (
        ("fold", clips, clips[:7]),  # 7: divisible by neither 2 nor 3
        ("numbers", numbers, numbers[:2]),  # 2: fewer than 3 processes
        ("bad", clips, [gone[1], *clips[3:6], gone[0]]),
    ):
        (root / name).mkdir()
        write_list(root / name / "train.csv", train)
        write_list(root / name / "test.csv", test)
    for task in ("classification", "regression"):
        torch.manual_seed(1)
        state = finetuning.make_model(parse("x", "y", "--task", task)).state_dict()
        checkpoint.save(root / f"{task}.pth", {"model": state})
    return root


def test_the_test_list_is_not_looked_at_before_the_final_test(media, tmp_path, monkeypatch):
    """Its files do not even exist: all epochs are trained and validated, and only then it fails."""
    trained = []
    (tmp_path / "train.csv").write_text((media / "fold" / "train.csv").read_text())
    (tmp_path / "test.csv").write_text(f"{tmp_path}/gone {tmp_path}/gone.wav 0\n")

    class Noted(finetuning.LabelledClips):
        def __init__(self, clips, **rest):
            trained.extend(clips)
            super().__init__(clips, **rest)

    monkeypatch.setattr(finetuning, "LabelledClips", Noted)
    with pytest.raises(RuntimeError, match="evaluation clip '.*gone' cannot be read"):
        finetune(tmp_path, tmp_path / "out", *BY_SPEAKER, "0.25")
    epochs = lines(tmp_path / "out/log.txt")
    assert [line["epoch"] for line in epochs] == [0, 1] and "val_uar" in epochs[1]
    assert (tmp_path / "out/checkpoint-best.pth").is_file()
    held = rows(tmp_path / "out/val_clips.csv")
    assert len(held) == 2 and len({row["speaker"] for row in held}) == 1
    names = {clip.video for clip in trained}
    assert len(names) == 6 and not names & {row["clip"] for row in held}


def test_results_and_record_say_which_held_out_speakers_chose_the_best_epoch(
    media, tmp_path, caplog
):
    names = [folder.name.removesuffix("_aligned") for folder in media.glob("*_aligned")]
    speakers, out = tmp_path / "who.csv", tmp_path / "out"
    speakers.write_text("\n".join(["clip,speaker", *(f"{name},{name[:3]}" for name in names)]))
    options = ["--val_split", "speaker", "--speaker_file", str(speakers), "--image_freq", "1"]
    with caplog.at_level("INFO"):
        finetune(media / "fold", out, *options, "--epochs", "1", "--val_share", "0.5")
    assert "for validation: 2 of 4 speakers or items, 4 of 8 clips" in caplog.text
    best = json.loads((out / "metrics_best.json").read_text())
    assert best["chosen_on"] == str(out / "val_clips.csv")
    # The temperature is of these clips too, of one view each, and goes with the export.
    model, _ = load_model(out / "checkpoint-0.pth")
    configs = parse(media / "fold", out, *options, "--val_share", "0.5")
    held = TestClips(finetuning.read_lists(configs).val, centre=True, **loop.clip_options(configs))
    views = [held.collate([held[ClipIndex(0, k)]]) for k in range(len(held))]
    _, labels, scores, _ = predict(model, views, CPU, "")
    found = best["calibration"]
    assert found["temperature"] == pytest.approx(fit_temperature(labels, scores), rel=1e-3)
    test = pd.read_csv(out / "pred_best.csv")
    probabilities = test.filter(regex=r"^p\d").to_numpy()
    assert found["before"] == pytest.approx(calibration(test["label"], probabilities), abs=1e-4)
    export_run(out)
    config = EmotionRecognizer.from_checkpoint(out / "export/best").config
    assert config.temperature == found["temperature"]
    for suffix in ("", "_best"):
        assert (out / f"reliability{suffix}.png").read_bytes().startswith(b"\x89PNG")


def test_clips_held_out_at_random_keep_items_whole(media, tmp_path):
    """Two clips of eight are an item, all of a speaker; alone, any two may be held out."""
    clips = read_labelled_list(media / "fold" / "train.csv")
    for part in ("train", "test"):
        same = [clip._replace(label=k // 2 % 2) for k, clip in enumerate(clips)]
        write_list(tmp_path / f"{part}.csv", same)
    options = ["--val_split", "clip", "--val_share", "0.25", "--average_clips"]
    owners = {"0": [], "2": []}
    for average, seed in itertools.product(owners, "0123"):
        flags = (tmp_path, tmp_path, *options, average, "--seed", seed)
        names = [clip.video for clip in finetuning.read_lists(parse(*flags)).val]
        assert len(names) == 2
        owners[average].append(len({base_name(name)[:3] for name in names}))
    assert owners["2"] == [1] * 4 and 2 in owners["0"]


def test_labels_that_differ_within_an_item_are_refused_before_training(media, tmp_path):
    with pytest.raises(ValueError, match="are one item by --average_clips 2, but have the labels"):
        finetune(media / "fold", tmp_path / "out", "--average_clips", "2")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_share_of_the_labels_is_drawn_after_the_validation_clips(media, tmp_path):
    options = ["--val_split", "clip", "--val_share", "0.25", "--linear_probe", "--label_share"]
    finetune(media / "fold", tmp_path, *options, "0.5", "--epochs", "1")
    names = ("val_clips.csv", "train_clips.csv")
    held, trained = ({row["clip"] for row in rows(tmp_path / name)} for name in names)
    assert len(held) == 2 and len(trained) == 4 and not held & trained
    assert "clips: train 4, validation 2" in (tmp_path / "run.log").read_text()
    with pytest.raises(ValueError, match="label_share 0.5 -> 1.0, clips of the training list"):
        finetune(media / "fold", tmp_path, *options, "1", "--epochs", "1")


# Fold, task, batch size, more flags.
CASES = [
    ("fold", "classification", 1, []),
    ("fold", "classification", 5, ["--average_clips", "3"]),  # here every clip is an item
    ("numbers", "regression", 3, []),
    ("bad", "classification", 2, ["--skip_bad_test_clips"]),
    ("bad", "classification", 5, ["--skip_bad_test_clips"]),
]


def run_cases(rank, world, root, ports):
    """Test all cases as one of `world` processes."""
    for number, (fold, task, batch_size, flags) in enumerate(CASES):
        if world > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
            os.environ |= {name: str(value) for name, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[number])}
        options = ["--task", task, "--batch_size", str(batch_size), *flags]
        options += ["--eval", "--resume", str(root / f"{task}.pth")]
        finetune(root / fold, root / f"{world}-{number}", *options)


@pytest.fixture(scope="module")
def results(media):
    """Bytes of the result files by number of processes and case."""
    for world in (1, 2, 3):
        run_ranks(world, run_cases, world, media, [free_port() for _ in CASES])
    return {
        (world, number): {
            path.name: path.read_bytes()
            for kind in ("pred*.csv", "metrics*.json")
            for path in (media / f"{world}-{number}").glob(kind)
        }
        for world in (1, 2, 3)
        for number in range(len(CASES))
    }


@pytest.mark.parametrize("case", range(len(CASES)))
def test_one_two_and_three_processes_write_the_same_bytes(results, case):
    files = results[1, case]
    assert {"pred.csv", "metrics.json"} <= files.keys()
    assert results[2, case] == files and results[3, case] == files


def test_batch_size_and_sharing_change_no_byte_and_clips_are_counted_once(results):
    assert results[1, 1]["pred_clips.csv"] == results[1, 0]["pred.csv"]
    assert results[1, 3] == results[1, 4]
    metrics = json.loads(results[3, 3]["metrics.json"])
    assert metrics["clips"] == 3
    skipped = [Path(line.split(":")[0]).name for line in metrics["skipped"]]
    assert skipped == ["gone0", "gone1"]
    assert json.loads(results[3, 2]["metrics.json"])["clips"] == 2, "one of three ranks had none"


def lists_of(train, test):
    sides = [
        [Clip(f"c{k}", f"c{k}.wav", label) for k, label in enumerate(s)] for s in (train, test)
    ]
    return Lists(sides[0], sides[1], sides[1], "fold/test.csv", {}, True)


@pytest.mark.parametrize(
    "flags, train, test, facts",
    [
        ("", [1, 1], [0, 1, 0], ["'fold/train.csv'", "0 (a)", "all 2 of --nb_classes"]),
        ("", [0, 1], [0, 0], []),
        ("sigmoid", [(0.0, 1.0)], [(0.5, 1.5)], ["fold/test.csv", "1 of 2", "1.5", "c0", "0 to 1"]),
        ("tanh", [(0.5, -2.0)], [(-1.0, 1.0)], ["fold/train.csv", "-2", "-1 to 1", "tanh"]),
        ("relu", [(0.0, 9.0)], [(0.5, 9.0)], []),
    ],
)
def test_labels_that_training_cannot_reach_are_told(flags, train, test, facts, caplog):
    flags = f"--task regression --head_activation {flags}" if flags else ""
    configs = parse("fold", "out", *flags.split())
    finetuning.check_training(configs, lists_of(train, test), ["a", "b"])
    assert len(caplog.messages) == bool(facts)
    assert all(fact in caplog.text for fact in facts), caplog.text


def test_a_correlation_of_one_clip_is_refused():
    flags = ["--task", "regression", "--loss", "ccc", "--num_samples", "2", "--batch_size"]
    lists = lists_of([(0.0, 1.0)], [(0.0, 1.0)])
    finetuning.check_training(parse("fold", "out", *flags, "2"), lists, ["a", "b"])
    with pytest.raises(ValueError, match="--loss ccc .*--batch_size 1.* 2 or more"):
        finetuning.check_training(parse("fold", "out", *flags, "1"), lists, ["a", "b"])


@pytest.mark.parametrize(
    "flags, told",
    [("", 1), ("--gather_negatives", 1), ("--num_samples 2", 0), ("--contrastive_levels none", 0)],
)
def test_a_contrast_with_nothing_is_told(flags, told, caplog):
    start = "--data_path list.csv --output_dir out --batch_size 1"
    parser = run_pretraining.build_parser()
    given = given_flags(parser, f"{start} {flags}".split())
    pretraining.warn_of_contrast(parse_configs(parser, PretrainConfigs, given))
    assert caplog.text.count("--batch_size 1") == told


def test_a_warm_up_beyond_the_training_is_shortened_and_graphs_take_one_pass_a_step(caplog):
    configs = parse("fold", "out", "--epochs", "1", "--warmup_epochs", "5", "--batch_size", "2")
    run = SimpleNamespace(config=configs.run, precision=CPU)
    loader = DataLoader(range(8), 2)
    state = make_state(run, configs, torch.nn.Linear(2, 2), loader, {})
    assert "--warmup_epochs 5 is more than --epochs 1" in caplog.text
    assert len(state.plan.lr) == 4 and (np.diff(state.plan.lr) > 0).all()
    graphs = replace(configs.run, compile=True, cuda_graphs=True)
    twice = configs._replace(run=graphs, optim=replace(configs.optim, accum_iter=2))
    with pytest.raises(ValueError, match="--cuda_graphs with 2 passes a step"):
        make_state(run, twice, torch.nn.Linear(2, 2), loader, {})
