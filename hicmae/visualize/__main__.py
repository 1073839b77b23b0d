"""Command line of the pictures."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hicmae.config import OneLineParser
from hicmae.data.clip_list import read_names
from hicmae.visualize.attention import METHODS, attention
from hicmae.visualize.confusion import confusion
from hicmae.visualize.curves import curves
from hicmae.visualize.layer_weights import layer_weights
from hicmae.visualize.radar import radar
from hicmae.visualize.reconstruction import reconstruction
from hicmae.visualize.retrieval import retrieval
from hicmae.visualize.tsne import tsne

Draw = Callable[[argparse.Namespace], "Path | tuple[Path, str]"]


def add_command(commands: Any, name: str, text: str, draw: Draw) -> argparse.ArgumentParser:
    """Add a sub-command with the option that all have."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument(
        "--output", "--out", required=True, metavar="FILE", help=".png (200 dpi), .pdf or .svg"
    )
    parser.set_defaults(draw=draw)
    return parser


def add_model_options(parser: argparse.ArgumentParser, stage: str, what: str) -> None:
    """Add the options of a picture that runs a model over a list."""
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help=f"{stage} checkpoint or export"
    )
    parser.add_argument("--data_path", required=True, metavar="LIST", help=f"{what}, or its folder")
    parser.add_argument("--data_root", default="", metavar="DIR", help="start of relative paths")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="(default: auto)"
    )


def add_draw_options(parser: argparse.ArgumentParser, num_clips: int, what: str) -> None:
    """Add the options that say which clips are taken."""
    parser.add_argument("--seed", type=int, default=0, help=f"of {what} (default: 0)")
    parser.add_argument(
        "--num_clips",
        type=int,
        default=num_clips,
        metavar="N",
        help=f"clips drawn from the list{'; 0: all' if not num_clips else ''} "
        f"(default: {num_clips})",
    )


def add_curves(commands: Any) -> None:
    """Add the sub-command `curves`."""
    parser = add_command(
        commands,
        "curves",
        "losses and scores over the epochs",
        lambda args: curves(args.output_dirs, args.output),
    )
    parser.add_argument("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run with a log.txt")


def add_confusion(commands: Any) -> None:
    """Add the sub-command `confusion`."""
    parser = add_command(
        commands,
        "confusion",
        "confusion matrix, pooled over the files",
        lambda args: confusion(
            args.pred_files, args.output, read_names(args.classes) if args.classes else ()
        ),
    )
    parser.add_argument("pred_files", nargs="+", metavar="PRED.csv", help="predictions of a test")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")


def add_reconstruction(commands: Any) -> None:
    """Add the sub-command `reconstruction`."""
    parser = add_command(
        commands,
        "reconstruction",
        "clips rebuilt by a pre-training checkpoint; a rebuilt patch has the mean and deviation of "
        "the true one, which the model does not predict",
        lambda args: reconstruction(
            args.checkpoint,
            args.data_path,
            args.output,
            args.clip if args.num_clips is None else None,
            args.num_clips or 0,
            args.data_root,
            args.device,
            args.seed,
        ),
    )
    add_model_options(parser, "pre-training", "pre-training list")
    parser.add_argument("--clip", type=int, default=0, metavar="N", help="line of the list, from 0")
    parser.add_argument(
        "--num_clips", type=int, metavar="N", help="draw so many clips instead of --clip"
    )
    parser.add_argument(
        "--seed", type=int, help="of the draw, windows, crops and masks (default: the training's)"
    )


def add_tsne(commands: Any) -> None:
    """Add the sub-command `tsne`."""
    parser = add_command(
        commands,
        "tsne",
        "features of labelled clips laid out by t-SNE, coloured by class",
        lambda args: tsne(
            args.checkpoint,
            args.data_path,
            args.output,
            args.features,
            args.num_clips,
            args.data_root,
            args.device,
            args.seed,
            args.perplexity,
            args.target,
        ),
    )
    add_model_options(parser, "fine-tuned", "labelled list")
    add_draw_options(parser, 0, "the draw and of t-SNE")
    parser.add_argument(
        "--features",
        nargs="+",
        default=(),
        metavar="PART",
        help="a panel each: video, audio (layer-weighted), fusion_video, fusion_audio (fusion "
        "encoder), fused (all, as the head reads it); default: video audio fused",
    )
    parser.add_argument("--perplexity", type=float, default=30.0, help="(default: 30)")
    parser.add_argument(
        "--target", type=int, default=0, metavar="K", help="output that gives the colour (0)"
    )


def add_attention(commands: Any) -> None:
    """Add the sub-command `attention`."""
    parser = add_command(
        commands,
        "attention",
        "where each modality looks: self-attention of the encoders, and what the other modality "
        "reads in the fusion encoder",
        lambda args: attention(
            args.checkpoint,
            args.data_path,
            args.output,
            args.method,
            args.clip,
            args.num_clips,
            args.data_root,
            args.device,
            args.seed,
        ),
    )
    add_model_options(parser, "fine-tuned or pre-training", "list that fits it")
    add_draw_options(parser, 1, "the draw")
    parser.add_argument("--clip", type=int, metavar="N", help="this line of the list, from 0")
    parser.add_argument(
        "--method",
        default=METHODS[0],
        choices=METHODS,
        help="self-attention through all blocks, or of the last one (default: rollout)",
    )


def add_retrieval(commands: Any) -> None:
    """Add the sub-command `retrieval`."""
    parser = add_command(
        commands,
        "retrieval",
        "how often sound finds its video among others, and back: recall at 1, 5 and 10 of each "
        "contrasted level",
        lambda args: retrieval(
            args.checkpoint,
            args.data_path,
            args.output,
            args.num_clips,
            args.masked,
            args.csv,
            args.data_root,
            args.device,
            args.seed,
        ),
    )
    add_model_options(parser, "pre-training", "pre-training list")
    add_draw_options(parser, 0, "the draw, windows, crops and masks")
    parser.add_argument("--masked", action="store_true", help="hide the tokens that training hides")
    parser.add_argument("--csv", default="", metavar="FILE", help="write the figures, too")


def add_radar(commands: Any) -> None:
    """Add the sub-command `radar`."""
    parser = add_command(
        commands,
        "radar",
        "scores across data sets, a polygon a method",
        lambda args: radar(
            args.sources, args.output, args.metrics, args.kind, args.start, args.relative
        ),
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="one csv file with the columns dataset,metric,method,value (percent), or finished "
        "experiments as DATASET=FOLDER or DATASET/METHOD=FOLDER",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        metavar="SCORE",
        help="of experiments: uar, war, ccc, ...; recall: an axis a class (default: war or ccc)",
    )
    parser.add_argument(
        "--kind", default="last", choices=("last", "best"), help="epoch (default: last)"
    )
    parser.add_argument(
        "--start", type=float, default=0.0, metavar="PERCENT", help="in the middle (default: 0)"
    )
    parser.add_argument(
        "--relative", action="store_true", help="measure each axis by its best method"
    )


def add_layer_weights(commands: Any) -> None:
    """Add the sub-command `layer_weights`."""
    parser = add_command(
        commands,
        "layer_weights",
        "learned weights of the encoder blocks, mean over checkpoints",
        lambda args: layer_weights(args.checkpoint, args.output),
    )
    parser.add_argument(
        "--checkpoint", required=True, nargs="+", metavar="FILE", help="fine-tuned, e.g. of folds"
    )


# A sub-command is a function that adds its parser, with `draw` set to what makes the picture.
COMMANDS: tuple[Callable[[Any], None], ...] = (
    add_curves,
    add_confusion,
    add_reconstruction,
    add_tsne,
    add_attention,
    add_retrieval,
    add_radar,
    add_layer_weights,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = OneLineParser(prog="python -m hicmae.visualize", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="PICTURE")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        drawn = args.draw(args)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    path, text = drawn if isinstance(drawn, tuple) else (drawn, "")
    sys.stdout.write(f"{text}\nwritten: {path}\n" if text else f"written: {path}\n")


if __name__ == "__main__":
    main()
