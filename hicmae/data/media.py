"""Films and sounds: how files are opened, and sound with every sample in its time.

A sample lies where its packet's time stamp puts it; what is missing is silence. Damaged packets are
passed over, counted, and refused only where they are many.
"""

import itertools
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from hicmae.data.audio import SAMPLE_RATE, WavFile
from hicmae.data.video import FRAME_EXTENSIONS, check_frame_size
from hicmae.io import UnreadableClip

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .flv .mpg .mpeg .wmv .3gp .ts .mts .m2ts .ogv .mxf .vob".split()
)
AUDIO_SUFFIXES = frozenset(".wav .m4a .aac .mp3 .flac .ogg .opus .wma".split())
MAX_DAMAGED = 0.1  # share of packets, or of wanted frames, beyond which a file is refused
SOUND_GAP = 0.01  # seconds between time stamps and samples from which the stamps are believed

# A title need not be UTF-8. PyAV keeps its bytes from 19 on; before, it must be told to go on.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__[:2]) < 19 else {}

Kind = Literal["audio", "video"]


class NoPicture(UnreadableClip):
    """There is no picture where one is needed."""


class NoSound(UnreadableClip):
    """There is no sound where some is needed."""


@contextmanager
def opened(path: str) -> Iterator[InputContainer]:
    """Open a file, and nothing but a file: what calls itself a film may be a list of addresses.

    UnreadableClip, in one line that names the file, for whatever is wrong with it.
    """
    try:
        if not os.path.isfile(path):  # a pipe, say, would never end
            problem = "is no file" if os.path.exists(path) else "does not exist"
        else:
            with open(path, "rb") as file:
                problem = "" if file.read(1) else "is an empty file"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        raise UnreadableClip(f"'{path}' {problem}")
    whole = os.path.abspath(path)  # FFmpeg takes "a:b.mp4" for a protocol
    # torchvision before 0.26 has FFmpeg's threads tell Python what they note. They wait for a lock
    # that is held while a decoder is closed, which waits for them: for ever.
    av.logging.set_level(None)
    try:
        # As options of the container alone: before PyAV 17, `options` end in a crash where a
        # container tells of its streams late (.vob, .mpg, .ts).
        options = {"protocol_whitelist": "file"}
        with av.open(whole, container_options=options, **LENIENT) as container:
            yield container
    except av.FFmpegError as error:
        is_bad = isinstance(error, av.InvalidDataError)
        problem = "is no video or sound file, or damaged" if is_bad else "cannot be decoded"
        raise UnreadableClip(f"'{path}' {problem}: {error.strerror}") from None


def first_stream(container: InputContainer, kind: Kind) -> Any:
    """Return the stream of a kind that players choose, or None; a song's cover is no video."""
    streams: list[Any] = list(getattr(container.streams, kind))
    streams = [s for s in streams if not s.disposition & Disposition.attached_pic]
    default = (s for s in streams if s.disposition & Disposition.default)
    return next(default, next(iter(streams), None))


def needed_stream(container: InputContainer, kind: Kind) -> Any:
    """Return a file's stream of a kind; UnreadableClip where there is none to decode."""
    stream = first_stream(container, kind)
    if stream is None:
        error, what = (NoPicture, "picture") if kind == "video" else (NoSound, "sound")
        raise error(f"'{container.name}' has no {what}")
    if stream.codec_context is None:
        raise UnreadableClip(f"'{container.name}' has a {kind} stream of an unknown codec")
    if kind == "video":
        check_frame_size(f"a frame of '{container.name}'", stream.width, stream.height)
    return stream


def walk(
    root: str, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as os.walk does, in order of names, without hidden files and folders.

    Links are followed, but never in circles. `on_error` gets what was wrong with a folder.
    """
    seen = set()
    for folder, folders, names in os.walk(root, onerror=on_error, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield folder, folders, sorted(name for name in names if name[0] != ".")


def find_clips(name: str) -> list[str]:
    """Return the clips that a name means: a folder is searched, unless it holds frames itself.

    A picture beside films is no frame.
    """
    inside = [file.lower() for file in os.listdir(name)] if os.path.isdir(name) else []
    has_films = any(os.path.splitext(file)[1] in VIDEO_SUFFIXES for file in inside)
    has_frames = any(file.endswith(FRAME_EXTENSIONS) for file in inside)
    if not os.path.isdir(name) or (has_frames and not has_films):
        return [name]
    files = (os.path.join(folder, file) for folder, _, files in walk(name) for file in files)
    kinds = VIDEO_SUFFIXES | AUDIO_SUFFIXES
    found = sorted(file for file in files if os.path.splitext(file)[1].lower() in kinds)
    if not found:
        raise FileNotFoundError(f"folder '{name}' holds no video, sound file or face frame")
    return found


def streams_of(path: str) -> tuple[bool, bool]:
    """Tell whether a file has picture and sound; UnreadableClip where it has neither."""
    with opened(path) as container:
        found = [first_stream(container, kind) is not None for kind in ("video", "audio")]
    if not any(found):
        raise UnreadableClip(f"'{path}' holds neither picture nor sound")
    return found[0], found[1]


class Damage(Counter[str]):
    """Counts the "packets" of a stream and those of them that are "damaged"."""

    def check(self, path: str, kind: Kind) -> None:
        """Tell of damaged packets; UnreadableClip where they are too many."""
        if not self["damaged"]:
            return
        text = f"{self['damaged']} of {self['packets']} {kind} packets of '{path}' are damaged"
        if self["damaged"] > MAX_DAMAGED * self["packets"]:
            raise UnreadableClip(f"{text}, expected at most {MAX_DAMAGED:.0%}")
        logger.warning("%s; the rest is used", text)


def packets_of(container: InputContainer, stream: Any, damage: Damage) -> Iterator[av.Packet]:
    """Yield a stream's packets, the last one empty; damaged stretches of the file are left out."""
    failures = 0
    while failures < 100:  # in a row: the file cannot be gone on with
        try:
            for packet in container.demux(stream):
                damage["packets"] += packet.size > 0
                if failures or packet.is_corrupt:
                    damage["damaged"] += failures + packet.is_corrupt
                    failures = 0
                yield packet
            return
        except av.FFmpegError:
            failures += 1


def decoded(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Yield a stream's frames, less those of damaged packets.

    What a recording holds before its first key frame cannot be decoded, but is not damaged.
    """
    has_begun = stream.type == "audio"
    for packet in packets_of(container, stream, damage):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damage["damaged"] += has_begun and not packet.is_corrupt
            continue
        has_begun |= bool(frames)
        yield from frames


@dataclass(frozen=True, eq=False)
class Sound:
    """A file's sound, mono, 16 kHz, each sample in its time.

    Its samples are in a file without a name, so that a long film takes no memory; a slice,
    `sound[start:stop]`, reads them as float32 in [-1, 1].

    Attributes:
        begin: when the file's own sound begins, in its own seconds.
        seconds: from there to its end, with what is missing between.
        rate: samples a second in the file.
        channels: in the file.
        damaged: packets that were passed over.
    """

    file: IO[bytes]
    length: int
    begin: float
    seconds: float
    rate: int
    channels: int
    damaged: int

    @property
    def samples(self) -> np.ndarray:
        """All of them, (S,) int16."""
        return self._read(0, self.length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self.length)
        return self._read(start, stop).astype(np.float32) / 32768

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(os.pread(self.file.fileno(), 2 * (stop - start), 2 * start), np.int16)


def read_sound(path: str, origin: float | None = None) -> "np.ndarray | Sound":
    """Read a file's sound as (S,) float32 in [-1, 1], mono, 16 kHz, each sample in its time.

    The first sample is at `origin` in the file's own seconds, such as a film's `Clock.origin`:
    silence comes before late sound, earlier sound is cut. None: where the sound begins.
    NoSound: there is none. UnreadableClip: it cannot be decoded, or too much of it is damaged.
    """
    wav = None
    if origin is None:
        with suppress(UnreadableClip):  # what only decoding takes to mono and 16 kHz
            wav = WavFile(path)
    if wav is None or wav.file.format != "WAV":
        return decode_sound(path, origin)
    samples = wav.read(0, len(wav))  # those of training
    if not np.isfinite(samples).all():
        raise UnreadableClip(f"'{path}' holds samples that are not finite numbers")
    return samples


def decode_sound(path: str, origin: float | None = None, length: int | None = None) -> Sound:
    """Decode a file's sound, see `read_sound`; cut, or filled with silence, to `length` samples."""
    damage, file = Damage(), tempfile.TemporaryFile()
    begin, end, last, heard = math.inf, -math.inf, 0, 0
    with opened(path) as container:
        stream = needed_stream(container, "audio")
        codec = stream.codec_context
        for piece, passed, part in _parts(decoded(container, stream, damage)):
            origin = piece if origin is None else origin
            begin = min(begin, piece)
            end = max(end, piece + (passed + len(part)) / SAMPLE_RATE)
            place = round((piece - origin) * SAMPLE_RATE) + passed
            first = max(place, 0)
            part = part[first - place :][: None if length is None else max(length - first, 0)]
            file.seek(2 * first)
            file.write(part.tobytes())
            last, heard = max(last, first + len(part)), heard + len(part)
        rate, channels = codec.sample_rate, codec.layout.nb_channels
    damage.check(path, "audio")
    if begin == math.inf:
        raise NoSound(f"'{path}' has a sound track without a sample")
    if not heard:
        raise NoSound(f"'{path}' has no sound while its picture is shown")
    length = last if length is None else length
    file.truncate(2 * length)  # what was never written is silence
    return Sound(file, length, begin, end - begin, rate, channels, damage["damaged"])


def _parts(frames: Iterable[av.AudioFrame]) -> Iterator[tuple[float, int, np.ndarray]]:
    """Yield int16 samples at 16 kHz: when their unbroken stretch begins, and their place in it.

    16 bit, as extract_audio.py writes it, so that the numbers are those of a wav made before.
    """
    resampler: Any = None
    form: Any = None
    begin, place, due = 0.0, 0, 0.0
    for frame in itertools.chain(frames, [None]):
        now = frame and (frame.sample_rate, frame.layout.name, frame.format.name)
        time = due if frame is None or frame.time is None else frame.time
        breaks = now != form or abs(time - due) > SOUND_GAP
        for part in resampler.resample(None) if resampler is not None and breaks else ():
            yield begin, place, part.to_ndarray()[0]
            place += part.samples
        if frame is None:
            return
        if breaks:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            begin, place, form, due = time, 0, now, time
        due += frame.samples / frame.sample_rate
        for part in resampler.resample(frame):
            yield begin, place, part.to_ndarray()[0]
            place += part.samples


def to_mono(waveform: np.ndarray, sample_rate: float) -> np.ndarray:
    """Average channels, (S,) or (channels, S) of floats or int16, and resample to 16 kHz."""
    if waveform.ndim not in (1, 2) or not waveform.size:
        raise ValueError(f"waveform has shape {waveform.shape}, expected (S,) or (channels, S)")
    if waveform.dtype == np.int16:
        waveform = waveform / 32768
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"waveform is {waveform.dtype}, expected floats in [-1, 1] or int16")
    if not np.isfinite(waveform).all():
        raise ValueError("waveform holds values that are not finite")
    samples = np.atleast_2d(waveform).mean(0, dtype=np.float64).astype(np.float32)
    if sample_rate == SAMPLE_RATE:
        return samples
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    block = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    block.sample_rate = round(sample_rate)
    parts = [*resampler.resample(block), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])
