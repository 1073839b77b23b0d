"""Make the lists of DFEW; --help tells what it needs."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    protocols = runpy.run_path(str(Path(__file__).with_name("data_sets.py")))
    raise SystemExit(protocols["dfew"]())
