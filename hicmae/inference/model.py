"""Models as files: exports (config.json and model.safetensors) and checkpoints (.pth).

An export describes its model in config.json, and again in the metadata of its weights. Of a .pth
the weights tell the sizes, and the settings of its run tell the rest.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import hicmae
from hicmae.config import flat_settings
from hicmae.data.audio import FBANK_MEAN, FBANK_STD, SAMPLE_RATE
from hicmae.data.clip_list import chosen_names, names_of_run
from hicmae.data.video import IMAGENET_MEAN, IMAGENET_STD
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.training import checkpoint
from hicmae.training.transfer import weights_of

FORMAT, FORMAT_VERSION = "hicmae", 1
TASKS = ("classification", "regression", "pretraining")
CONFIG, WEIGHTS, EXPORT = "config.json", "model.safetensors", "export"
METADATA = "hicmae_config"  # where a weights file alone carries its config.json
FACE_SIZE = 256  # pixels of an aligned face, as preprocess/face_and_audio/extract_face.py cuts it
WIDTHS = (128, 256, 384, 512)  # of the registered models
ENCODERS = {"a": "encoder_audio.", "v": "encoder."}  # beginnings of the names of their weights
FUSION = "encoder_fusion."
# Arguments of the classifier that are known without the settings, or stand elsewhere.
FOLLOWS = frozenset(
    "embed_dim num_heads num_classes depth depth_audio fusion_depth drop_path_rate head_activation "
    "init_values modality num_frames img_size img_size_audio tubelet_size".split()
)
# What only one stream of a model of both needs.
STREAMS = {
    "v": ("encoder", "video_layer_weights", "encoder_fusion.blocks", "encoder_fusion.norm"),
    "a": (
        "encoder_audio",
        "audio_layer_weights",
        "encoder_fusion.blocks_audio",
        "encoder_fusion.norm_audio",
    ),
}


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


class Described(NamedTuple):
    """A model: its description and its weights."""

    config: ModelConfig
    weights: dict[str, Tensor]


def find_weights(path: Path) -> Path:
    """Return the weights file that a path means: itself, or the best there is in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"checkpoint '{path}' does not exist; name a folder with {WEIGHTS}, the output folder "
            "of a run, or a .pth"
        )
    kinds = ("", f"{EXPORT}/best", f"{EXPORT}/last", "best", "last")
    places = [*(path / kind / WEIGHTS for kind in kinds), path / "checkpoint-best.pth"]
    found = [place for place in places if place.is_file()]
    found += [saved for _, saved in reversed(checkpoint.numbered(path))]
    if not found:
        raise FileNotFoundError(
            f"'{path}' holds no {WEIGHTS} and no checkpoint-*.pth; is it the folder of a run?"
        )
    return found[0]


def read_model(path: str | Path, class_names: Sequence[str] = (), **overrides: Any) -> Described:
    """Read a model from whatever holds one.

    Args:
        path: export folder, its parent, the output folder of a run, a weights file, or a .pth.
        class_names: instead of those that the file leads to, see `chosen_names`.
        overrides: see `read_checkpoint`; for a .pth only.

    Raises:
        FileNotFoundError, ValueError: in one line.
    """
    path = find_weights(Path(path))
    if path.suffix != ".safetensors":
        return read_checkpoint(path, class_names, **overrides)
    try:
        with safe_open(path, "pt") as file:
            text, source = (file.metadata() or {}).get(METADATA), path
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged or no safetensors file: {error}") from None
    beside = path.with_name(CONFIG)
    if beside.is_file():  # first, as people may have edited it
        text, source = beside.read_text(encoding="utf-8"), beside
    if text is None:
        raise FileNotFoundError(f"'{path}' describes no model and there is no '{beside}'")
    config = parse_config(text, source)
    if given := [name for name, value in overrides.items() if value is not None]:
        raise ValueError(f"--{given[0]} is for a .pth; '{source}' says it already")
    if class_names:
        config = replace(config, names=chosen_names(class_names, len(config.names)))
    return Described(config, weights)


def read_checkpoint(
    path: str | Path, class_names: Sequence[str] = (), **overrides: Any
) -> Described:
    """Read a .pth of this project or of the original authors.

    Args:
        path: checkpoint; its weights alone (a bare state dict) will do.
        class_names: instead of those the settings lead to, see `chosen_names`.
        overrides: settings, by the names of the training flags, that the file lacks or has wrong;
            None is no override. `frame_rate` is one of them.

    Raises:
        ValueError: no checkpoint of HiCMAE, or sizes that no registered model has.
    """
    state = checkpoint.load(path)
    weights = weights_of(state, "model|module", f"'{path}'")
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = {**flat_settings(state.get("args")), **given}
    modality = "".join(m for m, prefix in ENCODERS.items() if _has(weights, prefix))
    if not modality:
        raise ValueError(
            f"'{path}' holds no HiCMAE model: expected weights named encoder.* or encoder_audio.*, "
            f"got {', '.join(list(weights)[:3])}"
        )
    task, names = "pretraining", tuple[str, ...]()
    if "head.weight" in weights:
        task = "regression" if "regress" in str(settings.get("task")) else "classification"
        count = len(weights["head.weight"])
        names = names_of_run(
            settings | ({"class_names": class_names} if class_names else {}), task, count
        )
    else:  # encoders and fusion are all that inference needs
        kept = (*ENCODERS.values(), FUSION)
        weights = {name: w for name, w in weights.items() if name.startswith(kept)}
    epoch = state.get("epoch")
    config = ModelConfig(
        task=task,
        modality=modality,
        names=names,
        architecture=_architecture(weights, modality, settings, str(path)),
        preprocessing=_preprocessing(weights, settings),
        test_num_segment=int(settings.get("test_num_segment") or 2),
        test_num_crop=int(settings.get("test_num_crop") or 2),
        training={
            "checkpoint": Path(path).name,
            "epoch": epoch if isinstance(epoch, (int, str)) else None,
            "settings": {name: value for name, value in settings.items() if _is_plain(value)},
        },
    )
    return Described(config, weights)


def _architecture(
    weights: Mapping[str, Tensor], modality: str, settings: Mapping[str, Any], source: str
) -> Architecture:
    width = len(weights.get(f"{ENCODERS[modality[-1]]}norm.weight", ()))
    if width not in WIDTHS:
        raise ValueError(
            f"'{source}' has encoders of width {width}, expected one of "
            f"{', '.join(map(str, WIDTHS))}, the sizes of HiCMAE"
        )
    depth, depth_audio = (_depth(weights, ENCODERS[stream]) for stream in "va")
    # Other arguments of the builder; not those with their default, for earlier versions' sake.
    arguments = inspect.signature(HiCMAEClassifier).parameters
    known = {n: v for n, v in settings.items() if n in arguments and n not in FOLLOWS}
    activation = settings.get("head_activation")
    return Architecture(
        model=f"avit_dim{width}_patch16_160_a256",
        depth=depth or depth_audio,
        depth_audio=depth_audio or depth,
        fusion_depth=_depth(weights, FUSION) or 1,
        # Whether there are any gammas; their values are weights.
        init_values=float(any(".gamma_" in name for name in weights)),
        head_activation=activation if activation in ("sigmoid", "relu", "tanh") else None,
        options={n: v for n, v in known.items() if v != arguments[n].default},
    )


def _preprocessing(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Preprocessing:
    default = Preprocessing()
    sizes = settings.get("input_size_audio") or default.input_size_audio
    sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (int(sizes),)
    kernel = weights.get("encoder.patch_embed.proj.weight")
    return Preprocessing(
        num_frames=int(settings.get("num_frames") or default.num_frames),
        sampling_rate=int(settings.get("sampling_rate") or default.sampling_rate),
        input_size=int(settings.get("input_size") or default.input_size),
        input_size_audio=(int(sizes[0]), int(sizes[1]) if len(sizes) > 1 else 128),
        tubelet_size=default.tubelet_size if kernel is None else kernel.shape[2],
        frame_rate=float(settings.get("frame_rate") or default.frame_rate),
    )


def _depth(weights: Mapping[str, Tensor], encoder: str) -> int:
    """Count the blocks of an encoder, 0 where there is none."""
    pattern = re.compile(re.escape(encoder) + r"blocks\.(\d+)\.")
    return len({match[1] for name in weights if (match := pattern.match(name))})


def _has(weights: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def _is_plain(value: Any) -> bool:
    """Tell whether JSON can hold a value; the original's Namespace may hold other things."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def load_model(
    path: str | Path, streams: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, ModelConfig]:
    """Build the model that a file or folder describes.

    Args:
        path: see `read_model`.
        streams: "a" or "v" leaves the other encoder of a model of both out; None takes all.
        device: where the model goes.

    Returns:
        The model in evaluation mode, and its description.

    Raises:
        FileNotFoundError, ValueError: in one line.
    """
    config, weights = read_model(path)
    model = build(config)
    if streams is not None and config.modality == "av":
        for name in (name for dropped in set("av") - set(streams) for name in STREAMS[dropped]):
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, None)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.task == "pretraining":  # it has no classifier
        wanted = {name: shape for name, shape in wanted.items() if name.startswith("encoder")}
    wrong = [n for n, shape in wanted.items() if n not in weights or weights[n].shape != shape]
    if wrong:
        raise ValueError(
            f"the weights of '{path}' do not fit its description: {len(wrong)} are missing or of "
            f"another shape, e.g. {wrong[0]}; export the checkpoint again"
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False, assign=True)
    return model.eval().requires_grad_(False).to(device), config


def build(config: ModelConfig) -> nn.Module:
    """Create the classifier of a description, with random weights."""
    sizes, clip = asdict(config.architecture), config.preprocessing
    return timm.create_model(
        sizes.pop("model"),
        **sizes.pop("options"),
        **sizes,
        num_classes=max(len(config.names), 1),
        modality=config.modality,
        num_frames=clip.num_frames,
        img_size=clip.input_size,
        img_size_audio=clip.input_size_audio,
        tubelet_size=clip.tubelet_size,
    )
