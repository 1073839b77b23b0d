"""Old name of `python -m hicmae.inference extract`, for one release."""

import sys

from hicmae.inference.cli import extract as main

if __name__ == "__main__":
    sys.exit(main())
