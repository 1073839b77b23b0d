"""Extract the sound of clips: mono wavs of 16 kHz and 16 bit, which is what the lists need.

    python preprocess/face_and_audio/extract_audio.py --input videos --output_dir wavs

`videos/a/b.mp4` becomes `wavs/a/b.wav`; any file with sound will do. With --output_dir the same
folder as --input the wavs stand beside the clips (VoxCeleb2: --ext m4a). The same command run again
does only what is missing. extract_audio.csv in the output folder has a row for each clip.

Exit code: 0; 1 where a clip failed; 2 where input or a program is missing; 3 where the run was
stopped, by hand or by a full disk.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sys
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import av

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from hicmae.io import UnreadableClip, whole_file
from preprocess.command_line import make_parser
from preprocess.face_and_audio import batch
from preprocess.face_and_audio.batch import Job

TOOL = "extract_audio"
SAMPLE_BYTES = 2


def convert(job: Job, ffmpeg: str | None = None, timeout: float | None = None) -> dict[str, Any]:
    """Write the wav of one clip with the program `ffmpeg`, or with the libraries where it is None.

    The program may take `timeout` seconds. Returns columns of the summary: duration in seconds; the
    sample rate and channels that were there.
    """
    with (
        batch.open_stream(job.source, "audio") as (container, stream),
        whole_file(job.output) as part,
    ):
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
        if ffmpeg is None:
            resample(itertools.chain(container.decode(stream), [None]), part)
        else:
            _run_ffmpeg(ffmpeg, job.source, part, timeout)
        samples = _samples_in(part)
        if not samples:
            raise UnreadableClip(f"'{job.source}' has a sound track without a sample")
    return {"duration": f"{samples / SAMPLE_RATE:.2f}", "rate": rate, "channels": channels}


def is_converted(job: Job) -> bool:
    """Tell whether the wav of a clip is there; UnreadableClip where another kind of file is."""
    if not os.path.lexists(job.output):
        return False
    try:
        _samples_in(Path(job.output))
    except (wave.Error, EOFError, UnreadableClip) as error:
        raise UnreadableClip(
            f"'{job.output}' is there, but not as a mono {SAMPLE_RATE} Hz 16 bit wav ({error}); "
            "replace it with --overwrite, or choose another --output_dir"
        ) from None
    return True


def resample(frames: Iterable[av.AudioFrame | None], part: Path) -> None:
    """Write sound as a wav; a None at its end asks for what the resampler holds back."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with open(part, "wb") as file, wave.open(file, "wb") as wav:
        wav.setparams((1, SAMPLE_BYTES, SAMPLE_RATE, 0, "NONE", ""))
        for frame in frames:
            for block in resampler.resample(frame):
                wav.writeframesraw(block.to_ndarray().tobytes())


def _run_ffmpeg(ffmpeg: str, source: str, part: Path, timeout: float | None) -> None:
    command = [ffmpeg, "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file"]
    command += ["-i", "file:" + os.path.abspath(source), "-vn", "-map", "0:a:0"]
    command += ["-acodec", "pcm_s16le", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "wav"]
    # bitexact: without a list of tags, so that both backends write the same header
    batch.run_program([*command, "-bitexact", "-y", "file:" + os.path.abspath(part)], timeout)


def _samples_in(path: Path) -> int:
    """Return the number of samples; UnreadableClip for a wav that is not what we make."""
    with wave.open(str(path), "rb") as wav:
        rate, channels, depth = wav.getframerate(), wav.getnchannels(), 8 * wav.getsampwidth()
        if (rate, channels, depth) != (SAMPLE_RATE, 1, 8 * SAMPLE_BYTES):
            raise UnreadableClip(f"got {rate} Hz, {channels} channels, {depth} bit")
        return wav.getnframes()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = make_parser(__doc__)
    batch.add_arguments(parser, VIDEO_SUFFIXES | AUDIO_SUFFIXES)
    parser.add_argument(
        "--backend",
        choices=("pyav", "ffmpeg"),
        default="pyav",
        help="pyav: FFmpeg's libraries, which pip has installed; ffmpeg: the program (%(default)s)",
    )
    parser.add_argument("--ffmpeg", default="ffmpeg", help="program of that backend (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds it may take for a clip (%(default)s)"
    )
    args = parser.parse_args(arguments)
    try:
        ffmpeg = batch.find_program(args.ffmpeg, "--ffmpeg") if args.backend == "ffmpeg" else None
    except FileNotFoundError as error:
        parser.error(str(error))
    work = functools.partial(convert, ffmpeg=ffmpeg, timeout=args.timeout)
    return batch.run_tool(TOOL, args, ".wav", work, is_converted)


if __name__ == "__main__":
    sys.exit(main())
