"""Measure clips a second of one core, on a clip like VoxCeleb2's: 224 x 224, 25 fps, 8 s, AAC.

OMP_NUM_THREADS=1 python preprocess/face_and_audio/benchmark.py
"""

import sys
import tempfile
from pathlib import Path
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import av
import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch.utils.benchmark import Timer

from preprocess.command_line import make_parser
from preprocess.face_and_audio.batch import Job
from preprocess.face_and_audio.extract_audio import convert
from preprocess.face_and_audio.extract_face import FaceOptions, extract


def make_clip(path: Path) -> None:
    """Write the portrait that matplotlib ships, swaying, with noise for a sound."""
    portrait = Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 8 * 16000)).astype(np.float32)
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        if path.suffix == ".mp4":
            picture = container.add_stream("libx264", rate=25, width=224, height=224)
            for x in 77 + 13 * np.sin(np.arange(200) / 6):
                image = portrait.crop((x, 33, x + 374, 407)).resize((224, 224))
                container.mux(picture.encode(av.VideoFrame.from_image(image)))
            container.mux(picture.encode(None))
        block = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux([*sound.encode(block), *sound.encode(None)])


if __name__ == "__main__":
    make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind, work in ((".mp4", convert), (".m4a", convert), (".mp4", extract)):
            make_clip(source := Path(folder, f"clip{kind}"))
            job = Job("clip", str(source), str(Path(folder, work.__name__)))
            options = (FaceOptions(),) if work is extract else ()
            timer = Timer("work(job, *options)", globals=globals(), timer=process_time)
            seconds = timer.blocked_autorange(min_run_time=2).median
            print(f"{work.__name__} of {kind}: {1 / seconds:.1f} clips a second of CPU")
