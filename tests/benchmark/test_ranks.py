"""What ranks cost: the arithmetic of the comparison, the paper, and a tiny run."""

import argparse
import json

import pytest
import timm

from hicmae.benchmark import links, ranks
from hicmae.benchmark.__main__ import main
from hicmae.config import new_parser
from hicmae.training.run import num_parameters

TINY = ["--model", "pretrain_hicmae_dim128_patch16_160_a256", "--encoder_depth", "1",
        "--encoder_depth_audio", "1", "--decoder_depth", "2", "--decoder_depth_audio", "2",
        "--encoder_fusion_depth", "1", "--return_intermediate_features", "0",
        "--mask_ratio", "0.5", "--batch_size", "2", "--num_frames", "4", "--sampling_rate", "8",
        "--input_size", "32", "--input_size_audio", "32", "32", "--device", "cpu",
        "--num_workers", "0", "--steps", "2", "--warmup", "1"]  # fmt: skip


def parsed(*flags):
    parser = new_parser("")
    ranks.add_arguments(parser)
    return parser.parse_args(flags)


def seen(**slowest):
    steps = {name: {"step_s": value, "cpu_s": value / 2} for name, value in slowest.items()}
    return {"device": "cpu", "precision": "fp32", "threads": 1, "slowest": steps}


def test_exchange_is_compared_with_processes_that_share_the_machine_but_exchange_nothing():
    separate = ranks.SEPARATE
    one = seen(**{separate: 2.0})
    two = seen(**{separate: 2.5, "bucket view (ours)": 3.0})
    two["slowest"]["bucket view (ours)"]["cpu_s"] = 1.3
    figures = ranks.summary(one, two, parsed("--batch_size", "6"))
    alone, side_by_side, ours = figures["rows"]
    assert [row["clips_per_s"] for row in figures["rows"]] == [3.0, 4.8, 4.0]
    assert not {"overhead", "overhead_cpu_time"} & (alone.keys() | side_by_side.keys())
    assert (ours["overhead"], ours["overhead_cpu_time"]) == pytest.approx((0.2, 0.04))
    assert [row["efficiency"] for row in figures["rows"]] == pytest.approx([1.0, 0.8, 2 / 3])
    assert figures["clips_per_s"] == 4.0
    assert "+20.0%" in ranks.show(figures)


@pytest.mark.parametrize(
    ("speed", "count", "expected"),
    [(10.0, 1, 0.0), (10.0, 2, 10.0), (20.0, 4, 7.5)],
)
def test_ring_sends_each_byte_twice_less_ones_own_part(speed, count, expected):
    assert links.ring_seconds(100.0, count, speed) == pytest.approx(expected)


def test_exchange_is_the_ring_inside_a_machine_and_the_ring_between_machines():
    cluster = links.Cluster(machines=2, gpus=4, inside=50.0)
    assert links.all_reduce_seconds(100.0, cluster, between=10.0) == pytest.approx(3.0 + 10.0)
    single = links.Cluster(machines=1, gpus=1, inside=1.0)
    assert links.all_reduce_seconds(100.0, single, between=1.0) == 0.0


def test_paper_counts_the_gradients_of_the_real_models(monkeypatch):
    tiny = "pretrain_hicmae_dim128_patch16_160_a256"
    monkeypatch.setattr(links, "MODELS", {"tiny": tiny})
    cluster = links.Cluster(8, 8, 450e9)
    rows = links.on_paper(cluster, [400.0, 100.0], clips=40, flops_per_s=1e12)
    count = num_parameters(timm.create_model(tiny))
    assert [row["gradient_bytes"] for row in rows] == [4 * count, 4 * count, 2 * count, 2 * count]
    full, slow, half, _ = rows
    assert half["all_reduce_s"] == pytest.approx(full["all_reduce_s"] / 2)
    assert slow["all_reduce_s"] > full["all_reduce_s"]
    # At the break-even speed the step's arithmetic takes exactly as long as the exchange.
    at_break_even = full["step_flops_per_gpu"] / full["break_even_flops_per_s"]
    assert at_break_even == pytest.approx(full["all_reduce_s"])
    assert full["compute_s"] == pytest.approx(full["step_flops_per_gpu"] / 1e12)


def test_published_models_have_the_published_number_of_gradients(capsys, tmp_path):
    out = tmp_path / "paper.json"
    assert main(["ranks", "--paper", "--batch_size", "40", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["paper"]
    largest = next(r for r in rows if (r["model"], r["gradients"]) == ("HiCMAE-B", "fp32"))
    assert largest["gradient_bytes"] / 4e6 == pytest.approx(99.61, abs=0.005)
    assert "compute_s" not in largest, "nothing is estimated"
    shown = capsys.readouterr().out
    assert "8 machines x 8 GPUs x 40 clips" in shown and "398.4 MB" in shown


def test_one_process_times_real_steps_of_ours_alone(tmp_path):
    ranks._one_rank(0, 1, 0, parsed(*TINY, "--rounds", "2"), str(tmp_path))
    seen_alone = json.loads((tmp_path / "1.json").read_text())
    assert list(seen_alone["slowest"]) == [ranks.SEPARATE]
    assert seen_alone["slowest"][ranks.SEPARATE]["step_s"] > 0
    assert seen_alone["device"].startswith("cpu") and seen_alone["precision"] == "fp32"


@pytest.mark.slow
def test_two_processes_are_measured(capsys, tmp_path):
    out = tmp_path / "ranks.json"
    assert main(["ranks", *TINY, "--rounds", "1", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["device"].startswith("cpu") and figures["nproc"] == 2
    assert [row["processes"] for row in figures["rows"]] == [1] + [2] * len(ranks.VARIANTS)
    assert all(row["clips_per_s"] > 0 for row in figures["rows"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ranks.VARIANTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nproc", "1"], "--nproc must be at least 2, got 1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--model", "x"], "--model x is not known; use t, s, b"),
        (["--mask_ratio", "2"], "--mask_ratio must be between 0 and 1"),
        (["--paper", "--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["--paper", "--network_gbit", "0"], "--network_gbit, .* must be above 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(flags, message, capsys):
    assert main(["ranks", *flags]) == 1
    written = capsys.readouterr().err
    assert written.count("\n") == 1 and message.split(",")[0] in written


def test_a_failing_process_is_reported_with_its_reason(monkeypatch):
    error = ranks.mp.ProcessRaisedException("Traceback\n  File x\nValueError: too deep", 1, 42)

    def spawn(*_, **__):
        raise error

    monkeypatch.setattr(ranks.mp, "spawn", spawn)
    with pytest.raises(RuntimeError, match="process 1 of 2 failed: ValueError: too deep"):
        ranks._spawn(2, argparse.Namespace(), "")


def test_synthetic_batch_has_the_shapes_of_the_run():
    from hicmae.benchmark.real_steps import training_configs

    batch = ranks.synthetic_batch(training_configs(parsed(*TINY[:-4]), "unused"), seed=0)
    assert batch.video.shape == (2, 3, 4, 32, 32) and batch.audio.shape == (2, 1, 32, 32)
    assert batch.video_mask.shape == (2, 8) and batch.audio_mask.shape == (2, 4)
    assert batch.video_mask.sum(dim=1).tolist() == [4, 4]
