"""The commands of inference, without installation."""

import sys

from hicmae.config import new_parser
from hicmae.inference import cli, export

COMMANDS = {"predict": cli.predict, "extract": cli.extract, "export": export.main}

if __name__ == "__main__":
    parser = new_parser(str(__doc__))
    parser.prog = "python -m hicmae.inference"
    parser.add_argument("command", choices=COMMANDS, help="has a --help of its own")
    sys.exit(COMMANDS[parser.parse_args(sys.argv[1:2]).command](sys.argv[2:]))
