"""Films that tell their own time twice: the grey of a picture and the pitch of the tone.

The upper edge of a picture is black, its left edge white, so that turning and mirroring show.
"""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE, SECONDS = 48000, 5.0
SIZE = (64, 64)
STEADY = np.arange(int(SECONDS * 25)) / 25
QUICK = {"deadline": "realtime", "cpu-used": "8"}  # of libvpx
VARIABLE = np.concatenate([np.arange(0, 2, 1 / 30), np.arange(2, SECONDS, 1 / 12)])


def save_film(
    path: Path,
    times: Sequence[float] = STEADY,
    late: float = 0.0,
    gap: tuple[float, float] = (9.0, 9.0),
    codecs: tuple[str, str] = ("libx264", "aac"),
    bad: Sequence[int] = (),
    heard_for: float = SECONDS,
    cut: float = 0.0,
    drop: int = 0,
    matrix: tuple[int, ...] = (),
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> str:
    """Write a film; frames at `times`, sound `late`, no packet of it within `gap`, `bad` broken.

    What is before `cut` seconds is not to be shown (an edit list); the first `drop` packets of the
    picture are missing. `matrix` turns the picture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as film:
        picture = film.add_stream(codecs[0], rate=25, options={"g": "30"} | (options or {}))
        picture.width, picture.height, picture.pix_fmt = *SIZE, "yuv420p"
        picture.bit_rate = 4_000_000
        coarse = codecs[0] in ("mpeg4", "mpeg2video") or path.suffix == ".avi"
        picture.codec_context.time_base = unit = Fraction(1, 25 if coarse else 1000)
        sound = film.add_stream(codecs[1], rate=RATE, layout="mono")
        sound.bit_rate = 128_000
        packets = []
        for time in times:
            grey = np.full((SIZE[1], SIZE[0], 3), 20 + 40 * int(time), np.uint8)
            grey[:, SIZE[0] // 2 :] = 20 + round(200 * (time % 1))
            grey[:4], grey[4:, :4] = 0, 255
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(float(time) / unit), unit
            packets += picture.encode(frame)
        packets = (packets + picture.encode(None))[drop:]
        if codecs[0] == "libsvtav1" and hasattr(os, "sched_setscheduler"):
            # As root it lets its caller run before all other processes from then on: two of these
            # on two cores leave nothing to anybody, libvpx's own threads included, which it awaits.
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        seconds = np.arange(int(heard_for * RATE)) / RATE
        wave = 0.4 * np.sin(2 * np.pi * (300 * seconds + 150 * seconds**2))
        heard = []
        for start in range(0, len(wave), 960):
            block = wave[None, start : start + 960].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            heard += sound.encode(frame)
        for number, packet in enumerate([*heard, *sound.encode(None)]):
            time = float(packet.pts * packet.time_base)
            packet.pts += round(late / packet.time_base)
            packet.dts = packet.pts
            if number in bad:
                packet.update(bytes(len(bytes(packet))))
            if not gap[0] <= time < gap[1]:
                packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            shift = round(cut / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            film.mux(packet)
    return str(turn(path, matrix) if matrix else path)


def turn(path: Path, matrix: tuple[int, ...]) -> Path:
    """Write (a, b, c, d) of (x, y) -> (a x + c y, b x + d y) into the first track's header."""
    a, b, c, d = (value << 16 for value in matrix)
    with open(path, "r+b") as file:
        file.seek(file.read().index(b"tkhd") + 4 + 40)  # 40 bytes of other fields come before it
        file.write(struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    return path


def seen_at(image: np.ndarray) -> float:
    """Return the time that a picture tells, in seconds: its left half those, the rest the right."""
    whole, rest = image[8:-8, 10:26].mean(), image[8:-8, 40:56].mean()
    return round((whole - 20) / 40) + (rest - 20) / 200


def heard_at(part: np.ndarray) -> float | None:
    """Return the time that the middle of 1600 samples tells; None where they are not all sound."""
    if len(part) < 1600 or np.abs(part).reshape(-1, 160).max(1).min() < 0.2:
        return None
    spectrum = np.abs(np.fft.rfft(part * np.hanning(1600), 1 << 15))
    return (spectrum.argmax() * 16000 / (1 << 15) - 300) / 300


def offsets(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    seen: Callable = seen_at,
    heard: Callable = heard_at,
) -> np.ndarray:
    """Return by how many seconds sound is ahead, of each picture with the samples around its time.

    Those are left out that have no sound.
    """
    times = [(heard(samples), seen(image)) for image, samples in pairs]
    found = [sound - picture for sound, picture in times if sound is not None]
    assert len(found) > 2
    return np.array(found)


FILMS = {
    "plain.mp4": {},
    "late.mp4": {"late": 0.5},
    "gap.mp4": {"gap": (2.0, 3.0)},
    "variable.mp4": {"times": VARIABLE},
    "late picture.mkv": {"times": STEADY + 0.4},
    "bframes.avi": {"codecs": ("mpeg4", "mp3"), "options": {"bf": "2"}},
    "reordered.avi": {"codecs": ("libx264", "pcm_s16le")},
    "first stamp only.vob": {"codecs": ("libx264", "mp2")},
    "cut.mp4": {"cut": 1.3, "options": {"bf": "2"}},
    "short sound.mp4": {"heard_for": 2.5},
    "long sound.mp4": {"times": STEADY[:75]},
    "bframes.wmv": {"codecs": ("wmv2", "wmav2")},
    "bframes.mpg": {"codecs": ("mpeg2video", "mp2"), "options": {"bf": "2"}},
    "bframes.mp4": {"codecs": ("mpeg4", "aac"), "options": {"bf": "2"}},
    "late key.ts": {"drop": 12, "options": {"g": "50", "bf": "2"}},
    "between keys.mkv": {"drop": 12},
    "between keys.mp4": {"codecs": ("mpeg4", "aac"), "drop": 7},
    "live.webm": {"codecs": ("libvpx", "libopus"), "options": QUICK, "muxer": {"live": "1"}},
    "av1.webm": {"codecs": ("libsvtav1", "libopus"), "options": {"preset": "8"}},
    "hevc.mov": {"codecs": ("libx265", "aac"), "options": {"x265-params": "log-level=0"}},
    "damaged sound.mp4": {"bad": (50, 51, 52)},
    "vp8.webm": {"codecs": ("libvpx", "libopus"), "options": QUICK},
    "stream.ts": {},
}
