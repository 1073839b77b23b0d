"""Extract the sound of clips: mono wavs of 16 kHz and 16 bit, which is what the lists need.

    python preprocess/face_and_audio/extract_audio.py --input videos --output_dir wavs

`videos/a/b.mp4` becomes `wavs/a/b.wav`; any file with sound will do. The wav of a film begins with
its first picture and ends with its last: silence comes before late sound, in gaps and after sound
that is too short. With --output_dir the same folder as --input the wavs are beside the clips
(VoxCeleb2: --ext m4a). The same command run again does only what is missing. extract_audio.csv in
the output folder has a row for each clip.

Exit code: 0; 1 where a clip failed; 2 where input is missing; 3 where the run was stopped, by hand
or by a full disk.
"""

import argparse
import sys
import wave
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.film import Film
from hicmae.data.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES, NoPicture, decode_sound
from hicmae.io import UnreadableClip, whole_file
from preprocess.command_line import command
from preprocess.face_and_audio import batch, timing

TOOL = batch.Tool("extract_audio", ".wav", VIDEO_SUFFIXES | AUDIO_SUFFIXES)
OPTIONAL = {"action": argparse.BooleanOptionalAction, "default": False}


def convert(job: batch.Job, keep_length: bool = False) -> dict[str, Any]:
    """Write the wav of one clip; returns columns of the summary, see `timing.columns` and README.

    With `keep_length` it is all of the sound and no more, whatever the picture does.
    """
    clock = None
    with suppress(UnreadableClip if keep_length else NoPicture):
        clock = Film(job.source).clock
    span = (clock.origin, timing.wav_length(clock)) if clock and not keep_length else ()
    sound = decode_sound(job.source, *span)
    with whole_file(job.output) as part, open(part, "wb") as file, wave.open(file, "wb") as wav:
        wav.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        wav.writeframesraw(sound.samples.tobytes())
    seconds = f"{len(sound) / SAMPLE_RATE:.2f}"
    row = {"duration": seconds, "rate": sound.rate, "channels": sound.channels}
    return row | timing.columns(clock, sound, sound.damaged)


main = command(
    __doc__,
    lambda args: batch.run_tool(TOOL, args, partial(convert, keep_length=args.keep_length)),
    batch.Files,
    flags={"--keep_length": {**OPTIONAL, "help": "all of the sound from its own beginning on"}},
)

if __name__ == "__main__":
    sys.exit(main())
