"""Ask a trained model about a video of your own.

    python scripts/examples/own_video.py VIDEO --checkpoint RUN --output_dir DIR

RUN is the output folder of run_finetuning.py, or what `hicmae-export` made of a
.pth. Faces in the video are found with the weights of `pip install "mtcnn==1.0.0"`; --faces cut
takes the frames as they are. Written to DIR: timeline.png, features.npz, annotated.mp4.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

from hicmae.config.flags import new_parser
from hicmae.io import run_command


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = new_parser(__doc__)
    parser.add_argument("video", help="any film with a face in it")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run, export or file")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="for what is written")
    parser.add_argument(
        "--faces", default="auto", choices=("auto", "largest", "cut"),
        help="auto: cut faces out of videos; largest: of several the largest; cut: the frames are "
        "faces already (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    import numpy as np  # after the flags, as no --help should wait for torch

    from hicmae import EmotionRecognizer
    from hicmae.inference.pictures import draw_timeline, write_overlay

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)

    # The model, its class names and how it reads clips all come from the checkpoint. "drop" lets a
    # model of picture and sound answer where a video has only one of them.
    recognizer = EmotionRecognizer.from_checkpoint(args.checkpoint, missing_modality="drop")

    # One answer for the video, and one for each window that slides over it.
    prediction = recognizer.predict(args.video, faces=args.faces)
    for name, probability in prediction.probabilities.items():
        print(f"{name:>16} {100 * probability:5.1f} %")
    for window in prediction.windows:
        print(f"{window.start:6.2f} s to {window.end:6.2f} s: {window.label or window.status}")

    # The same over time as a picture, and drawn into a copy of the video.
    draw_timeline([prediction], output / "timeline.png")
    write_overlay(args.video, [prediction], output / "annotated.mp4")

    # What the model sees, for your own analysis: `fused` is what its head reads.
    features = recognizer.features(args.video, faces=args.faces)
    np.savez(output / "features.npz", start=features.start, end=features.end, **features.arrays)
    print({name: array.shape for name, array in features.arrays.items()})

    # Frames and sound that are in memory already need no file.
    frames = np.zeros((25, 96, 96, 3), np.uint8)
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    second = recognizer.predict_arrays(frames, 25.0, noise, 16000, faces="cut")
    print("a black second of noise:", second.label)


if __name__ == "__main__":
    sys.exit(run_command(main))
