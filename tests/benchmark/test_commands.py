"""Every benchmark of a model as a user starts it, with a tiny model."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from scripts import benchmark_models
from scripts.benchmark import TaskConfig, main

TINY = ["--model", "tiny", "--device", "cpu", "--steps", "2", "--warmup", "1"]


def figures(tmp_path, command, *more):
    path = tmp_path / "new" / "figures.json"
    assert main([command, *more, "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("command", ["pretrain", "finetune", "infer"])
def test_commands_write_their_figures(tmp_path, capsys, command):
    found = figures(tmp_path, command, *TINY, "--no-more", "--batch_size", "1", "2")
    assert found.keys() >= {"device", "model", "precision", "cpu_gemm", "step_s_quartile1", "cpu_s",
                            "date", "torch", "load_average", "ratio_cpu_time"}  # fmt: skip
    assert found["benchmark"] == command and "--batch_size 1 2" in found["command"]
    assert [row["batch_size"] for row in found["batches"]] == [1, 2]
    best = max(found["batches"], key=lambda row: row["clips_per_s"])
    assert found["batch_size"] == best["batch_size"] and found["ratio"] == best["ratio"]
    assert found["clips_per_s"] == pytest.approx(found["batch_size"] / found["step_s"])
    assert found["ratio"] == pytest.approx(found["clips_per_s"] / found["plain_clips_per_s"])
    assert found["flops_per_s"] == pytest.approx(found["flops_per_clip"] * found["clips_per_s"])
    if command == "infer":
        assert found["ratio_per_view"] == pytest.approx(found["ratio"] / 2)
    assert "plain_clips_per_s" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_peaks_and_errors_are_measured(tmp_path):
    found = figures(tmp_path, "pretrain", *TINY, "--batch_size", "2")
    ratio = found["peak_memory"] / found["plain_peak_memory"]
    assert found["peak_memory_ratio"] == pytest.approx(ratio)
    assert 2**20 < found["peak_memory"] < 2**30
    assert found["peak_flops_per_s"] > found["flops_per_s"]
    assert 0 < found["prediction_error"] < 1e-4
    levers = ["--precision", "bf16", "--checkpoint_activations", "--no-plain"]
    found = figures(tmp_path, "pretrain", *TINY, *levers, "--batch_size", "2")
    assert found["precision"] == "bf16" and found["checkpoint_activations"]
    assert "ratio" not in found and found["gradient_error"] > 1e-4, "bf16 rounds"


@pytest.mark.parametrize("task", ["pretrain", "finetune", "infer"])
def test_errors_are_those_against_float64(task):
    config = TaskConfig(model="tiny", device="cpu", precision="fp32")
    errors = benchmark_models.measure_errors(task, config)
    assert len(errors) == (1 if task == "infer" else 3)
    assert all(0 < error < 1e-4 for error in errors.values())


def block(tokens, dim, context=0):
    """Count a block by hand: self-attention and MLP, with a context cross-attention before."""
    own = 2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim
    cross = 4 * tokens * dim**2 + 4 * context * dim**2 + 4 * tokens * context * dim
    return own + (cross if context else 0)


def decoder(tokens, visible, values):
    """Count a decoder of four blocks, 128 wide, that rebuilds so many values of each token."""
    head, projections = 2 * (tokens - visible) * 128 * values, 4 * 2 * visible * 256 * 128
    return head + projections + block(tokens, 128) + 3 * block(tokens, 128, visible)


def test_operations_are_those_counted_by_hand():
    fusion = 2 * (block(80, 256, 26) + block(26, 256, 80))
    embedding = 2 * 80 * 1536 * 256 + 2 * 26 * 256 * 256
    encoders = embedding + 10 * (block(80, 256) + block(26, 256))
    forward = encoders + fusion + decoder(800, 80, 1536) + decoder(128, 26, 256)
    # Two more for each product in the backward pass, but none for the gradient of the clips.
    found = benchmark_models.count_flops("pretrain", TaskConfig(model="t"))
    assert found == pytest.approx(3 * forward - embedding, rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("pretrain --batch_size 0", "--batch_size must be > 0, got .*0"),
        ("pretrain --device cpu --precision fp16", "fp16 needs a GPU"),
        ("pretrain --cuda_graphs", "add --compile"),
        ("feed", "no clips to read; give --data_path or --make_clips"),
        ("feed --device cpu --data_path /nowhere.csv", "'/nowhere.csv' does not exist"),
        ("feed --mask_ratio 2", "--mask_ratio must be > 0 and < 1"),
        ("loader --json /proc/none/a.json", "/proc/none"),
        ("table {here}", "holds no JSON file of pretrain, finetune, infer"),
        ("table {here}/torn", "a.json: no JSON"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/a.json").write_text("{")
    try:
        code = main(arguments.format(here=tmp_path).split())
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code in (1, 2) and error.count("\n") == 1 and re.search(message, error), error


def test_variants_take_turns_and_are_compared_with_the_base(monkeypatch):
    now, seconds = [0.0], {"a": 2.0, "b": 1.0}
    order = []

    def spend(name):
        order.append(name)
        now[0] += seconds[name]

    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(benchmark_models.time, clock, lambda: now[0])
    variants = {name: partial(spend, name) for name in "ab"}
    times = benchmark_models.measure_in_turns(variants, 2, 1)
    assert "".join(order) == "ababab" and list(times.variant) == list("abab")
    rows = benchmark_models.compared(times, "a", {"a": 1, "b": 3}, "mean")
    assert rows.clips_per_s.to_dict() == {"a": 0.5, "b": 3}
    assert rows.ratio["b"] == rows.ratio_cpu_time["b"] == 6


def test_the_committed_files_make_the_committed_table_and_devices_their_own(tmp_path, capsys):
    folder = Path(__file__).parents[2] / "saved/benchmarks"
    assert main(["table", str(folder)]) == 0
    page = {" ".join(line.split()) for line in (folder / "README.md").read_text().splitlines()}
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()][4:]
    assert len(rows) == 10 and set(rows) <= page
    row = json.loads((folder / "cpu_infer_b.json").read_text()) | {"device": "X", "compile": True}
    for name, device in (("a", "X"), ("b", "Y")):
        (tmp_path / f"{name}.json").write_text(json.dumps(row | {"device": device}))
    assert main(["table", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("fp32 (onednn), compile") == 2 and "\nY, 2026-11-23:\n" in shown


@pytest.mark.slow
def test_formats_are_compared(tmp_path, capsys):
    flags = ["--model", "tiny", "--steps", "2", "--warmup", "1"]
    rows = {row["format"]: row for row in figures(tmp_path, "formats", *flags)["formats"]}
    assert [*rows] == ["fp32", "bf16", "onnx", "int8"]
    assert rows["fp32"]["difference"] == 0 and 0 < rows["onnx"]["difference"] < 1e-4
    assert rows["int8"]["megabytes"] < rows["fp32"]["megabytes"] / 2
    assert all(row["p50_s"] <= row["p95_s"] for row in rows.values())
    assert "| int8" in capsys.readouterr().out
