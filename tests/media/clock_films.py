"""Films that tell their own time twice: the grey of a picture and the pitch of the tone."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE, SECONDS = 48000, 5.0
STEADY = np.arange(int(SECONDS * 25)) / 25
VARIABLE = np.concatenate([np.arange(0, 2, 1 / 30), np.arange(2, SECONDS, 1 / 12)])


def save_film(
    path: Path,
    times: Sequence[float] = STEADY,
    late: float = 0.0,
    gap: tuple[float, float] = (9.0, 9.0),
    codecs: tuple[str, str] = ("libx264", "aac"),
    bad: Sequence[int] = (),
    heard_for: float = SECONDS,
) -> str:
    """Write a film; frames at `times`, sound `late`, no packet of it within `gap`, `bad` broken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        picture = film.add_stream(codecs[0], rate=25, options={"g": "30"})
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        picture.bit_rate = 4_000_000
        picture.codec_context.time_base = Fraction(1, 1000)
        sound = film.add_stream(codecs[1], rate=RATE, layout="mono")
        packets = []
        for time in times:
            grey = np.full((48, 64, 3), 20 + 40 * int(time), np.uint8)
            grey[:, 32:] = 20 + round(200 * (time % 1))
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            packets += picture.encode(frame)
        packets += picture.encode(None)
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
            film.mux(packet)
    return str(path)


def seen_at(image: np.ndarray) -> float:
    """Return the time that a picture tells, in seconds: its left half those, the rest the right."""
    whole, rest = image[8:-8, 8:24].mean(), image[8:-8, 40:56].mean()
    return round((whole - 20) / 40) + (rest - 20) / 200


def heard_at(part: np.ndarray) -> float | None:
    """Return the time that the middle of 1600 samples tells; None where they are not all sound."""
    if len(part) < 1600 or np.abs(part).reshape(-1, 160).max(1).min() < 0.2:
        return None
    spectrum = np.abs(np.fft.rfft(part * np.hanning(1600), 1 << 15))
    return (spectrum.argmax() * 16000 / (1 << 15) - 300) / 300


FILMS = {
    "plain.mp4": ({}, 0.0),
    "late.mp4": ({"late": 0.5}, -0.5),
    "gap.mp4": ({"gap": (2.0, 3.0)}, 0.0),
    "variable.mp4": ({"times": VARIABLE}, 0.0),
    "late picture.mkv": ({"times": STEADY + 0.4}, 0.0),
    "bframes.avi": ({"codecs": ("mpeg4", "mp3")}, 0.0),
    "reordered.avi": ({"codecs": ("libx264", "pcm_s16le")}, 0.0),
    "first stamp only.vob": ({"codecs": ("libx264", "mp2")}, 0.0),
    "vp8.webm": ({"codecs": ("libvpx", "libopus")}, 0.0),
    "stream.ts": ({}, 0.0),
}
