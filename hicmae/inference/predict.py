"""Old name of `python -m hicmae.inference predict`, for one release."""

import sys

from hicmae.inference.cli import predict as main

if __name__ == "__main__":
    sys.exit(main())
