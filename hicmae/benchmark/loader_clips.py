"""Clips like VoxCeleb2's for the loader's benchmark: a moving face at a realistic bit rate."""

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile
from matplotlib.cbook import get_sample_data

from hicmae.data.clip_list import Clip

SIDE, FRAME_RATE, SECONDS, SAMPLE_RATE = 224, 25, 8, 16000
BIT_RATE = 220_000  # of H.264; VoxCeleb2's 1 092 009 files are about this large
# What ffmpeg takes by default, and what is usual in VoxCeleb2: few keyframes, three B-frames.
ENCODER = {"preset": "medium", "threads": "1"}
FACE_CENTRE, FACE_SCALE = (264, 220), 0.6  # of the portrait: pupils about 50 pixels apart
GRAIN = 5.0  # standard deviation of the camera's noise, in grey levels


def make_clips(folder: Path, count: int) -> list[Clip]:
    """Return `count` clips in `folder`; those that an earlier call made are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_make_clip(folder / f"clip{seed:04d}-{_recipe()}", seed) for seed in range(count)]


def _recipe() -> str:
    """Return a short name of how clips are made, so that a cache holds no older kind."""
    settings = (SIDE, FRAME_RATE, SECONDS, BIT_RATE, sorted(ENCODER.items()), GRAIN)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _make_clip(stem: Path, seed: int) -> Clip:
    video, audio = stem.with_suffix(".mp4"), stem.with_suffix(".wav")
    rng = np.random.default_rng(seed)
    if not video.exists():
        part = video.with_suffix(".part")
        _write_video(part, rng)
        part.replace(video)
    if not audio.exists():
        part = audio.with_suffix(".part")
        soundfile.write(part, _voice(rng), SAMPLE_RATE, subtype="PCM_16", format="WAV")
        part.replace(audio)
    return Clip(str(video), str(audio), None)


def _write_video(path: Path, rng: np.random.Generator) -> None:
    portrait = np.asarray(cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False))))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=ENCODER)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
        paths = rng.uniform(0, 2 * np.pi, 6)
        for index in range(FRAME_RATE * SECONDS):
            picture = _picture(portrait, index / FRAME_RATE, paths, rng)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _picture(
    portrait: np.ndarray, seconds: float, phases: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the face: it sways and nods, its mouth opens, the light changes, the camera is noisy."""
    sway = np.sin(2 * np.pi * np.array([0.3, 0.5, 0.4, 0.25, 2.3, 0.1]) * seconds + phases)
    turn = cv2.getRotationMatrix2D(FACE_CENTRE, 6 * sway[0], FACE_SCALE * (1 + 0.05 * sway[3]))
    turn[:, 2] += [SIDE / 2 - FACE_CENTRE[0] + 8 * sway[1], SIDE / 2 - 220 + 5 * sway[2]]
    size = (SIDE, SIDE)
    picture = cv2.warpAffine(portrait, turn, size, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    mouth = turn @ (FACE_CENTRE[0], FACE_CENTRE[1] + 75, 1)
    centre = (int(mouth[0]), int(mouth[1]))
    cv2.ellipse(picture, centre, (13, int(4 + 4 * sway[4])), 0, 0, 360, (40, 30, 70), -1)
    picture *= 1 + 0.06 * sway[5]
    picture += rng.normal(0, GRAIN, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _voice(rng: np.random.Generator) -> np.ndarray:
    """Return something with syllables, harmonics and breath, float in [-1, 1]."""
    time = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / SAMPLE_RATE
    voiced = sum(np.sin(k * pitch + phase) / k for k, phase in enumerate(rng.uniform(0, 6, 20), 1))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time + rng.uniform(0, 6)), 0, None)
    return 0.15 * syllables * voiced + rng.normal(0, 0.005, len(time))
