"""A corpus of broken and unusual media, and what is promised of each.

A clip is a video and a wav; all but the half that its name says are whole. `promise` is "read" (it
is an ordinary clip, however odd), "refused" (UnreadableClip with one line), or "either" (damage
that a decoder may or may not notice, or a clip too short for its sound; never anything else).
Folders of frames are for the labelled lists: they carry no times, which pre-training needs.
"""

import io
import os
import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from tests.conftest import save_frames, save_media, save_wav, tone
from tests.media.clock_films import turn

FRAMES, FPS, WIDTH, HEIGHT, RATE = 80, 25, 64, 48, 16000
HUGE = 10_000  # pixels of a side


class Case(NamedTuple):
    """One clip of the corpus; `half` is what is odd about it, "video" or "audio"."""

    name: str
    half: str
    video: str
    audio: str
    promise: str


def make_corpus(folder: Path) -> list[Case]:
    """Write all files below a folder and return the clips, the whole ones included."""
    whole_video = str(_mp4(folder / "whole.mp4"))
    whole_audio = save_wav(folder / "whole.wav", FRAMES * RATE // FPS)
    cases = [Case("whole", "video", whole_video, whole_audio, "read")]
    for name, promise, path in [*_videos(folder / "video"), *_folders(folder / "frames")]:
        cases.append(Case(name, "video", str(path), whole_audio, promise))
    for name, promise, path in _wavs(folder / "audio"):
        cases.append(Case(name, "audio", whole_video, str(path), promise))
    return cases


Made = Iterator[tuple[str, str, Path]]  # name, promise, path


# Videos


def _videos(folder: Path) -> Made:
    folder.mkdir()
    at_end = _mp4(folder / "index_at_end.mp4")
    at_start = _mp4(folder / "index_at_start.mp4", muxer={"movflags": "+faststart"})
    yield "index at the start", "read", at_start
    damaged = _damaged(at_end.read_bytes(), at_start.read_bytes())
    for number, (name, promise, data) in enumerate(damaged):
        path = folder / f"damaged_{number}.mp4"
        path.write_bytes(data)
        yield name, promise, path
    yield from _no_videos(folder, at_end.read_bytes())
    yield from _odd_videos(folder)


def _damaged(at_end: bytes, at_start: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, promise and content of what is left of films with the index at either end."""
    for tenth in range(1, 10):
        cut = len(at_end) * tenth // 10
        yield f"index at the end, cut at {tenth}/10", "refused", at_end[:cut]
        # With its index at the start a file opens, and fails at the frames that are gone.
        yield f"index at the start, cut at {tenth}/10", "either", at_start[:cut]
    for seed in range(6):
        rng, data = np.random.default_rng(seed), bytearray(at_end)
        for place in rng.integers(0, len(data), 40):  # anywhere, the index included
            data[place] ^= 1 << int(rng.integers(8))
        yield f"bits flipped {seed}", "either", bytes(data)
    start, end = at_end.index(b"mdat") + 4, at_end.index(b"moov") - 4
    yield "zeros for data", "either", at_end[:start] + bytes(end - start) + at_end[end:]
    clock = at_end.index(b"mdhd") + 16  # where the media header has the ticks of a second
    for ticks in (0, 2**32 - 1):
        data = at_end[:clock] + struct.pack(">I", ticks) + at_end[clock + 4 :]
        yield f"{ticks} ticks a second", "either", data


def _no_videos(folder: Path, mp4: bytes) -> Made:
    """Yield files that are no videos, whatever their names say."""
    contents = {
        "nothing": b"",
        "one byte": b"\0",
        "all zeros": bytes(20_000),
        "random bytes": np.random.default_rng(0).bytes(20_000),
        "text": b"not a film\n" * 500,
        "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "a playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "a concat script": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "only the head": mp4[:32],
        "an archive": b"PK\3\4" + bytes(500),
    }
    for name, data in contents.items():
        path = folder / f"{name.replace(' ', '_')}.mp4"
        path.write_bytes(data)
        yield name, "refused", path
    yield "only sound", "refused", save_media(folder / "only_sound.mp4", sound=tone(RATE)[None])
    yield "does not exist", "refused", folder / "nowhere.mp4"
    (folder / "broken_link.mp4").symlink_to(folder / "nowhere.mp4")
    yield "broken link", "refused", folder / "broken_link.mp4"
    os.mkfifo(folder / "pipe.mp4")
    yield "a pipe that nobody writes", "refused", folder / "pipe.mp4"


def _odd_videos(folder: Path) -> Made:
    for frames in (1, 2):
        yield f"frames: {frames}", "either", _mp4(folder / f"frames{frames}.mp4", frames)
    yield "10 000 x 10 000 frames", "refused", _huge_video(folder / "huge.avi")
    for name, times in (
        ("variable frame rate", [k * 40 + (k % 5) * 7 for k in range(FRAMES)]),
        ("long pause", [k * 40 + (60_000 if k > 40 else 0) for k in range(FRAMES)]),
    ):
        yield name, "read", _mp4(folder / f"{name.replace(' ', '_')}.mp4", times=times)
    before_zero = [(k - 30) * 40 for k in range(FRAMES)]
    yield "negative start time", "either", _mp4(folder / "negative.mkv", times=before_zero)
    yield "rotated", "read", turn(_mp4(folder / "rotated.mp4"), (0, 1, -1, 0))
    for width, height in ((2, 2), (640, 16)):
        path = _mp4(folder / f"{width}x{height}.mp4", 20, width, height)
        yield f"{width} x {height} pixels", "read", path
    for suffix, codec in ((".avi", "mpeg4"), (".mkv", "libx264"), (".mov", "libx264")):
        yield f"a {suffix} file", "read", _mp4(folder / f"other{suffix}", picture_codec=codec)
    wrong = shutil.copy(folder / "other.avi", folder / "avi_named.mp4")
    yield "avi named mp4", "read", Path(wrong)


def _mp4(
    path: Path, frames: int = FRAMES, width: int = WIDTH, height: int = HEIGHT, **options: Any
) -> Path:
    """Write a video of noise that grows lighter."""
    noise = np.random.default_rng(0).integers(0, 64, (frames, height, width, 3), np.uint8)
    pictures = [picture + np.uint8(index) for index, picture in enumerate(noise)]
    return save_media(path, pictures, fps=FPS, g="20", **options)


def _huge_video(path: Path) -> Path:
    """Write a motion-jpeg video of two equal frames; a jpeg of one colour is small at any size."""
    data = io.BytesIO()
    Image.new("L", (HUGE, HUGE), 90).save(data, "jpeg")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = HUGE, HUGE, "yuvj420p"
        for index in range(2):
            packet = av.Packet(data.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            container.mux(packet)
    return path


# Folders of frames


def _folders(folder: Path) -> Made:
    folder.mkdir()
    plain, mixed, sizes, inner = (
        Path(save_frames(folder / name)) for name in ("plain", "mixed", "sizes", "inner_loop")
    )
    yield "frames", "read", plain
    Image.new("RGB", (40, 40)).save(mixed / "frame_035x.png")
    yield "png among jpg", "read", mixed
    Image.new("RGB", (80, 30)).save(sizes / "frame_040.jpg")
    yield "frames of several sizes", "read", sizes
    (folder / "empty").mkdir()
    yield "empty folder", "refused", folder / "empty"
    (folder / "notes").mkdir()
    (folder / "notes/readme.txt").write_text("no pictures")
    yield "folder without pictures", "refused", folder / "notes"
    yield "folder of one frame", "read", Path(save_frames(folder / "one", 1))
    loop = folder / "loop"
    loop.symlink_to(loop)
    yield "link to itself", "refused", loop
    (inner / "again").symlink_to(inner)
    yield "folder that links to itself", "read", inner
    for name, data in (
        ("frame cut off", (plain / "frame_000.jpg").read_bytes()[:400]),
        ("frame of no byte", b""),
        ("frame of text", b"no picture"),
        ("frame with a folder's name", None),
        ("frame that is huge", _huge_png()),
    ):
        yield name, "refused", _spoiled(folder / name.replace(" ", "_").replace("'", ""), data)
    for mode in ("L", "CMYK", "P", "RGBA", "I;16"):
        path = folder / f"mode_{mode.replace(';', '')}"
        path.mkdir()
        kind = "jpg" if mode in ("L", "CMYK") else "png"
        image = Image.open(plain / "frame_000.jpg")
        image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        for index in range(20):
            image.save(path / f"frame_{index:03d}.{kind}")
        yield f"{mode} pictures", "read", path
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
        locked = Path(save_frames(folder / "locked"))
        locked.chmod(0)
        yield "folder that may not be read", "refused", locked


def _spoiled(folder: Path, data: bytes | None) -> Path:
    """Make a folder in which something else stands in place of every frame: any window meets it."""
    folder.mkdir()
    for index in range(70):
        path = folder / f"frame_{index:03d}.jpg"
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
    return folder


def _huge_png() -> bytes:
    data = io.BytesIO()
    Image.new("1", (HUGE, HUGE)).save(data, "png")
    return data.getvalue()


# Wavs


def _wavs(folder: Path) -> Made:
    folder.mkdir()
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        path = save_wav(folder / f"{subtype}.wav", FRAMES * RATE // FPS, subtype=subtype)
        yield f"{subtype} wav", "read", Path(path)
    for name, promise, samples, rate in (
        ("stereo", "refused", np.stack([tone(51200)] * 2, axis=1), RATE),
        ("44.1 kHz", "refused", tone(51200), 44100),
        ("44.1 kHz stereo", "refused", np.stack([tone(51200)] * 2, axis=1), 44100),
        ("8 kHz", "refused", tone(25600), 8000),
        ("silence", "refused", np.zeros(51200), RATE),
        ("a constant", "refused", np.full(51200, 0.25), RATE),
        ("no sample", "refused", np.zeros(0), RATE),
        ("one sample", "refused", np.full(1, 0.5), RATE),
        ("audio shorter than video", "read", tone(RATE), RATE),
        ("audio much longer than video", "read", tone(20 * RATE), RATE),
        ("full scale", "read", np.sign(tone(51200)), RATE),
    ):
        path = save_wav(folder / f"{name.replace(' ', '_')}.wav", samples, rate)
        yield name, promise, Path(path)
    for name, value in (("not a number", np.nan), ("infinite", np.inf)):
        samples = tone(51200).copy()
        samples[::100] = value
        path = save_wav(folder / f"{name.replace(' ', '_')}.wav", samples, subtype="FLOAT")
        yield f"{name} in a float wav", "refused", Path(path)
    yield from _no_wavs(folder)


def _no_wavs(folder: Path) -> Made:
    data = (folder / "PCM_24.wav").read_bytes()
    contents = {
        "no byte": ("refused", b""),
        "text": ("refused", b"RIFF but no wav\n" * 100),
        "only a header": ("refused", data[:40]),
        "random bytes": ("refused", np.random.default_rng(1).bytes(5000)),
        "cut in half": ("either", data[: len(data) // 2]),
        "0 Hz": ("refused", data[:24] + bytes(4) + data[28:]),
    }
    for name, (promise, content) in contents.items():
        path = folder / f"broken_{name.replace(' ', '_')}.wav"
        path.write_bytes(content)
        yield f"wav: {name}", promise, path
    yield "wav: does not exist", "refused", folder / "nowhere.wav"
    (folder / "folder.wav").mkdir()
    yield "wav: a folder", "refused", folder / "folder.wav"
    os.mkfifo(folder / "pipe.wav")
    yield "wav: a pipe that nobody writes", "refused", folder / "pipe.wav"
