"""Going on with a run: which checkpoint, whether it fits, and every state as it was."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from hicmae.training import checkpoint, distributed
from hicmae.training.changes import RunShape, find_changes
from hicmae.training.engine import Optimization
from hicmae.training.randomness import restore_random_states
from hicmae.training.saving import NO_BEST, Place, Saver
from hicmae.training.session import Session, write_settings

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """A checkpoint to go on from."""

    path: Path
    state: dict[str, Any]
    origin: dict[str, str] | None  # what --resume named when the run began


def find_checkpoint(session: Session) -> Found | None:
    """Choose the checkpoint to go on from, the same on every rank; None: start afresh.

    Without --resume that is the newest whole one of the output folder. With it, it is the named
    one, unless the folder holds newer ones of a run that began there: then the same command was
    started again.
    """
    message: Any = None
    if distributed.is_main():
        try:
            message = _choose(session)
        except (OSError, ValueError) as error:
            message = error
    on_main = message
    message = distributed.from_main(_path_only(message))
    if isinstance(message, Exception):
        raise message
    if message is None or distributed.is_main():
        return on_main
    path, origin = message
    return Found(path, checkpoint.load(path, verify=True), origin)


def _path_only(message: Any) -> Any:
    return (message.path, message.origin) if isinstance(message, Found) else message


def _choose(session: Session) -> Found | None:
    run = session.run
    # A launcher that starts a group again means the run it started before.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    looks = run.auto_resume or restarted
    if not run.resume:
        found = checkpoint.newest(session.output_dir) if looks else None
        return Found(*found, found[1].get("origin")) if found else None
    named = Path(run.resume)
    for path, state in checkpoint.whole(session.output_dir) if looks else ():
        if _began_at(state.get("origin"), named):
            return Found(path, state, state["origin"])
    state = checkpoint.load(named, verify=True)
    return Found(named, state, {"path": str(named.resolve()), "sha256": _sha256(named)})


def _began_at(origin: Any, named: Path) -> bool:
    if not isinstance(origin, Mapping) or origin["path"] != str(named.resolve()):
        return False
    return not named.exists() or origin["sha256"] == _sha256(named)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def prepare(
    session: Session,
    found: Found | None,
    model: nn.Module,
    optimization: Optimization,
    shape: RunShape,
) -> Saver:
    """Bring a new run's parts to the state of a checkpoint, and return what will save them.

    Args:
        session: of this process.
        found: of `find_checkpoint`; None starts afresh.
        model: not wrapped; changed in place.
        optimization: changed in place, but for the schedules.
        shape: of this run.

    Raises:
        ValueError: the checkpoint is no training state, or of another model or other settings.
    """
    saver = Saver(session, model, optimization, shape)
    if found is not None:
        _check_keys(found)
        _check_changes(session, found, shape)
        _load(found, model, optimization)
        _go_on(saver, found)
        found.state.clear()  # the caller may hold it for days
    if distributed.is_main():
        checkpoint.set_aside(session.output_dir, *saver.place, saver.steps_done)
        write_settings(session)
    return saver


def _check_keys(found: Found) -> None:
    missing = {"model", "optimizer", "epoch"} - found.state.keys()
    if missing or not isinstance(found.state["epoch"], int):
        raise ValueError(
            f"checkpoint '{found.path}' cannot be resumed: it lacks "
            f"{sorted(missing) or 'an epoch number'}; use --finetune for released weights"
        )


def _check_changes(session: Session, found: Found, shape: RunShape) -> None:
    changes = find_changes(session.settings, shape, found.state)
    if changes.harmless:
        logger.info(
            "resuming with changes that keep the run's meaning: %s", _list(changes.harmless)
        )
    if "progress" in found.state and found.state["progress"]["world_size"] != shape.world_size:
        logger.info(
            "with another number of processes the steps hold the same clips, but sums are rounded "
            "differently, and draws within a step and contrast within a process's batch change"
        )
    if not changes.meaning:
        return
    if not session.run.allow_changes:
        raise ValueError(
            f"checkpoint '{found.path}' belongs to another run: {_list(changes.meaning)}; repeat "
            "that run's settings, choose another --output_dir, or accept with --allow_changes"
        )
    logger.warning("resuming with changes allowed by --allow_changes: %s", _list(changes.meaning))


def _list(changes: list[str]) -> str:
    return ", ".join(changes)


def _load(found: Found, model: nn.Module, optimization: Optimization) -> None:
    state, optimizer = found.state, optimization.optimizer
    chosen = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint '{found.path}' does not fit this model ({reason}); "
            "repeat the run's model flags, or choose another --output_dir"
        ) from error
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)  # flags and device of this run hold, not the saved ones
    if state.get("scaler"):
        optimization.scaler.load_state_dict(state["scaler"])


def _go_on(saver: Saver, found: Found) -> None:
    state, shape = found.state, saver.shape
    saver.origin = found.origin
    saver.best = _best_on_disk(saver, state.get("best", NO_BEST))
    progress = state.get("progress")
    if progress is None:  # of an earlier version or of the original: the end of an epoch
        saver.place = Place(state["epoch"] + 1, 0)
    else:
        # In clips, so that a changed batch (--allow_changes) leaves out no more than it must.
        step = progress["clips_done"] // shape.total_batch
        saver.place = Place(progress["epoch"], min(step, shape.steps))
        _restore_rank(saver, state["ranks"])
    logger.info(
        "resumed from %s: epoch %d, %d of its %d steps done",
        found.path,
        saver.place.epoch,
        saver.place.step,
        shape.steps,
    )


def _restore_rank(saver: Saver, ranks: list[dict[str, Any]]) -> None:
    same = len(ranks) == saver.shape.world_size
    if same:
        restore_random_states(ranks[distributed.rank()]["random"])
    windows = [rank["window"] for rank in ranks]
    if windows[0] is not None:
        saver.resumed = windows[distributed.rank()] if same else _mean_window(windows)


def _mean_window(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """Let each of another number of ranks go on with the mean, as means over ranks are logged."""
    sums = {
        name: sum(window["sums"][name] for window in windows) / len(windows)
        for name in windows[0].get("sums", ())
    }
    return {**windows[0], "sums": sums}


def _best_on_disk(saver: Saver, best: dict[str, Any]) -> dict[str, Any]:
    """Return the best epoch if its weights are there, else choose anew from here on."""
    message = best
    if distributed.is_main() and best["epoch"] >= 0:
        path = saver.session.output_dir / "checkpoint-best.pth"
        try:
            epoch = checkpoint.load(path, verify=True)["epoch"]
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            epoch = None
        if epoch != best["epoch"]:
            text = (
                "the weights of the best epoch so far (%d) are not on disk: chosen anew from here"
            )
            logger.warning(text, best["epoch"])
            message = NO_BEST
    return distributed.from_main(message)
