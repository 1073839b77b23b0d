"""Every clip of the corpus of broken media, through the data sets of training and testing."""

import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
import torch

from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import Clip
from hicmae.data.dataset import ClipDataset, LabelledClips, PretrainClips, TestClips
from hicmae.data.loader import ClipSampler, make_loader
from hicmae.inference.recognizer import EmotionRecognizer
from hicmae.io import UnreadableClip
from tests.conftest import keep_imports
from tests.media.corpus import Case, make_corpus
from tests.small_recognizers import checkpoint_of, classifier

SECONDS = 120  # in which a clip is read or refused, whatever is wrong with it
SETTINGS = dict(input_size=32, input_size_audio=(64, 32))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return make_corpus(tmp_path_factory.mktemp("media") / "corpus")


def dataset_of(stage: str, clips: list[Clip]) -> ClipDataset:
    if stage == "testing":
        return TestClips(clips, **SETTINGS, allow_skip=True)
    return (PretrainClips if stage == "pretraining" else LabelledClips)(clips, **SETTINGS)


@cache
def recognizer_of(checkpoint: Path) -> EmotionRecognizer:
    torch.set_num_threads(1)
    return EmotionRecognizer.from_checkpoint(checkpoint, device="cpu")


def outcome_of_prediction(case: Case, checkpoint: Path) -> str:
    """Return "read", or "refused" after checking that the report is one line."""
    try:
        answer = recognizer_of(checkpoint).predict(case.video, audio=case.audio, faces="cut")
    except UnreadableClip as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return "refused"
    assert all(0 <= share <= 1 for share in answer.probabilities.values())
    return "read"


def outcome(case: Case, stage: str, whole: Case) -> str:
    """Return "read", or "refused" after checking that the report is one line with the name."""
    clips = [Clip(case.video, case.audio, 1), Clip(whole.video, whole.audio, 0)]
    batch = dataset_of(stage, clips)[ClipIndex(0, 0)]
    if not batch.skipped:
        assert torch.isfinite(batch.audio).all()
        return "read"
    (clip,) = batch.skipped
    odd = case.video if case.half == "video" else case.audio
    assert clip.video == case.video
    assert "\n" not in clip.reason and len(clip.reason) < 600
    assert os.path.basename(odd) in clip.reason or os.path.basename(case.audio) in clip.reason
    return "refused"


@pytest.fixture(scope="module")
def worker() -> Iterator[Pool]:
    """Return a process that reads clips, as a worker would; a fork would have this one's threads"""
    with multiprocessing.get_context("forkserver").Pool(1, keep_imports) as pool:
        yield pool


def broken_promises(
    worker: Pool,
    cases: list[Case],
    find: Callable[[Case], str],
    allowed: Callable[[Case], tuple[str, ...]],
) -> dict[str, str]:
    """Return what became of the clips that were not read or refused as promised."""
    found: dict[str, str] = {}
    outcomes = worker.imap(find, cases)
    for case in cases:
        try:
            what = outcomes.next(SECONDS)
        except multiprocessing.TimeoutError:
            return found | {case.name: "no answer: it hung, or ended its process"}
        except Exception as error:  # whatever it is, it is the finding
            what = f"{type(error).__name__}: {error}"
        if what not in allowed(case):
            found[case.name] = what
    return found


@pytest.mark.parametrize("stage", ["pretraining", "training", "testing"])
def test_every_broken_clip_is_read_or_refused_as_promised(
    worker: Pool, corpus: list[Case], stage: str
) -> None:
    cases = [case for case in corpus if stage != "pretraining" or not _is_folder(case)]
    find = partial(outcome, stage=stage, whole=cases[0])
    assert broken_promises(worker, cases, find, _allowed) == {}


def test_inference_answers_or_says_in_one_line_why_not(
    worker: Pool, corpus: list[Case], tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(classifier(), tmp_path / "av.pth")

    def allowed(case: Case) -> tuple[str, ...]:
        if case.name in ("44.1 kHz stereo", "8 kHz", "FLOAT wav"):
            return ("read",)  # it converts sound, and so reads more than training does
        return ("read", "refused") if case.half == "audio" else _allowed(case)

    find = partial(outcome_of_prediction, checkpoint=checkpoint)
    assert broken_promises(worker, corpus, find, allowed) == {}


def _is_folder(case: Case) -> bool:
    return case.half == "video" and Path(case.video).parent.name == "frames"


def _allowed(case: Case) -> tuple[str, ...]:
    return ("read", "refused") if case.promise == "either" else (case.promise,)


def test_workers_survive_the_whole_corpus_and_every_refused_clip_is_named(
    corpus: list[Case],
) -> None:
    clips = [Clip(case.video, case.audio, 0) for case in corpus]
    dataset = dataset_of("training", clips)
    sampler = ClipSampler(len(clips), shuffle=True, seed=0, pad=True)
    loader = make_loader(dataset, sampler, 4, 2, False, "cpu")
    batches = list(loader)
    assert sum(len(batch.names) for batch in batches) == len(clips)
    named = {clip.video for batch in batches for clip in batch.skipped}
    assert {case.video for case in corpus if case.promise == "refused"} <= named


@pytest.mark.slow
def test_memory_stays_flat_over_5000_bad_opens(corpus: list[Case]) -> None:
    refused = [case for case in corpus if case.promise != "read"]
    dataset = dataset_of("testing", [Clip(case.video, case.audio, 0) for case in refused])

    def pass_over(times: int) -> float:
        for index in range(times):
            dataset[ClipIndex(0, index % len(refused))]
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB at most so far

    before = pass_over(4 * len(refused))
    assert pass_over(5000) - before < 40
