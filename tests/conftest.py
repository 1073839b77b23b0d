"""Small real media: mp4 by PyAV, wav by soundfile, frames by Pillow."""

import gc
import io
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from hicmae.data.clip_list import Clip

gc.disable()  # imports leave no garbage: looking for it takes a fifth of their time


def keep_imports() -> None:
    """What is imported by now is no garbage; every run collects, which then takes no time."""
    gc.freeze()
    gc.enable()


def pytest_collection_finish() -> None:
    keep_imports()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test printed may hold names that are not UTF-8; xdist sends UTF-8 only."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the kernel refuse, as a full disk does, what makes a file larger than so many bytes.

    Not stdout, which pytest keeps in a file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def frame(index: int, width: int, height: int) -> np.ndarray:
    """Return a (height, width, 3) picture: grey tells its index, colours tell the sides apart."""
    picture = np.full((height, width, 3), (index * 3) % 240, np.uint8)
    picture[: height // 3, :, 0] = 200
    picture[:, : width // 3, 1] = 160
    return picture


def tone(num_samples: int, frequency: float = 440.0, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / rate)).astype(np.float32)


def save_media(
    path: Path,
    frames: Sequence[np.ndarray] = (),
    sound: np.ndarray | None = None,
    rate: int = 16000,
    codec: str = "aac",
    fps: int = 25,
    times: Sequence[int] = (),
    picture_codec: str = "libx264",
    muxer: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames (H, W, 3) RGB, sound (channels, S) or both; the suffix tells the format.

    Frames are shown at `times`, in ms, or `fps` a second. `options` are the picture's encoder's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        streams = []
        if len(frames):
            streams.append(container.add_stream(picture_codec, rate=fps))
            streams[0].height, streams[0].width = frames[0].shape[:2]
            streams[0].pix_fmt = "yuv420p"
            streams[0].codec_context.time_base = Fraction(1, 1000 if times else fps)
            options = options or {"crf": "18"}
            streams[0].options = {"preset": "ultrafast", "threads": "1"} | options
        if sound is not None:
            streams.append(container.add_stream(codec, rate=rate))
            streams[-1].layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
        for index, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = times[index] if times else index
            picture.time_base = streams[0].codec_context.time_base
            container.mux(streams[0].encode(picture))
        if sound is not None:
            layout = streams[-1].layout.name
            planes = np.ascontiguousarray(sound, np.float32)
            block = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            block.sample_rate, block.pts = rate, 0
            container.mux(streams[-1].encode(block))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def save_mp4(
    path: Path,
    frames: int = 80,
    size: tuple[int, int] = (64, 48),
    fps: int = 25,
    pictures: list[np.ndarray] | None = None,
) -> str:
    images = pictures or [frame(index, *size) for index in range(frames)]
    return str(save_media(path, images, fps=fps, g="20"))


def save_wav(
    path: Path, samples: int | np.ndarray = 51200, rate: int = 16000, subtype: str = "PCM_16"
) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = tone(samples, rate=rate) if isinstance(samples, int) else samples
    soundfile.write(path, waveform, rate, subtype=subtype)
    return str(path)


def save_frames(
    folder: Path, frames: int = 70, size: tuple[int, int] = (40, 40), kind: str = "jpg"
) -> str:
    folder.mkdir(parents=True)
    for index in range(frames):
        Image.fromarray(frame(index, *size)).save(folder / f"frame_{index:03d}.{kind}", quality=95)
    return str(folder)


def same(a, b):
    """Compare nested states bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.fixture
def write_mp4(tmp_path: Path) -> Callable[..., str]:
    return lambda name="clip.mp4", *args, **options: save_mp4(tmp_path / name, *args, **options)


@pytest.fixture
def write_wav(tmp_path: Path) -> Callable[..., str]:
    return lambda name="clip.wav", *args, **options: save_wav(tmp_path / name, *args, **options)


@pytest.fixture
def write_frames(tmp_path: Path) -> Callable[..., str]:
    return lambda name="clip", *args, **options: save_frames(tmp_path / name, *args, **options)


@pytest.fixture(scope="session")
def pretrain_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Return five readable clips of different lengths, to be left as they are."""
    folder = tmp_path_factory.mktemp("pretrain clips")
    return [
        Clip(
            save_mp4(folder / f"v{k}.mp4", frames),
            save_wav(folder / f"v{k}.wav", frames * 640),
            None,
        )
        for k, frames in enumerate([66, 72, 80, 90, 100])
    ]


@pytest.fixture(scope="session")
def labelled_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Return four readable clips of different lengths, labels 0..3, to be left as they are."""
    folder = tmp_path_factory.mktemp("labelled clips")
    return [
        Clip(save_frames(folder / f"c{k}", frames), save_wav(folder / f"c{k}.wav", frames * 640), k)
        for k, frames in enumerate([12, 64, 70, 90])
    ]
