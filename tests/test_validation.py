"""Validation on clips held out of the training list; results that no process count changes."""

import csv
import gc
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import run_finetuning
from hicmae.config import ScoreConfig, parse_configs
from hicmae.data import splits as holdout
from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from hicmae.data.splits import PATTERNS, base_name, find_speakers, hold_out
from hicmae.report.scores import chosen_on
from hicmae.training import checkpoint, supervised
from preprocess import cremad_av
from tests.conftest import free_port, save_frames, save_wav
from tests.preprocess.trees import Tree
from tests.small_runs import FINETUNE  # its fork server imports once what every process needs

SPEAKERS = ("ann", "bob", "cem", "dia")


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made_up(seed, speakers=20, classes=4):
    """Speakers with unequal numbers of clips and tastes for classes; a list in random order."""
    rng = np.random.default_rng(seed)
    clips, owners = [], []
    for speaker in range(speakers):
        taste = rng.dirichlet(np.ones(classes))
        for k in range(int(rng.integers(3, 30))):
            name = f"s{speaker}_{k}"
            clips.append(Clip(name, f"{name}.wav", int(rng.choice(classes, p=taste))))
            owners.append(f"s{speaker}")
    order = rng.permutation(len(clips))
    return [clips[k] for k in order], [owners[k] for k in order]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_held_out_speakers_share_nothing_with_the_rest(seed, share):
    clips, owners = made_up(seed)
    held = hold_out(clips, owners, share, seed)
    sides = [held.train, held.val]
    speakers = [{clip.video.split("_")[0] for clip in side} for side in sides]
    assert not speakers[0] & speakers[1] and speakers[0] | speakers[1] == set(owners)
    files = [{name for clip in side for name in (clip.video, clip.audio)} for side in sides]
    assert not files[0] & files[1]
    assert Counter(held.train) + Counter(held.val) == Counter(clips)
    for side in sides:
        assert side == [clip for clip in clips if clip in set(side)], "list order is kept"
    assert held.val_groups == [clip.video.split("_")[0] for clip in held.val]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_gives_about_its_share_and_more_evenly_than_by_chance(seed):
    clips, owners = made_up(seed, speakers=40)
    held = hold_out(clips, owners, 0.2, seed)

    def errors(val):
        total, part = (Counter(clip.label for clip in side) for side in (clips, val))
        return [abs(part[label] / total[label] - 0.2) for label in total]

    rng, by_chance = np.random.default_rng(seed), []
    for _ in range(50):
        chosen = set(rng.choice(sorted(set(owners)), size=8, replace=False).tolist())
        by_chance.append(
            np.mean(errors([c for c, o in zip(clips, owners, strict=True) if o in chosen]))
        )
    assert max(errors(held.val)) < 0.05
    assert np.mean(errors(held.val)) < min(by_chance)


def test_the_seed_alone_decides_who_is_held_out():
    clips, owners = made_up(0)
    assert hold_out(clips, owners, 0.2, 3) == hold_out(clips, owners, 0.2, 3)
    drawn = {frozenset(hold_out(clips, owners, 0.2, seed).val_groups) for seed in range(5)}
    assert len(drawn) > 1


def test_the_only_speaker_of_a_class_stays_in_training():
    clips, owners = made_up(1, speakers=12, classes=3)
    clips += [Clip(f"rare{k}", f"rare{k}.wav", 3) for k in range(5)]
    owners += ["s4"] * 5
    for seed in range(5):
        assert "s4" not in hold_out(clips, owners, 0.2, seed).val_groups


def test_regression_targets_are_spread_over_both_sides():
    rng = np.random.default_rng(0)
    owners = [f"s{k % 30}" for k in range(300)]
    level = {name: rng.random() for name in sorted(set(owners))}  # people differ from each other
    clips = [
        Clip(f"{k}", f"{k}.wav", (level[owner] + 0.1 * rng.random(), rng.random()))
        for k, owner in enumerate(owners)
    ]
    held = hold_out(clips, owners, 0.2, 0)
    assert len(held.val) == 60
    bounds = np.quantile([clip.label[0] for clip in clips], (1 / 3, 2 / 3))
    thirds = np.bincount(np.searchsorted(bounds, [clip.label[0] for clip in held.val]))
    assert thirds == pytest.approx(20, abs=5), "low, middle and high values alike"


@pytest.mark.parametrize(
    "clips, owners, message",
    [
        (["a", "b"], ["s", "s"], "expected at least two speakers or clips .* got 1; use --val_spl"),
        (["a", "a"], ["s", "t"], "'.*/a' belongs to a training clip, 'a', and to the validation"),
    ],
)
def test_a_list_that_cannot_be_parted_is_refused(clips, owners, message):
    records = [Clip(name, f"{k}.wav", 0) for k, name in enumerate(clips)]
    with pytest.raises(ValueError, match=message):
        hold_out(records, owners, 0.5, 0)


def test_a_sound_on_both_sides_is_refused_where_sound_is_read():
    clips = [Clip("a", "one.wav", 0), Clip("b", "./one.wav", 0)]
    with pytest.raises(ValueError, match="one.wav' belongs to a training clip"):
        hold_out(clips, ["s", "t"], 0.5, 0)
    assert len(hold_out(clips, ["s", "t"], 0.5, 0, modality="v").val) == 1


def test_a_class_on_one_side_only_is_warned_of(caplog):
    train, val = [Clip("a", "a.wav", 0), Clip("b", "b.wav", 2)], [Clip("c", "c.wav", 0)]
    holdout.describe_holdout(holdout.Holdout(train, val, ["s"]), "speaker")
    assert "no validation clip is of class 2: too few speakers have it" in caplog.text


NAMES = {
    "crema-d": ("1001_IEO_ANG_HI", "1001"),
    "ravdess": ("02-01-06-01-02-01-12", "12"),
    "msp-improv": ("S01A-F03-P-FM02", "F03"),
    "iemocap": ("Ses01F_impro01_M013", "Ses01M"),
    "werewolf-xl": ("01_05_17", "01_05"),
    "avcaffe": ("aiim007_task_3_002", "aiim007"),
}


@pytest.mark.parametrize("data_set", PATTERNS)
def test_patterns_of_the_data_sets_find_the_speaker_the_list_script_writes(data_set, tmp_path):
    name, speaker = NAMES[data_set]
    clips = [f"/data/1/{name}_aligned", f"1/{name}.mp4"]
    assert find_speakers(clips, tmp_path, pattern=data_set) == [speaker] * 2


def test_a_pattern_with_a_slash_reads_folders(tmp_path):
    clips = ["data/ann/1", "data/bob/1"]
    assert find_speakers(clips, tmp_path, pattern=r"([^/]+)/[^/]+$") == ["ann", "bob"]


def write_table(path, *lines):
    path.write_text("clip,speaker\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_the_table_lies_beside_the_lists_or_above_their_fold(tmp_path):
    fold = tmp_path / "split01"
    fold.mkdir()
    clips = ["/d/a_aligned", "/d/b.mp4"]
    write_table(tmp_path / "clip_speakers.csv", "/d/a_aligned,ann", "b,bob", "c,cem")
    assert find_speakers(clips, fold) == ["ann", "bob"]
    write_table(fold / "clip_speakers.csv", "a,dia", "b,dia")
    assert find_speakers(clips, fold) == ["dia", "dia"], "the nearer table wins"
    other = write_table(tmp_path / "other.csv", "a,eve", "b,eve")
    assert find_speakers(clips, fold, file=str(other)) == ["eve", "eve"]


def test_relative_names_of_the_table_start_from_the_data_root(tmp_path):
    """Two clips have the same last name, so that only whole names can tell them apart."""
    clips = [f"/root/{who}/x" for who in ("ann", "bob")]
    write_table(tmp_path / "clip_speakers.csv", "ann/x,Ann", "bob/x,Bob")
    assert find_speakers(clips, tmp_path, "/root") == ["Ann", "Bob"]


@pytest.mark.parametrize(
    "lines, message",
    [
        (["a,ann"], "1 of 2 clips have no known speaker, first 'q/b': .* has no line for it"),
        (["p/a,ann", "r/a,bob", "b,bob"], "leaves the speaker of 'q/a' open: 'a' is the name of"),
        (["a,ann", "a,bob"], r"csv:3: 'a' has speaker 'bob', but 'ann' before; expected one"),
        (["a,"], r"csv:2: expected a clip and its speaker"),
        (["a"], r"csv:2: expected a clip and its speaker"),
    ],
)
def test_a_table_that_leaves_a_speaker_open_is_refused(tmp_path, lines, message):
    table = write_table(tmp_path / "t.csv", *lines)
    with pytest.raises(ValueError, match=message):
        find_speakers(["q/a", "q/b"], tmp_path, file=str(table))


def test_one_short_name_does_not_name_the_speakers_of_two_clips(tmp_path):
    write_table(tmp_path / "clip_speakers.csv", "x,ann")
    with pytest.raises(ValueError, match="'x' is the name of several clips; give whole names"):
        find_speakers(["1/x", "2/x"], tmp_path)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "does not know who speaks: .*--speaker_file .* or --speaker_pattern"),
        ({"file": "no.csv"}, FileNotFoundError, "--speaker_file 'no.csv' does not exist"),
        ({"pattern": "("}, ValueError, r"--speaker_pattern '\(' is no regular expression"),
        ({"pattern": "^a"}, ValueError, "has no group, expected one around the speaker"),
        ({"pattern": "^(z)"}, ValueError, "1 of 1 clips have no known speaker, first 'a'"),
    ],
)
def test_unknown_speakers_end_the_run_with_what_to_do(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        find_speakers(["a"], tmp_path, **options)


def test_a_table_needs_its_columns(tmp_path):
    table = tmp_path / "speakers.csv"
    table.write_text("speaker,clips\nann,3\n")
    with pytest.raises(ValueError, match="csv:1: expected the columns clip,speaker, got 'speaker,"):
        find_speakers(["a"], tmp_path, file=str(table))


@pytest.mark.parametrize("flags", [(), ("--relative",)])
def test_list_scripts_write_who_speaks(tmp_path, flags):
    tree = Tree(tmp_path / "d")
    tree.clips([f"{actor}_IEO_ANG_HI" for actor in range(1001, 1092)])
    out = tmp_path / "lists"
    paths = ["--data_root", str(tree.root), "--output_dir", str(out)]
    assert cremad_av.main([*paths, "--audio_dir", "audio_16k", *flags]) == 0
    root = str(tree.root) if flags else ""
    clips = read_labelled_list(out / "split01" / "train.csv", data_root=root)
    names = [clip.video for clip in clips]
    assert find_speakers(names, out / "split01", root) == [base_name(name)[:4] for name in names]
    assert len(rows(out / "clip_speakers.csv")) == 91


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"val_share": 1.0}, "--val_share must be between 0 and 1, got 1.0"),
        ({"val_split": "clip", "val_path": "v.csv"}, "--val_path names a list, --val_split clip"),
        ({"speaker_file": "s.csv"}, "--speaker_file is for --val_split speaker"),
        (
            {"val_split": "speaker", "speaker_file": "s", "speaker_pattern": "p"},
            "--speaker_file and --speaker_pattern both name speakers",
        ),
        ({"average_clips": -1}, "--average_clips must not be negative, got -1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(**settings)


def parse(arguments):
    parser = run_finetuning.build_parser()
    return parse_configs(parser, supervised.FinetuneConfigs, arguments)


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
    for name, rows_ in (("fold", clips), ("numbers", numbers)):
        (root / name).mkdir()
        write_list(root / name / "train.csv", rows_)
    write_list(root / "fold" / "test.csv", clips[:7])  # 7: divisible by neither 2 nor 3
    write_list(root / "numbers" / "test.csv", numbers[:2])  # 2: fewer than 3 processes
    (root / "bad").mkdir()
    gone = [Clip(str(root / f"gone{k}"), str(root / f"gone{k}.wav"), 0) for k in range(2)]
    write_list(root / "bad" / "test.csv", [gone[1], *clips[3:6], gone[0]])
    for outputs, task in ((2, "classification"), (2, "regression")):
        torch.manual_seed(1)
        arguments = ["--data_path", "x", "--output_dir", "y", "--nb_classes", str(outputs)]
        configs = parse([*FINETUNE, *arguments, "--task", task])
        state = supervised.make_model(configs).state_dict()
        checkpoint.save(root / f"{task}.pth", {"model": state})
    return root


def finetune(media, out, *arguments, fold="fold"):
    paths = ["--data_path", str(media / fold), "--output_dir", str(out), "--nb_classes", "2"]
    settings = ["--warmup_epochs", "0", "--epochs", "2", "--no-export"]
    run_finetuning.main([*FINETUNE, *paths, *settings, *arguments])


def test_the_test_list_is_not_looked_at_before_the_final_test(media, tmp_path, monkeypatch):
    """Its files do not even exist: all epochs are trained and validated, and only then it fails."""
    fold = tmp_path / "fold"
    fold.mkdir()
    (fold / "train.csv").write_text((media / "fold" / "train.csv").read_text())
    (fold / "test.csv").write_text(f"{tmp_path}/gone {tmp_path}/gone.wav 0\n")
    trained = []
    make = supervised.LabelledClips
    monkeypatch.setattr(
        supervised,
        "LabelledClips",
        lambda clips, **rest: trained.append(clips) or make(clips, **rest),
    )
    options = ["--val_split", "speaker", "--val_share", "0.25", "--speaker_pattern", "^([a-z]+)_"]
    with pytest.raises(RuntimeError, match="evaluation clip '.*gone' cannot be read"):
        finetune(tmp_path, tmp_path / "out", *options)
    epochs = [json.loads(line) for line in (tmp_path / "out/log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [0, 1] and "val_uar" in epochs[1]
    assert (tmp_path / "out/checkpoint-best.pth").is_file()
    held = rows(tmp_path / "out/val_clips.csv")
    assert len(held) == 2 and len({row["speaker"] for row in held}) == 1
    names = {clip.video for clip in trained[0]}
    assert len(names) == 6 and not names & {row["clip"] for row in held}


def test_results_say_that_held_out_speakers_chose_the_best_epoch(media, tmp_path, caplog):
    table = [
        f"{name.name.removesuffix('_aligned')},{name.name[:3]}" for name in media.glob("*_al*")
    ]
    speakers = write_table(tmp_path / "who.csv", *table)
    options = ["--val_split", "speaker", "--val_share", "0.5", "--speaker_file", str(speakers)]
    with caplog.at_level("INFO"):
        finetune(media, tmp_path / "out", *options, "--epochs", "1")
    assert (
        "held out of train.csv for validation: 2 speaker(s), 4 of 8 clips (50.0 %)" in caplog.text
    )
    assert "the same clips as the test list" not in caplog.text
    best = json.loads((tmp_path / "out/metrics_best.json").read_text())
    assert best["chosen_on"] == str(tmp_path / "out/val_clips.csv")
    assert chosen_on(tmp_path / "out") == best["chosen_on"]


def test_a_refused_resume_leaves_the_record_of_the_held_out_clips(media, tmp_path):
    options = ["--val_split", "speaker", "--speaker_pattern", "^([a-z]+)_", "--epochs", "1"]
    finetune(media, tmp_path, *options, "--val_share", "0.25")
    record = (tmp_path / "val_clips.csv").read_bytes()
    with pytest.raises(ValueError, match="belongs to another run: --val_share 0.25 -> 0.5"):
        finetune(media, tmp_path, *options, "--val_share", "0.5")
    assert (tmp_path / "val_clips.csv").read_bytes() == record


def test_clips_held_out_at_random_keep_items_whole(media, tmp_path):
    """Two clips of eight are an item, all of a speaker; alone, any two may be held out."""
    clips = read_labelled_list(media / "fold" / "train.csv")
    (tmp_path / "fold").mkdir()
    for part in ("train", "test"):
        same = [clip._replace(label=k // 2 % 2) for k, clip in enumerate(clips)]
        write_list(tmp_path / "fold" / f"{part}.csv", same)
    options = ["--data_path", str(tmp_path / "fold"), "--output_dir", str(tmp_path), *FINETUNE]
    options += ["--nb_classes", "2", "--val_split", "clip", "--val_share", "0.25"]
    held = {}
    for average in ("0", "2"):
        for seed in range(4):
            flags = [*options, "--average_clips", average, "--seed", str(seed)]
            lists = supervised.read_lists(parse(flags))
            held[average, seed] = [base_name(clip.video)[:3] for clip in lists.val]
            assert lists.held_out.split() == ["clip", *(clip.video for clip in lists.val)]
    assert {len(names) for names in held.values()} == {2}
    assert all(len(set(held["2", seed])) == 1 for seed in range(4))
    assert any(len(set(held["0", seed])) == 2 for seed in range(4))


def test_items_are_scored_by_the_mean_of_their_clips(media, tmp_path):
    """ann_task_0 and so on, by the first three fields: here every item has one speaker's clip."""
    options = ["--eval", "--resume", str(media / "regression.pth"), "--task", "regression"]
    (tmp_path / "fold").mkdir()
    clips = read_labelled_list(media / "numbers" / "train.csv", "regression")
    shared = [clip._replace(label=(0.5, 0.25 * (k // 2))) for k, clip in enumerate(clips)]
    write_list(tmp_path / "fold" / "test.csv", shared)
    finetune(tmp_path, tmp_path / "out", *options, "--average_clips", "2")
    items, single = rows(tmp_path / "out/pred.csv"), rows(tmp_path / "out/pred_clips.csv")
    assert [row["clip"] for row in items] == [f"{who}_task" for who in SPEAKERS]
    assert len(single) == 8
    for k, row in enumerate(items):
        for column in ("prediction0", "prediction1"):
            mean = sum(float(clip[column]) for clip in single[2 * k : 2 * k + 2]) / 2
            assert float(row[column]) == pytest.approx(mean, abs=1e-6)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["clips"], metrics["items"], metrics["count"]) == (8, 4, 4)
    error = np.mean([abs(float(row["prediction1"]) - 0.25 * k) for k, row in enumerate(items)])
    assert metrics["mae"]["per_output"][1] == pytest.approx(error, abs=1e-6)


def test_labels_that_differ_within_an_item_are_refused_before_training(media, tmp_path):
    with pytest.raises(ValueError, match="are one item by --average_clips 2, but have the labels"):
        finetune(media, tmp_path / "out", "--average_clips", "2")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


# Fold, task, batch size, more flags.
CASES = [
    ("fold", "classification", 1, []),
    ("fold", "classification", 5, ["--average_clips", "3"]),  # here every clip is an item
    ("numbers", "regression", 3, []),
    ("bad", "classification", 2, ["--skip_bad_test_clips"]),
    ("bad", "classification", 5, ["--skip_bad_test_clips", "--no-dist_eval"]),
]


def run_cases(rank, world, root, ports):
    """Test all cases as one of `world` processes."""
    if world > 1:
        gc.freeze()  # a forked process that collects what it was born with copies all of it
    torch.set_num_threads(1)
    for number, (fold, task, batch_size, flags) in enumerate(CASES):
        if world > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
            os.environ |= {name: str(value) for name, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[number])}
        options = ["--task", task, "--batch_size", str(batch_size), *flags]
        options += ["--eval", "--resume", str(root / f"{task}.pth")]
        finetune(root, root / f"{world}-{number}", *options, fold=fold)


@pytest.fixture(scope="module")
def results(media):
    """Bytes of the result files by number of processes and case."""
    threads = torch.get_num_threads()
    run_cases(0, 1, media, ())
    torch.set_num_threads(threads)
    for world in (2, 3):
        arguments = world, media, [free_port() for _ in CASES]
        mp.start_processes(run_cases, arguments, nprocs=world, start_method="forkserver")
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


def test_batch_size_and_sharing_do_not_change_a_byte(results):
    assert results[1, 1]["pred_clips.csv"] == results[1, 0]["pred.csv"]
    assert results[1, 3] == results[1, 4]


def test_clips_and_skipped_clips_are_counted_once(results):
    metrics = json.loads(results[3, 3]["metrics.json"])
    assert metrics["clips"] == 3 and len(metrics["skipped"]) == 2
    assert [Path(line.split(":")[0]).name for line in metrics["skipped"]] == ["gone0", "gone1"]
    assert json.loads(results[3, 2]["metrics.json"])["clips"] == 2, "one of three ranks had none"
