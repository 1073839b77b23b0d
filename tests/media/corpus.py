"""A corpus of broken and unusual media, and what is promised of each.

A clip is a video and a wav; all but the half that its name says are whole. `promise` is "read" (it
is an ordinary clip, however odd), "refused" (UnreadableClip with one line), or "either" (damage
that a decoder may or may not notice, or a clip too short for its sound; never anything else).
Folders of frames are for the labelled lists: they carry no times, which pre-training needs.
"""

import io
import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from tests.conftest import save_media, save_wav, tone

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
    folder.mkdir(parents=True, exist_ok=True)
    whole_video, whole_audio = str(folder / "whole.mp4"), str(folder / "whole.wav")
    _mp4(Path(whole_video))
    save_wav(Path(whole_audio), FRAMES * RATE // FPS)
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
    at_end, at_start = folder / "index_at_end.mp4", folder / "index_at_start.mp4"
    _mp4(at_end)
    _mp4(at_start, options={"movflags": "+faststart"})
    yield "index at the start", "read", at_start
    for tenth in range(1, 10):
        # With its index at the start a file opens, and fails at the frames that are gone.
        for place, whole, promise in (("end", at_end, "refused"), ("start", at_start, "either")):
            cut = whole.with_name(f"cut{tenth}_{place}.mp4")
            cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * tenth / 10)])
            yield f"index at the {place}, cut at {tenth}/10", promise, cut
    for seed in range(6):
        yield f"bits flipped {seed}", "either", _changed(at_end, f"flip{seed}", _flipped(seed))
    yield "zeros for data", "either", _changed(at_end, "zeros", _zero_data)
    yield from _no_videos(folder, at_end.read_bytes())
    yield from _odd_videos(folder)


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
    link = folder / "broken_link.mp4"
    link.symlink_to(folder / "nowhere.mp4")
    yield "broken link", "refused", link
    pipe = folder / "pipe.mp4"
    os.mkfifo(pipe)
    yield "a pipe that nobody writes", "refused", pipe


def _odd_videos(folder: Path) -> Made:
    for frames in (1, 2):
        path = folder / f"frames{frames}.mp4"
        _mp4(path, frames=frames)
        yield f"frames: {frames}", "either", path
    huge = folder / "huge.avi"
    _still(huge, HUGE, HUGE)
    yield "10 000 x 10 000 frames", "refused", huge
    for name, times in (
        ("variable frame rate", [k * 40 + (k % 5) * 7 for k in range(FRAMES)]),
        ("long pause", [k * 40 + (60_000 if k > 40 else 0) for k in range(FRAMES)]),
    ):
        path = folder / f"{name.replace(' ', '_')}.mp4"
        _mp4(path, milliseconds=times)
        yield name, "read", path
    late = folder / "negative_start.mkv"
    _mp4(late, milliseconds=[(k - 30) * 40 for k in range(FRAMES)])
    yield "negative start time", "either", late
    mp4 = folder / "index_at_end.mp4"
    yield "rotated", "read", _changed(mp4, "rotated", _rotated)
    for ticks in (0, 2**32 - 1):
        changed = _changed(mp4, f"ticks{ticks}", _timescale(ticks))
        yield f"{ticks} ticks a second", "either", changed
    for width, height in ((2, 2), (640, 16)):
        path = folder / f"{width}x{height}.mp4"
        _mp4(path, width=width, height=height, frames=20)
        yield f"{width} x {height} pixels", "read", path
    for suffix, codec in ((".avi", "mpeg4"), (".mkv", "libx264"), (".mov", "libx264")):
        path = folder / f"other{suffix}"
        _mp4(path, codec=codec)
        yield f"a {suffix} file", "read", path
    wrong = folder / "avi_named.mp4"
    wrong.write_bytes((folder / "other.avi").read_bytes())
    yield "avi named mp4", "read", wrong


def _mp4(
    path: Path,
    frames: int = FRAMES,
    width: int = WIDTH,
    height: int = HEIGHT,
    milliseconds: list[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if milliseconds else FPS)
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "g": "20"}
        for index in range(frames):
            picture = rng.integers(0, 255, (height, width, 3)).astype(np.uint8) // 4 + index
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = milliseconds[index] if milliseconds else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _still(path: Path, width: int, height: int) -> None:
    """Write a motion-jpeg video of two equal frames; a jpeg of one colour is small at any size."""
    data = io.BytesIO()
    Image.new("L", (width, height), 90).save(data, "jpeg")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for index in range(2):
            packet = av.Packet(data.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            container.mux(packet)


def _changed(path: Path, name: str, change: Callable[[bytearray], bytes]) -> Path:
    changed = path.with_name(name + path.suffix)
    changed.write_bytes(change(bytearray(path.read_bytes())))
    return changed


def _flipped(seed: int) -> Callable[[bytearray], bytes]:
    """Flip 40 bits anywhere, the index included."""

    def flip(data: bytearray) -> bytes:
        rng = np.random.default_rng(seed)
        for place in rng.integers(0, len(data), 40):
            data[place] ^= 1 << int(rng.integers(8))
        return bytes(data)

    return flip


def _zero_data(data: bytearray) -> bytes:
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    return bytes(data)


def _rotated(data: bytearray) -> bytes:
    """Say in the track header that the camera was held on its side."""
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT << 16, 0, 1 << 30)
    return bytes(data)


def _timescale(ticks: int) -> Callable[[bytearray], bytes]:
    """Set how many ticks of the track's clock a second has, in the media header."""

    def change(data: bytearray) -> bytes:
        start = data.index(b"mdhd") + 4 + 12
        data[start : start + 4] = struct.pack(">I", ticks)
        return bytes(data)

    return change


# Folders of frames


def _folders(folder: Path) -> Made:
    folder.mkdir()
    yield "frames", "read", _frames(folder / "plain")
    mixed = _frames(folder / "mixed")
    _picture(3).save(mixed / "frame_0035x.png")
    yield "png among jpg", "read", mixed
    sizes = _frames(folder / "sizes")
    Image.new("RGB", (80, 30)).save(sizes / "frame_0040.jpg")
    yield "frames of several sizes", "read", sizes
    (folder / "empty").mkdir()
    yield "empty folder", "refused", folder / "empty"
    other = folder / "notes"
    other.mkdir()
    (other / "readme.txt").write_text("no pictures")
    yield "folder without pictures", "refused", other
    one = folder / "one"
    one.mkdir()
    _picture(0).save(one / "frame_0000.jpg")
    yield "folder of one frame", "read", one
    loop = folder / "loop"
    loop.symlink_to(loop)
    yield "link to itself", "refused", loop
    inner = _frames(folder / "inner_loop")
    (inner / "again").symlink_to(inner)
    yield "folder that links to itself", "read", inner
    for name, data in (
        ("frame cut off", _jpg()[:200]),
        ("frame of no byte", b""),
        ("frame of text", b"no picture"),
        ("frame with a folder's name", None),
        ("frame that is huge", _huge_png()),
    ):
        broken = _frames(folder / name.replace(" ", "_").replace("'", ""))
        _spoil(broken, data)
        yield name, "refused", broken
    for mode in ("L", "CMYK", "P", "RGBA", "I;16"):
        path = folder / f"mode_{mode.replace(';', '')}"
        path.mkdir()
        kind = "jpg" if mode in ("L", "CMYK") else "png"
        for index in range(20):
            image = _picture(index)
            image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
            image.save(path / f"frame_{index:04d}.{kind}")
        yield f"{mode} pictures", "read", path
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
        locked = _frames(folder / "locked")
        locked.chmod(0)
        yield "folder that may not be read", "refused", locked


def _spoil(folder: Path, data: bytes | None) -> None:
    """Put something else in place of every frame, so that any window meets it."""
    for path in sorted(folder.iterdir()):
        path.unlink()
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)


def _frames(folder: Path, count: int = 70) -> Path:
    folder.mkdir()
    for index in range(count):
        _picture(index).save(folder / f"frame_{index:04d}.jpg")
    return folder


def _picture(index: int) -> Image.Image:
    return Image.new("RGB", (40, 40), ((index * 3) % 255, 90, 160))


def _jpg() -> bytes:
    data = io.BytesIO()
    _picture(5).resize((200, 200)).save(data, "jpeg")
    return data.getvalue()


def _huge_png() -> bytes:
    data = io.BytesIO()
    Image.new("1", (HUGE, HUGE)).save(data, "png")
    return data.getvalue()


# Wavs


def _wavs(folder: Path) -> Made:
    folder.mkdir()
    seconds = FRAMES / FPS
    for name, subtype in (
        ("8 bit", "PCM_U8"),
        ("24 bit", "PCM_24"),
        ("32 bit", "PCM_32"),
        ("float", "FLOAT"),
        ("double", "DOUBLE"),
    ):
        path = folder / f"{subtype}.wav"
        save_wav(path, tone(int(seconds * RATE)), subtype=subtype)
        yield f"{name} wav", "read", path
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
        path = folder / f"{name.replace(' ', '_')}.wav"
        save_wav(path, samples, rate)
        yield name, promise, path
    for name, value in (("not a number", np.nan), ("infinite", np.inf)):
        samples = tone(51200).copy()
        samples[::100] = value
        path = folder / f"{name.replace(' ', '_')}.wav"
        save_wav(path, samples, subtype="FLOAT")
        yield f"{name} in a float wav", "refused", path
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
    pipe = folder / "pipe.wav"
    os.mkfifo(pipe)
    yield "wav: a pipe that nobody writes", "refused", pipe
