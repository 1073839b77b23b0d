"""Command line of the pictures."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from hicmae.config.flags import add_arguments, exit_code, from_flags, new_parser
from hicmae.io import check_writable
from hicmae.visualize import Clips

# The module of each picture, which is imported when it is drawn, and what it shows.
PICTURES = {
    "curves": ("runs", "Draw losses and scores over the epochs of runs, from their log.txt."),
    "confusion": ("runs", "Draw the confusion matrix of prediction files, or runs, put together."),
    "radar": ("runs", "Draw scores across data sets, a polygon a method."),
    "reconstruction": ("clips", "Draw clips of a list, rebuilt by a pre-training checkpoint."),
    "attention": ("attention", "Draw where each modality looks, and what it reads of the other."),
    "layer_weights": ("features", "Draw layer weights of fine-tuned checkpoints, e.g. of folds."),
    "tsne": ("features", "Draw features of labelled clips laid out by t-SNE, coloured by class."),
    "retrieval": ("features", "Draw how often sound finds its video among others, and back."),
}
OF_CLIPS = ("reconstruction", "attention", "tsne", "retrieval")
NAMES = "names, a file with one a line, or a data set (default: those of the run)"
SOURCES = "finished experiments as DATASET=FOLDER or DATASET/METHOD=FOLDER"
SCORES = "of experiments: uar, war, ccc, ...; recall: an axis a class (default: war or ccc)"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; return the exit code."""
    parser = new_parser("Pictures of results.")
    parser.prog = "hicmae-visualize"
    commands = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    add: dict[str, Callable[..., object]] = {}
    for name, (_, text) in PICTURES.items():
        part = commands.add_parser(name, help=text, description=text)
        add[name], formats = part.add_argument, ".png (200 dpi), .pdf or .svg"
        add[name]("--output", "--out", required=True, metavar="FILE", help=formats)
        if name in OF_CLIPS:
            add_arguments(part, Clips)
    add["curves"]("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run with a log.txt")
    text = "predictions of a test, or its run"
    add["confusion"]("pred_files", nargs="+", metavar="PRED.csv", help=text)
    more = {"nargs": "+", "default": ()}
    add["confusion"]("--class_names", "--classes", metavar="NAME", help=NAMES, **more)
    add["radar"]("sources", nargs="+", metavar="SOURCE", help=SOURCES)
    add["radar"]("--metrics", metavar="SCORE", help=SCORES, **more)
    add["radar"]("--kind", default="last", choices=("last", "best"), help="epoch (default: last)")
    text = "fine-tuned, e.g. of folds"
    add["layer_weights"]("--checkpoint", required=True, nargs="+", metavar="FILE", help=text)
    return exit_code(partial(draw, **vars(parser.parse_args(argv))))


def draw(picture: str, output: str, **source: Any) -> None:
    """Draw one of the pictures and write it."""
    from hicmae.inference.style import FORMATS, save_figure

    check_writable(output, FORMATS)
    module, _ = PICTURES[picture]
    arguments: Any = {"asked": from_flags(source, Clips)} if picture in OF_CLIPS else source
    drawn = getattr(import_module(f"hicmae.visualize.{module}"), picture)(**arguments)
    figure, text = drawn if isinstance(drawn, tuple) else (drawn, "")
    path = save_figure(figure, output)
    sys.stdout.write(f"{text}\nwritten: {path}\n" if text else f"written: {path}\n")


if __name__ == "__main__":
    sys.exit(main())
