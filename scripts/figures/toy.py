"""Draw figs/toy_*.png from a finished demo: where models look, what they learn, how they compare.

    python scripts/figures/toy.py [--demo saved/demo] [--data saved/data/toy_av] [--figs figs]

Needs the folders that scripts/demo.sh makes: pretrain/ and folds/fold1/ with their checkpoints, and
the benchmark. Some epochs of fold 1 are tested for the radar plot, a few seconds each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from hicmae.inference.style import DPI
from hicmae.report.scores import fold_folders
from hicmae.training.checkpoint import numbered
from hicmae.visualize.__main__ import main as visualize

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 300_000  # bytes of a picture in the repository
NOT_FLAGS = ("output_dir", "log_dir", "resume", "auto_resume", "finetune", "eval", "device")


def flags_of(settings: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Turn the config.json of a run back into its flags."""
    for group in settings.values():
        for name, value in group.items():
            if name in NOT_FLAGS or value in (None, "", []):
                continue
            if isinstance(value, bool):
                yield f"--{name}" if value else f"--no-{name}"
            else:
                yield f"--{name}"
                yield from map(str, value if isinstance(value, list) else [value])


def test_epochs(fold: Path, epochs: list[Path], folder: Path) -> list[str]:
    """Test checkpoints of a fold; return what the radar plot reads."""
    settings = json.loads((fold / "config.json").read_text(encoding="utf-8"))
    entries = []
    for checkpoint in epochs:
        number = int(checkpoint.stem.split("-")[1]) + 1
        out = folder / f"epoch{number}"
        command = [sys.executable, str(ROOT / "run_finetuning.py"), *flags_of(settings)]
        command += ["--eval", "--resume", str(checkpoint), "--output_dir", str(out)]
        subprocess.run(command, check=True, cwd=ROOT)
        entries.append(f"recall/after {number} epochs={out}")
    return entries


def spread_epochs(fold: Path) -> list[Path]:
    """Return the first kept checkpoint, one in the middle and the last one."""
    kept = [path for _, path in numbered(fold)]
    if len(kept) < 2:
        raise SystemExit(f"'{fold}' holds {len(kept)} checkpoint-<epoch>.pth, expected several")
    return list(dict.fromkeys((kept[0], kept[len(kept) // 2], kept[-1])))


def shrink(picture: Path) -> None:
    """Lower the resolution of a picture until it is small enough for the repository."""
    with Image.open(picture) as image:
        whole, scale = image.convert("RGB"), 1.0
    while picture.stat().st_size > LARGEST:
        scale *= 0.95
        size = (round(whole.width * scale), round(whole.height * scale))
        small = whole.resize(size, Image.Resampling.LANCZOS)
        small.save(picture, dpi=(DPI * scale, DPI * scale), optimize=True)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "saved/demo", help="a finished demo")
    parser.add_argument("--data", type=Path, default=ROOT / "saved/data/toy_av", help="its data")
    parser.add_argument("--figs", type=Path, default=ROOT / "figs", help="gets the pictures")
    args = parser.parse_args()
    fold, lists = args.demo / "folds" / "fold1", args.data / "fold1"
    epochs = spread_epochs(fold)
    tuned = ["--checkpoint", str(epochs[-1]), "--data_path", str(lists)]
    trained = [path for _, path in numbered(args.demo / "pretrain")][-1:]
    pretrained = [
        "--checkpoint",
        *map(str, trained),
        "--data_path",
        str(args.data / "pretrain.csv"),
    ]
    folds = [numbered(path)[-1][1] for path in fold_folders(fold.parent)[0]]
    pictures = {
        "reconstruction": pretrained,
        "retrieval": pretrained,
        "tsne": tuned,
        "attention": [*tuned, "--clip", "0"],
        "layer_weights": ["--checkpoint", *map(str, folds)],
    }
    with tempfile.TemporaryDirectory() as folder:
        radar = [*test_epochs(fold, epochs, Path(folder)), "--metrics", "recall"]
        pictures["radar"] = radar
        for name, arguments in pictures.items():
            output = args.figs / f"toy_{name}.png"
            visualize([name, *arguments, "--output", str(output)])
            shrink(output)


if __name__ == "__main__":
    main()
