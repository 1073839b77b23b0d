"""Turn a fine-tuned or pre-trained checkpoint into config.json and model.safetensors.

    python -m hicmae.inference.export CHECKPOINT OUTPUT

CHECKPOINT is the output folder of a finished run, a .pth of this project or of the original
authors, or an export whose classes are to be renamed. OUTPUT becomes a folder with all that
inference needs, in the layout of a model hub; of a run it gets two of them, last/ and best/.
run_finetuning.py does this by itself, in <output_dir>/export/.
"""

import argparse
import json
import logging
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
from safetensors.torch import save_file

from hicmae.config import new_parser
from hicmae.data.clip_list import read_labelled_list
from hicmae.data.video import FrameFolder
from hicmae.inference.model import CONFIG, EXPORT, METADATA, WEIGHTS, flat_settings, read_model
from hicmae.io import UnreadableClip, describe, whole_file
from hicmae.training import checkpoint, distributed

logger = logging.getLogger(__name__)


def export_checkpoint(
    path: str | Path,
    output: str | Path,
    class_names: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Write the config.json and model.safetensors of one model.

    Args:
        path: see `read_model`.
        output: folder to make.
        class_names: see `chosen_names`.
        facts: put beside the training settings in config.json.
        overrides: see `read_checkpoint`.

    Returns:
        The folder.
    """
    config, weights = read_model(path, class_names, **overrides)
    config.training.update(facts or {})
    text, output = config.to_json(), Path(output)
    # Tensors that share memory are written twice.
    single = {name: tensor.float().clone().contiguous() for name, tensor in weights.items()}
    with whole_file(output / WEIGHTS) as part:
        save_file(single, part, metadata={"format": "pt", METADATA: text})
    with whole_file(output / CONFIG) as part:
        part.write_text(text, encoding="utf-8")
    logger.info("exported %s to %s", path, output)
    return output


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
    run = Path(output_dir)
    numbered, best = checkpoint.numbered(run), run / "checkpoint-best.pth"
    sources = {"last": numbered[-1][1]} if numbered else {}
    if best.is_file():
        sources["best"] = best
    if not sources:
        raise FileNotFoundError(f"'{output_dir}' holds no checkpoint-<epoch>.pth to export")
    if not overrides.get("frame_rate"):
        overrides["frame_rate"] = measured_frame_rate(flat_settings(_json(run / CONFIG)))
    target, command = Path(output or run / EXPORT), shlex.join(sys.argv)
    metrics = {"last": "metrics.json", "best": "metrics_best.json"}
    return [
        export_checkpoint(
            path,
            target / kind,
            facts={"command": command, "scores": _figures(_json(run / metrics[kind]))},
            **overrides,
        )
        for kind, path in sources.items()
    ]


def measured_frame_rate(settings: Mapping[str, Any], clips: int = 16) -> float | None:
    """Return the median frames a second of training clips: frames of a folder over its wav's time.

    None where that cannot be told: a modality alone, a list that is gone.
    """
    if settings.get("modality") != "av" or not settings.get("data_path"):
        return None
    task, root = settings.get("task", "classification"), settings.get("data_root", "")
    try:
        listed = read_labelled_list(Path(settings["data_path"]) / "train.csv", task, None, root)
    except (OSError, ValueError):
        return None
    rates = []
    for clip in listed[:: max(len(listed) // clips, 1)][:clips]:
        try:
            rates.append(len(FrameFolder(clip.video)) / soundfile.info(str(clip.audio)).duration)
        except (UnreadableClip, OSError, soundfile.LibsndfileError, ZeroDivisionError):
            continue
    return round(statistics.median(rates), 2) if rates else None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the single figures of a metrics file, of figures by output their mean."""
    means = {n: v["mean"] if isinstance(v, dict) and "mean" in v else v for n, v in metrics.items()}
    return {name: value for name, value in means.items() if isinstance(value, (int, float))}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = new_parser(str(__doc__))
    parser.prog = "python -m hicmae.inference.export"
    parser.add_argument("checkpoint", help="run, .pth, export folder or model.safetensors")
    parser.add_argument("output", help="folder to make")
    text = (
        "names of the classes or outputs; or a file with a name a line; or a data set: "
        "cremad, mafw, ravdess, msp-improv, werewolf-xl"
    )
    parser.add_argument("--class_names", nargs="+", default=(), metavar="NAME", help=text)
    add = parser.add_argument_group("settings that a .pth does not say").add_argument
    for flag, kind, text in (
        ("num_frames", int, "video frames of a clip (16)"),
        ("sampling_rate", int, "frames from one sampled frame to the next (4)"),
        ("input_size", int, "height and width of a face in pixels (160)"),
        ("frame_rate", float, "frames a second of the training videos (measured, else 25)"),
    ):
        add(f"--{flag}", type=kind, metavar="N", help=text)
    text = "steps and mel bins (256 128)"
    add("--input_size_audio", type=int, nargs=2, metavar="N", help=text)
    text = "what the head gives (classification)"
    add("--task", choices=("classification", "regression"), help=text)
    add("--head_activation", choices=("sigmoid", "relu", "tanh"), help="of the outputs (none)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = vars(make_parser().parse_args(argv))
    path, output = Path(options.pop("checkpoint")), options.pop("output")
    is_run = path.is_dir() and not (path / WEIGHTS).is_file()
    try:
        (export_run if is_run else export_checkpoint)(path, output, **options)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
