"""Exports: config.json, model.safetensors and README.md, the model card, as model hubs have them.

Every fact of the card is in config.json, so that an export of an export says the same. What is
not known is said to be unknown.
"""

import json
import logging
import os
import shlex
import statistics
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from torch import Tensor

from hicmae.config.flags import flat_settings
from hicmae.data.clip_list import read_labelled_list
from hicmae.data.video import FrameFolder
from hicmae.inference.formats import spread
from hicmae.inference.model import ModelConfig, read_model
from hicmae.io import UnreadableClip, encodable, whole_file, write_whole
from hicmae.training import checkpoint, distributed
from hicmae.training.checkpoint import CONFIG, EXPORT, METADATA, WEIGHTS
from hicmae.training.resampling import Plan, read_predictions

logger = logging.getLogger(__name__)

CARD = "README.md"
STREAMS = {"av": "a face in a film and its sound", "a": "a voice", "v": "a face in a film"}
SHOWN = ("uar", "war", "weighted_f1", "pcc", "ccc", "mae")  # scores of a card, as far as there are
FRONT = "library_name: hicmae"  # a line of every card
TEMPLATE = Path(__file__).with_name("templates") / "card.md"


def export_checkpoint(
    path: str | Path, output: str | Path, facts: Mapping[str, Any] | None = None, **overrides: Any
) -> Path:
    """Write an export of one model to a folder, and return that.

    `facts` are put beside the training settings in config.json; the rest is as in `read_model`.
    """
    config, weights = read_model(path, **overrides)
    config.training.update(facts or {})
    if found := (facts or {}).get("calibration"):
        config = replace(config, temperature=found["temperature"])
    write_export(output, config, weights)
    return Path(output)


def write_export(output: str | Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Write config.json, model.safetensors and README.md."""
    text, output = config.to_json(), Path(output)
    # Tensors that share memory are written twice.
    single = {name: tensor.float().clone().contiguous() for name, tensor in weights.items()}
    with whole_file(output / WEIGHTS) as part:
        save_file(single, part, metadata={"format": "pt", METADATA: text})
    write_whole(output / CONFIG, text)
    write_card(output, config)


def export_run(
    output_dir: str | Path,
    output: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> list[Path]:
    """Export the last and the best epoch of a run to last/ and best/ in a folder; rank 0 does.

    The folder is `output`, or <output_dir>/export. Returns what was written; `facts` are added to
    those of the run, `overrides` are those of `read_model`.
    """
    if not distributed.is_main():
        return []
    run = Path(output_dir)
    ends, best = checkpoint.epoch_ends(run), run / "checkpoint-best.pth"
    sources = ({"last": ends[-1]} if ends else {}) | ({"best": best} if best.is_file() else {})
    if not sources:
        raise FileNotFoundError(f"'{output_dir}' holds no checkpoint-<epoch>.pth to export")
    overrides["frame_rate"] = overrides.get("frame_rate") or _frame_rate(_read(run / CONFIG))
    written = []
    for kind, path in sources.items():
        told = {**_facts(run, "" if kind == "last" else "_best"), **(facts or {})}
        folder = Path(output or run / EXPORT) / kind
        written.append(export_checkpoint(path, folder, facts=told, **overrides))
    return written


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _facts(run: Path, suffix: str) -> dict[str, Any]:
    """Return what the files of a run say of an epoch, with the intervals of its scores."""
    metrics = _read(run / f"metrics{suffix}.json")
    means = {n: v.get("mean") if isinstance(v, dict) else v for n, v in metrics.items()}
    scores = {n: v for n, v in means.items() if isinstance(v, (int, float))}
    facts: dict[str, Any] = {"command": shlex.join(sys.argv), "scores": scores}
    facts |= {n: metrics[n] for n in ("calibration", "chosen_on") if metrics.get(n)}
    with suppress(OSError, ValueError):  # the report says what is wrong with a file
        bounds = Plan().intervals(read_predictions(run / f"pred{suffix}.csv"))
        facts["intervals"] = {name: bounds[name] for name in SHOWN if name in bounds}
    return facts


def _frame_rate(saved: Mapping[str, Any]) -> float | None:
    """Return the median frames a second of training clips: frames of a folder over its wav's time.

    None where that cannot be told: a modality alone, a list that is gone.
    """
    settings, rates = flat_settings(saved), []
    if settings.get("modality") != "av" or not settings.get("data_path"):
        return None
    task, root = settings.get("task", "classification"), settings.get("data_root", "")
    with suppress(OSError, ValueError):
        clips = read_labelled_list(f"{settings['data_path']}/train.csv", task, None, root)
        for clip in spread(clips):
            with suppress(UnreadableClip, OSError, soundfile.LibsndfileError, ZeroDivisionError):
                seconds = soundfile.info(os.fsencode(str(clip.audio))).duration
                rates.append(len(FrameFolder(clip.video)) / seconds)
    return round(statistics.median(rates), 2) if rates else None


def write_card(folder: Path, config: ModelConfig) -> None:
    """Write README.md: what the model is, whence it comes, how good it is; one of others stays."""
    path = folder / CARD
    if path.is_file() and FRONT not in path.read_text(encoding="utf-8", errors="replace"):
        logger.warning("'%s' is no model card of hicmae and stays as it is", path)
        return
    told, settings = config.training, config.training.get("settings", {})
    data, streams = settings.get("data_path"), "audio" if config.modality == "a" else "video"
    tags = {"pretraining": "feature-extraction", "classification": f"{streams}-classification"}
    front = ModelCardData(
        library_name="hicmae",
        license=told.get("license") or "other",
        pipeline_tag=tags.get(config.task),
        tags=["audio-visual", "emotion-recognition"],
    )
    card = ModelCard.from_template(
        front,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        c=config,
        t=told,
        streams=STREAMS[config.modality],
        training_list=_short(data) or "unknown",
        start=_short(settings.get("finetune")),
        chosen=_short(told.get("chosen_on")),
        tested=_short(Path(data, "test.csv")) if data else "its test list",
        scores={n: told["scores"][n] for n in SHOWN if n in told.get("scores", {})},
    )
    write_whole(path, encodable(str(card)) + "\n")


def _short(path: Any) -> str:
    """Return the last two parts of a path, which name a list; the others are nobody's business."""
    return f"`{'/'.join(Path(path).parts[-2:])}`" if path else ""
