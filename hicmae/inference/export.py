"""Turn a fine-tuned or pre-trained .pth into config.json and model.safetensors.

    python -m hicmae.inference.export CHECKPOINT OUTPUT

CHECKPOINT is a .pth of this project or of the original authors, or the output folder of a finished
run. OUTPUT becomes a folder that holds all that inference needs, in the layout of a model hub. For
a run it holds two of them, last/ and best/. run_finetuning.py does this by itself, in
<output_dir>/export/.
"""

import argparse
import json
import logging
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
from safetensors.torch import save_file

from hicmae.config import new_parser
from hicmae.data.clip_list import read_labelled_list
from hicmae.data.media import FrameFolder
from hicmae.inference.model import (
    CONFIG,
    EXPORT,
    METADATA,
    WEIGHTS,
    Described,
    flat_settings,
    read_checkpoint,
)
from hicmae.io import UnreadableClip, describe, whole_file
from hicmae.training import checkpoint, distributed

logger = logging.getLogger(__name__)

KINDS = {"last": "metrics.json", "best": "metrics_best.json"}  # and the scores of each


def write_export(described: Described, output: str | Path) -> Path:
    """Write config.json and model.safetensors into a folder; returns the folder."""
    output = Path(output)
    text = described.config.to_json()
    weights = {
        name: tensor.float().clone().contiguous() for name, tensor in described.weights.items()
    }
    with whole_file(output / WEIGHTS) as part:
        save_file(weights, part, metadata={"format": "pt", METADATA: text})
    with whole_file(output / CONFIG) as part:
        part.write_text(text, encoding="utf-8")
    return output


def export_checkpoint(
    path: str | Path,
    output: str | Path,
    class_names: Sequence[str] = (),
    facts: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Export one .pth.

    Args:
        path: of this project or of the original authors.
        output: folder to make.
        class_names: see `names.chosen_names`.
        facts: put beside the training settings in config.json.
        overrides: see `checkpoints.read_checkpoint`.

    Returns:
        The folder.
    """
    described = read_checkpoint(path, class_names, **overrides)
    described.config.training.update(facts or {})
    folder = write_export(described, output)
    logger.info("exported %s to %s", path, folder)
    return folder


def export_run(
    output_dir: str | Path, output: str | Path | None = None, **overrides: Any
) -> list[Path]:
    """Export the last and the best epoch of a fine-tuning run; only rank 0 does.

    Args:
        output_dir: of the run.
        output: folder for last/ and best/; None: <output_dir>/export.
        overrides: see `export_checkpoint`.

    Returns:
        The folders that were written.
    """
    if not distributed.is_main():
        return []
    output_dir = Path(output_dir)
    numbered = checkpoint.numbered(output_dir)
    best = output_dir / "checkpoint-best.pth"
    sources = {"last": numbered[-1][1]} if numbered else {}
    if best.is_file():
        sources["best"] = best
    if not sources:
        raise FileNotFoundError(f"'{output_dir}' holds no checkpoint-<epoch>.pth to export")
    settings = _settings_of(output_dir)
    if not overrides.get("frame_rate"):
        overrides["frame_rate"] = measured_frame_rate(settings)
    target = Path(output) if output else output_dir / EXPORT
    return [
        export_checkpoint(
            path,
            target / kind,
            facts={"command": shlex.join(sys.argv), "scores": _scores(output_dir / KINDS[kind])},
            **overrides,
        )
        for kind, path in sources.items()
    ]


def measured_frame_rate(settings: dict[str, Any], clips: int = 16) -> float | None:
    """Return the median frames a second of training clips: frames of a folder over its wav's time.

    None where that cannot be told: a modality alone, a list that is gone.
    """
    if settings.get("modality") != "av" or not settings.get("data_path"):
        return None
    path = Path(settings["data_path"]) / "train.csv"
    try:
        listed = read_labelled_list(
            path, settings.get("task", "classification"), None, settings.get("data_root", "")
        )
    except (OSError, ValueError):
        return None
    rates = []
    for clip in listed[:: max(len(listed) // clips, 1)][:clips]:
        try:
            rates.append(len(FrameFolder(clip.video)) / soundfile.info(str(clip.audio)).duration)
        except (UnreadableClip, OSError, soundfile.LibsndfileError, ZeroDivisionError):
            continue
    return round(statistics.median(rates), 2) if rates else None


def _settings_of(output_dir: Path) -> dict[str, Any]:
    path = output_dir / CONFIG
    if not path.is_file():
        return {}
    return flat_settings(json.loads(path.read_text(encoding="utf-8")))


def _scores(path: Path) -> dict[str, float]:
    """Return the single figures of a metrics file."""
    if not path.is_file():
        return {}
    metrics = json.loads(path.read_text(encoding="utf-8"))
    means = {n: v["mean"] if isinstance(v, dict) and "mean" in v else v for n, v in metrics.items()}
    return {name: value for name, value in means.items() if isinstance(value, (int, float))}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = new_parser(str(__doc__))
    parser.prog = "python -m hicmae.inference.export"
    parser.add_argument("checkpoint", help=".pth, or the output folder of a fine-tuning run")
    parser.add_argument("output", help="folder to make")
    parser.add_argument(
        "--class_names",
        nargs="+",
        default=(),
        metavar="NAME",
        help="names of the classes or outputs; or a file with a name a line; or a data set: "
        "cremad, mafw, ravdess, msp-improv, werewolf-xl",
    )
    parser.add_argument(
        "--task", choices=("classification", "regression"), help="where the file does not say"
    )
    for flag, kind, text in (
        ("num_frames", int, "video frames of a clip, where the file does not say (16)"),
        ("sampling_rate", int, "frames from one sampled frame to the next (4)"),
        ("input_size", int, "height and width of a face in pixels (160)"),
        ("frame_rate", float, "frames a second of the training videos (measured, else 25)"),
    ):
        parser.add_argument(f"--{flag}", type=kind, metavar="N", help=text)
    parser.add_argument(
        "--input_size_audio", type=int, nargs=2, metavar="N", help="steps and mel bins (256 128)"
    )
    parser.add_argument(
        "--head_activation", choices=("sigmoid", "relu", "tanh"), help="where the file does not say"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = make_parser().parse_args(argv)
    options = {n: v for n, v in vars(args).items() if n not in ("checkpoint", "output")}
    try:
        if Path(args.checkpoint).is_dir():
            export_run(args.checkpoint, args.output, **options)
        else:
            export_checkpoint(args.checkpoint, args.output, **options)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
