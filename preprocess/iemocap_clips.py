"""Cut the dialogues of IEMOCAP into utterances, each with the half of the picture that speaks.

    python preprocess/iemocap_clips.py --input IEMOCAP_full_release --output_dir clips
    python preprocess/face_and_audio/extract_face.py --input clips --output_dir faces

`Session1/dialog/avi/DivX/Ses01F_impro01.avi` becomes a folder of that name with an mp4 (without
sound, which is in sentences/wav) for each utterance of `dialog/EmoEvaluation/Ses01F_impro01.txt`.
Both actors are in one picture, side by side. The one with the face markers, whom the fifth letter
of a dialogue's name tells (F or M), sits on the left; --marked_side says otherwise. The same
command run again does only what is missing. iemocap_clips.csv in the output folder has a row for
each dialogue, and names the utterances that its video, cut off too early, does not show.

Exit code: 0; 1 where a dialogue failed; 2 where input is missing; 3 where the run was stopped, by
hand or by a full disk.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import av
import numpy as np

from hicmae.data.media import needed_stream, opened
from hicmae.io import UnreadableClip, whole_folder
from preprocess.command_line import command, flag
from preprocess.face_and_audio import batch
from preprocess.face_and_audio.batch import Job
from preprocess.lists.annotations import Utterance, read_utterances

TOOL = batch.Tool("iemocap_clips", "", [".avi"])


def cut(job: Job, marked_side: str) -> dict[str, object]:
    """Write the utterances of one dialogue; returns columns of the summary."""
    dialog = Path(os.path.abspath(job.source)).parents[2]
    labels = dialog / "EmoEvaluation" / f"{Path(job.source).stem}.txt"
    if not labels.is_file():
        raise UnreadableClip(f"no label file '{labels}'; keep the folders as they are distributed")
    utterances = list(read_utterances(str(labels)))
    with whole_folder(job.output) as part:
        written = set(_write(job.source, part, utterances, marked_side))
    missing = [utterance.name for utterance in utterances if utterance.name not in written]
    return {"utterances": len(written), "without_picture": " ".join(missing)}


def _write(
    source: str, folder: Path, utterances: list[Utterance], marked_side: str
) -> Iterator[str]:
    """Write the mp4 files in one pass over the dialogue; yields the names that are complete."""
    waiting = sorted(utterances, key=lambda utterance: utterance.start)
    speaking: dict[Utterance, tuple[Any, Any]] = {}  # container and stream of each mp4
    with opened(source) as container:
        stream = needed_stream(container, "video")
        stream.codec_context.thread_count = 1  # the processes share the cores
        rate = stream.average_rate or 30
        for index, frame in enumerate(chain(container.decode(stream), [None])):
            # Time stamps of AVI count frames as well; the end of the film ends all utterances.
            seconds = index / float(rate) if frame else math.inf
            while frame and waiting and waiting[0].start <= seconds:
                utterance = waiting.pop(0)
                if seconds < utterance.end:
                    film = av.open(str(folder / f"{utterance.name}.mp4"), "w")
                    # Of constant rate factor 14: hardly a loss beside the DivX it is made from.
                    half: Any = film.add_stream("libx264", rate=rate, options={"crf": "14"})
                    half.width, half.height = frame.width // 4 * 2, frame.height // 2 * 2  # even
                    half.pix_fmt, half.codec_context.thread_count = "yuv420p", 1
                    speaking[utterance] = film, half
            picture = frame.to_ndarray(format="rgb24") if frame and speaking else None
            for utterance, (film, half) in list(speaking.items()):
                if picture is not None and seconds < utterance.end:
                    left = utterance.marked == (marked_side == "left")
                    side = slice(half.width) if left else slice(-half.width, None)
                    pixels = np.ascontiguousarray(picture[: half.height, side])
                    film.mux(half.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                else:
                    film.mux(half.encode(None))
                    film.close()
                    del speaking[utterance]
                    yield utterance.name


main = command(
    __doc__,
    lambda args: batch.run_tool(TOOL, args, partial(cut, marked_side=args.marked_side)),
    batch.Files,
    flags=[flag("--marked_side", "left", "of the picture", choices=("left", "right"))],
)

if __name__ == "__main__":
    sys.exit(main())
