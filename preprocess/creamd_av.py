"""The name that the original gives to cremad_av.py."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    protocols = runpy.run_path(str(Path(__file__).with_name("data_sets.py")))
    raise SystemExit(protocols["cremad"]())
