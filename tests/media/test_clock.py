"""Sound that is read with a frame is the sound that was heard when it was seen.

Films are made that tell their own time twice: the grey of a picture and the pitch of the tone.
"""

from fractions import Fraction

import av
import numpy as np
import pytest

from hicmae.data.film import Film, open_video
from hicmae.inference.sources import open_source

RATE, SECONDS = 48000, 5.0
STEADY = np.arange(int(SECONDS * 25)) / 25
VARIABLE = np.concatenate([np.arange(0, 2, 1 / 30), np.arange(2, SECONDS, 1 / 12)])


def save_film(path, times=STEADY, late=0.0, gap=(9.0, 9.0), codecs=("libx264", "aac"), bad=()):
    """Write a film; frames at `times`, sound `late`, no packet of it within `gap`, `bad` broken."""
    with av.open(str(path), "w") as film:
        picture = film.add_stream(codecs[0], rate=25, options={"g": "30"})
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        picture.bit_rate = 4_000_000
        picture.codec_context.time_base = Fraction(1, 1000)
        sound = film.add_stream(codecs[1], rate=RATE, layout="mono")
        packets = []
        for time in times:
            grey = np.full((48, 64, 3), 20 + round(40 * time), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        seconds = np.arange(int(SECONDS * RATE)) / RATE
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


def offsets(path: str) -> list[float]:
    """Return by how many seconds sound is ahead of the picture, at frames with sound."""
    source = open_source(path)
    times, samples = source.times, source.sound()
    wanted = [k for k, time in enumerate(times) if 0.3 < time < times[-1] - 0.3][::5]
    found = []
    for k, image in zip(wanted, source.frames(wanted), strict=True):
        part = samples[round(times[k] * 16000) - 800 :][:1600]
        if np.abs(part).min(initial=1) < np.abs(part).max(initial=0) > 0.2:
            spectrum = np.abs(np.fft.rfft(part * np.hanning(1600), 1 << 15))
            pitch = spectrum.argmax() * 16000 / (1 << 15)
            found.append((pitch - 300) / 300 - (image.mean() - 20) / 40)
    assert len(found) > 5
    return found


FILMS = {
    "plain.mp4": ({}, 0.0),
    "late.mp4": ({"late": 0.5}, -0.5),
    "gap.mp4": ({"gap": (2.0, 3.0)}, 0.0),
    "variable.mp4": ({"times": VARIABLE}, 0.0),
    "late picture.mkv": ({"times": STEADY + 0.4}, 0.0),
    "bframes.avi": ({"codecs": ("mpeg4", "mp3")}, 0.0),
    "vp8.webm": ({"codecs": ("libvpx", "libopus")}, 0.0),
    "stream.ts": ({}, 0.0),
}


@pytest.mark.parametrize("name", FILMS)
def test_what_is_seen_is_heard(tmp_path, name):
    options, expected = FILMS[name]
    path = save_film(tmp_path / name, **options)
    assert np.abs(np.array(offsets(path)) - expected).max() < 0.04


def test_a_damaged_sound_packet_costs_that_packet_only(tmp_path, caplog):
    path = save_film(tmp_path / "a.mp4", bad=(50,))
    assert np.abs(offsets(path)).max() < 0.04
    whole = open_source(save_film(tmp_path / "b.mp4")).sound()
    assert abs(len(open_source(path).sound()) - len(whole)) < 400


def test_frames_are_those_of_their_times_in_every_reader(tmp_path):
    for name in ("variable.mp4", "late picture.mkv", "bframes.avi"):
        path = save_film(tmp_path / name, **FILMS[name][0])
        whole = Film(path).read(range(len(Film(path))))
        picked = open_video(path).read([3, 40, 60])
        for index, image in zip([3, 40, 60], picked, strict=True):
            np.testing.assert_array_equal(image, whole[index])
