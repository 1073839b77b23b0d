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

import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import av
import numpy as np

from hicmae.data.media import needed_stream, opened
from hicmae.io import UnreadableClip, whole_folder
from preprocess.command_line import make_parser
from preprocess.face_and_audio import batch
from preprocess.face_and_audio.batch import Job
from preprocess.lists.annotations import Utterance, read_utterances

TOOL = "iemocap_clips"


class Writer:
    """An mp4 that grows by a picture at a time."""

    def __init__(self, path: Path, rate: object, width: int, height: int) -> None:
        self.container = av.open(str(path), "w")
        # The stub knows no object as a rate; any fraction of PyAV's or Python's will do.
        self.stream = self.container.add_stream("libx264", rate=rate)  # type: ignore[call-overload]
        self.stream.width, self.stream.height = width, height
        # Of constant rate factor 14: hardly a loss beside the DivX it is made from.
        self.stream.pix_fmt, self.stream.options = "yuv420p", {"crf": "14"}
        self.stream.codec_context.thread_count = 1

    def write(self, picture: np.ndarray) -> None:
        """Add a picture (H, W, 3) uint8 RGB."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what is held back."""
        self.container.mux(self.stream.encode(None))
        self.container.close()


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
    speaking: dict[Utterance, Writer] = {}
    with opened(source) as container:
        stream = needed_stream(container, "video")
        stream.codec_context.thread_count = 1  # the processes share the cores
        rate = stream.average_rate or 30
        for index, frame in enumerate(container.decode(stream)):
            seconds = index / float(rate)  # time stamps of AVI count frames as well
            width, height = frame.width // 4 * 2, frame.height // 2 * 2  # of a half, even for H.264
            while waiting and waiting[0].start <= seconds:
                utterance = waiting.pop(0)
                if seconds < utterance.end:
                    path = folder / f"{utterance.name}.mp4"
                    speaking[utterance] = Writer(path, rate, width, height)
            if speaking:
                picture = frame.to_ndarray(format="rgb24")[:height]
            for utterance in list(speaking):
                if seconds < utterance.end:
                    left = utterance.marked == (marked_side == "left")
                    half = picture[:, :width] if left else picture[:, -width:]
                    speaking[utterance].write(np.ascontiguousarray(half))
                else:
                    speaking.pop(utterance).close()
                    yield utterance.name
    for utterance, writer in speaking.items():
        writer.close()
        yield utterance.name


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = make_parser(__doc__)
    batch.add_arguments(parser, [".avi"])
    parser.add_argument(
        "--marked_side",
        choices=("left", "right"),
        default="left",
        help="of the picture where the actor with the face markers is (%(default)s)",
    )
    args = parser.parse_args(arguments)
    work = functools.partial(cut, marked_side=args.marked_side)
    return batch.run_tool(TOOL, args, "", work)


if __name__ == "__main__":
    sys.exit(main())
