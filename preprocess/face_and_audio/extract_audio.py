"""Extract the sound of clips: mono wavs of 16 kHz and 16 bit, which is what the lists need.

    python preprocess/face_and_audio/extract_audio.py --input videos --output_dir wavs

`videos/a/b.mp4` becomes `wavs/a/b.wav`; any file with sound will do. With --output_dir the same
folder as --input the wavs stand beside the clips (VoxCeleb2: --ext m4a). The same command run again
does only what is missing. extract_audio.csv in the output folder has a row for each clip.

Exit code: 0; 1 where a clip failed; 2 where input is missing; 3 where the run was
stopped, by hand or by a full disk.
"""

from __future__ import annotations

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
from hicmae.data.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES, needed_stream, opened
from hicmae.io import UnreadableClip, whole_file
from preprocess.command_line import make_parser
from preprocess.face_and_audio import batch
from preprocess.face_and_audio.batch import Job

TOOL = "extract_audio"
SAMPLE_BYTES = 2


def convert(job: Job) -> dict[str, Any]:
    """Write the wav of one clip.

    Returns columns of the summary: duration in seconds; the sample rate and channels that were
    there.
    """
    with opened(job.source) as container, whole_file(job.output) as part:
        stream = needed_stream(container, "audio")
        stream.codec_context.thread_count = 1  # the processes share the cores
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
        resample(itertools.chain(container.decode(stream), [None]), part)
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
    args = parser.parse_args(arguments)
    return batch.run_tool(TOOL, args, ".wav", convert, is_converted)


if __name__ == "__main__":
    sys.exit(main())
