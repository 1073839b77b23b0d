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
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

import hicmae
from hicmae.config import CLASSIFIERS, ClipConfig
from hicmae.config.flags import option
from hicmae.data.audio import FBANK_MEAN, FBANK_STD, SAMPLE_RATE
from hicmae.data.clip_list import chosen_names, names_of_run
from hicmae.io import IMAGENET, encodable
from hicmae.models.encoder import BUILDERS, HubModel
from hicmae.models.finetune import ACTIVATIONS, SUFFIXES
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


class Preprocessing(ClipConfig):
    """How a clip becomes the network's input.

    The frame rate says how many seconds of a video the model sees at once.
    """

    frame_rate: float = option(25.0, "frames a second of the videos it was trained on", "> 0")

    @property
    def clip_seconds(self) -> float:
        """Length of what the model sees at once."""
        return self.num_frames * self.sampling_rate / self.frame_rate


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
        """Return the text of config.json; labels are where model hubs look for them."""
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
            wanted = get_type_hints(kind)[name]
            right: Any = {int: int, float: (int, float), str: str}.get(wanted, object)
            if not isinstance(value, right):
                raise TypeError(f"{name} is {value!r}, expected {wanted.__name__}")
            if wanted is float or isinstance(value, list):
                given[name] = float(value) if wanted is float else tuple(value)
        return kind(**given)

    try:
        sizes = known(Architecture, content["architecture"])
        if sizes.model not in CLASSIFIERS:
            text = f"its network is {sizes.model!r}, expected one of {', '.join(CLASSIFIERS)}"
            raise ValueError(text)
        clip = known(Preprocessing, content["preprocessing"])
        return known(ModelConfig, {**content, "architecture": sizes, "preprocessing": clip})
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{source}' describes no model of this project: {error}") from None


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
    content = model.config or _content_of_run(model, class_names, given)
    config = parse_config(content, model.source)
    if class_names:
        config = replace(config, names=chosen_names(class_names, len(config.names)))
    return config, model.weights


def _content_of_run(
    model: Trained, class_names: Sequence[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a config.json would say of a model, by its weights and the run's settings."""
    settings = {"task": "classification", **model.settings, **given}
    settings |= {"class_names": class_names} if class_names else {}
    if "modality" not in settings:
        raise ValueError(
            f"'{model.source}' holds no HiCMAE model: expected weights named encoder.* or "
            f"encoder_audio.*, got {', '.join(list(model.weights)[:3])}"
        )
    trained.warn_of_clips(model, given)
    task = settings["task"]
    names = () if task == "pretraining" else names_of_run(settings, task, settings["nb_classes"])
    depth, depth_audio, fusion_depth = (settings.get(name, 0) for name in trained.DEPTHS)
    activation = settings.get("head_activation")
    sizes = {
        "model": settings["model"].replace("pretrain_hicmae", "avit"),
        "depth": depth or depth_audio,  # an encoder that is left out has some, too
        "depth_audio": depth_audio or depth,
        "fusion_depth": fusion_depth or 1,
        "head_activation": activation if activation in ACTIVATIONS else None,
        "options": {n: settings[n] for n, v in OPTIONS.items() if settings.get(n, v) != v},
    }
    told = {**model.told, **given}
    return {
        "task": task,
        "modality": settings["modality"],
        "names": names,
        "architecture": settings | sizes,
        "preprocessing": {name: value for name, value in settings.items() if value},
        "test_num_segment": int(settings.get("test_num_segment") or 2),
        "training": {
            "checkpoint": Path(model.source).name,
            "epoch": model.epoch if isinstance(model.epoch, (int, str)) else None,
            "settings": {name: value for name, value in told.items() if _is_plain(value)},
        },
    }


def _is_plain(value: Any) -> bool:
    """Tell whether JSON can hold a value; the original's Namespace may hold other things."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


class Undrawn(TorchFunctionMode):
    """Leaves out the random draws of new weights, which others replace at once.

    Normal ones become 0: torch 2.14 draws until all are within the bounds of trunc_normal_.
    """

    DRAWS = (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, init.uniform_, init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func not in self.DRAWS:
            return func(*args, **named)
        weight = args[0] if args else named["tensor"]  # those of `init` name all their arguments
        return weight.zero_() if func is Tensor.normal_ else weight


def build(config: ModelConfig) -> HubModel:
    """Create the classifier of a description; of a pre-training it is the encoders that count."""
    sizes = asdict(config.architecture)
    make, options = BUILDERS[sizes.pop("model")], sizes.pop("options")
    clip, count = config.preprocessing.of_model(), max(len(config.names), 1)
    sizes |= {"modality": config.modality, "num_classes": count}
    model: HubModel = make(**sizes, **options, **clip)
    return model


def arguments_of(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of the network's class, which model hubs read; {} where one is unknown.

    Of a pre-training the run's settings tell them.
    """
    with torch.device("meta"):
        if config.task != "pretraining":
            return build(config).arguments
        told, sizes = config.training.get("settings", {}), config.architecture
        known = {n: v for n, v in told.items() if n in inspect.signature(HiCMAE).parameters}
        if "decoder_depth" not in known or config.modality != "av":
            return {}
        known |= {f"encoder_{name}": getattr(sizes, name) for name in trained.DEPTHS}
        make = BUILDERS[sizes.model.replace("avit", "pretrain_hicmae")]
        model: HubModel = make(**known | config.preprocessing.of_model())
        return model.arguments


def load_model(
    path: str | Path, device: torch.device | str = "cpu", streams: str | None = None
) -> tuple[nn.Module, ModelConfig]:
    """Build the model that `read_model` finds, in evaluation mode, and return its description.

    Of a model of both, the stream "a" or "v" leaves the other encoder out.
    """
    config, weights = read_model(path)
    with Undrawn():
        model = build(config)
    for stream, suffix in SUFFIXES.items():
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
        raise ValueError(
            f"the weights of '{path}' do not fit its description: {len(wrong)} are missing or of "
            f"another shape, e.g. {wrong[0]}; export it again"
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False, assign=True)
    return model.eval().requires_grad_(False).to(device), config
