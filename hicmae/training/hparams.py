"""What TensorBoard's HParams tab compares: the settings of runs, and what came out in the end.

Both are in a run of their own, `final`, beside the curves. The tab offers every number of the run
that holds the settings as a column, and these should be the final ones only. Of settings that are
written twice TensorBoard believes the first, so a run that goes on replaces those of its
beginning. A run without an end was killed or still goes on; its settings are shown all the same.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.api_pb2 import STATUS_SUCCESS
from tensorboardX.proto.plugin_hparams_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from hicmae.training.board import PATTERN, Board
from hicmae.training.changes import HARMLESS, all_flags

logger = logging.getLogger(__name__)

FOLDER = "final"
_PLUGIN, _START, _END = "hparams", "_hparams_/session_start_info", "_hparams_/session_end_info"
_PATHS = frozenset({"data_path", "val_path"})  # which clips: folds differ in nothing else

Settings = Mapping[str, bool | float | str]


def chosen(settings: Mapping[str, Any], **facts: bool | float | str) -> Settings:
    """Return what is worth comparing: the flags that say what is trained.

    Args:
        settings: all flags as plain values, by group.
        facts: what else was set.
    """
    flags = all_flags(settings)
    kept = {n: _plain(v) for n, v in flags.items() if n not in HARMLESS or n in _PATHS}
    return {**kept, **facts}


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if value is None or value == "":  # an empty cell would hide that runs differ
        return "none"
    return value if isinstance(value, (bool, str)) else float(value)


def begin(log_dir: Path, settings: Settings) -> None:
    """Show the settings of a run that starts or goes on; an earlier end is taken back.

    Args:
        log_dir: folder of the run's TensorBoard files.
        settings: of `chosen`.
    """
    folder = log_dir / FOLDER
    try:
        for path in folder.glob(PATTERN):
            path.unlink(missing_ok=True)
        _write_start(Board(folder), settings).close()
    except OSError as error:
        _warn(folder, error)


def is_ended(log_dir: Path) -> bool:
    """Return whether the end of the run is there."""
    return any(_END.encode() in path.read_bytes() for path in (log_dir / FOLDER).glob(PATTERN))


def end(
    log_dir: Path,
    settings: Settings,
    metrics: Mapping[str, float],
    step: int,
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Show what came out of a run, once.

    Args:
        log_dir: as in `begin`.
        settings: as in `begin`; written if they are not there.
        metrics: final numbers by tag.
        step: steps of the whole run.
        images: pictures, (H, W, 3) uint8, by tag.
    """
    folder = log_dir / FOLDER
    try:
        if is_ended(log_dir):
            return
        started = any(folder.glob(PATTERN))
        board = Board(folder, purge_step=1)  # settings are at step 0
        if not started:
            _write_start(board, settings)
        for tag, value in metrics.items():
            board.scalar(tag, value, step)
        for tag, image in (images or {}).items():
            board.image(tag, image, step)
        done = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
        board.plugin(_END, _PLUGIN, HParamsPluginData(session_end_info=done).SerializeToString())
        board.close()
    except OSError as error:
        _warn(folder, error)


def _warn(folder: Path, error: OSError) -> None:
    text = "TensorBoard's HParams tab does not show this run: cannot write in '%s': %s"
    logger.warning(text, folder, error.strerror or error)


def _write_start(board: Board, settings: Settings) -> Board:
    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], kind, value)
    content = HParamsPluginData(session_start_info=start).SerializeToString()
    board.plugin(_START, _PLUGIN, content)
    return board
