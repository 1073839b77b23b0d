"""The files of one clip: mp4 with sound, wav and aligned face frames; whole or not there at all."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import soundfile

from preprocess.toy.clips import Clip, ClipKey
from preprocess.toy.portrait import FRAME_SIZE
from preprocess.toy.render import align, draw_frames
from preprocess.toy.speech import FRAME_RATE, SAMPLE_RATE
from preprocess.toy.voice import synthesise

JPEG_QUALITY = 92
VIDEO_OPTIONS = {"preset": "superfast", "crf": "22", "threads": "1", "g": "50"}


class ClipFiles(NamedTuple):
    """Where the parts of one clip are. `aligned` is None for pre-training clips."""

    video: Path
    audio: Path
    aligned: Path | None

    @property
    def faces(self) -> Path:
        """The aligned faces of a clip that has some."""
        if self.aligned is None:
            raise ValueError(f"'{self.video}' is for pre-training and has no aligned faces")
        return self.aligned

    def complete(self) -> bool:
        """True if the clip was finished; parts appear under these names only when whole."""
        return all(path is None or path.exists() for path in self)


def files_of(folder: Path, key: ClipKey) -> ClipFiles:
    """The names of one clip's files under the data folder."""
    speaker = key.name.split("_")[0]
    if key.for_pretraining:
        stem = folder / "pretrain" / speaker / key.name
        return ClipFiles(stem.with_suffix(".mp4"), stem.with_suffix(".wav"), None)
    stem = folder / "labelled" / speaker / key.name
    return ClipFiles(
        stem.with_suffix(".mp4"), stem.with_suffix(".wav"), folder / "aligned" / key.name
    )


def write_clip(clip: Clip, files: ClipFiles, face_size: int) -> None:
    """Draw, voice and write one clip; everything goes to temporary names first."""
    for path in files:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    video, audio = (path.with_name(f".part-{path.name}") for path in files[:2])
    aligned = files.aligned and files.aligned.with_name(f".part-{files.aligned.name}")
    if aligned:
        shutil.rmtree(aligned, ignore_errors=True)
        aligned.mkdir()
    sound = np.rint(synthesise(clip) * 32767).astype(np.int16)
    soundfile.write(audio, sound, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    write_video(clip, sound, video, aligned, face_size)
    if aligned and files.aligned:
        shutil.rmtree(files.aligned, ignore_errors=True)
        aligned.rename(files.aligned)
    audio.replace(files.audio)
    video.replace(files.video)


def write_video(
    clip: Clip, sound: np.ndarray, path: Path, aligned: Path | None, face_size: int
) -> None:
    """Write H.264 + AAC to `path` and, if `aligned` is a folder, the jpg faces into it."""
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=FRAME_RATE, options=VIDEO_OPTIONS)
        picture.width = picture.height = FRAME_SIZE
        picture.pix_fmt = "yuv420p"
        voice = container.add_stream(
            "aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"}
        )
        voice.bit_rate = 64000
        for number, (frame, transform) in enumerate(draw_frames(clip), start=1):
            planes: np.ndarray = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)
            packed = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            packed.pts, packed.time_base = number - 1, Fraction(1, FRAME_RATE)
            container.mux(picture.encode(packed))
            if aligned:
                write_jpeg(
                    aligned / f"frame_det_00_{number:06d}.jpg", align(frame, transform, face_size)
                )
        container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = SAMPLE_RATE, 0
        samples.time_base = Fraction(1, SAMPLE_RATE)
        container.mux(voice.encode(samples))
        container.mux(voice.encode(None))


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write one BGR image; OpenCV itself fails without a word on a full disk."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(data.tobytes())
