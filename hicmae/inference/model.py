"""Models as files, read: exports (config.json, model.safetensors) and checkpoints.

An export describes its model in config.json, and again in the metadata of its weights. Of a .pth
the weights tell the sizes, and the settings of its run tell the rest.
"""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast
from typing import get_type_hints as hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import hicmae
from hicmae.config import WIDTHS
from hicmae.data.audio import FBANK_MEAN, FBANK_STD, SAMPLE_RATE
from hicmae.data.clip_list import chosen_names, names_of_run
from hicmae.io import IMAGENET, encodable
from hicmae.models.encoder import BUILDERS, HubModel
from hicmae.models.finetune import ACTIVATIONS
from hicmae.models.pretrain import HiCMAE
from hicmae.training import trained
from hicmae.training.trained import FORMAT, FORMAT_VERSION, Trained

logger = logging.getLogger(__name__)

FACE_SIZE = 256  # pixels of an aligned face, as preprocess/face_and_audio/extract_face.py cuts it
CONSTANTS = {  # of preprocessing, for readers of config.json
    "pixel_mean": IMAGENET[0],
    "pixel_std": IMAGENET[1],
    "audio_sample_rate": SAMPLE_RATE,
    "filter_bank_mean": FBANK_MEAN,
    "filter_bank_std": FBANK_STD,
    "face_size": FACE_SIZE,
}
# Arguments of the classifier that an export notes where they are not these, the usual ones.
OPTIONS = {"hierarchical_fusion": True, "fusion_order": "both"}


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network, by the names of the model builder; `options` holds its other ones."""

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

    `frame_rate` is that of the videos the model was trained on: it says how many seconds of them
    the model sees at once.
    """

    num_frames: int = 16
    sampling_rate: int = 4
    input_size: int = 160
    input_size_audio: tuple[int, int] = (256, 128)
    tubelet_size: int = 2
    frame_rate: float = 25.0

    @property
    def span(self) -> int:
        """Frames that a window covers."""
        return self.num_frames * self.sampling_rate

    @property
    def clip_seconds(self) -> float:
        """Length of what the model sees at once."""
        return self.span / self.frame_rate


@dataclass(frozen=True)
class ModelConfig:
    """A model's description; task "pretraining" has no names and gives features only."""

    task: str  # one of TASKS
    modality: str  # "av", "a" or "v"
    names: tuple[str, ...]  # of the classes or regression outputs
    architecture: Architecture
    preprocessing: Preprocessing
    test_num_segment: int = 2  # temporal views of the test protocol
    temperature: float = 1.0  # logits are divided by it, so that probabilities can be believed
    training: dict[str, Any] = field(default_factory=dict)  # where the weights come from

    def to_json(self) -> str:
        """Return the text of config.json; labels stand where model hubs look for them."""
        content: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        content |= {"library_name": "hicmae", "hicmae_version": hicmae.__version__}
        content |= {"model_type": "hicmae", **arguments_of(self), **asdict(self)}
        content["preprocessing_constants"] = CONSTANTS
        content["id2label"] = dict(enumerate(content.pop("names")))
        return encodable(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"


def parse_config(content: Mapping[str, Any], source: Path | str) -> ModelConfig:
    """Read the content of a config.json, which messages call `source`."""

    def known(kind: type, values: Mapping[str, Any]) -> Any:
        given = {item.name: values[item.name] for item in fields(kind) if item.name in values}
        for name, value in given.items():
            wanted = hints(kind)[name]
            right: Any = {int: int, float: (int, float), str: str}.get(wanted, object)
            if not isinstance(value, right):
                raise TypeError(f"{name} is {value!r}, expected {wanted.__name__}")
        return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})

    try:
        sizes = known(Architecture, content["architecture"])
        clip = known(Preprocessing, content["preprocessing"])
        return known(ModelConfig, {**content, "architecture": sizes, "preprocessing": clip})
    except TypeError as error:
        raise ValueError(f"'{source}' describes no model of this project: {error}") from None


# Reading


def read_model(
    path: str | Path, class_names: Sequence[str] = (), **overrides: Any
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read the description and the weights of a model from whatever holds one.

    Args:
        path: export folder, its parent, the output folder of a run, a weights file, or a .pth of
            this project or of the original authors (a bare state dict will do).
        class_names: instead of those that the file leads to, see `chosen_names`.
        overrides: settings, by the names of the training flags, that a .pth lacks or has wrong;
            None is no override. `frame_rate` is one of them.

    Raises:
        FileNotFoundError, ValueError: in one line.
    """
    model = trained.read(path)
    given = {name: value for name, value in overrides.items() if value is not None}
    trained.check_agrees(model, given, given)
    if model.config is None:
        return _of_run(model, class_names, given)
    config = parse_config(model.config, model.source)
    if class_names:
        config = replace(config, names=chosen_names(class_names, len(config.names)))
    return config, model.weights


def _of_run(
    model: Trained, class_names: Sequence[str], given: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    names, told = tuple[str, ...](), {**model.told, **given}
    settings = {"task": "classification", **model.settings, **given}
    if "modality" not in settings:
        raise ValueError(
            f"'{model.source}' holds no HiCMAE model: expected weights named encoder.* or "
            f"encoder_audio.*, got {', '.join(list(model.weights)[:3])}"
        )
    task = settings["task"]
    if task != "pretraining":
        chosen = {"class_names": class_names} if class_names else {}
        names = names_of_run({**settings, **chosen}, task, settings["nb_classes"])
    trained.warn_of_clips(model, given)
    training = {
        "checkpoint": Path(model.source).name,
        "epoch": model.epoch if isinstance(model.epoch, (int, str)) else None,
        "settings": {name: value for name, value in told.items() if _is_plain(value)},
    }
    usual = vars(Preprocessing())
    clip = {n: type(value)(settings[n]) for n, value in usual.items() if settings.get(n)}
    parts = _architecture(settings, model.source), Preprocessing(**clip)
    segments = int(settings.get("test_num_segment") or 2)
    config = ModelConfig(task, settings["modality"], names, *parts, segments, training=training)
    return config, model.weights


def _architecture(settings: Mapping[str, Any], source: Path | str) -> Architecture:
    width = int(settings["model"].split("_dim")[1].split("_")[0])
    if width not in WIDTHS:
        sizes = f"expected one of {', '.join(map(str, WIDTHS))}, the sizes of HiCMAE"
        raise ValueError(f"'{source}' has encoders of width {width}, {sizes}")
    activation = settings.get("head_activation")
    depth, depth_audio, fusion_depth = (settings.get(n, 0) for n in trained.DEPTHS)
    return Architecture(
        f"avit_dim{width}_patch16_160_a256",
        *(depth or depth_audio, depth_audio or depth, fusion_depth or 1),
        init_values=settings["init_values"],
        head_activation=activation if activation in ACTIVATIONS else None,
        options={n: settings[n] for n, v in OPTIONS.items() if settings.get(n, v) != v},
    )


def _is_plain(value: Any) -> bool:
    """Tell whether JSON can hold a value; the original's Namespace may hold other things."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


class _Undrawn(TorchFunctionMode):
    """Leaves out the random draws of new weights, which others replace at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.uniform_, Tensor.normal_) else func(*args, **kwargs or {})


def build(config: ModelConfig) -> HubModel:
    """Create the classifier of a description; of a pre-training it is the encoders that count."""
    sizes, clip = asdict(config.architecture), config.preprocessing
    name = sizes.pop("model")
    if name not in BUILDERS:
        raise ValueError(f"config.json names the model {name!r}, expected one of {[*BUILDERS]}")
    sizes |= sizes.pop("options") | {"img_size": clip.input_size, "modality": config.modality}
    sizes |= {n: getattr(clip, n) for n in ("num_frames", "tubelet_size")}
    sizes |= {"img_size_audio": clip.input_size_audio, "num_classes": max(len(config.names), 1)}
    return cast(HubModel, BUILDERS[name](**sizes))


def arguments_of(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of the network's class, which model hubs read; {} where one is unknown.

    Of a pre-training the run's settings tell them.
    """
    told, sizes = config.training.get("settings", {}), config.architecture
    with torch.device("meta"):
        model = build(config)
        if config.task == "pretraining":
            known = {n: v for n, v in told.items() if n in inspect.signature(HiCMAE).parameters}
            if "decoder_depth" not in known or config.modality != "av":
                return {}
            clip = {n: model.arguments[n] for n in ("num_frames", "img_size", "img_size_audio")}
            known |= {f"encoder_{n}": getattr(sizes, n) for n in trained.DEPTHS}
            known |= clip | {"tubelet_size": config.preprocessing.tubelet_size}
            name = sizes.model.replace("avit", "pretrain_hicmae")
            model = cast(HubModel, BUILDERS[name](**known))
    return model.arguments


def load_model(
    path: str | Path, device: torch.device | str = "cpu", streams: str | None = None
) -> tuple[nn.Module, ModelConfig]:
    """Build the model that `read_model` finds, in evaluation mode, and return its description.

    Of a model of both, the stream "a" or "v" leaves the other encoder out.
    """
    config, weights = read_model(path)
    with _Undrawn():
        model = build(config)
    for stream, suffix in (("video", ""), ("audio", "_audio")):
        if config.modality == "av" and streams is not None and stream[0] not in streams:
            for name in (f"encoder{suffix}", f"{stream}_layer_weights"):
                setattr(model, name, None)
            for name in (f"blocks{suffix}", f"norm{suffix}"):
                setattr(model.encoder_fusion, name, None)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.task == "pretraining":  # it has no classifier
        wanted = {name: shape for name, shape in wanted.items() if name.startswith("encoder")}
    wrong = [n for n, shape in wanted.items() if n not in weights or weights[n].shape != shape]
    if wrong:
        text = f"{len(wrong)} are missing or of another shape, e.g. {wrong[0]}"
        raise ValueError(
            f"the weights of '{path}' do not fit its description: {text}; export it again"
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False, assign=True)
    return model.eval().requires_grad_(False).to(device), config
