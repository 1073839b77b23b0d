"""The commands of inference, without installation."""

import sys

from hicmae.config.flags import new_parser
from hicmae.inference import cli

if __name__ == "__main__":
    parser = new_parser(str(__doc__))
    parser.prog = "python -m hicmae.inference"
    text = "has a --help of its own"
    parser.add_argument("command", choices=("predict", "extract", "app", "export"), help=text)
    sys.exit(getattr(cli, parser.parse_args(sys.argv[1:2]).command)(sys.argv[2:]))
