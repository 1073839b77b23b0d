"""What a resumed run does differently from the run that made its checkpoint."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hicmae.data.streams import AnyClip

# Flags that choose where and how a run computes, or when it looks, saves and tests; every other
# flag says what is trained. Paths are judged by the clips that are found there.
HARMLESS = frozenset(
    "output_dir log_dir device deterministic compile cuda_graphs cpu_gemm"
    " checkpoint_activations num_workers clip_timeout resume auto_resume allow_changes"
    " save_interval save_ckpt_freq keep_ckpts print_freq image_freq max_bad_steps max_bad_clips"
    " data_path data_root val_path speaker_file speaker_pattern test_num_segment test_num_crop"
    " dist_eval eval export class_names skip_bad_test_clips".split()
)
_BATCH = ("batch_size", "accum_iter")  # judged by their product
# Flags that earlier versions did not have, with what those did.
BEFORE = {
    "skip_connections": True,
    "contrastive_levels": "all",
    "hierarchical_fusion": True,
    "fusion_order": "both",
    "linear_probe": False,
    "freeze_layers": 0,
    "label_share": 1.0,
}


class RunShape(NamedTuple):
    """The clips of a run and how its steps share them."""

    clips: dict[str, str]  # one line for each list, of `describe_clips`
    steps: int  # optimisation steps of an epoch
    total_batch: int  # clips of a step, over all batches and ranks
    world_size: int


class Changes(NamedTuple):
    """Differences as "name old -> new"."""

    meaning: list[str]
    harmless: list[str]


def describe_clips(clips: Sequence[AnyClip], root: str) -> str:
    """Tell clips apart from others in a few characters, wherever their files lie.

    Args:
        clips: in the order of their list.
        root: folder that relative paths were joined to.
    """
    total = hashlib.sha256()
    for clip in clips:
        video, audio = (_below(path, root) for path in (clip.video, clip.audio))
        total.update(f"{video}\0{audio}\0{clip.label}\n".encode(errors="surrogateescape"))
    return f"{len(clips)} ({total.hexdigest()[:12]})"


def _below(path: str | None, root: str) -> str | None:
    prefix = os.path.join(root, "")
    return path[len(prefix) :] if root and path and path.startswith(prefix) else path


def find_changes(settings: Mapping[str, Any], shape: RunShape, state: Mapping[str, Any]) -> Changes:
    """Compare settings and clips of this run with those that a checkpoint holds.

    Args:
        settings: all flags of this run, by group.
        shape: of this run.
        state: content of the checkpoint; what it does not hold counts as unchanged, but for the
            flags in `BEFORE`.
    """
    old, new = all_flags(state.get("args")), all_flags(settings)
    old = {**BEFORE, **old} if old else {}
    changes = Changes([], [])
    for name in new:
        if name in old and name not in _BATCH and old[name] != new[name]:
            kind = changes.harmless if name in HARMLESS else changes.meaning
            kind.append(f"--{name} {_shown(old[name])} -> {_shown(new[name])}")
    progress = state.get("progress", {})
    _compare_shapes(progress, shape, changes)
    if progress.get("total_batch", shape.total_batch) == shape.total_batch:
        parts = [f"--{n} {old[n]} -> {new[n]}" for n in _BATCH if n in old and old[n] != new[n]]
        changes.harmless.extend(parts)
    return changes


def _compare_shapes(progress: Mapping[str, Any], shape: RunShape, changes: Changes) -> None:
    for name, clips in progress.get("clips", {}).items():
        if name in shape.clips and clips != shape.clips[name]:
            kind = changes.harmless if name == "test" else changes.meaning
            kind.append(f"clips of the {name} list {clips} -> {shape.clips[name]}")
    for name, kind in (
        ("total_batch", changes.meaning),
        ("steps", changes.meaning),
        ("world_size", changes.harmless),
    ):
        old, new = progress.get(name, getattr(shape, name)), getattr(shape, name)
        if old != new:
            kind.append(f"{_NAMES[name]} {old} -> {new}")


_NAMES = {
    "total_batch": "clips of a step (batch_size x accum_iter x processes)",
    "steps": "steps of an epoch",
    "world_size": "processes",
}


def all_flags(groups: Any) -> dict[str, Any]:
    """Return all flags by name; {} for the settings of other programs."""
    if not isinstance(groups, Mapping):
        return {}
    flags: Iterable[Mapping[str, Any]] = (g for g in groups.values() if isinstance(g, Mapping))
    return {
        name: list(value) if isinstance(value, tuple) else value
        for group in flags
        for name, value in group.items()
    }


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)
