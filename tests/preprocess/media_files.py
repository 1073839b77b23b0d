"""Real small media files for the tests of what cuts faces and sound out of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from matplotlib.cbook import get_sample_data

# Middles of the pupils of the portrait that matplotlib ships, read off by eye, in pixels.
PORTRAIT_EYES = np.array([[222.0, 189.6], [306.0, 186.6]])
SIZE = 360, 300  # width, height of the test videos


def ffmpeg_program() -> str:
    """Return an ffmpeg program, or skip the test that needs one."""
    program = shutil.which("ffmpeg")
    if program is None:
        reason = "needs an ffmpeg program, for example: pip install imageio-ffmpeg"
        program = pytest.importorskip("imageio_ffmpeg", reason=reason).get_ffmpeg_exe()
    return program


def portrait() -> np.ndarray:
    """Return a photograph of one face, (600, 512, 3) RGB."""
    name = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
    return cv2.cvtColor(cv2.imread(name), cv2.COLOR_BGR2RGB)


def chirp(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Return (channels, S) in [-1, 1] whose every moment differs, so that a delay shows."""
    time = np.arange(round(seconds * rate)) / rate
    phases = [
        2 * np.pi * (200 * (1 + k) * time + 600 * time**2 / max(seconds, 0.1))
        for k in range(channels)
    ]
    return 0.4 * np.sin(phases)


def save_media(
    path: Path,
    frames: Sequence[np.ndarray] = (),
    sound: np.ndarray | None = None,
    rate: int = 16000,
    codec: str = "aac",
    fps: int = 25,
) -> Path:
    """Write frames (H, W, 3) RGB, sound (channels, S) or both; the suffix tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        streams = []
        if len(frames):
            streams.append(container.add_stream("libx264", rate=fps))
            streams[0].height, streams[0].width = frames[0].shape[:2]
            streams[0].pix_fmt = "yuv420p"
            streams[0].options = {"preset": "ultrafast", "crf": "18", "threads": "1"}
        if sound is not None:
            streams.append(container.add_stream(codec, rate=rate))
            streams[-1].layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
        for image in frames:
            container.mux(streams[0].encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if sound is not None:
            layout = streams[-1].layout.name
            planes = np.ascontiguousarray(sound, np.float32)
            block = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            block.sample_rate, block.pts = rate, 0
            container.mux(streams[-1].encode(block))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


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
