"""Command line of the pictures."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from hicmae.config import new_parser
from hicmae.inference.style import check_format, save_figure
from hicmae.io import describe
from hicmae.visualize.attention import METHODS, attention
from hicmae.visualize.confusion import confusion
from hicmae.visualize.curves import curves
from hicmae.visualize.features import Source, layer_weights, tsne
from hicmae.visualize.radar import radar
from hicmae.visualize.reconstruction import reconstruction
from hicmae.visualize.retrieval import retrieval

Draw = Callable[..., "Figure | tuple[Figure, str]"]
DRAWN = "clips drawn; 0: all (default: 0)"
LAYOUT = "features of labelled clips laid out by t-SNE, coloured by class"
REBUILT = (
    "clips rebuilt by a pre-training checkpoint; a rebuilt patch has the mean and deviation of the "
    "true one, which the model does not predict"
)
LOOKS = (
    "where each modality looks: self-attention of the encoders, and what the other modality reads "
    "in the fusion encoder"
)
FINDS = (
    "how often sound finds its video among others, and back: recall at 1, 5 and 10 of each "
    "contrasted level"
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all pictures; each sub-command has `draw` set to what makes its own."""
    parser = new_parser("Pictures of results.")
    parser.prog = "python -m hicmae.visualize"
    commands = parser.add_subparsers(required=True, metavar="PICTURE")
    _add_figures(commands)
    _add_model_pictures(commands)
    return parser


def _add(commands: Any, draw: Draw, text: str, stage: str = "", clips: str = "") -> Any:
    """Add the sub-command that is called like its function, of clips with those of `Source`."""
    parser = commands.add_parser(draw.__name__, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(draw=draw)
    add = parser.add_argument
    add("--output", "--out", required=True, metavar="FILE", help=".png (200 dpi), .pdf or .svg")
    if stage:
        text = f"{stage} checkpoint, export or run"
        add("--checkpoint", required=True, metavar="FILE", help=text)
        add("--data_path", required=True, metavar="LIST", help=f"{clips}, or its folder")
        add("--data_root", default="", metavar="DIR", help="start of relative paths")
        add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... or mps (default: auto)")
    return add


def _add_figures(commands: Any) -> None:
    """Add the pictures of what runs have written."""
    add = _add(commands, curves, "losses and scores over the epochs")
    add("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run with a log.txt")

    add = _add(commands, confusion, "confusion matrix, pooled over the files")
    add("pred_files", nargs="+", metavar="PRED.csv", help="predictions of a test, or its run")
    add("--class_names", "--classes", nargs="+", default=(), metavar="NAME",
        help="names, a file with one a line, or a data set (default: numbers)")  # fmt: skip

    add = _add(commands, radar, "scores across data sets, a polygon a method")
    add("sources", nargs="+", metavar="SOURCE",
        help="one csv file with the columns dataset,metric,method,value (percent), or finished "
        "experiments as DATASET=FOLDER or DATASET/METHOD=FOLDER")  # fmt: skip
    add("--metrics", nargs="+", default=(), metavar="SCORE",
        help="of experiments: uar, war, ccc, ...; recall: an axis a class "
        "(default: war or ccc)")  # fmt: skip
    add("--kind", default="last", choices=("last", "best"), help="epoch (default: last)")
    add("--start", type=float, default=0.0, metavar="PERCENT", help="in the middle (default: 0)")
    add("--relative", action="store_true", help="measure each axis by its best method")

    text = "learned weights of the encoder blocks, mean over checkpoints"
    add = _add(commands, layer_weights, text)
    add("--checkpoint", required=True, nargs="+", metavar="FILE", help="fine-tuned, e.g. of folds")


def _add_model_pictures(commands: Any) -> None:
    """Add the pictures that run a model over clips."""
    add = _add(commands, reconstruction, REBUILT, "pre-training", "pre-training list")
    add("--clip", type=int, metavar="N", help="line of the list, from 0 (default: 0)")
    add("--num_clips", type=int, default=0, metavar="N", help="draw so many clips instead")
    add("--seed", type=int, help="of the draw, windows, crops and masks (default: the training's)")

    add = _add(commands, tsne, LAYOUT, "fine-tuned", "labelled list")
    add("--num_clips", type=int, default=0, metavar="N", help=DRAWN)
    add("--seed", type=int, default=0, help="of the draw and of t-SNE (default: 0)")
    add("--features", nargs="+", default=(), metavar="PART",
        help="a panel each: video, audio (layer-weighted), fusion_video, fusion_audio (fusion "
        "encoder), fused (all, as the head reads it); default: video audio fused")  # fmt: skip
    add("--perplexity", type=float, default=30.0, help="about how many neighbours count (30)")
    add("--target", type=int, default=0, metavar="K", help="output that gives the colour (0)")

    add = _add(commands, attention, LOOKS, "fine-tuned or pre-training", "list that fits it")
    add("--clip", type=int, metavar="N", help="this line of the list, from 0")
    add("--num_clips", type=int, default=1, metavar="N", help="clips drawn (default: 1)")
    add("--seed", type=int, default=0, help="of the draw (default: 0)")
    add("--method", default=METHODS[0], choices=METHODS,
        help="self-attention through all blocks, or of the last one (rollout)")  # fmt: skip

    add = _add(commands, retrieval, FINDS, "pre-training", "pre-training list")
    add("--num_clips", type=int, default=0, metavar="N", help=DRAWN)
    add("--seed", type=int, default=0, help="of the draw, windows, crops and masks (default: 0)")
    add("--masked", action="store_true", help="hide the tokens that training hides")
    add("--csv", default="", metavar="FILE", help="write the figures, too")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    draw: Draw = values.pop("draw")
    output = values.pop("output")
    if "data_path" in values:
        known = {field.name for field in dataclasses.fields(Source)} & values.keys()
        values["source"] = Source(**{name: values.pop(name) for name in known})
    try:
        check_format(output)
        drawn = draw(**values)
        figure, text = drawn if isinstance(drawn, tuple) else (drawn, "")
        path = save_figure(figure, output)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f"error: {describe(error)}\n")
    sys.stdout.write(f"{text}\nwritten: {path}\n" if text else f"written: {path}\n")


if __name__ == "__main__":
    main()
