"""Whole runs of both scripts on small real files, alone and in two processes."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import run_finetuning
import run_pretraining
from hicmae.training import checkpoint
from tests.boards import board, sessions
from tests.small_runs import PRETRAIN, Job, finetune, lines, make_media, pretrain, rows

TESTS = {"last": "", "best": "_best"}  # suffixes of the files with the tests' results


def metrics_of(folder, suffix=""):
    return json.loads((folder / f"metrics{suffix}.json").read_text())


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Six mp4 and wav pairs, six frame folders, and lists of them in folder `lists`."""
    return make_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def pretrained(media):
    """The output folder of two epochs of pre-training."""
    return pretrain(media, media / "pretrained", "--epochs", "2", "--image_freq", "1")


@pytest.fixture(scope="module")
def finetuned(media, pretrained):
    """The output folder of two epochs of fine-tuning from there."""
    flags = ["--val_metric", "uar", "--image_freq", "1"]
    flags += ["--finetune", str(pretrained)]  # its newest checkpoint
    return finetune(media, media / "finetuned", "--epochs", "2", *flags)


def test_pretraining_logs_every_part_and_keeps_whole_checkpoints(pretrained):
    steps, epochs = lines(pretrained / "steps.jsonl"), lines(pretrained / "log.txt")
    assert [line["step"] for line in steps] == list(range(6))
    for name in ("loss_video", "loss_audio", "loss_contrastive", "contrastive_acc_1", "grad_norm"):
        mean = np.mean([line[name] for line in steps[:3]])
        assert epochs[0][f"train_{name}"] == pytest.approx(mean)
    assert steps[-1]["loss"] < steps[0]["loss"]
    config = json.loads((pretrained / "config.json").read_text())
    assert config["mask"]["mask_ratio"] == 0.5 and config["optim"]["epochs"] == 2
    state = torch.load(pretrained / "checkpoint-1.pth", weights_only=True)
    assert {"model", "optimizer", "scaler", "args"} <= state.keys() and state["epoch"] == 1


def test_tensorboard_shows_a_run_where_it_comes_from_and_its_final_losses(pretrained):
    tags = board(pretrained).Tags()
    assert {"reconstruction/0", "reconstruction/1"} <= set(tags["images"])
    wanted = {"loss", "loss_video", "contrastive_acc_0", "lr", "weight_decay", "grad_norm"}
    assert {f"train/{name}" for name in wanted | {"clips_per_s"}} <= set(tags["scalars"])
    assert f", torch {torch.__version__}: " in (pretrained / "run.log").read_text()
    ((name, (status, settings, metrics)),) = sessions(pretrained).items()
    assert (name, status) == ("final", "SUCCESS")
    assert settings["mask_ratio"] == 0.5 and settings["return_intermediate_features"] == "0 1"
    assert "output_dir" not in settings and settings["total_batch"] == 2
    last = lines(pretrained / "log.txt")[-1]
    names = "loss loss_video loss_audio loss_contrastive contrastive_acc_0 contrastive_acc_1"
    expected = {f"train_last/{n}": last[f"train_{n}"] for n in names.split()}
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_finetuning_starts_from_pretraining_and_tests_last_and_best(finetuned):
    log = (finetuned / "run.log").read_text()
    assert "the same clips as the test list" in log and "100.0% of the encoder weights" in log
    for suffix in TESTS.values():
        table, metrics = rows(finetuned / f"pred{suffix}.csv"), metrics_of(finetuned, suffix)
        assert len(table) == metrics["clips"] == 5 and metrics["skipped"] == []
        for row in table:
            scores = [float(row[f"p{k}"]) for k in range(3)]
            assert sum(scores) == pytest.approx(1, abs=1e-4)
            assert int(row["prediction"]) == int(np.argmax(scores))
        right = np.mean([row["label"] == row["prediction"] for row in table])
        assert metrics["war"] == pytest.approx(right)
    best, epochs = metrics_of(finetuned, "_best"), lines(finetuned / "log.txt")
    assert best["chosen_on"].endswith("test.csv")
    assert max(line["val_uar"] for line in epochs) == epochs[best["epoch"]]["val_uar"]
    assert [line["epoch"] for line in epochs] == [0, 1]


def test_tensorboard_shows_classes_and_tests_of_a_finetuning_run(finetuned):
    events = board(finetuned)
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    steps = [event.step for event in events.Scalars("train/lr")]
    wanted = {"val/uar", "val/war", "val_recall/class 0", "train/grad_norm", "train/data_s"}
    assert wanted <= set(scalars)
    (command,) = events.Tensors("command/text_summary")
    assert "hicmae 0." in command.tensor_proto.string_val[0].decode()
    layers = [events.Scalars(f"lr/layer{k}")[-1].value for k in range(2)]
    assert layers[0] == pytest.approx(0.75 * layers[1])
    ends = [event.step for event in events.Scalars("val/uar")]
    assert [event.step for event in events.Images("val/confusion")] == ends == [2, 5]
    assert images == ["val/confusion"] and steps == [1, 2, 4, 5]
    ((_, (status, settings, metrics)),) = sessions(finetuned).items()
    tests = {k: metrics_of(finetuned, suffix) for k, suffix in TESTS.items()}
    expected = {f"test_{k}/{n}": tests[k][n] for k in TESTS for n in ("uar", "war", "weighted_f1")}
    expected["val_best/uar"] = max(line["val_uar"] for line in lines(finetuned / "log.txt"))
    assert status == "SUCCESS" and settings["layer_decay"] == 0.75
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_regression_writes_every_output_and_its_metrics(media, tmp_path):
    arguments = ["--task", "regression", "--loss", "ccc", "--val_metric", "ccc"]
    finetune(media, tmp_path, *arguments, fold="numbers", classes="2")
    table, metrics = rows(tmp_path / "pred.csv"), metrics_of(tmp_path)
    assert [float(row["label1"]) for row in table] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    error = [float(row["prediction0"]) - float(row["label0"]) for row in table]
    assert metrics["mae"]["per_output"][0] == pytest.approx(np.abs(error).mean(), abs=1e-5)
    assert "val_ccc" in lines(tmp_path / "log.txt")[0]
    ((_, (status, _, final)),) = sessions(tmp_path).items()
    assert status == "SUCCESS" and final["test_last/ccc"] == pytest.approx(metrics["ccc"]["mean"])
    assert {"test_best/pcc", "test_last/rmse", "val_best/ccc"} <= final.keys()


def test_repeated_sampling_and_accumulation_run(media, tmp_path):
    pretrain(media, tmp_path, "--num_samples", "2", "--total_batch", "6", "--gather_negatives",
             "--clip_grad", "1", "--precision", "bf16")  # fmt: skip
    assert len(lines(tmp_path / "steps.jsonl")) == 1
    optim = json.loads((tmp_path / "config.json").read_text())["optim"]
    assert (optim["batch_size"], optim["accum_iter"]) == (2, 3)
    assert board(tmp_path).Tags()["images"] == []


def test_two_processes_pretrain_as_one_does_on_the_joined_batch(media, tmp_path):
    """Batches of 1 + 1 and of 2 hold the same clips; gathered negatives make the losses equal."""
    base = [*PRETRAIN, "--data_path", media / "lists", "--epochs", "2", "--gather_negatives"]
    run_pretraining.main([*map(str, base), "--output_dir", str(tmp_path / "one")])
    Job("run_pretraining", base, tmp_path, 2).complete("--batch_size", "1", out=tmp_path / "two")
    one, two = lines(tmp_path / "one/log.txt"), lines(tmp_path / "two/log.txt")
    for mine, other in zip(one, two, strict=True):
        for name in ("loss", "loss_video", "loss_audio", "loss_contrastive", "grad_norm"):
            assert mine[f"train_{name}"] == pytest.approx(other[f"train_{name}"], rel=1e-4), name
    assert len(list((tmp_path / "two").rglob("events*"))) == 2, "one rank writes: curves, final"
    assert sessions(tmp_path / "two")["final"][1]["processes"] == 2


def test_a_bad_list_ends_a_script_in_one_line(tmp_path):
    (tmp_path / "train.csv").write_text("only_one_field\n")
    job = Job("run_pretraining", [*PRETRAIN, "--data_path", tmp_path / "train.csv"], tmp_path)
    (run,) = job.start()
    assert run.wait() == 1
    assert re.search(r"error: .*train.csv:1: expected .*\n$", run.output())
    assert "Traceback" not in run.output()
    assert "Traceback" in job.log(), "the trace is kept in run.log"


def test_ranks_count_broken_clips_together_and_stop_together(media, tmp_path):
    """Each rank meets about half of the broken clips; only all of them are too many."""
    broken, listed = [tmp_path / f"broken{k}.mp4" for k in range(4)], tmp_path / "train.csv"
    for path in broken:
        path.write_text("no video at all")
    good = (media / "lists/train.csv").read_text().splitlines()[:4]
    listed.write_text("\n".join([*good, *(f"{path} 0" for path in broken)]) + "\n")
    flags = ["--data_path", listed, "--batch_size", "1", "--epochs", "1"]
    job = Job("run_pretraining", [*PRETRAIN, *flags], tmp_path / "job", 2)
    job.out.mkdir()
    (job.out / "skipped_clips.csv").write_text("video,reason\nof another run,gone\n")
    group = job.start("--max_bad_clips", "0.45")
    assert [run.wait() for run in group] == [1, 1]
    table = [row["video"] for row in rows(job.out / "skipped_clips.csv")]
    assert sorted(table) == sorted(map(str, broken))
    assert all("4 of 8 clips (50.00%) cannot be read" in run.output() for run in group)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch_size", "50"], "expected at least one batch of 50; lower --batch_size"),
        (["--accum_iter", "9"], "fewer than --accum_iter 9"),
        (["--resume", "missing.pth"], "checkpoint 'missing.pth' does not exist"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU"),
        (["--device", "cuda:99"], "--device cuda:99, but torch sees "),
        (["--output_dir", __file__], "folder '.*test_runs.py' cannot be made .File exists"),
    ],
)
def test_impossible_runs_are_refused(media, tmp_path, arguments, message):
    with pytest.raises((ValueError, RuntimeError, OSError), match=message):
        pretrain(media, tmp_path, *arguments)


def test_the_folder_of_a_run_is_resumed_from_its_newest_state_unless_that_is_not_finite(
    pretrained, media, tmp_path
):
    going = ["--epochs", "2", "--save_ckpt_freq", "1"]
    pretrain(media, tmp_path / "on", *going, "--resume", str(pretrained))
    log = (tmp_path / "on/run.log").read_text()
    assert f"resumed from {pretrained / 'checkpoint-1.pth'}" in log
    state = checkpoint.load(pretrained / "checkpoint-1.pth")
    state["model"]["encoder.norm.bias"][3] = torch.inf
    checkpoint.save(tmp_path / "checkpoint-1.pth", state)
    with pytest.raises(ValueError, match="checkpoint-1.pth.*'encoder.norm.bias' holds .* nan or i"):
        pretrain(media, tmp_path / "bad", *going, "--resume", str(tmp_path))


def test_a_checkpoint_of_another_model_is_neither_resumed_nor_tested(pretrained, media, tmp_path):
    resume = ["--resume", str(pretrained / "checkpoint-1.pth")]
    deeper = [*resume, "--epochs", "3", "--encoder_fusion_depth", "2"]
    with pytest.raises(ValueError, match="--encoder_fusion_depth 1 -> 2, .*--allow_changes"):
        pretrain(media, tmp_path, *deeper)
    with pytest.raises(ValueError, match="does not fit this model"):
        pretrain(media, tmp_path, *deeper, "--allow_changes")
    with pytest.raises(ValueError, match="testing needs a fine-tuned checkpoint"):
        finetune(media, tmp_path, "--eval", *resume)


def test_a_test_asks_the_checkpoint_and_leaves_the_results_of_others(finetuned, media, tmp_path):
    """No flag says how the model looks; lists, checkpoints and the run have files of their own."""
    out = shutil.copytree(finetuned, tmp_path / "out")
    before = {path: path.read_bytes() for path in [*out.glob("metrics*"), *out.glob("pred*")]}
    (tmp_path / "fold").mkdir()
    rows_of_test = (media / "fold/test.csv").read_text().splitlines(keepends=True)
    (tmp_path / "fold/test.csv").write_text("".join(rows_of_test[:3]))
    best = str(out / "checkpoint-best.pth")
    for fold, count, flags in ((media, 5, ["--resume", best]), (media, 5, []), (tmp_path, 3, [])):
        where = ["--data_path", str(fold / "fold"), "--output_dir", str(out), "--eval"]
        run_finetuning.main([*where, "--device", "cpu", "--num_workers", "0", *flags])
        newest = max(out.glob("metrics_eval*"), key=lambda path: path.stat().st_mtime_ns)
        metrics = json.loads(newest.read_text())
        assert metrics["list"] == str(fold / "fold/test.csv") and metrics["clips"] == count
        assert len(rows(out / f"{newest.stem.replace('metrics', 'pred')}.csv")) == count
    names = {path.name for path in out.glob("metrics_eval*")}
    assert names == {f"metrics_eval-{end}.json" for end in ("best-fold", "1-fold", "1-fold-2")}
    assert metrics_of(out, "_eval-best-fold")["war"] == metrics_of(out, "_best")["war"]
    assert {path: path.read_bytes() for path in before} == before
    for flags, facts in (
        ("--num_frames 8 --modality a", "--modality a .*av.*--num_frames 8 .*4"),
        ("--nb_classes 4", "--nb_classes 4 .*3"),
        ("--task regression --head_activation tanh", "--task regression .*classification"),
    ):
        with pytest.raises(ValueError, match=facts):
            run_finetuning.main([*where, *flags.split()])


def test_a_resumed_run_takes_clips_and_model_from_the_checkpoint(
    pretrained, finetuned, media, tmp_path, caplog
):
    caplog.set_level("INFO")
    flags = ("--mask_ratio 0.5 --use_frame_diff_as_target --roll_mag_aug --batch_size 2 --epochs 2 "
             "--warmup_epochs 1 --lr 0.05 --device cpu --num_workers 0")  # fmt: skip
    where = ["--data_path", str(media / "lists"), "--output_dir", str(tmp_path)]
    where += ["--resume", str(pretrained / "checkpoint-1.pth")]
    run_pretraining.main([*where, *flags.split()])
    assert "training is finished: all 2 epochs are done" in caplog.text
    with pytest.raises(ValueError, match="another run: --num_frames 4 -> 8;"):
        run_pretraining.main([*where, *flags.split(), "--num_frames", "8"])
    where = ["--data_path", str(media / "fold"), "--output_dir", str(tmp_path / "fine")]
    flags = "--batch_size 2 --device cpu --num_workers 0 --seed 9"  # a run folder with exports
    message = "another run: (?!.*(frames|depth|classes)).*--seed 0 -> 9"
    with pytest.raises(ValueError, match=message):
        run_finetuning.main([*where, "--resume", str(finetuned), *flags.split()])
