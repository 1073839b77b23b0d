"""Fine-tune and test HiCMAE on labelled clips.

``python run_finetuning.py --data_path FOLDER --nb_classes K --finetune FILE --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_finetuning.py ...``; ``--help`` lists every flag.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from hicmae.config import FinetuneConfigs
from hicmae.config.flags import new_parser
from hicmae.io import run_command

DEFAULTS = {"batch_size": 14, "epochs": 50, "lr": 1e-3, "min_lr": 1e-6, "opt_betas": (0.9, 0.999),
            "roll_mag_aug": True}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    return new_parser(__doc__, FinetuneConfigs, **DEFAULTS)


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune and test; `argv` replaces the command line."""
    parser = build_parser()
    parser.parse_args(argv)  # --help and wrong flags end here, before torch is loaded
    from hicmae import finetuning

    finetuning.main(parser, argv)


command = partial(run_command, main)


if __name__ == "__main__":
    sys.exit(command())
