"""One clip as the members of a WebDataset sample: frames, sound and description."""

from __future__ import annotations

import io
import json
import os
import zlib
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from hicmae.data.audio import SAMPLE_RATE, WavFile
from hicmae.data.clip_list import Clip
from hicmae.data.media import FrameFolder, Video, open_video
from hicmae.data.video import face_box, resize
from hicmae.io import UnreadableClip

FRAMES_AT_ONCE = 512  # decoded frames that are held in memory


class Settings(NamedTuple):
    """How frames are stored.

    Attributes:
        pretraining: cut VoxCeleb2's 224 x 224 frames to the face, as pre-training does.
        size: short side to shrink frames to; None keeps them.
        quality: of JPEG, 1 to 100, without chroma subsampling; None stores PNG, without loss.
    """

    pretraining: bool
    size: int | None = None
    quality: int | None = 95


class PackJob(NamedTuple):
    """A clip to pack; `clip` has the names of the list, `source` and `audio` the files."""

    name: str
    source: str
    output: str
    audio: str
    clip: Clip


class Encoded(NamedTuple):
    """The members of a clip's sample, and the bytes of the files it was made from."""

    info: bytes
    frames: bytes
    wav: bytes
    num_frames: int
    source_bytes: int


def encode(job: PackJob, settings: Settings) -> dict[str, object]:
    """Read a clip and encode it; UnreadableClip where training could not use it either.

    Returns:
        {"encoded": Encoded}, as the details of an `Outcome`.
    """
    video, sound = open_video(job.source), WavFile(job.audio)
    images = _images(video, settings)
    wav, sample_type = _wav(sound)
    width = np.dtype(sample_type).itemsize
    info = {
        "video": job.clip.video,
        "audio": job.clip.audio,
        "label": job.clip.label,
        "sizes": [len(image) for image in images],
        "crc32": [zlib.crc32(image) for image in images],
        **_times(video, settings.pretraining),
        "sample_rate": SAMPLE_RATE,
        "samples": len(sound),
        "sample_type": sample_type,
        "wav_header": len(wav) - width * len(sound),
    }
    encoded = Encoded(
        json.dumps(info, separators=(",", ":")).encode(),
        b"".join(images),
        wav,
        len(images),
        _bytes_of(job.source) + _bytes_of(job.audio),
    )
    return {"encoded": encoded}


def _images(video: Video, settings: Settings) -> list[bytes]:
    """Return the frames as they are stored, one image each."""
    images = []
    for start in range(0, len(video), FRAMES_AT_ONCE):
        indices = range(start, min(start + FRAMES_AT_ONCE, len(video)))
        for index, frame in zip(indices, video.read(indices), strict=True):
            height, width = frame.shape[:2]
            scaled = settings.size is not None and settings.size < min(height, width)
            file = None if scaled else _untouched(video, index)
            images.append(file or _image(frame, settings))
    return images


def _untouched(video: Video, index: int) -> bytes | None:
    """Return the file of a frame that is stored as it is: a JPEG in a folder."""
    if not isinstance(video, FrameFolder):
        return None
    path = os.path.join(video.path, video.names[index])
    with Image.open(path) as image:
        if image.format != "JPEG" or image.mode != "RGB":
            return None
    with open(path, "rb") as file:
        return file.read()


def _image(frame: np.ndarray, settings: Settings) -> bytes:
    height, width = frame.shape[:2]
    image = Image.fromarray(frame)
    if settings.pretraining:
        image = image.crop(face_box(width, height))
    short = min(image.size)
    if settings.size is not None and settings.size < short:
        width, height = (side * settings.size // short for side in image.size)
        image = resize(image, (width, height))
    file = io.BytesIO()
    if settings.quality is None:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=settings.quality, subsampling=0, optimize=True)
    return file.getvalue()


def _times(video: Video, needed: bool) -> dict[str, list[float] | None]:
    """Return when frames begin and end, as decimals of which float32 makes the very same."""
    try:
        times = [video.times(index, index) for index in range(len(video))]
    except UnreadableClip:  # a folder of images has none
        if needed:
            raise
        return {"begins": None, "ends": None}
    begins, ends = (
        [float(str(np.float32(t))) for t in column] for column in zip(*times, strict=True)
    )
    return {"begins": begins, "ends": ends}


def _wav(sound: WavFile) -> tuple[bytes, str]:
    """Return the sound as a wav file, and the type of its samples, which lose nothing."""
    plain = sound.file.subtype == "PCM_16"
    kind, subtype, sample_type = (
        ("int16", "PCM_16", "<i2") if plain else ("float32", "FLOAT", "<f4")
    )
    sound.file.seek(0)
    try:
        samples = sound.file.read(dtype=kind)
    except soundfile.LibsndfileError as error:
        raise UnreadableClip(f"audio '{sound.path}' cannot be read: {error}") from None
    if len(samples) != len(sound):
        raise UnreadableClip(
            f"audio '{sound.path}' is cut off: got {len(samples)} of {len(sound)} samples from 0"
        )
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, subtype=subtype, format="WAV")
    data = file.getvalue()
    if not data.endswith(samples.astype(sample_type).tobytes()):
        raise UnreadableClip(f"audio '{sound.path}' cannot be packed: its samples are not last")
    return data, sample_type


def _bytes_of(path: str) -> int:
    """Return the size of a file, or of the files in a folder of frames."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries)
