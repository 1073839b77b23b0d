"""Score a model of both streams on a test list when sound or picture is missing.

    python scripts/missing_modality.py RUN saved/data/toy_av/fold1/test.csv

RUN is an output folder of run_finetuning.py, or an export. Printed is a row for each way in which
`EmotionRecognizer` may answer, with the views of the test protocol: UAR, WAR and, as a sign of
misplaced certainty, the mean negative log-likelihood of the true class.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

import numpy as np

from hicmae import EmotionRecognizer
from hicmae.data.clip_list import read_labelled_list
from hicmae.training.metrics import classification_metrics

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
    parser.add_argument("checkpoint", metavar="RUN")
    parser.add_argument("list", metavar="LIST", help="labelled list")
    parser.add_argument("--data_root", default="", help="start of relative names in the list")
    args = parser.parse_args(argv)
    clips = read_labelled_list(args.list, data_root=args.data_root)
    labels = np.array([clip.label for clip in clips])
    print("| streams at test time | UAR | WAR | NLL |\n| --- | ---: | ---: | ---: |")
    for name, modality, missing in WAYS:
        recognizer = EmotionRecognizer.from_checkpoint(
            args.checkpoint, modality=modality, missing_modality=missing
        )
        pairs = [(clip.video, clip.audio) for clip in clips]
        answers = recognizer.predict_each(pairs, protocol="test")
        scores = np.array([list(answer.scores.values()) for answer in answers])
        metrics = classification_metrics(labels, scores)
        nll = -np.log(scores[np.arange(len(labels)), labels].clip(1e-9)).mean()
        print(f"| {name} | {100 * metrics['uar']:.2f} | {100 * metrics['war']:.2f} | {nll:.2f} |")


if __name__ == "__main__":
    main()
