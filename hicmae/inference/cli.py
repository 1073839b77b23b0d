"""Command lines of inference: hicmae-predict, hicmae-extract, hicmae-app and the export."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hicmae.config import PRECISIONS, Options
from hicmae.config.flags import Settings, add_arguments, new_parser, option
from hicmae.data.clip_list import DATA_SETS
from hicmae.data.video import MODALITIES
from hicmae.io import UnreadableClip, describe

logger = logging.getLogger(__name__)

PREDICT = """Predict emotions in videos with a trained model.

    hicmae-predict VIDEO... --checkpoint FOLDER [--csv FILE --html FILE --overlay FILE ...]

VIDEO is a video file, a folder of videos (searched with its subfolders), a folder of face frames,
or, with a model that reads sound only, a sound file. FOLDER is the output folder of
run_finetuning.py, or export/best or export/last in it. After an interruption the same command does
not ask again about what it has answered.

Without installation: python -m hicmae.inference predict. Exit code: 0; 1 where a clip could not be
read, which the table and the files say; 2 where the command is wrong.
"""
EXTRACT = """Write the features of a list of clips, by a model of either stage.

    hicmae-extract --data_path PATH --checkpoint PATH --output features.npz

--data_path is a list (<video> [<audio.wav>] [<label> ...]), a folder of lists (test.csv, else
train.csv) or shards, a video, a folder of videos or of face frames. In lists of pre-training the
wav beside the video is heard, where there is one. The output has a row for each clip, the mean over
its windows, or with --per_window a row for each window:

    clip, label (where the list has any), start, end (with --per_window, in seconds)
    video_layers, audio_layers   (rows, blocks, width): every block's output, averaged over tokens
    video, audio                 (rows, width): their mix by the learned layer weights
    fusion_video, fusion_audio   (rows, width): of the fusion encoder
    fused                        (rows, 4 * width): what the head reads

A pre-training checkpoint has the layers and the fusion. Clips that cannot be read are named in
OUTPUT.failed.csv. Exit codes are those of hicmae-predict.
"""
EXPORT = """Turn a checkpoint into what others can use: a folder of a model hub, ONNX, torch.export.

    hicmae-export CHECKPOINT OUTPUT [--format hub | onnx | torch] [--int8]

CHECKPOINT is the output folder of a finished run, a .pth of this project or of the original
authors, or an export whose classes are to be renamed. OUTPUT becomes a folder in the layout of a
model hub: README.md (the model card), config.json and model.safetensors; of a run it gets two of
them, last/ and best/, as run_finetuning.py makes them in <output_dir>/export/.

--format onnx writes model.onnx there (--int8: model_int8.onnx, a quarter of the size), --format
torch model.pt2, of the best epoch of a run; an OUTPUT that ends in .onnx or .pt2 is that file. The
answers of the file are compared with PyTorch's on 16 clips: of --data_path, else of the run's test
list, else on a film of the package. What disagrees is not written: probabilities may differ by
0.0001, with --int8 by 0.15 and in the class of one window of ten.
hicmae-predict --checkpoint OUTPUT/model.onnx reads an .onnx. It needs
pip install onnx onnxscript onnxruntime (to predict, onnxruntime).
"""
APP = """Serve a page to try a model on a film, or on oneself with camera and microphone.

    hicmae-app [--checkpoint FOLDER]

Open the address that it prints. It answers from this computer only; films stay here and are
deleted once answered. Needs pip install "hicmae[app]".
"""
# What several commands ask.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "checkpoint": dict(
        required=True,
        metavar="PATH",
        help="export folder, output folder of a run, model.safetensors, .onnx or .pth",
    ),
    "device": dict(default="auto", help="auto, cpu, cuda[:n] or mps (%(default)s)"),
    "batch_size": dict(type=int, default=8, metavar="N", help="windows at once (%(default)s)"),
    "precision": dict(
        default="auto", choices=PRECISIONS, help="auto: bf16 on a GPU that has it, else fp32"
    ),
    "modality": dict(
        choices=MODALITIES,
        help="streams to read (default: those of the model); one stream of a model of both needs "
        "--missing_modality",
    ),
    "speaker_checkpoint": dict(
        metavar="PATH", help="pre-training that tells who speaks, for --speaker auto and contrast"
    ),
    "data_root": dict(default="", metavar="DIR", help="start of relative names"),
    "quiet": dict(action="store_true", help="no progress bars, no table"),
}
COMPUTING = ("checkpoint", "device", "batch_size")
MODEL = (*COMPUTING, "precision", "modality")


@dataclass(frozen=True)
class Limits(Settings):
    """What a film may be."""

    max_mb: float = option(100.0, "largest film in megabytes", "> 0 and < 1e6")
    max_seconds: float = option(120.0, "longest film", "> 0 and < 1e6")


def add_flags(parser: argparse.ArgumentParser, *names: str, title: str = "") -> None:
    """Add flags of the table, in a group of their own where they have a title."""
    group = parser.add_argument_group(title) if title else parser
    for name in names:
        group.add_argument(f"--{name}", **ARGUMENTS[name])


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse a command line and run it; returns the exit code, 2 after a mistake in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (OSError, ValueError, UnreadableClip) as error:
        logger.error("error: %s", describe(error))
        return 2


def _run(name: str, args: argparse.Namespace) -> int:
    from hicmae.inference import commands  # brings torch, for which no --help should wait

    code: int = getattr(commands, name)(args)
    return code


def predict(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-predict; returns the exit code."""
    parser = new_parser(PREDICT)
    parser.prog = "hicmae-predict"
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video, or folder of frames")
    parser.add_argument("--audio", metavar="FILE", help="sound to hear instead of the video's own")
    add_flags(parser, *MODEL, "speaker_checkpoint", title="model")
    add_arguments(parser, Options)
    add_flags(parser, "quiet")
    group = parser.add_argument_group("results; with several videos their names are put in")
    add = partial(group.add_argument, metavar="FILE")
    add("--csv", help="a row for each video")
    add("--windows_csv", help="a row for each window")
    add("--json", help="all there is")
    add("--plot", help="scores over time: .png, .pdf or .svg, one for each video")
    add("--overlay", help="annotated copy: .mp4, for each video")
    add("--html", help="page with film, faces and timeline, for each video; needs no server")
    add("--srt", help="subtitles of the answers, for each video")
    add("--vtt", help="the same for web pages")
    text = "csv for ELAN, for each video; columns: tier, begin and end in seconds, label"
    add("--elan", help=text)
    return run_command(parser, partial(_run, "predict"), argv)


def extract(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-extract; returns the exit code."""
    parser = new_parser(EXTRACT)
    parser.prog = "hicmae-extract"
    add = parser.add_argument
    text = "list, folder of lists or shards, video"
    add("--data_path", required=True, metavar="PATH", help=text)
    add("--output", required=True, metavar="FILE", help=".npz")
    add("--per_window", action="store_true", help="a row for each window, not for each clip")
    add_flags(parser, "data_root", "quiet")
    add_flags(parser, *MODEL, title="model")
    add_arguments(parser, Options)
    return run_command(parser, partial(_run, "extract"), argv)


def app(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-app; returns the exit code."""
    parser = new_parser(APP)
    parser.prog = "hicmae-app"
    add = parser.add_argument
    text = f"{ARGUMENTS['checkpoint']['help']} (%(default)s: knows drawn faces only)"
    add("--checkpoint", default="toy", metavar="PATH", help=text)
    add_flags(parser, "device")
    text = "of the address (the first free one from 7860 on)"
    add("--port", type=int, metavar="N", help=text)
    add_arguments(parser, Limits)
    text = "also give a public address through gradio's servers, for 72 hours; off by default"
    add("--share", action="store_true", help=text)
    return run_command(parser, partial(_run, "app"), argv)


def export(argv: Sequence[str] | None = None) -> int:
    """Run the export; returns the exit code."""
    parser = new_parser(EXPORT)
    parser.prog = "hicmae-export"
    parser.add_argument("checkpoint", help="run, .pth, export folder or model.safetensors")
    parser.add_argument("output", help="folder to make, or a name that ends in .onnx or .pt2")
    known = ", ".join(dict.fromkeys(name for name, _ in DATA_SETS))
    text = f"names of the classes or outputs; or a file with a name a line; or a data set: {known}"
    parser.add_argument("--class_names", nargs="+", default=(), metavar="NAME", help=text)
    text = "hub: config.json, model.safetensors (%(default)s)"
    parser.add_argument("--format", choices=("hub", "onnx", "torch"), default="hub", help=text)
    parser.add_argument("--int8", action="store_true", help="with --format onnx: weights of 8 bits")
    text = "clips to compare with: list, folder of lists or shards, video (the run's test list)"
    parser.add_argument("--data_path", metavar="PATH", help=text)
    add_flags(parser, "data_root")
    add = parser.add_argument_group("model card").add_argument
    text = "licence of the weights, as model hubs call it, e.g. mit (other: unknown)"
    add("--license", metavar="NAME", help=text)
    add("--data_license", metavar="TEXT", help="licence of the training data (unknown)")
    add = parser.add_argument_group("settings that a .pth does not say").add_argument
    add("--num_frames", type=int, metavar="N", help="video frames of a clip (16)")
    text = "frames from one sampled frame to the next (4)"
    add("--sampling_rate", type=int, metavar="N", help=text)
    add("--input_size", type=int, metavar="N", help="height and width of a face in pixels (160)")
    text = "frames a second of the training videos (measured, else 25)"
    add("--frame_rate", type=float, metavar="N", help=text)
    text = "steps and mel bins (256 128)"
    add("--input_size_audio", type=int, nargs=2, metavar="N", help=text)
    text = "what the head gives (classification)"
    add("--task", choices=("classification", "regression"), help=text)
    add("--head_activation", choices=("sigmoid", "relu", "tanh"), help="of the outputs (none)")

    return run_command(parser, partial(_run, "export"), argv)
