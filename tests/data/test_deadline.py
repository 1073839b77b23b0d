"""Clips that take too long: they are left, named, and replaced."""

import pickle
import threading

import numpy as np
import pytest

from hicmae.data import dataset as streams
from hicmae.data.clip_list import Clip
from hicmae.data.dataset import PretrainClips, TestClips
from hicmae.data.loader import ClipIndex, Deadline, read_or_replace, read_or_skip
from hicmae.io import UnreadableClip

SHORT, LONG = 0.2, 60.0


@pytest.fixture
def hung():
    """Return an event on which calls hang; they end with the test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_in_time_gives_its_result_and_its_exception():
    deadline = Deadline(LONG)
    assert deadline.call("clip", max, 3, 5) == 5
    with pytest.raises(ZeroDivisionError):
        deadline.call("clip", lambda: 1 // 0)
    assert deadline.call("clip", max, 1, 2) == 2


def test_a_call_that_hangs_is_an_unreadable_clip(hung):
    deadline = Deadline(SHORT)
    with pytest.raises(UnreadableClip, match="clip 'x.mp4' was not read in 0.2 s.*--clip_timeout"):
        deadline.call("x.mp4", hung.wait)
    assert deadline.call("y.mp4", max, 1, 2) == 2  # what hangs is in nobody's way


def test_a_hung_thread_ends_when_its_call_returns_after_all(hung):
    deadline = Deadline(SHORT)
    before = set(threading.enumerate())
    with pytest.raises(UnreadableClip):
        deadline.call("x.mp4", hung.wait)
    (helper,) = set(threading.enumerate()) - before
    assert helper.is_alive() and helper.daemon
    hung.set()
    helper.join(timeout=30)
    assert not helper.is_alive()


def test_no_limit_needs_no_thread():
    assert Deadline(0).call("clip", threading.current_thread) is threading.current_thread()


def test_a_copy_for_another_process_starts_its_own_thread():
    deadline = Deadline(LONG)
    deadline.call("clip", max, 1, 2)
    assert pickle.loads(pickle.dumps(deadline)).call("clip", max, 1, 2) == 2


def test_training_takes_another_clip_and_testing_skips_it(hung):
    clips = [Clip("hangs.mp4", None, None), Clip("reads.mp4", None, None)]

    def read(clip, *_):
        return hung.wait() if clip.video == "hangs.mp4" else clip.video

    value, (skipped,) = read_or_replace(clips, 0, read, np.random.default_rng(0), Deadline(SHORT))
    assert value == "reads.mp4" and skipped.video == "hangs.mp4"
    value, (skipped,) = read_or_skip(clips[0], read, True, Deadline(SHORT))
    assert value is None and "was not read in 0.2 s" in skipped.reason


def test_a_decoder_that_hangs_costs_its_clip_in_training_and_in_testing(
    pretrain_clips, monkeypatch, hung
):
    clip = pretrain_clips[0]
    open_video = streams.open_video
    monkeypatch.setattr(
        streams, "open_video", lambda path: hung.wait() if path == clip.video else open_video(path)
    )
    sizes = {"input_size": 32, "input_size_audio": (64, 32), "clip_timeout": 3.0}
    batch = PretrainClips(pretrain_clips, **sizes)[ClipIndex(0, 0)]
    assert batch.skipped[0].video == clip.video and "was not read in 3 s" in batch.skipped[0].reason
    assert batch.names[0] != clip.video
    views = TestClips([clip], allow_skip=True, **sizes)[ClipIndex(0, 0)]
    assert views.names == () and views.skipped[0].video == clip.video
