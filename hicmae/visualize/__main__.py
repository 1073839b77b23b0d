"""Command line of the pictures."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from hicmae.config.flags import new_parser
from hicmae.io import check_writable, describe

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
NAMES = "names, a file with one a line, or a data set (default: those of the run)"
SOURCES = "finished experiments as DATASET=FOLDER or DATASET/METHOD=FOLDER"
SCORES = "of experiments: uar, war, ccc, ...; recall: an axis a class (default: war or ccc)"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all pictures; `picture` is the name of the chosen one."""
    parser = new_parser("Pictures of results.")
    parser.prog = "hicmae-visualize"
    commands = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")

    def add_picture(name: str) -> argparse.ArgumentParser:
        _, text = PICTURES[name]
        part = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        formats = ".png (200 dpi), .pdf or .svg"
        part.add_argument("--output", "--out", required=True, metavar="FILE", help=formats)
        return part

    def add_of_clips(name: str, checkpoint: str) -> None:
        add = add_picture(name).add_argument
        add("--checkpoint", required=True, metavar="FILE", help=checkpoint)
        add("--data_path", required=True, metavar="LIST", help="list that fits it, or its folder")
        add("--data_root", default="", metavar="DIR", help="start of relative paths")
        add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... or mps (default: auto)")
        text = (
            "clips drawn at random; 0, the default: all, of reconstruction and attention the first"
        )
        add("--num_clips", type=int, default=0, metavar="N", help=text)
        text = "of draw, windows, crops and masks (default: 0, of a pre-training the training's)"
        add("--seed", type=int, help=text)

    add = add_picture("curves").add_argument
    add("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run with a log.txt")
    add = add_picture("confusion").add_argument
    add("pred_files", nargs="+", metavar="PRED.csv", help="predictions of a test, or its run")
    add("--class_names", "--classes", nargs="+", default=(), metavar="NAME", help=NAMES)
    add = add_picture("radar").add_argument
    add("sources", nargs="+", metavar="SOURCE", help=SOURCES)
    add("--metrics", nargs="+", default=(), metavar="SCORE", help=SCORES)
    add("--kind", default="last", choices=("last", "best"), help="epoch (default: last)")
    add_of_clips("reconstruction", "pre-training checkpoint, or its run")
    add = add_picture("layer_weights").add_argument
    add("--checkpoint", required=True, nargs="+", metavar="FILE", help="fine-tuned, e.g. of folds")
    add_of_clips("attention", "checkpoint, or its export or run")
    add_of_clips("tsne", "fine-tuned checkpoint, or its export or run")
    add_of_clips("retrieval", "pre-training checkpoint, or its run")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    picture, output = values.pop("picture"), values.pop("output")
    from hicmae.inference.style import FORMATS, save_figure

    module, _ = PICTURES[picture]
    draw = getattr(import_module(f"hicmae.visualize.{module}"), picture)
    try:
        check_writable(output, FORMATS)
        drawn = draw(**values)
        figure, text = drawn if isinstance(drawn, tuple) else (drawn, "")
        path = save_figure(figure, output)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f"error: {describe(error)}\n")
    sys.stdout.write(f"{text}\nwritten: {path}\n" if text else f"written: {path}\n")


if __name__ == "__main__":
    main()
