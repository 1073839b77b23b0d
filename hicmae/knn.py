"""k-nearest-neighbour evaluation of features: how far they go without any training.

    python -m hicmae.knn --checkpoint PATH --data_path FOLDER [--output_dir DIR]

Every clip of FOLDER/test.csv gets the class that the nearest clips of FOLDER/train.csv vote for:
the k most similar by their cosine, each with the weight exp(cosine / 0.07), as in Wu et al. (2018)
and DINO. PATH is anything of either stage: a pre-training checkpoint, a fine-tuned one, an export,
or the output folder of a run. Nothing is trained or chosen: the table has a line for every kind of
features and every k.

Kinds of features: video_last, audio_last (of the last block, after the encoder's norm, averaged
over tokens), fusion_video, fusion_audio (the same of the fusion encoder); of fine-tuned models also
video, audio (mixed by the layer weights) and fused (what the head reads). "video_last+audio_last"
joins kinds, each scaled to unit length. The features of a clip are the mean over its views in
run_finetuning.py's test.

--output_dir gets a folder DIR/<features>/k<k>/<name of FOLDER> with pred.csv and metrics.json, in
the format of a run: python -m hicmae.report DIR/<features>/k<k> reads the folds that are there.
Exit code: 0; 2 where the command or a clip is bad.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from hicmae.config.flags import Settings, command, option
from hicmae.data.clip_list import AnyClip, name_of, read_labelled_list
from hicmae.data.splits import SPEAKER_FILE, find_speakers
from hicmae.data.video import MODALITIES
from hicmae.inference.cli import Computing, root
from hicmae.io import check_writable, write_whole

if TYPE_CHECKING:  # --help waits for neither torch nor scikit-learn
    from hicmae.inference.recognizer import EmotionRecognizer

TEMPERATURE, DEFAULT_K = 0.07, (1, 5, 10, 20)
Features = dict[str, np.ndarray]  # (n, D) by kind
READ = "streams to read (default: those of the model); the other one is left out"
SPEAKERS = f"take the mean of each speaker's clips off them first, by {SPEAKER_FILE} with the lists"


class Evaluation(Settings):
    """What to compare, and how."""

    data_path: str = option("", "fold with train.csv and test.csv", required=True, metavar="DIR")
    data_root: str = root()
    modality: str | None = option(None, READ, choices=MODALITIES)
    features: tuple[str, ...] = option((), "kinds (default: fused, else all)", metavar="KIND")
    k: tuple[int, ...] = option((), "neighbours (default: 1 5 10 20, as far as there are clips)")
    by_speaker: bool = option(False, SPEAKERS)
    output_dir: str = option("", "gets predictions and metrics", metavar="DIR")


def extract(recognizer: EmotionRecognizer, clips: Sequence[AnyClip]) -> Features:
    """Compute every kind of features of clips, averaged over the views of the test.

    UnreadableClip names a clip that cannot be read.
    """
    rows = []
    for features in recognizer.each(clips, features=True, protocol="test", faces="cut"):
        levels = features.mean()
        layers = [name for name in levels if name.endswith("_layers")]
        last = {name.replace("_layers", "_last"): levels.pop(name)[-1] for name in layers}
        rows.append(last | levels)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def without_speakers(features: Features, speakers: Sequence[str]) -> Features:
    """Take the mean of each speaker's clips off them: who speaks makes clips alike, too."""
    import pandas as pd

    return {
        name: values - pd.DataFrame(values).groupby(list(speakers)).transform("mean").to_numpy()
        for name, values in features.items()
    }


def joined(features: Features, kind: str) -> np.ndarray:
    """Return features (n, D); kinds joined by "+" side by side, each row of unit length."""
    from sklearn.preprocessing import normalize

    names = kind.split("+")
    if unknown := [name for name in names if name not in features]:
        raise ValueError(
            f"--features {kind}: this model has no '{unknown[0]}', expected "
            f"{', '.join(features)}, or several joined by '+'"
        )
    parts = [features[name] for name in names]
    return np.hstack([normalize(part) for part in parts] if len(parts) > 1 else parts)


def vote(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, num_classes: int
) -> np.ndarray:
    """Let the k nearest training clips (n, D) of each test clip (m, D) vote: (m, K) shares.

    A vote weighs exp(cosine / TEMPERATURE).
    """
    from sklearn.neighbors import KNeighborsClassifier

    def likeness(far: np.ndarray) -> np.ndarray:
        """Weigh distances (m, k) as of the cosine, but for a factor: the nearest has 1."""
        return np.exp((far.min(axis=1, keepdims=True) - far) / TEMPERATURE)

    classifier = KNeighborsClassifier(k, metric="cosine", weights=likeness, algorithm="brute")
    classifier.fit(train, labels)
    scores = np.zeros((len(test), num_classes))
    scores[:, classifier.classes_] = classifier.predict_proba(test)
    return scores


def run(args: argparse.Namespace) -> None:
    """Extract, vote, print and write."""
    from hicmae.inference.recognizer import EmotionRecognizer
    from hicmae.training.evaluate import Predictions, score, write_results

    if args.output_dir:
        check_writable(Path(args.output_dir, "pred.csv"))
    train_clips, test_clips = (
        list(read_labelled_list(Path(args.data_path, name), data_root=args.data_root))
        for name in ("train.csv", "test.csv")
    )
    count = len(train_clips)
    args.k = args.k or [k for k in DEFAULT_K if k <= count]
    if not 1 <= min(args.k) <= max(args.k) <= count:
        asked = " ".join(map(str, args.k))
        raise ValueError(f"--k must be 1 to {count}, the number of training clips, got {asked}")
    options = {"modality": args.modality, "missing_modality": "drop" if args.modality else "error"}
    options |= {"batch_size": args.batch_size, "progress": True}
    recognizer = EmotionRecognizer.from_checkpoint(args.checkpoint, args.device, **options)
    first = extract(recognizer, test_clips[:1])  # says whether the features are there, at once
    kinds = args.features or (["fused"] if "fused" in first else list(first))
    for kind in kinds:
        joined(first, kind)
    train, test = (extract(recognizer, clips) for clips in (train_clips, test_clips))
    names, folder = [name_of(clip) for clip in test_clips], Path(args.data_path)
    if args.by_speaker:
        others = [name_of(clip) for clip in train_clips]
        train = without_speakers(train, find_speakers(others, folder, args.data_root))
        test = without_speakers(test, find_speakers(names, folder, args.data_root))
    labels, truth = (np.array([c.label for c in clips]) for clips in (train_clips, test_clips))
    num_classes = int(max(labels.max(), truth.max())) + 1
    results = []
    for kind, k in itertools.product(kinds, args.k):
        scores = vote(joined(train, kind), labels, joined(test, kind), k, num_classes)
        predictions = Predictions(names, truth, scores, [])
        chosen = {"features": kind, "k": k}
        metrics = score(predictions) | chosen | {"training_clips": count}
        results.append((kind, k, 100 * metrics["uar"], 100 * metrics["war"]))
        if args.output_dir:  # the fold of an experiment of its own
            fold = Path(args.output_dir, kind, f"k{k}", folder.resolve().name)
            write_results(fold, "", predictions, metrics)
            write_whole(fold / "config.json", json.dumps(vars(args) | chosen, indent=2) + "\n")
    sys.stdout.write(tabulate(results, ["features", "k", "UAR", "WAR"], "pipe", ".2f") + "\n")


main = command(__doc__, run, Computing, Evaluation, prog="hicmae-knn")

if __name__ == "__main__":
    sys.exit(main())
