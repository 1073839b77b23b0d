"""Measure speed and memory."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hicmae.benchmark.context import context
from hicmae.config import new_parser
from hicmae.io import describe_figures as describe
from hicmae.training.run import EXPECTED

# A command is a module `hicmae.benchmark.<name>`: `add_arguments(parser)` adds its flags,
# `run(args)` returns its figures, and `show(figures)`, if it has one, makes text of them.
COMMANDS = {
    "pretrain": "pre-training steps",
    "finetune": "fine-tuning steps",
    "infer": "testing: clips scored by the classifier",
    "loader": "clips read from disk",
    "feed": "from disk to model: how long training waits for clips",
    "ranks": "what several processes cost",
    "table": "tables for the README, from the JSON files of a folder",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        names = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
        sys.stdout.write(f"usage: python -m hicmae.benchmark COMMAND [--help]\n\n{names}\n")
        return 0 if argv else 2
    command, *rest = argv
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        sys.stderr.write(f"hicmae.benchmark: no command '{command}'; use one of {known}\n")
        return 2
    module = importlib.import_module(f"hicmae.benchmark.{command}")
    parser = new_parser(module.__doc__ or "")
    parser.prog = f"hicmae.benchmark {command}"
    module.add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as one object")
    args = parser.parse_args(rest)
    try:
        before = context(argv)
        figures = module.run(args)
        sys.stdout.write(getattr(module, "show", describe)(figures))
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**before, **figures}, indent=2) + "\n"
            Path(args.json).write_text(text, encoding="utf-8")
    except EXPECTED as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
