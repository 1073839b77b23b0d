"""Aligned faces by OpenFace's FeatureExtraction, an installed program."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from preprocess.face_and_audio.inputs import ClipError, Job
from preprocess.face_and_audio.programs import run_program
from preprocess.face_and_audio.staging import PART, staged

FLAGS = ("-simalign", "-format_aligned", "jpg", "-nomask")  # as the original used it


def extract_with_openface(
    job: Job, program: str, img_size: int, timeout: float | None
) -> dict[str, object]:
    """Make the folder of aligned faces of one clip with OpenFace.

    Args:
        job: the video, and the folder to make.
        program: path of FeatureExtraction.
        img_size: side of the faces in pixels.
        timeout: seconds it may take.

    Returns:
        Columns of the summary: the number of frames.
    """
    with open(job.source, "rb") as file:
        if not file.read(1):
            raise ClipError("is an empty file")
    with (
        staged(job.output) as part,
        tempfile.TemporaryDirectory(dir=part.parent, prefix=PART) as folder,
    ):
        # OpenFace names its output after its input and does not take every name.
        link = Path(folder) / ("clip" + Path(job.source).suffix)
        os.symlink(os.path.abspath(job.source), link)
        command = [program, "-f", str(link), "-out_dir", folder, *FLAGS, "-simsize", str(img_size)]
        run_program(command, timeout)
        aligned = Path(folder) / "clip_aligned"
        frames = sorted(aligned.glob("*.jpg")) if aligned.is_dir() else []
        if not frames:
            raise ClipError("OpenFace wrote no aligned face")
        aligned.rename(part)
    return {"frames": len(frames)}
