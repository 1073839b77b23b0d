"""Measure how many clips a second one core does, and how long VoxCeleb2 takes on many.

    OMP_NUM_THREADS=1 python preprocess/face_and_audio/benchmark.py

The clip is made to be like VoxCeleb2's: 224 x 224 pixels, 25 frames a second, 8 s, H.264, with AAC
at 16 kHz, and the same sound as m4a. The face is the portrait that matplotlib ships, moved about.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import av  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.cbook import get_sample_data  # noqa: E402
from preprocess.face_and_audio.inputs import Job  # noqa: E402

from hicmae.faces.detector import check_weights  # noqa: E402
from preprocess.face_and_audio import extract_audio, extract_face  # noqa: E402

logger = logging.getLogger(__name__)

VOXCELEB2_CLIPS, CORES = 1_092_009, 64
SIDE, FPS, SECONDS, SAMPLE_RATE = 224, 25, 8, 16000
FACE_CENTRE, FACE_SCALE = (264, 220), 0.6  # of the portrait: pupils about 50 pixels apart


def make_clip(path: Path, with_picture: bool = True) -> str:
    """Write the clip, or its sound alone; returns its name."""
    name = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
    portrait = np.asarray(cv2.imread(name))
    noise = np.random.default_rng(0).normal(0, 3000, SAMPLE_RATE * SECONDS).astype(np.int16)
    with av.open(str(path), "w") as container:
        if with_picture:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE)
        sound.layout = "mono"
        for index in range(FPS * SECONDS if with_picture else 0):
            phase = 2 * np.pi * index / (FPS * SECONDS)
            turn = cv2.getRotationMatrix2D(FACE_CENTRE, 6 * np.sin(3 * phase), FACE_SCALE)
            turn[:, 2] += [SIDE / 2 - FACE_CENTRE[0] + 8 * np.sin(5 * phase), SIDE / 2 - 220]
            picture = cv2.warpAffine(portrait, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8, copy=False), "bgr24")
            container.mux(stream.encode(frame))
        if with_picture:
            container.mux(stream.encode(None))
        block = av.AudioFrame.from_ndarray(noise[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    return str(path)


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of several runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="runs of a step (%(default)s)")
    args = parser.parse_args(arguments)
    check_weights()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = make_clip(folder / "clip.mp4")
        sound = make_clip(folder / "clip.m4a", with_picture=False)
        wav, faces = str(folder / "clip.wav"), str(folder / "clip_aligned")
        every = extract_face.FaceOptions(detect_every=1)
        steps: dict[str, Callable[[], object]] = {
            "wav from mp4": lambda: extract_audio.convert(Job("clip", video, wav)),
            "wav from m4a": lambda: extract_audio.convert(Job("clip", sound, wav)),
            "faces": lambda: extract_face.extract(
                Job("clip", video, faces), extract_face.FaceOptions()
            ),
            "faces, --detect_every 1": lambda: extract_face.extract(
                Job("clip", video, faces), every
            ),
        }
        heads = ("step", "CPU s/clip", "clips/s a core", "VoxCeleb2, 64 cores")
        logger.info("%-24s %10s %14s %20s", *heads)
        for step, work in steps.items():
            seconds = seconds_of(work, args.repeats)
            hours = VOXCELEB2_CLIPS * seconds / CORES / 3600
            logger.info("%-24s %10.3f %14.1f %18.2f h", step, seconds, 1 / seconds, hours)


if __name__ == "__main__":
    main()
