"""Make the lists of MAFW; --help tells what it needs."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder
    from preprocess.lists.data_sets import mafw

    sys.exit(mafw.main())
