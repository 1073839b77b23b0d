"""What a data set's protocol asks for, and the clips that are there for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from preprocess.lists.clips import LeftOut, ListedClip
from preprocess.lists.files import Halves

Label = int | tuple[float, ...]


class Found(NamedTuple):
    """The face folders and wavs under the data root."""

    videos: Halves
    audios: Halves

    def names(self) -> list[str]:
        """Every name that stands for a clip, whichever half has it, also unusable halves."""
        return sorted({name for half in self for kind in half for name in kind})


class Wanted(NamedTuple):
    """A labelled clip before its files are known; `audio_name` where the wav is named otherwise."""

    name: str
    label: Label
    speaker: str | None = None
    audio_name: str | None = None


@dataclass
class Plan:
    """The protocol of a data set.

    Attributes:
        wanted: all labelled clips.
        folds: fold -> part ("train", "test") -> names of its clips.
        labels: names of the classes, or of the regression targets.
        expected: published counts of "clips" in lists, "face folders", "wavs", "split01/test" ...
        left_out: clips that the protocol itself leaves out.
        notes: what the user should know, said in the log.
        shared_speakers: speakers may be in training and test, because the official split is so.
    """

    wanted: list[Wanted]
    folds: dict[str, dict[str, list[str]]]
    labels: tuple[str, ...]
    expected: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shared_speakers: bool = False


def fold_name(fold: int) -> str:
    """Return the folder of a fold, as the experiment scripts look for it."""
    return f"split{fold:02d}"


def cross_validation(
    wanted: Iterable[Wanted], num_folds: int, test_fold: Callable[[Wanted], int]
) -> dict[str, dict[str, list[str]]]:
    """Return folds 1..num_folds in which a clip is tested in one fold and trained on in the others.

    Args:
        wanted: the clips.
        num_folds: number of folds.
        test_fold: the fold, from 1, that tests on a clip.
    """
    fold_of = {clip.name: test_fold(clip) for clip in wanted}
    return {
        fold_name(fold): {
            "train": [name for name, tested in fold_of.items() if tested != fold],
            "test": [name for name, tested in fold_of.items() if tested == fold],
        }
        for fold in range(1, num_folds + 1)
    }


def match_files(plan: Plan, found: Found) -> tuple[list[ListedClip], list[LeftOut]]:
    """Give the wanted clips their files; return those without, and files no protocol asks for."""
    listed, left_out = [], list(plan.left_out)
    for clip in plan.wanted:
        audio_name = clip.audio_name or clip.name
        video, why_video = _half(found.videos, clip.name, "video")
        audio, why_audio = _half(found.audios, audio_name, "audio")
        if video is not None and audio is not None:
            listed.append(ListedClip(clip.name, video, audio, clip.label, clip.speaker))
        elif video is None and audio is None:
            kinds = {why_video[0], why_audio[0]}
            reason = "both halves missing" if kinds == {"video missing", "audio missing"} else ""
            detail = "; ".join(filter(None, (why_video[1], why_audio[1])))
            left_out.append(LeftOut(clip.name, reason or why_video[0], detail))
        else:
            left_out.append(LeftOut(clip.name, *(why_video if video is None else why_audio)))
    known = {name for clip in plan.wanted for name in (clip.name, clip.audio_name or clip.name)}
    known.update(clip.clip for clip in plan.left_out)
    left_out += [LeftOut(n, "not in the protocol") for n in found.names() if n not in known]
    return listed, left_out


def _half(halves: Halves, name: str, kind: str) -> tuple[str | None, tuple[str, str]]:
    if name in halves.paths:
        return halves.paths[name], ("", "")
    reason, detail = halves.unusable.get(name, (f"{kind} missing", ""))
    return None, (reason, detail)
