"""Fine-tune on videos of your own: from files and labels to a model that answers.

    python scripts/examples/finetune_own_data.py --videos DIR --labels labels.csv --output_dir DIR \
        --finetune checkpoint-99.pth

labels.csv has a header `video,label` and, so that nobody is both trained on and tested, `speaker`;
see preprocess/own_videos.py. --finetune is a pre-training checkpoint; without it the model starts
from nothing, which only a test of the tools is good for. All other flags go to run_finetuning.py.
Written to --output_dir: data/ (wavs, faces, lists) and run/ (checkpoints, scores, export/).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

import run_finetuning
from hicmae.config.flags import new_parser
from hicmae.data.clip_list import read_labelled_list, read_names
from hicmae.io import run_command
from preprocess import own_videos


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = new_parser(__doc__)
    parser.add_argument("--videos", required=True, metavar="DIR", help="folder of videos")
    parser.add_argument("--labels", required=True, metavar="FILE", help="video,label[,speaker]")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="gets data/ and run/")
    parser.add_argument("--num_workers", type=int, default=2, help="processes (%(default)s)")
    args, flags = parser.parse_known_args(argv)
    data, run = Path(args.output_dir) / "data", Path(args.output_dir) / "run"

    # Wavs, aligned faces, train.csv and test.csv. Run again, only what is missing is done.
    code = own_videos.main(
        ["--videos", args.videos, "--labels", args.labels, "--output_dir", str(data)]
        + ["--num_workers", str(max(args.num_workers, 1))]
    )
    if code > 1:
        sys.exit(code)

    # Training and testing. run/export/ then holds the model in the layout of a model hub.
    classes = read_names(data / "classes.txt")
    run_finetuning.main(
        ["--data_path", str(data), "--nb_classes", str(len(classes))]
        + ["--output_dir", str(run), "--num_workers", str(args.num_workers), *flags]
    )
    import pandas as pd

    rows = pd.read_csv(run / "pred.csv")
    right = (rows.label == rows.prediction).sum()
    print(f"test clips answered rightly: {right} of {len(rows)}")

    # The model answers about a test clip as in the test.
    clip = read_labelled_list(data / "test.csv")[0]
    from hicmae import EmotionRecognizer

    recognizer = EmotionRecognizer.from_checkpoint(run / "export" / "last")
    prediction = recognizer.predict(clip.video, audio=clip.audio, protocol="test")
    print(f"{clip.video}: {prediction.label}, labelled {classes[clip.label]}")


if __name__ == "__main__":
    sys.exit(run_command(main))
