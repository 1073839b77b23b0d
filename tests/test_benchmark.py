"""Every benchmark as a user starts it, with a tiny model and on a few short clips."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from hicmae.config import PretrainConfigs
from hicmae.config.flags import from_dict, new_parser
from hicmae.data.batches import ClipIndex
from hicmae.data.dataset import PretrainClips
from hicmae.data.loader import item_generator
from scripts import benchmark_data as data
from scripts import benchmark_models as models
from scripts.benchmark import FeedConfig, TaskConfig, main
from tests.preprocess.media_files import needs_weights
from tests.small_runs import PRETRAIN, ROOT

TINY = ["--model", "tiny", "--device", "cpu", "--steps", "2", "--warmup", "1"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips that are kept in a folder of their own, and shorter than VoxCeleb2's."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SECONDS", 5)
        patch.setattr(data, "CACHE", tmp_path_factory.mktemp("clips"))
        yield data.make_clips(2)
    torch.set_num_threads(threads)


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
    errors = models.measure_errors(task, config)
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
    found = models.count_flops("pretrain", TaskConfig(model="t"))
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
        monkeypatch.setattr(models.time, clock, lambda: now[0])
    variants = {name: partial(spend, name) for name in "ab"}
    times = models.measure_in_turns(variants, 2, 1)
    assert "".join(order) == "ababab" and list(times.variant) == list("abab")
    rows = models.compared(times, "a", {"a": 1, "b": 3}, "mean")
    assert rows.clips_per_s.to_dict() == {"a": 0.5, "b": 3}
    assert rows.ratio["b"] == rows.ratio_cpu_time["b"] == 6


def test_the_committed_files_make_the_committed_table_and_devices_their_own(tmp_path, capsys):
    folder = ROOT / "saved/benchmarks"
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


def test_the_plain_loader_yields_our_tensors(clips, pretrain_clips, write_mp4, write_wav):
    plain = pytest.importorskip("tests.plain.loader", reason="needs decord")
    video, audio = write_mp4("short.mp4", 30), write_wav("short.wav", 19200)
    short = [pretrain_clips[0]._replace(video=video, audio=audio), *pretrain_clips[3:]]
    items = [(clips, ClipIndex(epoch, epoch % 2)) for epoch in range(6)]
    for listed, item in items + [(short, ClipIndex(1, index)) for index in range(3)]:
        ours, clip = PretrainClips(listed, source_crop="voxceleb2")[item], listed[item.index]
        ours = ours.to("cpu")
        video, video_mask, audio, audio_mask = plain.load_clip(
            clip.video, clip.audio, item_generator(0, item)
        )
        assert torch.equal(ours.video[0], video)
        assert torch.equal(ours.video_mask[0], video_mask)
        assert torch.equal(ours.audio_mask[0], audio_mask)
        torch.testing.assert_close(ours.audio[0], audio, atol=1e-6, rtol=0)


def test_clips_are_like_voxceleb2s_and_are_kept(clips):
    bit_rate = Path(clips[0].video).stat().st_size * 8 / data.SECONDS
    assert bit_rate == pytest.approx(data.BIT_RATE, rel=0.1)
    before = {path: path.stat().st_mtime_ns for path in data.CACHE.iterdir()}
    assert data.make_clips(2) == clips
    assert {path: path.stat().st_mtime_ns for path in data.CACHE.iterdir()} == before


def test_reading_is_measured(clips, tmp_path, capsys):
    pytest.importorskip("decord")
    rows = figures(tmp_path, *"loader --num_clips 2 --steps 2 --num_samples 2".split())["variants"]
    assert [*rows] == ["plain", "mp4", "mp4_samples", "shards", "shards_samples"]
    assert rows["plain"]["ratio_cpu_time"] == 1
    for name, row in rows.items():
        samples = 2 if name.endswith("samples") else 1
        assert row["clips_per_s"] == pytest.approx(samples / row["step_s"])
    assert "shards_samples" in capsys.readouterr().out


def test_all_kinds_read_the_same_windows(clips, tmp_path):
    kinds = data.own_items(clips, 1), data.own_items(data.pack(clips, tmp_path, 100), 1)
    for _ in range(3):
        one, other = (next(items) for items in kinds)
        assert one.names == other.names and torch.equal(one.audio, other.audio)
        assert (one.video.float() - other.video.float()).abs().mean() < 3


def test_waiting_and_slowing_down_are_told_apart(monkeypatch):
    """Two batches a step are waited for 3 s each and computed in 2; from one that is there, in 1.6.

    So 0.4 s of a step are lost otherwise. The time from asking for a batch to having it is waiting.
    """
    now = [0.0]
    monkeypatch.setattr(models.time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    def loading():
        for _ in range(6):
            spend(3.0)
            yield "batch"

    monkeypatch.setattr(models, "train_step", lambda *_: spend(2.0))
    flags = [*PRETRAIN, "--accum_iter", "2", "--data_path", "-", "--output_dir", "-"]
    configs = from_dict(PretrainConfigs, new_parser("", PretrainConfigs).parse_args(flags))
    config = FeedConfig(steps=2, warmup=1)
    seen, waits = data.train(configs, models.arithmetic(configs.run), loading(), config)
    fixed = pd.DataFrame([("fixed", 1.6, 0.1)], columns=seen.columns)
    found = data.feed_rates(pd.concat([seen, fixed]), waits, clips=4)
    assert (found["step_s"], found["fixed_step_s"]) == (8.0, 1.6)
    assert (found["clips_per_s"], found["fixed_clips_per_s"]) == pytest.approx((0.5, 2.5))
    assert (found["wait_share"], found["slower_share"]) == pytest.approx((0.75, 0.8))
    assert found["voxceleb2_days"] == pytest.approx(1_091_581 * 100 / 0.5 / 86400)


def test_training_is_fed_from_a_list_and_from_shards(clips, tmp_path, capsys):
    data.pack(clips, tmp_path, 95)
    flags = [*PRETRAIN, *"--steps 2 --warmup 1 --num_workers 1 --accum_iter 2".split()]
    for source in ("clips.csv", "packed"):
        found = figures(tmp_path, "feed", *flags, "--data_path", str(tmp_path / source))
        assert found["device"].startswith("cpu") and found["num_workers"] == 1
        assert 0 < found["wait_share"] < 1 and found["clips_in_list"] == 2
        assert all(found[name] > 0 for name in ("clips_per_s", "fixed_clips_per_s", "step_s"))
    assert "voxceleb2_days" in capsys.readouterr().out


def test_growth_is_a_table_of_ratios_to_the_first_row(clips, tmp_path, capsys, monkeypatch):
    """The processes of ranks are made up here, and lists are read in this one."""

    def train(command, **_):
        found = {"step_s": 2.0, "cpu_s": 0.5 * int(command[4][-1])}
        Path(command[command.index("--json") + 1]).write_text(json.dumps(found))

    monkeypatch.setattr(data, "subprocess", SimpleNamespace(run=train, DEVNULL=None))
    monkeypatch.setattr(models, "alone", lambda work, *arguments: work(*arguments))
    flags = "--models tiny --batch_size 1 2 --ranks 1 2 --lines 4 40 --steps 1".split()
    rows = pd.DataFrame(figures(tmp_path, "growth", *flags)["rows"])
    assert rows["size"].tolist() == [1, 2, 1, 2, 4, 4, 40, 40] and rows.what.nunique() == 4
    for _, group in rows.groupby("what"):
        per_s = group["size"] / group.wall
        assert group.ratio.tolist() == pytest.approx((per_s / per_s.iloc[0]).tolist())
    ranks = rows[rows.what.str.startswith("processes")]
    assert ranks.ratio.tolist() == [1, 2] and ranks.ratio_cpu_time.tolist() == [1, 0.5]
    shown = capsys.readouterr().out
    assert shown.startswith("cpu (") and "| processes (gloo), t" in shown


@pytest.mark.slow
@needs_weights
def test_a_first_prediction_and_faces_are_measured(clips, tmp_path):
    found = figures(tmp_path, *"faces --steps 1 --detect_every 5 25".split())
    assert sum(found["cold_shares"].values()) == pytest.approx(1)
    assert min(found["cold_shares"].values()) > 0
    often, seldom = found["faces"]
    assert often["faster"] == 1 < seldom["faster"]
    assert max(often["eye_error"], seldom["eye_error"]) < 0.06
