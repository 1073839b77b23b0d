"""Flags and settings: every refusal is one line that names the flag."""

import json

import pytest

import run_finetuning
import run_pretraining
from hicmae.config import (
    AugmentConfig,
    ClassifierConfig,
    ClipConfig,
    OptimConfig,
    ScoreConfig,
    as_dict,
    complete,
    from_args,
    parse_configs,
)
from hicmae.training.pretraining import PretrainConfigs
from hicmae.training.supervised import FinetuneConfigs

PRE = ["--data_path", "list.csv", "--output_dir", "out"]
FINE = ["--data_path", "fold", "--output_dir", "out", "--nb_classes", "6"]
CONFIGS = {run_pretraining: PretrainConfigs, run_finetuning: FinetuneConfigs}


def parse(script, arguments):
    return parse_configs(script.build_parser(), CONFIGS[script], arguments)


def test_defaults_are_the_published_hyper_parameters():
    pre, fine = parse(run_pretraining, PRE), parse(run_finetuning, FINE)
    assert pre.loss.loss_weight == 0.0025
    assert pre.loss.inter_contrastive_temperature == 0.07
    assert (pre.mask.mask_ratio, pre.mask.mask_ratio_audio) == (0.9, 0.8)
    assert pre.model.return_intermediate_features == (3, 6, 9)
    assert (pre.optim.lr, pre.optim.opt_betas) == (3e-4, (0.9, 0.95))
    assert (fine.optim.lr, fine.optim.opt_betas) == (1e-3, (0.9, 0.999))
    assert (fine.classifier.layer_decay, fine.classifier.drop_path) == (0.75, 0.1)
    assert fine.augment.aa == "rand-m7-n4-mstd0.5-inc1"


def test_flags_take_the_spellings_of_the_original():
    arguments = ["--return_intermediate_features", "1", "3", "--decoder_depth", "3",
                 "--decoder_depth_audio", "3", "--use_frame_diff_as_target", "--update_freq", "4",
                 "--no-normlize_target", "--input_size_audio", "128"]  # fmt: skip
    pre = parse(run_pretraining, PRE + arguments)
    assert pre.model.return_intermediate_features == (1, 3)
    assert pre.loss.use_frame_diff_as_target and not pre.loss.normalize_target
    assert pre.optim.accum_iter == 4
    assert pre.clip.input_size_audio == (128, 128)
    fine = parse(run_finetuning, FINE + ["--encoder_depth", "3", "--no-dist_eval"])
    assert fine.classifier.depth == 3 and not fine.score.dist_eval


def test_settings_survive_json():
    settings = as_dict(parse(run_pretraining, PRE))
    assert json.loads(json.dumps(settings))["mask"]["mask_ratio"] == 0.9


def test_learning_rate_scales_with_the_total_batch():
    optim = OptimConfig(batch_size=40, accum_iter=2)
    assert optim.scaled(3e-4, world_size=4) == pytest.approx(3e-4 * 320 / 256)


@pytest.mark.parametrize("script, base", [(run_pretraining, PRE), (run_finetuning, FINE)])
def test_help_names_every_group_and_default(script, base, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for title in ("Where and how to run", "Clip geometry", "Clips", "Optimisation"):
        assert f"{title}:" in text
    assert "(default: 16)" in text and "--no-roll_mag_aug" in text


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        (run_pretraining, ["--output_dir", "out"], "--data_path is missing"),
        (run_pretraining, ["--data_path", "x"], "--output_dir is missing"),
        (run_pretraining, PRE + ["--mask_ratoi", "0.5"], "unrecognized arguments: --mask_ratoi"),
        (run_pretraining, PRE + ["--mask_ratio", "1.0"], "--mask_ratio must be between 0 and 1"),
        (run_pretraining, PRE + ["--mask_ratio_audio", "0"], "--mask_ratio_audio must be between"),
        (run_pretraining, PRE + ["--input_size", "150"], "--input_size 150 is not a multiple"),
        (run_pretraining, PRE + ["--num_frames", "15"], "--num_frames 15 is not a multiple"),
        (run_pretraining, PRE + ["--input_size_audio", "1", "2", "3"], "takes steps and mel bins"),
        (run_pretraining, PRE + ["--warmup_epochs", "101"], "--warmup_epochs 101 is more than"),
        (run_pretraining, PRE + ["--opt_betas", "0.9", "1.5"], r"--opt_betas takes two numbers"),
        (run_pretraining, PRE + ["--batch_size", "0"], "--batch_size must be greater than 0"),
        (run_pretraining, PRE + ["--max_bad_clips", "1.5"], "--max_bad_clips must be a share"),
        (run_pretraining, PRE + ["--target_diff_weight", "2"], "--target_diff_weight must be a"),
        (run_pretraining, PRE + ["--device", "tpu"], "invalid choice: 'tpu'"),
        (
            run_pretraining,
            PRE + ["--contrastive_levels", "none", "--gather_negatives"],
            "--gather_negatives is for a contrastive loss",
        ),
        (run_pretraining, PRE + ["--contrastive_levels", "0"], "invalid choice: '0'"),
        (run_finetuning, FINE + ["--fusion_order", "late"], "invalid choice: 'late'"),
        (
            run_finetuning,
            FINE + ["--fusion_order", "video_first", "--modality", "a"],
            "--fusion_order video_first is for --modality av, --modality a has no fusion; leave",
        ),
        (run_pretraining, PRE + ["--lr", "-1"], "--lr must not be negative"),
        (run_pretraining, PRE + ["--save_interval", "-1"], "--save_interval must not be negative"),
        (run_pretraining, PRE + ["--save_interval", "nan"], "--save_interval must not be negative"),
        (run_pretraining, PRE + ["--keep_ckpts", "0"], "--keep_ckpts must be greater than 0"),
        (run_pretraining, PRE + ["--max_bad_steps", "0"], "--max_bad_steps must be greater"),
        (run_finetuning, FINE[:4], "--nb_classes is missing"),
        (run_finetuning, FINE[:4] + ["--nb_classes", "1"], "--nb_classes must be at least 2"),
        (run_finetuning, FINE + ["--layer_decay", "1.5"], "--layer_decay must be above 0"),
        (run_finetuning, FINE + ["--head_activation", "tanh"], "--head_activation is for --task"),
        (run_finetuning, FINE + ["--crop_scale", "0.5", "0.2"], "--crop_scale takes two shares"),
        (run_finetuning, FINE + ["--smoothing", "1"], "--smoothing must be a share"),
        (run_finetuning, FINE + ["--linear_probe", "--freeze_layers", "2"], "give one"),
        (run_finetuning, FINE + ["--freeze_layers", "-1"], "--freeze_layers must not be negative"),
        (run_finetuning, FINE + ["--freeze_layers", "11"], "more than the 10 blocks of --depth;"),
        (
            run_finetuning,
            FINE + ["--freeze_layers", "4", "--depth_audio", "3"],
            "--freeze_layers 4 is more than the 3 blocks of --depth_audio; give at most 3",
        ),
        (run_finetuning, FINE + ["--label_share", "0"], "--label_share must be above 0 and at"),
        (run_finetuning, FINE + ["--label_share", "1.1"], "--label_share must be above 0 and at"),
    ],
)
def test_bad_settings_end_in_one_line(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, arguments)
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in text and text.count("\n") == 1


@pytest.mark.parametrize(
    "task, score, augment, message",
    [
        ("classification", {"loss": "mse"}, {}, "--loss mse does not fit --task classification"),
        ("classification", {"val_metric": "ccc"}, {}, "--val_metric ccc does not fit"),
        ("regression", {"val_metric": "uar"}, {}, "--val_metric uar does not fit --task regress"),
        ("regression", {}, {"mixup": 0.8}, "--mixup and --cutmix are for classification"),
    ],
)
def test_settings_of_the_other_task_are_refused(task, score, augment, message):
    classifier = ClassifierConfig(task=task, nb_classes=3)
    with pytest.raises(ValueError, match=message):
        complete(classifier, ScoreConfig(**score), AugmentConfig(**augment))


def test_each_task_gets_its_own_defaults():
    score, augment = complete(
        ClassifierConfig(task="regression", nb_classes=3), ScoreConfig(), AugmentConfig()
    )
    assert (score.loss, score.val_metric, augment.mixes) == ("mse", "ccc", False)
    score, augment = complete(
        ClassifierConfig(nb_classes=3), ScoreConfig(val_metric="acc1"), AugmentConfig()
    )
    assert (score.loss, score.val_metric) == ("ce", "war")
    assert (augment.mixup, augment.cutmix) == (0.8, 1.0)


def test_one_audio_size_means_128_mel_bins():
    assert ClipConfig(input_size_audio=(64,)).input_size_audio == (64, 128)


def test_lists_of_numbers_become_tuples():
    args = run_pretraining.build_parser().parse_args(PRE + ["--opt_betas", "0.8", "0.9"])
    assert from_args(args, OptimConfig).opt_betas == (0.8, 0.9)


def test_only_the_streams_that_are_read_limit_freeze_layers():
    arguments = ["--freeze_layers", "5", "--depth_audio", "3"]
    fine = parse(run_finetuning, [*FINE, *arguments, "--modality", "v"])
    assert (fine.classifier.freeze_layers, fine.score.label_share) == (5, 1.0)
