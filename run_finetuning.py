"""Fine-tune and test HiCMAE on labelled clips.

``python run_finetuning.py --data_path FOLDER --nb_classes K --finetune FILE --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_finetuning.py ...``; ``--help`` lists every flag.
"""

import sys
from collections.abc import Sequence
from functools import partial

from hicmae.config import FinetuneConfigs
from hicmae.config.flags import exit_code, given_flags, new_parser

DEFAULTS = {"batch_size": 14, "epochs": 50, "lr": 1e-3, "min_lr": 1e-6, "opt_betas": (0.9, 0.999),
            "roll_mag_aug": True}  # fmt: skip
build_parser = partial(new_parser, __doc__, FinetuneConfigs, **DEFAULTS)


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune and test; `argv` replaces the command line."""
    parser = build_parser()
    given = given_flags(parser, argv)  # --help and wrong flags end here, before torch is loaded
    from hicmae import finetuning

    finetuning.main(parser, given)


command = partial(exit_code, main, failed=1, on_stderr=True)

if __name__ == "__main__":
    sys.exit(command())
