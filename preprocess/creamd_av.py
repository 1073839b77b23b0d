"""The name the original gives to cremad_av.py; see there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.cremad_av import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
