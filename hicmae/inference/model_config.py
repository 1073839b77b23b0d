"""What inference must know about a model besides its weights: config.json of an export."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import hicmae
from hicmae.data.audio import FBANK_MEAN, FBANK_STD, SAMPLE_RATE
from hicmae.data.video import IMAGENET_MEAN, IMAGENET_STD

FORMAT, FORMAT_VERSION = "hicmae", 1
TASKS = ("classification", "regression", "pretraining")
FACE_SIZE = 256  # pixels of an aligned face, as preprocess/face_and_audio/extract_face.py cuts it


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network, by the names of the model builder.

    `options` holds further ones of its arguments, e.g. those of ablations.
    """

    model: str
    depth: int
    depth_audio: int
    fusion_depth: int
    init_values: float = 0.0
    head_activation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocessing:
    """How a clip becomes the network's input.

    `frame_rate` is that of the videos the model was trained on: with `num_frames` and
    `sampling_rate` it says how many seconds the model sees at once.
    """

    num_frames: int = 16
    sampling_rate: int = 4
    input_size: int = 160
    input_size_audio: tuple[int, int] = (256, 128)
    tubelet_size: int = 2
    frame_rate: float = 25.0

    @property
    def clip_seconds(self) -> float:
        """Length of what the model sees at once."""
        return self.num_frames * self.sampling_rate / self.frame_rate

    @property
    def audio_seconds(self) -> float:
        """Length of what the model hears at once, steps of 10 ms."""
        return self.input_size_audio[0] / 100


@dataclass(frozen=True)
class ModelConfig:
    """A model's description.

    Attributes:
        task: one of TASKS; a model of "pretraining" gives features only.
        modality: "av", "a" or "v".
        names: of the classes or regression outputs; () for pre-training.
        architecture: sizes.
        preprocessing: of clips.
        test_num_segment: temporal views of the test protocol.
        test_num_crop: spatial views of the test protocol.
        training: where the weights come from, for people to read.
    """

    task: str
    modality: str
    names: tuple[str, ...]
    architecture: Architecture
    preprocessing: Preprocessing
    test_num_segment: int = 2
    test_num_crop: int = 2
    training: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of config.json; labels stand where model hubs look for them."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "library_name": "hicmae",
            "hicmae_version": hicmae.__version__,
            "model_type": "hicmae",
            "task": self.task,
            "modality": self.modality,
            "id2label": {str(k): name for k, name in enumerate(self.names)},
            "architecture": asdict(self.architecture),
            "preprocessing": asdict(self.preprocessing),
            "preprocessing_constants": {
                "pixel_mean": IMAGENET_MEAN,
                "pixel_std": IMAGENET_STD,
                "audio_sample_rate": SAMPLE_RATE,
                "filter_bank_mean": FBANK_MEAN,
                "filter_bank_std": FBANK_STD,
                "face_size": FACE_SIZE,
            },
            "test_num_segment": self.test_num_segment,
            "test_num_crop": self.test_num_crop,
            "training": self.training,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def parse_config(text: str, source: str | Path) -> ModelConfig:
    """Read the text of a config.json.

    Args:
        text: JSON.
        source: what to call it in messages.

    Raises:
        ValueError: no JSON, another program's config, a later format, or a missing entry.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"'{source}' is no JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f'\'{source}\' describes no model of this project: expected "format": "{FORMAT}"; '
            "make it with: python -m hicmae.inference.export CHECKPOINT OUTPUT"
        )
    if content.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"'{source}' has format version {content['format_version']}, this version of hicmae "
            f"reads up to {FORMAT_VERSION}; install a newer one"
        )
    try:
        labels = content["id2label"]
        config = ModelConfig(
            task=content["task"],
            modality=content["modality"],
            names=tuple(labels[str(k)] for k in range(len(labels))),
            architecture=_section(Architecture, content["architecture"]),
            preprocessing=_section(Preprocessing, content["preprocessing"]),
            test_num_segment=content["test_num_segment"],
            test_num_crop=content["test_num_crop"],
            training=content.get("training", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{source}' lacks or misspells an entry: {error}; export again") from None
    if config.task not in TASKS or config.modality not in ("av", "a", "v"):
        raise ValueError(
            f"'{source}' has task '{config.task}' and modality '{config.modality}', expected "
            f"{', '.join(TASKS)} and av, a or v"
        )
    return config


def _section(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a dataclass of numbers and strings from JSON, lists as tuples."""
    known = {item.name for item in fields(kind)}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in known
    }
    return kind(**given)
