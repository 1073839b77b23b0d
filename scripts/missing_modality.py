"""Score a model of both streams on a test list when sound or picture is missing.

    python scripts/missing_modality.py RUN saved/data/toy_av/fold1/test.csv [RUN2 LIST2 ...]

RUN is an output folder of run_finetuning.py, or an export. Printed is a row for each way in which
`EmotionRecognizer` may answer, with the views of the test protocol: UAR, WAR and, as a sign of
misplaced certainty, the mean negative log-likelihood of the true class. The clips of several
folds are scored together.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

import numpy as np

from hicmae import EmotionRecognizer
from hicmae.data.clip_list import read_labelled_list
from hicmae.training.evaluate import classification_metrics

WAYS = (
    ("both streams", None, "error"),
    ("no sound, zeros", "v", "zeros"),
    ("no sound, drop", "v", "drop"),
    ("no picture, zeros", "a", "zeros"),
    ("no picture, drop", "a", "drop"),
)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folds",
        nargs="+",
        metavar="RUN LIST",
        help="a fine-tuned model and the labelled list to test it on, once for every fold",
    )
    parser.add_argument(
        "--data_root", default="", metavar="DIR", help="start of relative names in the lists"
    )
    args = parser.parse_args(argv)
    if len(args.folds) % 2:
        parser.error(f"got {len(args.folds)} names, expected pairs of a run and a list")
    folds = list(zip(args.folds[::2], args.folds[1::2], strict=True))
    print("| streams at test time | UAR | WAR | NLL |\n| --- | ---: | ---: | ---: |")
    for name, modality, missing in WAYS:
        options = {"modality": modality, "missing_modality": missing}
        answers = [answer(run, path, args.data_root, options) for run, path in folds]
        labels, scores = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        metrics = classification_metrics(labels, scores)
        nll = -np.log(scores[np.arange(len(labels)), labels].clip(1e-9)).mean()
        print(f"| {name} | {100 * metrics['uar']:.2f} | {100 * metrics['war']:.2f} | {nll:.2f} |")


def answer(
    run: str, path: str, data_root: str, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) and class probabilities (n, K) of the clips of a list."""
    clips = read_labelled_list(path, data_root=data_root)
    recognizer = EmotionRecognizer.from_checkpoint(run, **options)
    pairs = [(clip.video, clip.audio) for clip in clips]
    answers = recognizer.predict_each(pairs, protocol="test")
    scores = np.array([list(each.scores.values()) for each in answers])
    return np.array([clip.label for clip in clips]), scores


if __name__ == "__main__":
    main()
