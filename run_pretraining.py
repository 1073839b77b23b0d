"""Pre-train HiCMAE on unlabelled clips.

``python run_pretraining.py --data_path LIST --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_pretraining.py ...``; ``--help`` lists every flag.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from hicmae.config import PretrainConfigs
from hicmae.config.flags import new_parser
from hicmae.io import run_command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    return new_parser(__doc__, PretrainConfigs)


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train; `argv` replaces the command line."""
    parser = build_parser()
    parser.parse_args(argv)  # --help and wrong flags end here, before torch is loaded
    from hicmae import pretraining

    pretraining.main(parser, argv)


command = partial(run_command, main)


if __name__ == "__main__":
    sys.exit(command())
