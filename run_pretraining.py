"""Pre-train HiCMAE on unlabelled clips.

``python run_pretraining.py --data_path LIST --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_pretraining.py ...``; ``--help`` lists every flag.
"""

import sys
from collections.abc import Sequence
from functools import partial

from hicmae.config import PretrainConfigs
from hicmae.config.flags import exit_code, given_flags, new_parser

build_parser = partial(new_parser, __doc__, PretrainConfigs)


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train; `argv` replaces the command line."""
    parser = build_parser()
    given = given_flags(parser, argv)  # --help and wrong flags end here, before torch is loaded
    from hicmae import pretraining

    pretraining.main(parser, given)


command = partial(exit_code, main, failed=1, on_stderr=True)

if __name__ == "__main__":
    sys.exit(command())
