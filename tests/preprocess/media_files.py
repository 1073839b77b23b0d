"""Real small media files for the tests of what cuts faces and sound out of them."""

import importlib.util
import os
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from matplotlib.cbook import get_sample_data

from preprocess.face_and_audio import batch
from tests.conftest import save_media as save_media  # its users find it here too

HARD_NAMES = ["a space.mp4", "quote'\"s.mp4", "ünï ☺.mp4", "line\nbreak.mp4", "-a:b %d -x.mp4"]
HARD_NAMES += [os.fsdecode(b"\xff\xfe.mp4")]
# Middles of the pupils of the portrait that matplotlib ships, read off by eye, in pixels.
PORTRAIT_EYES = np.array([[222.0, 189.6], [306.0, 186.6]])
SIZE = 360, 300  # width, height of the test videos


needs_weights = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mtcnn", "lz4")),
    reason="needs the weights of the extra 'faces': pip install mtcnn==1.0.0",
)


def ffmpeg_program() -> str:
    """Return an ffmpeg program, or skip the test that needs one."""
    program = shutil.which("ffmpeg")
    if program is None:
        reason = "needs an ffmpeg program, for example: pip install imageio-ffmpeg"
        program = pytest.importorskip("imageio_ffmpeg", reason=reason).get_ffmpeg_exe()
    return program


def fake_openface(folder: Path, size: str = "256") -> list[str]:
    """Make a program that stands in for OpenFace, of twelve faces a video; returns its flags.

    It demands the flags of the original. Films whose bytes say so are broken or without a face.
    """
    faces = folder / "some_aligned"
    faces.mkdir()
    for k in range(12):
        picture = cv2.resize(portrait()[100:350, 160:370], (40, 40))
        cv2.imwrite(str(faces / f"frame_det_00_{k + 1:06d}.jpg"), picture[..., ::-1])
    program = folder / "FeatureExtraction"
    program.write_text(f"""#!/bin/sh
case "$*" in *-simalign*-format_aligned\\ jpg*-nomask*-simsize\\ {size}*) ;; *) exit 2;; esac
while [ $# -gt 0 ]; do
  case "$1" in -f) file=$2;; -out_dir) out=$2;; esac
  shift
done
grep -q broken "$file" && {{ echo "could not open the video" >&2; exit 1; }}
mkdir "$out/clip_aligned"
grep -q faceless "$file" || cp {shlex.quote(str(faces))}/* "$out/clip_aligned"
""")
    program.chmod(0o755)
    return ["--backend", "openface", "--openface", str(program)]


def portrait() -> np.ndarray:
    """Return a photograph of one face, (600, 512, 3) RGB."""
    name = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
    return cv2.cvtColor(cv2.imread(name), cv2.COLOR_BGR2RGB)


def run(tool: ModuleType, source: Path, output: Path, *flags: str) -> int:
    """Run extract_audio or extract_face on all that is below a folder."""
    names = ["--input", str(source), "--output_dir", str(output)]
    return tool.main([*names, "--num_workers", "1", *flags])


def summary(output: Path, tool: str) -> dict[str, dict[str, str]]:
    return batch.read_summary(batch.summary_path(output, tool))


def save_bad_files(folder: Path) -> set[str]:
    """Write files that no tool can use; returns their names."""
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no film at all\n" * 300)
    (folder / "playlist.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/x.ts\n")
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    data = save_media(folder / "cut.mp4", pictures(9), chirp(0.4, 16000)).read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return {"empty.mp4", "text.mp4", "playlist.mp4", "gone.mp4", "cut.mp4"}


def failures(output: Path, tool: str) -> dict[str, str]:
    """Return the reasons of the clips that failed."""
    rows = summary(output, tool)
    return {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}


def chirp(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Return (channels, S) in [-1, 1] whose every moment differs, so that a delay shows."""
    time = np.arange(round(seconds * rate)) / rate
    phases = [
        2 * np.pi * (200 * (1 + k) * time + 600 * time**2 / max(seconds, 0.1))
        for k in range(channels)
    ]
    return 0.4 * np.sin(phases)


def pictures(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Return frames of one grey each, without a face."""
    return [np.full((size[1], size[0], 3), 10 + 5 * k % 200, np.uint8) for k in range(count)]


def camera(shift: tuple[float, float], scale: float, roll: float) -> np.ndarray:
    """Return the (2, 3) matrix that takes the portrait to a frame; its eyes' middle to the centre,
    then shifted, with `scale` 1 for an inter-ocular distance of 60 pixels and `roll` in degrees."""
    middle = PORTRAIT_EYES.mean(0)
    matrix = cv2.getRotationMatrix2D(middle.tolist(), roll, scale * 60 / 84)
    matrix[:, 2] += np.array(SIZE) / 2 + shift - middle
    return matrix


def shoot(matrices: list[np.ndarray]) -> list[np.ndarray]:
    image = portrait()
    return [cv2.warpAffine(image, matrix, SIZE, flags=cv2.INTER_AREA) for matrix in matrices]
