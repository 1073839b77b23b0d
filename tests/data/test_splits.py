"""Clips held out by speaker, who speaks, and a share of the labels: told by the seed alone."""

from collections import Counter

import numpy as np
import pytest

from hicmae.data.clip_list import Clip
from hicmae.data.splits import find_speakers, hold_out, take_share


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


@pytest.mark.parametrize("seed, share", [(0, 0.1), (1, 0.2), (2, 0.5)])
def test_held_out_speakers_share_nothing_with_the_rest_and_the_seed_decides(seed, share):
    clips, owners = made_up(seed)
    *sides, groups = hold_out(clips, owners, share, seed)
    speakers = [{clip.video.split("_")[0] for clip in side} for side in sides]
    assert not speakers[0] & speakers[1] and speakers[0] | speakers[1] == set(owners)
    files = [{name for clip in side for name in (clip.video, clip.audio)} for side in sides]
    assert not files[0] & files[1]
    assert Counter(sides[0]) + Counter(sides[1]) == Counter(clips)
    for side in sides:
        assert side == [clip for clip in clips if clip in set(side)], "list order is kept"
    assert groups == [clip.video.split("_")[0] for clip in sides[1]]
    assert hold_out(clips, owners, share, seed) == (*sides, groups)
    assert any(hold_out(clips, owners, share, other)[2] != groups for other in range(5))


@pytest.mark.parametrize("seed", range(5))
def test_every_class_gives_about_its_share_and_more_evenly_than_by_chance(seed):
    clips, owners = made_up(seed, speakers=40)
    _, held, _ = hold_out(clips, owners, 0.2, seed)

    def errors(val):
        total, part = (Counter(clip.label for clip in side) for side in (clips, val))
        return [abs(part[label] / total[label] - 0.2) for label in total]

    rng, by_chance = np.random.default_rng(seed), []
    for _ in range(50):
        chosen = set(rng.choice(sorted(set(owners)), size=8, replace=False).tolist())
        by_chance.append(
            np.mean(errors([c for c, o in zip(clips, owners, strict=True) if o in chosen]))
        )
    assert max(errors(held)) < 0.05
    assert np.mean(errors(held)) < min(by_chance)


def test_the_only_speaker_of_a_class_stays_in_training():
    clips, owners = made_up(1, speakers=12, classes=3)
    clips += [Clip(f"rare{k}", f"rare{k}.wav", 3) for k in range(5)]
    owners += ["s4"] * 5
    assert all("s4" not in hold_out(clips, owners, 0.2, seed)[2] for seed in range(5))


def test_regression_targets_are_spread_over_both_sides():
    rng = np.random.default_rng(0)
    owners = [f"s{k % 30}" for k in range(300)]
    level = {name: rng.random() for name in sorted(set(owners))}  # people differ from each other
    clips = [
        Clip(f"{k}", f"{k}.wav", (level[owner] + 0.1 * rng.random(), rng.random()))
        for k, owner in enumerate(owners)
    ]
    _, held, _ = hold_out(clips, owners, 0.2, 0)
    assert len(held) == 60
    bounds = np.quantile([clip.label[0] for clip in clips], (1 / 3, 2 / 3))
    thirds = np.bincount(np.searchsorted(bounds, [clip.label[0] for clip in held]))
    assert thirds == pytest.approx(20, abs=5), "low, middle and high values alike"


@pytest.mark.parametrize(
    "clips, owners, facts",
    [
        ([("a", "1"), ("b", "2")], ["s", "s"], "two speakers or clips .* got 1; use --val_split"),
        ([("a", "1"), ("a", "2")], ["s", "t"], "/a' belongs to a training clip"),
        ([("a", "one.wav"), ("b", "./one.wav")], ["s", "t"], "one.wav' belongs to a training clip"),
    ],
)
def test_a_list_that_cannot_be_parted_is_refused(clips, owners, facts):
    records = [Clip(video, audio, 0) for video, audio in clips]
    with pytest.raises(ValueError, match=facts):
        hold_out(records, owners, 0.5, 0)
    if clips[0][0] != clips[1][0] and owners[0] != owners[1]:
        assert hold_out(records, owners, 0.5, 0, "v"), "a sound that nobody hears may be on both"


def test_a_class_on_one_side_only_is_warned_of(caplog):
    clips = [Clip(f"v{k}", f"a{k}", k // 9) for k in range(10)]
    hold_out(clips, [f"s{k}" for k in range(10)], 0.2, 0)
    assert "no validation clip is of class 1: too few speakers" in caplog.text


@pytest.mark.parametrize(
    "data_set, name, speaker",
    [
        ("crema-d", "1001_IEO_ANG_HI", "1001"),
        ("ravdess", "02-01-06-01-02-01-12", "12"),
        ("msp-improv", "S01A-F03-P-FM02", "F03"),
        ("iemocap", "Ses01F_impro01_M013", "Ses01M"),
        ("werewolf-xl", "01_05_17", "01_05"),
        ("avcaffe", "aiim007_task_3_002", "aiim007"),
        (r"([^/]+)/[^/]+$", "ann/bob", "ann"),  # one's own with a slash sees the folders
    ],
)
def test_patterns_find_the_speaker_the_list_script_writes(data_set, name, speaker, tmp_path):
    clips = [f"/data/1/{name}_aligned", f"1/{name}.mp4"]
    assert find_speakers(clips, tmp_path, pattern=data_set) == [speaker] * 2


def write_table(path, *lines):
    path.write_text("clip,speaker\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_the_table_lies_beside_the_lists_or_above_their_fold(tmp_path):
    fold = tmp_path / "split01"
    fold.mkdir()
    clips = ["/d/a_aligned", "/d/b.mp4"]
    write_table(tmp_path / "clip_speakers.csv", "/d/a_aligned,ann", "b,bob", "p/x,Pia", "q/x,Quy")
    assert find_speakers(clips, fold) == ["ann", "bob"]
    assert find_speakers(["/r/q/x", "/r/p/x"], fold, "/r") == ["Quy", "Pia"], "below the data root"
    write_table(fold / "clip_speakers.csv", "a,dia", "b,dia")
    assert find_speakers(clips, fold) == ["dia", "dia"], "the nearer table wins"
    other = write_table(tmp_path / "other.csv", "a,eve", "b,eve")
    assert find_speakers(clips, fold, file=str(other)) == ["eve", "eve"]


@pytest.mark.parametrize(
    "lines, facts",
    [
        (["clip,speaker", "a,ann"], "1 of 2 clips .* first 'q/b'"),
        (["clip,speaker", "p/a,ann", "r/a,bob", "b,bob"], "'q/a' .*: 'a' has .'ann', 'bob'."),
        (["clip,speaker", "a,"], r"csv:2: expected a clip and its speaker"),
        (["speaker,clips", "ann,3"], "csv:1: expected .* clip,speaker, got speaker,clips"),
    ],
)
def test_a_table_that_leaves_a_speaker_open_is_refused(tmp_path, lines, facts):
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=facts):
        find_speakers(["q/a", "q/b"], tmp_path, file=str(table))
    write_table(table, "x,ann")
    with pytest.raises(ValueError, match="'x' .* name of several clips; give whole names"):
        find_speakers(["1/x", "2/x"], tmp_path, file=str(table))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "clip_speakers.csv.* --speaker_file .* or --speaker_pattern"),
        ({"file": "no.csv"}, FileNotFoundError, "--speaker_file 'no.csv' does not exist"),
        ({"pattern": "("}, ValueError, r"--speaker_pattern '\(' "),
        ({"pattern": "^a"}, ValueError, "no group"),
        ({"pattern": "^(z)"}, ValueError, "1 of 1 clips have no known speaker, first 'a'"),
    ],
)
def test_unknown_speakers_end_the_run_with_what_to_do(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        find_speakers(["a"], tmp_path, **options)


COUNTS = {0: 100, 1: 40, 2: 3}  # clips of each class


def counted():
    labels = [label for label, count in COUNTS.items() for _ in range(count)]
    return [Clip(f"v{k}", f"a{k}.wav", label) for k, label in enumerate(labels)]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_gives_its_share_and_a_smaller_share_is_part_of_a_larger_one(seed):
    whole = counted()
    expected = {0.01: (1, 1, 1), 0.1: (10, 4, 1), 0.5: (50, 20, 2), 1: (100, 40, 3)}
    smaller = set()
    for share, sizes in expected.items():
        taken = take_share(whole, share, seed)
        counts = Counter(clip.label for clip in taken)
        assert tuple(counts[label] for label in COUNTS) == sizes
        assert smaller < set(taken) and taken == [clip for clip in whole if clip in set(taken)]
        smaller = set(taken)
    assert taken == whole


def test_the_seed_decides_which_clips_and_other_classes_do_not():
    draws = [take_share(counted(), 0.1, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    alone = take_share([clip for clip in counted() if clip.label == 0], 0.1, 0)
    assert alone == [clip for clip in draws[0] if clip.label == 0]


def test_of_a_regression_the_share_is_of_all_clips():
    numbers = [Clip(f"v{k}", f"a{k}.wav", (k / 50, 0.5)) for k in range(50)]
    taken = take_share(numbers, 0.3, 0)
    assert len(set(taken)) == 15
    assert len(take_share(numbers, 0.001, 0)) == 1
