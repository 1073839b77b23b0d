"""Flags and settings: every refusal is one line that names the flag."""

import argparse
import json
import os
import re

import pytest
import torch

import run_finetuning
import run_pretraining
from hicmae.config import FinetuneConfigs, OptimConfig, PretrainConfigs
from hicmae.config.flags import as_dict, flat_settings, from_dict, given_flags, parse_configs
from hicmae.io import choose_device, count_cores
from hicmae.training.optim import shared_batches


def settings_of(script, configs, words):
    parser = script.build_parser()
    return parse_configs(parser, configs, given_flags(parser, words.split()))


def pretraining(arguments="", start="--data_path list.csv --output_dir out"):
    return settings_of(run_pretraining, PretrainConfigs, f"{start} {arguments}")


def finetuning(arguments="", start="--data_path fold --output_dir out --nb_classes 6"):
    return settings_of(run_finetuning, FinetuneConfigs, f"{start} {arguments}")


def test_defaults_are_the_published_hyper_parameters():
    pre, fine = pretraining(), finetuning()
    assert (pre.loss.loss_weight, pre.loss.temperature) == (0.0025, 0.07)
    assert (pre.mask.mask_ratio, pre.mask.mask_ratio_audio) == (0.9, 0.8)
    assert pre.model.return_intermediate_features == (3, 6, 9)
    assert (pre.optim.lr, pre.optim.opt_betas) == (3e-4, (0.9, 0.95))
    assert (fine.optim.lr, fine.optim.opt_betas) == (1e-3, (0.9, 0.999))
    assert (fine.classifier.layer_decay, fine.classifier.drop_path_rate) == (0.75, 0.1)
    assert fine.augment.aa == "rand-m7-n4-mstd0.5-inc1"
    assert fine.data.roll_mag_aug and not pre.data.roll_mag_aug


def test_flags_take_the_spellings_of_the_original():
    pre = pretraining(
        "--return_intermediate_features 1 3 --decoder_depth 3 --use_frame_diff_as_target "
        "--update_freq 4 --no-normlize_target --input_size_audio 128"
    )
    assert pre.model.return_intermediate_features == (1, 3)
    assert pre.loss.frame_diff and not pre.loss.normalize_target
    assert pre.optim.accum_iter == 4
    assert pre.clip.input_size_audio == (128, 128)
    fine = finetuning("--encoder_depth 3 --no-dist_eval")
    assert fine.classifier.depth == 3 and not fine.score.dist_eval


@pytest.mark.parametrize(
    "words, value",
    [("--roll_mag_aug", True), ("--no-roll_mag_aug", False), ("--roll_mag_aug True", True),
     ("--roll_mag_aug=false", False), ("--no-roll_mag_aug True", False),
     ("--no-roll_mag_aug false --seed 1", True)],
)  # fmt: skip
def test_booleans_take_an_optional_value(words, value):
    assert finetuning(words).data.roll_mag_aug is value
    assert pretraining(words.replace("roll_mag_aug", "normlize_target")).loss.normalize_target is (
        value
    )


@pytest.mark.parametrize("parse", [pretraining, finetuning])
def test_settings_survive_json_under_the_names_of_their_flags(parse):
    configs = parse("--opt_betas 0.8 0.9")
    settings = json.loads(json.dumps(as_dict(configs)))
    assert settings["optim"]["opt_betas"] == [0.8, 0.9]
    flat = flat_settings(settings)
    assert flat == flat_settings(as_dict(configs)) == flat_settings(argparse.Namespace(**flat))
    for form in (settings, flat):
        assert from_dict(type(configs), form) == configs
    assert flat_settings(None) == {}


PRE = [
    ("--mask_ratoi 0.5", "unrecognized.*--mask_ratoi"),
    ("--input_size 150", "--input_size 150.*multiple.*16"),
    ("--input_size_audio 1 2 3", "steps and mel bins"),
    ("--weight_decay 0 --weight_decay_end 0.1", "--weight_decay_end 0.1.*--weight_decay above 0"),
    ("--target_diff_weight 0.5", "--target_diff_weight.*add --use_frame_diff_as_target"),
    ("--roll_mag_aug maybe", "unrecognized arguments: maybe"),
    ("--opt_betas 0.9 1.5", "--opt_betas must be >= 0 and < 1.*1.5"),
    ("--batch_size 0", "--batch_size must be > 0, got 0"),
    ("--contrastive_levels none --gather_negatives", "--gather_negatives.*--contrastive_levels"),
    ("--total_batch 8 --accum_iter 2", "--total_batch.*out"),
    ("--model vit", "'vit' .*pretrain_hicmae_dim256_patch16_160_a256"),
    ("--save_interval nan", "--save_interval must be >= 0"),
    ("--cuda_graphs", "--cuda_graphs.*add --compile"),
]
FINE = [
    ("--model vit", "'vit' .*avit_dim256_patch16_160_a256"),
    ("--nb_classes 0", "--nb_classes must be at least 2, got 0"),
    ("--nb_classes 0 --task regression", "--nb_classes must be at least 1"),
    ("--head_activation tanh", "--head_activation.*regression"),
    ("--crop_scale 0.5 0.2", "--crop_scale takes two shares"),
    ("--fusion_order video_first --modality a", "--fusion_order is for --modality av, got a"),
    ("--linear_probe --freeze_layers 2", "give one"),
    ("--freeze_layers 4 --depth_audio 3", "--freeze_layers must be at most 3"),
    ("--loss mse", "--loss mse.*--task classification.*use ce"),
    ("--task regression --val_metric uar", "--val_metric uar.*use pcc, ccc"),
    ("--task regression --mixup 0.8", "--mixup and --cutmix are for classification"),
    ("--class_weights balanced --balanced_sampler", "even out classes"),
    ("--val_split clip --val_path v.csv", "--val_path.*--val_split clip"),
    ("--speaker_file s.csv", "--speaker_file is for --val_split speaker"),
    ("--val_split speaker --speaker_file s --speaker_pattern p", "both name speakers"),
]


@pytest.mark.parametrize(
    "parse, arguments, facts",
    [
        *((pretraining, *case) for case in PRE),
        *((finetuning, *case) for case in FINE),
        (lambda start: pretraining(start=start), "--output_dir out", "--data_path is missing"),
        (lambda start: pretraining(start=start), "--data_path x", "--output_dir is missing"),
    ],
)
def test_bad_settings_end_in_one_line(parse, arguments, facts, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and re.search(facts, text), text


def test_each_task_gets_its_own_defaults():
    fine = finetuning("--task regression")
    assert (fine.score.loss, fine.score.val_metric, fine.augment.mixup) == ("mse", "ccc", 0)
    fine = finetuning("--val_metric acc1")
    assert (fine.score.loss, fine.score.val_metric) == ("ce", "war")
    assert (fine.augment.mixup, fine.augment.cutmix) == (0.8, 1.0)


@pytest.mark.parametrize(
    "total, processes, batch_size, accum_iter",
    [(160, 4, 40, 1), (160, 1, 40, 4), (160, 8, 20, 1), (160, 5, 32, 1), (56, 1, 28, 2)],
)
def test_a_total_batch_chooses_accumulation(total, processes, batch_size, accum_iter):
    shared = shared_batches(OptimConfig(batch_size=40, total_batch=total), processes)
    assert (shared.batch_size, shared.accum_iter, shared.total_batch) == (batch_size, accum_iter, 0)
    assert shared_batches(OptimConfig(batch_size=3), processes) == OptimConfig(batch_size=3)


@pytest.mark.parametrize("total, processes", [(160, 3), (53 * 2, 2), (2, 3)])
def test_a_total_batch_that_cannot_be_shared_is_refused_with_what_can(total, processes):
    """No equal shares; 53 clips, in passes of one; fewer clips than processes."""
    with pytest.raises(ValueError, match=f"use a multiple of {40 * processes}$"):
        shared_batches(OptimConfig(batch_size=40, total_batch=total), processes)


@pytest.mark.parametrize(("given", "allowed", "cores"), [("", {0, 3}, 2), ("12", {0}, 12)])
def test_cores_are_those_that_the_scheduler_gives(given, allowed, cores, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    assert count_cores() == cores


def test_the_gpu_of_a_mac_is_taken_where_torch_has_one_and_refused_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device mps, .* use --device auto or cpu"):
        choose_device("mps")
