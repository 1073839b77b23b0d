"""Checkpoints: atomic, safe to open, picked up again; pre-trained weights that report."""

import argparse
import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import zipfile
from functools import partial

import pytest
import timm
import torch

import hicmae  # noqa: F401  (registers the models)
from hicmae.training import checkpoint
from hicmae.training.checkpoint import CheckpointError, load, load_pretrained, newest, prune, save
from hicmae.training.run import remove_leftovers

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 4}


def assert_no_temporary_files(folder):
    assert [path.name for path in folder.iterdir() if "part" in path.name] == []


# Saving


def test_saved_state_comes_back(tmp_path):
    path = tmp_path / "new" / "checkpoint-4.pth"
    save(path, STATE | {"args": {"lr": 0.1, "betas": (0.9, 0.95), "aa": None}})
    state = load(path, verify=True)
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert state["epoch"] == 4 and state["args"] == {"lr": 0.1, "betas": (0.9, 0.95), "aa": None}
    assert_no_temporary_files(path.parent)


def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # the kernel refuses to let any file grow past 1 MiB
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        with pytest.raises(OSError, match="could not write checkpoint .*checkpoint-4.pth.*large"):
            save(path, {"model": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert_no_temporary_files(tmp_path)


def killed_while_saving(path):
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    save(path, {"model": torch.ones(50, 50)})


def test_kill_while_saving_keeps_the_old_file_and_the_next_start_cleans_up(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    child = multiprocessing.get_context("fork").Process(target=killed_while_saving, args=(path,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert load(path)["epoch"] == 4
    remove_leftovers(tmp_path)
    assert_no_temporary_files(tmp_path)


# Loading


def test_released_checkpoint_with_a_namespace_and_epoch_best_loads(tmp_path):
    path = tmp_path / "checkpoint-best.pth"
    args = argparse.Namespace(model="avit", lr=1e-3, opt_betas=[0.9, 0.999], finetune=None)
    torch.save({"model": STATE["model"], "optimizer": {}, "epoch": "best", "args": args}, path)
    state = load(path)
    assert state["epoch"] == "best" and state["args"] == args


def test_legacy_torch_format_loads(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load(path, verify=True)["model"]["weight"], STATE["model"]["weight"])


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "torchless zip"])
def test_pickle_bomb_does_not_run_and_is_named_in_one_line(tmp_path, form):
    path, marker = tmp_path / "bomb.pth", tmp_path / "ran"
    content = {"model": Bomb(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError, match="is refused: .*(posix|nt).system") as raised:
        load(path)
    assert not marker.exists()
    assert "\n" not in str(raised.value)
    os.system(f"touch '{marker}.control'")
    assert (tmp_path / "ran.control").exists()  # the bomb itself would have worked


def whole_file(tmp_path):
    path = tmp_path / "whole.pth"
    save(path, STATE | {"args": argparse.Namespace(a=1)})
    return path.read_bytes()


def pickle_of(state, path):
    path.write_bytes(pickle.dumps(state, protocol=4))


@pytest.mark.parametrize("tenth", range(10))
def test_truncated_file_is_named_in_one_line(tmp_path, tenth):
    whole, path = whole_file(tmp_path), tmp_path / "cut.pth"
    path.write_bytes(whole[: len(whole) * tenth // 10])
    with pytest.raises(CheckpointError, match="cut.pth' .* is truncated, damaged or no") as raised:
        load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\x80\x02garbage", b"PK\x03\x04" + bytes(90), b"\x89PNG\r\n" * 30]
)
def test_foreign_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "foreign.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"\({len(content)} bytes\) is truncated, damaged"):
        load(path)


@pytest.mark.parametrize("write", [partial(torch.save, pickle_protocol=4), pickle_of])
def test_a_newer_pickle_is_told_to_be_one(tmp_path, write):
    path = tmp_path / "newer.pth"
    write({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="a pickle of a newer protocol than torch.save's own"):
        load(path)


def test_random_damage_gives_a_dictionary_or_a_checkpoint_error(tmp_path):
    sources = [whole_file(tmp_path)]
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=False)
    sources.append(buffer.getvalue())
    path, rng, refused = tmp_path / "fuzz.pth", random.Random(0), 0
    for trial in range(300):
        damaged = bytearray(sources[trial % 2])
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(load(path), dict)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_flipped_bits_of_weights_are_found_when_asked_for(tmp_path):
    path = tmp_path / "flipped.pth"
    save(path, {"model": {"weight": torch.ones(4000)}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    assert not torch.equal(load(path)["model"]["weight"], torch.ones(4000))
    with pytest.raises(CheckpointError, match="wrong check sum"):
        load(path, verify=True)


def test_paths_and_contents_that_cannot_be_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pth' does not exist; check the path"):
        load(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="is a folder, expected a checkpoint file"):
        load(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        load(tmp_path / "list.pth")


# Resuming


def test_newest_goes_by_number_and_ignores_other_names(tmp_path):
    for name in ("9", "10", "2", "best", "11x"):
        save(tmp_path / f"checkpoint-{name}.pth", {"epoch": name})
    path, state = newest(tmp_path)
    assert path.name == "checkpoint-10.pth" and state == {"epoch": "10"}


def test_newest_falls_back_over_broken_files_and_says_so(tmp_path, caplog):
    for epoch in (3, 4, 5):
        save(tmp_path / f"checkpoint-{epoch}.pth", STATE | {"epoch": epoch})
    truncated, flipped = tmp_path / "checkpoint-5.pth", tmp_path / "checkpoint-4.pth"
    truncated.write_bytes(truncated.read_bytes()[:700])
    content = bytearray(flipped.read_bytes())
    at = content.index(STATE["model"]["weight"].numpy().tobytes())
    content[at] ^= 1
    flipped.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        path, state = newest(tmp_path)
    assert path.name == "checkpoint-3.pth" and state["epoch"] == 3
    assert [r.getMessage().count("skipping a broken checkpoint") for r in caplog.records] == [1, 1]
    assert "checkpoint-5.pth" in caplog.text and "checkpoint-4.pth" in caplog.text


def test_newest_of_nothing_whole_is_none(tmp_path):
    assert newest(tmp_path / "missing") is None
    (tmp_path / "checkpoint-1.pth").write_bytes(b"")
    assert newest(tmp_path) is None


def test_states_within_an_epoch_stand_between_those_of_its_ends(tmp_path):
    names = ("9", "10-step3000", "10", "11-step900", "11-step1000", "best", "11-stepx")
    for name in names:
        save(tmp_path / f"checkpoint-{name}.pth", {"epoch": name})
    assert [state["epoch"] for _, state in checkpoint.whole(tmp_path)] == [
        "11-step1000",
        "11-step900",
        "10",
        "10-step3000",
        "9",
    ]
    assert [epoch for epoch, _ in checkpoint.numbered(tmp_path)] == [9, 10]


def test_prune_keeps_every_nth_epoch_and_the_last_two(tmp_path):
    for epoch in range(12):
        (tmp_path / f"checkpoint-{epoch}.pth").touch()
    (tmp_path / "checkpoint-best.pth").touch()
    prune(tmp_path, keep_every=5)
    left = [epoch for epoch, _ in checkpoint.numbered(tmp_path)]
    assert left == [4, 9, 10, 11]  # epochs 5 and 10 counted from 1, and the last two
    assert (tmp_path / "checkpoint-best.pth").exists()


def test_prune_counts_states_within_an_epoch_as_recent_but_keeps_none_for_its_number(tmp_path):
    for name in ("0", "1-step5", "1", "2-step8", "2-step9"):
        (tmp_path / f"checkpoint-{name}.pth").touch()
    prune(tmp_path, keep_every=1, keep_last=1)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-2-step9.pth"]


def test_the_check_sum_is_a_zip_comment_that_other_readers_pass_over(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    content = path.read_bytes()
    assert content[-71:] == b"sha256:" + hashlib.sha256(content[:-71]).hexdigest().encode()
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == content[-71:] and archive.testzip() is None
    for options in ({}, {"mmap": True}):
        state = torch.load(path, weights_only=True, **options)
        assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        if at < len(content) - 71 or at >= len(content) - 64:
            with pytest.raises(CheckpointError, match="is truncated, damaged or no torch check"):
                load(path, verify=True)


# Pre-trained weights


def pretraining_model(depth=3, width=128):
    return timm.create_model(
        f"pretrain_hicmae_dim{width}_patch16_160_a256",
        encoder_depth=depth,
        encoder_depth_audio=depth,
        decoder_depth=2,
        decoder_depth_audio=2,
        encoder_fusion_depth=1,
        return_intermediate_features=(depth - 1,),
    )


def classifier(depth=3, num_classes=6, **more):
    return timm.create_model(
        "avit_dim128_patch16_160_a256",
        num_classes=num_classes,
        depth=depth,
        depth_audio=depth,
        fusion_depth=1,
        **more,
    )


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    model = pretraining_model()
    return {name: torch.randn_like(weight) for name, weight in model.state_dict().items()}


def families(names):
    return {name.split(".")[0] for name in names}


def test_pretraining_checkpoint_fills_the_encoders_and_reports_the_rest(
    pretrained, tmp_path, caplog
):
    path = tmp_path / "checkpoint-99.pth"
    save(path, {"model": pretrained, "epoch": 99, "args": argparse.Namespace()})
    model = classifier()
    head = model.head.weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, path)
    state = model.state_dict()
    assert all(torch.equal(state[name], pretrained[name]) for name in report.loaded)
    assert families(report.loaded) == {"encoder", "encoder_audio", "encoder_fusion"}
    assert families(report.new) == {
        "fc_norm",
        "head",
        "video_layer_weights",
        "audio_layer_weights",
    }
    assert families(report.unused) == {
        "decoder",
        "decoder_audio",
        "encoder_to_decoder",
        "encoder_to_decoder_audio",
        "mask_token",
        "mask_token_audio",
    }
    assert report.share == 1.0 and report.mismatched == () and report.problems == ()
    assert torch.equal(model.head.weight, head)
    lines = caplog.messages[-1].splitlines()
    assert lines[0].startswith(f"loaded {len(report.loaded)} of {len(state)} tensors (100.0%")
    assert "head.* (2)" in lines[1] and "decoder.* (" in lines[2] and len(lines) == 3


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "model", "module"])
def test_bare_and_wrapped_state_dicts_load_too(pretrained, prefix, key):
    weights = {prefix + name: weight for name, weight in pretrained.items()}
    report = load_pretrained(classifier(), weights if key is None else {key: weights})
    assert report.share == 1.0


def test_half_precision_weights_load_into_a_float_model(pretrained):
    model = classifier()
    load_pretrained(model, {name: weight.half() for name, weight in pretrained.items()})
    weight = model.encoder.blocks[2].attn.qkv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, pretrained["encoder.blocks.2.attn.qkv.weight"].half().float())


def test_one_stream_model_takes_its_own_encoder_only(pretrained):
    model = classifier(modality="a")
    report = load_pretrained(model, pretrained)
    assert families(report.loaded) == {"encoder_audio"}
    assert {"encoder", "encoder_fusion"} <= families(report.unused)
    assert report.problems == ()


def test_head_of_another_class_count_keeps_its_initial_values(pretrained):
    source = classifier(num_classes=11).state_dict()
    model = classifier(num_classes=6)
    before = model.head.weight.clone()
    report = load_pretrained(model, source)
    assert report.mismatched[0] == "head.weight: (11, 512) -> (6, 512)"
    assert "of another shape, not loaded: head.weight: (11, 512) -> (6, 512)" in report.text()
    assert torch.equal(model.head.weight, before)
    with pytest.raises(ValueError, match=r"lacks weights of the model: head.\* \(2\); testing"):
        load_pretrained(model, source, require_all=True)


def test_deeper_checkpoint_is_refused_unless_a_partial_load_is_allowed():
    deep = pretraining_model(depth=10).state_dict()
    message = (
        r"encoder blocks 4\.\.9 of the checkpoint are unused; "
        r"encoder_audio blocks 4\.\.9 of the checkpoint are unused"
    )
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(depth=4), deep)
    model = classifier(depth=4)
    report = load_pretrained(model, deep, allow_partial=True)
    assert report.share == 1.0 and "accepted although: encoder blocks 4..9" in report.text()
    assert torch.equal(model.encoder.blocks[3].norm1.weight, deep["encoder.blocks.3.norm1.weight"])


def test_shallower_checkpoint_is_refused_and_below_half_even_a_partial_load(pretrained):
    with pytest.raises(ValueError, match=r"encoder blocks 3\.\.4 are missing from the checkpoint"):
        load_pretrained(classifier(depth=5), pretrained)
    assert load_pretrained(classifier(depth=5), pretrained, allow_partial=True).share > 0.5
    with pytest.raises(ValueError, match=r"only [34]\d% of the model's encoder weights .* 50%"):
        load_pretrained(classifier(depth=10), pretrained, allow_partial=True)


def test_missing_stream_and_missing_weights_are_named(pretrained):
    silent = {n: w for n, w in pretrained.items() if not n.startswith("encoder_audio.")}
    with pytest.raises(ValueError, match=r"encoder_audio\.\* is missing from the checkpoint"):
        load_pretrained(classifier(), silent)
    normless = {n: w for n, w in pretrained.items() if n != "encoder.norm.bias"}
    with pytest.raises(ValueError, match=r"lacks encoder.norm.\* \(1\), e.g. encoder.norm.bias"):
        load_pretrained(classifier(), normless)


def test_checkpoint_of_another_width_is_refused_with_both_shapes():
    wide = pretraining_model(width=256).state_dict()
    message = r"encoder\.patch_embed\.proj\.weight: \(256, 3, 2, 16, 16\) -> \(128, 3, 2, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), wide)


def test_weights_of_another_model_are_refused_with_both_families():
    foreign = {"backbone.layer1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    message = r"checkpoint has backbone.\* \(1\), fc.\* \(1\); the model has .*encoder.blocks.\*"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), {"model": foreign})


def test_checkpoint_without_weights_is_refused_with_its_keys():
    with pytest.raises(ValueError, match="under 'model' or 'module', got the keys epoch, args"):
        load_pretrained(classifier(), {"epoch": 3, "args": {}})


def test_a_refused_load_leaves_the_model_as_it_was(pretrained):
    model = classifier(depth=5)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the model's encoders"):
        load_pretrained(model, pretrained)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
