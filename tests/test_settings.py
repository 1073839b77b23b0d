"""Flags and settings: every refusal is one line that names the flag."""

import json

import pytest

import run_finetuning
import run_pretraining
from hicmae.config import (
    ClipConfig,
    FinetuneConfigs,
    OptimConfig,
    PretrainConfigs,
    as_dict,
    from_dict,
    parse_configs,
)

PRE = ["--data_path", "list.csv", "--output_dir", "out"]
FINE = ["--data_path", "fold", "--output_dir", "out", "--nb_classes", "6"]
REGRESSION = [*FINE, "--task", "regression"]


def pretraining(arguments):
    return parse_configs(run_pretraining.build_parser(), PretrainConfigs, arguments)


def finetuning(arguments):
    parser = run_finetuning.build_parser()
    return parse_configs(parser, FinetuneConfigs, arguments, FinetuneConfigs.completed)


def test_defaults_are_the_published_hyper_parameters():
    pre, fine = pretraining(PRE), finetuning(FINE)
    assert (pre.loss.loss_weight, pre.loss.temperature) == (0.0025, 0.07)
    assert (pre.mask.mask_ratio, pre.mask.mask_ratio_audio) == (0.9, 0.8)
    assert pre.model.return_intermediate_features == (3, 6, 9)
    assert (pre.optim.lr, pre.optim.opt_betas) == (3e-4, (0.9, 0.95))
    assert (fine.optim.lr, fine.optim.opt_betas) == (1e-3, (0.9, 0.999))
    assert (fine.classifier.layer_decay, fine.classifier.drop_path_rate) == (0.75, 0.1)
    assert fine.augment.aa == "rand-m7-n4-mstd0.5-inc1"


def test_flags_take_the_spellings_of_the_original():
    arguments = ["--return_intermediate_features", "1", "3", "--decoder_depth", "3",
                 "--decoder_depth_audio", "3", "--use_frame_diff_as_target", "--update_freq", "4",
                 "--no-normlize_target", "--input_size_audio", "128"]  # fmt: skip
    pre = pretraining(PRE + arguments)
    assert pre.model.return_intermediate_features == (1, 3)
    assert pre.loss.frame_diff and not pre.loss.normalize_target
    assert pre.optim.accum_iter == 4
    assert pre.clip.input_size_audio == (128, 128)
    fine = finetuning([*FINE, "--encoder_depth", "3", "--no-dist_eval"])
    assert fine.classifier.depth == 3 and not fine.score.dist_eval


@pytest.mark.parametrize("parse, arguments", [(pretraining, PRE), (finetuning, FINE)])
def test_settings_survive_json_under_the_names_of_their_flags(parse, arguments):
    configs = parse([*arguments, "--opt_betas", "0.8", "0.9"])
    settings = json.loads(json.dumps(as_dict(configs)))
    assert settings["optim"]["opt_betas"] == [0.8, 0.9]
    assert {"drop_path", "model"} <= settings.get("model", settings.get("classifier")).keys()
    assert from_dict(type(configs), settings) == configs


@pytest.mark.parametrize("script", [run_pretraining, run_finetuning])
def test_help_names_every_group_and_default_but_no_old_spelling(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.build_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for title in ("Where and how to run", "Clip geometry", "Clips", "Optimisation"):
        assert f"{title}:" in text
    assert "(default: 16)" in text and "--no-roll_mag_aug" in text
    assert "update_freq" not in text and "normlize" not in text


@pytest.mark.parametrize(
    "parse, arguments, facts",
    [
        (pretraining, ["--output_dir", "out"], ["--data_path is missing"]),
        (pretraining, ["--data_path", "x"], ["--output_dir is missing"]),
        (pretraining, [*PRE, "--mask_ratoi", "0.5"], ["unrecognized", "--mask_ratoi"]),
        (pretraining, [*PRE, "--mask_ratio", "1.0"], ["--mask_ratio must be between 0 and 1"]),
        (pretraining, [*PRE, "--mask_ratio_audio", "0"], ["--mask_ratio_audio", "between"]),
        (pretraining, [*PRE, "--input_size", "150"], ["--input_size 150", "multiple", "16"]),
        (pretraining, [*PRE, "--num_frames", "15"], ["--num_frames 15", "multiple", "2"]),
        (pretraining, [*PRE, "--input_size_audio", "1", "2", "3"], ["steps and mel bins"]),
        (pretraining, [*PRE, "--warmup_epochs", "101"], ["101", "more than --epochs 100"]),
        (pretraining, [*PRE, "--opt_betas", "0.9", "1.5"], ["--opt_betas", "two", "1.5"]),
        (pretraining, [*PRE, "--batch_size", "0"], ["--batch_size must be greater than 0"]),
        (pretraining, [*PRE, "--max_bad_clips", "1.5"], ["--max_bad_clips must be a share"]),
        (pretraining, [*PRE, "--target_diff_weight", "2"], ["--target_diff_weight must be a"]),
        (pretraining, [*PRE, "--inter_contrastive_temperature", "0"], ["--inter_contrastive_t"]),
        (pretraining, [*PRE, "--contrastive_levels", "0"], ["invalid choice: '0'"]),
        (
            pretraining,
            [*PRE, "--contrastive_levels", "none", "--gather_negatives"],
            ["--gather_negatives", "--contrastive_levels"],
        ),
        (pretraining, [*PRE, "--total_batch", "8", "--accum_iter", "2"], ["--total_batch", "out"]),
        (pretraining, [*PRE, "--lr", "-1"], ["--lr must not be negative"]),
        (pretraining, [*PRE, "--save_interval", "nan"], ["--save_interval must not be negative"]),
        (pretraining, [*PRE, "--keep_ckpts", "0"], ["--keep_ckpts must be greater than 0"]),
        (finetuning, FINE[:4], ["--nb_classes is missing"]),
        (finetuning, [*FINE[:4], "--nb_classes", "1"], ["--nb_classes must be at least 2"]),
        (finetuning, [*FINE, "--layer_decay", "1.5"], ["--layer_decay must be above 0"]),
        (finetuning, [*FINE, "--drop_path", "1"], ["--drop_path must be a share"]),
        (finetuning, [*FINE, "--head_activation", "tanh"], ["--head_activation", "regression"]),
        (finetuning, [*FINE, "--crop_scale", "0.5", "0.2"], ["--crop_scale takes two shares"]),
        (finetuning, [*FINE, "--smoothing", "1"], ["--smoothing must be a share"]),
        (finetuning, [*FINE, "--linear_probe", "--freeze_layers", "2"], ["give one"]),
        (finetuning, [*FINE, "--freeze_layers", "-1"], ["--freeze_layers must not be negative"]),
        (
            finetuning,
            [*FINE, "--freeze_layers", "4", "--depth_audio", "3"],
            ["--freeze_layers 4", "3 blocks of --depth_audio"],
        ),
        (finetuning, [*FINE, "--label_share", "0"], ["--label_share must be above 0 and at"]),
        (finetuning, [*FINE, "--fusion_order", "late"], ["invalid choice: 'late'"]),
        (
            finetuning,
            [*FINE, "--fusion_order", "video_first", "--modality", "a"],
            ["--fusion_order video_first", "--modality a has no fusion"],
        ),
        (finetuning, [*FINE, "--loss", "mse"], ["--loss mse", "--task classification", "use ce"]),
        (finetuning, [*FINE, "--val_metric", "ccc"], ["--val_metric ccc does not fit"]),
        (finetuning, [*REGRESSION, "--val_metric", "uar"], ["--val_metric uar", "use ccc, pcc"]),
        (finetuning, [*REGRESSION, "--mixup", "0.8"], ["--mixup and --cutmix are for class"]),
    ],
)
def test_bad_settings_end_in_one_line(parse, arguments, facts, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.count("\n") == 1
    assert all(fact in text for fact in facts), text


def test_each_task_gets_its_own_defaults():
    fine = finetuning(REGRESSION)
    assert (fine.score.loss, fine.score.val_metric, fine.augment.mixes) == ("mse", "ccc", False)
    fine = finetuning([*FINE, "--val_metric", "acc1"])
    assert (fine.score.loss, fine.score.val_metric) == ("ce", "war")
    assert (fine.augment.mixup, fine.augment.cutmix) == (0.8, 1.0)


def test_one_audio_size_means_128_mel_bins():
    assert ClipConfig(input_size_audio=(64,)).input_size_audio == (64, 128)


def test_only_the_streams_that_are_read_limit_freeze_layers():
    arguments = ["--freeze_layers", "5", "--depth_audio", "3", "--modality", "v"]
    assert finetuning([*FINE, *arguments]).classifier.freeze_layers == 5


@pytest.mark.parametrize(
    "total, processes, batch_size, accum_iter",
    [(160, 4, 40, 1), (160, 1, 40, 4), (160, 8, 20, 1), (160, 5, 32, 1), (56, 1, 28, 2)],
)
def test_a_total_batch_chooses_accumulation(total, processes, batch_size, accum_iter):
    shared = OptimConfig(batch_size=40, total_batch=total).shared(processes)
    assert (shared.batch_size, shared.accum_iter, shared.total_batch) == (batch_size, accum_iter, 0)
    assert OptimConfig(batch_size=3).shared(processes) == OptimConfig(batch_size=3)


@pytest.mark.parametrize(
    "total, processes, advice",
    [
        (160, 3, "use --total_batch 162, or 2 process"),  # no equal shares
        (53 * 2, 2, "use --total_batch 108$"),  # 53 clips: in passes of one
        (2, 3, "use --total_batch 3, or 2 process"),
    ],
)
def test_a_total_batch_that_cannot_be_shared_is_refused_with_what_can(total, processes, advice):
    with pytest.raises(ValueError, match=advice):
        OptimConfig(batch_size=40, total_batch=total).shared(processes)
