"""Draw figs/tensorboard.png and figs/tensorboard_hparams.png: runs as TensorBoard shows them.

    python scripts/figures/tensorboard.py [RUNS] [--out FOLDER]

RUNS is a folder with the event files of one run or of several, by default saved/demo. A real
TensorBoard is started on it and photographed in a headless Chromium or Chrome, which must be
installed; both are ended again.
"""

import argparse
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from PIL import Image

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A browser that asks nothing and nobody, and draws curves without a graphics card.
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-3d-apis --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
--virtual-time-budget=30000""".split()
# What is shown first, as far as the runs have it; of pictures those of the first run that has them.
CURVES = ("train/loss", "train/contrastive_acc_*", "train/lr", "val/uar", "val/ccc")
PICTURES = ("reconstruction/0", "val/confusion")
CARDS = 6
LIMIT = 60.0  # seconds for the start of TensorBoard, and for a picture


class FigureError(RuntimeError):
    """Something is missing; the message says what to do."""


def find_browser() -> str:
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FigureError(f"no browser found, looked for {', '.join(BROWSERS)}; install Chromium")


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """Run TensorBoard on a folder; give its address."""
    try:
        version("tensorboard")
    except PackageNotFoundError:
        raise FigureError("tensorboard is not installed; pip install tensorboard") from None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        runs.resolve(),
        "--port",
        str(port),
    ]
    command += ["--host", "127.0.0.1", "--samples_per_plugin", "images=100"]
    with tempfile.TemporaryFile() as log:
        # Not in this folder, where its name would mean this file.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def tags_of(address: str, plugin: str) -> dict[str, dict[str, Any]]:
    with urlopen(f"{address}/data/plugin/{plugin}/tags", timeout=LIMIT) as answer:
        return json.load(answer)


def wait_for_tags(address: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tags of curves and of pictures by run, when no more come."""
    end, before = time.monotonic() + LIMIT, None
    while time.monotonic() < end:
        time.sleep(2)
        try:
            tags = tags_of(address, "scalars"), tags_of(address, "images")
        except (URLError, OSError):
            continue
        if tags == before and any(tags[0].values()):
            return tags
        before = tags
    raise FigureError(f"TensorBoard at {address} shows no curves after {LIMIT:.0f} s")


def choose_cards(curves: dict[str, Any], pictures: dict[str, Any]) -> list[dict[str, Any]]:
    """Choose what is pinned to the top of the page, in TensorBoard's terms."""
    known = sorted({tag for tags in curves.values() for tag in tags})
    cards: list[dict[str, Any]] = []
    for wanted in CURVES:
        stem = wanted.removesuffix("*")
        fits = [tag for tag in known if tag == wanted or (stem != wanted and tag.startswith(stem))]
        cards += [{"plugin": "scalars", "tag": tag} for tag in fits[-1:]]
    shown = []
    for tag in PICTURES:
        runs = sorted(run for run, tags in pictures.items() if tag in tags)
        shown += [
            {"plugin": "images", "tag": tag, "runId": f"defaultExperimentId/{run}", "sample": 0}
            for run in runs[:1]
        ]
    return cards[: CARDS - len(shown)] + shown


def photograph(browser: str, address: str, size: tuple[int, int]) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "page.png"
        command = [browser, *OPTIONS, f"--user-data-dir={folder}/profile", f"--screenshot={out}"]
        command += [f"--window-size={size[0]},{size[1]}", address]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise FigureError(f"'{browser}' gave no picture within {LIMIT:.0f} s") from None
        if done.returncode or not out.exists():
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise FigureError(f"'{browser}' gave no picture: {reason}")
        return Image.open(io.BytesIO(out.read_bytes())).convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture with 256 colours, which a page of text and curves hardly misses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size} bytes\n")


def draw(runs: Path, out: Path) -> None:
    if not any(runs.rglob("events.out.tfevents.*")):
        raise FigureError(f"'{runs}' holds no event files; name the folder of a run, or of several")
    browser = find_browser()
    with tensorboard(runs) as address:
        cards = choose_cards(*wait_for_tags(address))
        pinned = quote(json.dumps(cards, separators=(",", ":")))
        page = f"{address}/?pinnedCards={pinned}&smoothing=0#timeseries"
        save(photograph(browser, page, (1800, 1090)), out / "tensorboard.png")
        page = f"{address}/#hparams"
        save(photograph(browser, page, (2200, 560)), out / "tensorboard_hparams.png")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=Path, default=ROOT / "saved/demo", metavar="RUNS",
                        help="folder of runs (default: saved/demo)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "figs", metavar="FOLDER",
                        help="where to write the pictures (default: figs)")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        draw(args.runs, args.out)
    except (FigureError, OSError) as error:
        sys.stderr.write(f"tensorboard.py: error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
