"""Made-up trees of data sets for the list scripts."""

import csv
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile
from PIL import Image

from hicmae.data.clip_list import read_labelled_list
from preprocess.face_and_audio.batch import Job

ROOT = Path(__file__).resolve().parents[2]


class Tree:
    """A data set of tiny clips: every face folder and wav is a link to one jpg and one wav."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        root.mkdir()
        tone = 0.1 * np.sin(np.arange(4000) / 9).astype(np.float32)
        soundfile.write(root / "one.wav", tone, 16000, subtype="PCM_16")
        Image.new("RGB", (8, 8)).save(root / "one.jpg")

    def face(self, name: str, place: str = "faces", ending: str = "_aligned") -> None:
        folder = self.root / place / f"{name}{ending}"
        folder.mkdir(parents=True)
        os.link(self.root / "one.jpg", folder / "frame_det_00_000001.jpg")

    def wav(self, name: str, place: str = "audio_16k") -> None:
        (self.root / place).mkdir(parents=True, exist_ok=True)
        os.link(self.root / "one.wav", self.root / place / f"{name}.wav")

    def clips(self, names: Sequence[str]) -> None:
        for name in names:
            self.face(name)
            self.wav(name)

    def text(self, name: str, *lines: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode("".join(f"{line}\n" for line in lines)))

    def make(self, script: str, *flags: str, output: bool = True) -> int:
        """Run preprocess/<script>.py; return its exit code."""
        places = ["--data_root", str(self.root), *["--output_dir", str(self.out)] * output]
        try:
            folder = [str(ROOT / "preprocess"), *sys.path]  # as of a script that is started
            with (
                patch.object(sys, "argv", [script, *places, *flags]),
                patch.object(sys, "path", folder),
            ):
                runpy.run_path(str(ROOT / f"preprocess/{script}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code
        raise AssertionError("the script has no exit code")

    def read(self, name: str) -> list[tuple[str, object]]:
        """Return the name of the video and the label of every clip of a list."""
        regression = (self.out / "targets.txt").exists()
        task = "regression" if regression else "classification"
        clips = read_labelled_list(self.out / f"{name}.csv", task)
        assert all(os.path.exists(clip.video) and os.path.exists(clip.audio) for clip in clips)
        return [(os.path.basename(c.video).removesuffix("_aligned"), c.label) for c in clips]

    def left_out(self) -> dict[str, str]:
        """Return the reasons by clip."""
        with open(self.out / "left_out.csv", newline="", errors="surrogateescape") as file:
            return {row["clip"]: row["reason"] for row in csv.DictReader(file)}


def double(job: Job, victim: str = "") -> dict[str, object]:
    """Stand in for real work; the process that gets the victim dies.

    It is here, as its process imports this module: the test's would bring torch.
    """
    if job.name == victim:
        os._exit(7)
    Path(job.output).write_text("done")
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return {"process": os.getpid(), "is_ignored": is_ignored}
