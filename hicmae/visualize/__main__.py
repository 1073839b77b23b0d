"""Command line of the pictures."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hicmae.report import read_names
from hicmae.visualize.confusion import confusion
from hicmae.visualize.curves import curves
from hicmae.visualize.reconstruction import reconstruction


def add_curves(commands: Any) -> None:
    """Add the sub-command `curves`."""
    parser = commands.add_parser("curves", help="losses and scores over the epochs")
    parser.add_argument("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run with a log.txt")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.set_defaults(draw=lambda args: curves(args.output_dirs, args.out))


def add_confusion(commands: Any) -> None:
    """Add the sub-command `confusion`."""
    parser = commands.add_parser("confusion", help="confusion matrix, pooled over the files")
    parser.add_argument("pred_files", nargs="+", metavar="PRED.csv", help="predictions of a test")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.set_defaults(
        draw=lambda args: confusion(
            args.pred_files, args.out, read_names(args.classes) if args.classes else ()
        )
    )


def add_reconstruction(commands: Any) -> None:
    """Add the sub-command `reconstruction`."""
    parser = commands.add_parser(
        "reconstruction", help="clips rebuilt by a pre-training checkpoint of this project"
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="checkpoint-N.pth")
    parser.add_argument("--data_path", required=True, metavar="LIST", help="pre-training list")
    parser.add_argument("--data_root", default="", metavar="DIR", help="start of relative paths")
    parser.add_argument("--clip", type=int, default=0, metavar="N", help="line of the list, from 0")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.set_defaults(
        draw=lambda args: reconstruction(
            args.checkpoint, args.data_path, args.out, args.clip, args.data_root
        )
    )


# A sub-command is a function that adds its parser, with `draw` set to what makes the picture.
COMMANDS: tuple[Callable[[Any], None], ...] = (add_curves, add_confusion, add_reconstruction)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m hicmae.visualize", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="PICTURE")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        path = args.draw(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"written: {path}\n")


if __name__ == "__main__":
    main()
