"""Models as files, read and written: exports (config.json, model.safetensors) and checkpoints.

An export describes its model in config.json, and again in the metadata of its weights. Of a .pth
the weights tell the sizes, and the settings of its run tell the rest.
"""

import inspect
import json
import logging
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import soundfile
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import hicmae
from hicmae.config import flat_settings
from hicmae.data.audio import FBANK_MEAN, FBANK_STD, SAMPLE_RATE
from hicmae.data.clip_list import chosen_names, names_of_run, read_labelled_list
from hicmae.data.video import IMAGENET_MEAN, IMAGENET_STD, FrameFolder
from hicmae.io import UnreadableClip, whole_file, write_whole
from hicmae.models.finetune import ACTIVATIONS, MODALITIES, HiCMAEClassifier
from hicmae.training import checkpoint, distributed
from hicmae.training.transfer import weights_of

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "hicmae", 1
TASKS = ("classification", "regression", "pretraining")
CONFIG, WEIGHTS, EXPORT = "config.json", "model.safetensors", "export"
METADATA = "hicmae_config"  # where a weights file alone carries its config.json
FACE_SIZE = 256  # pixels of an aligned face, as preprocess/face_and_audio/extract_face.py cuts it
CONSTANTS = {  # of preprocessing, for readers of config.json
    "pixel_mean": IMAGENET_MEAN,
    "pixel_std": IMAGENET_STD,
    "audio_sample_rate": SAMPLE_RATE,
    "filter_bank_mean": FBANK_MEAN,
    "filter_bank_std": FBANK_STD,
    "face_size": FACE_SIZE,
}
WIDTHS = (128, 256, 384, 512)  # of the registered models
ENCODERS = {"a": "encoder_audio.", "v": "encoder."}  # beginnings of the names of their weights
FUSION = "encoder_fusion."
# Arguments of the classifier that are known without the settings, or stand elsewhere.
FOLLOWS = frozenset(
    "embed_dim num_heads num_classes depth depth_audio fusion_depth drop_path_rate head_activation "
    "init_values modality num_frames img_size img_size_audio tubelet_size".split()
)


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


@dataclass(frozen=True)
class ModelConfig:
    """A model's description; task "pretraining" has no names and gives features only."""

    task: str  # one of TASKS
    modality: str  # "av", "a" or "v"
    names: tuple[str, ...]  # of the classes or regression outputs
    architecture: Architecture
    preprocessing: Preprocessing
    test_num_segment: int = 2  # temporal views of the test protocol
    test_num_crop: int = 2  # spatial views of the test protocol
    training: dict[str, Any] = field(default_factory=dict)  # where the weights come from

    def to_json(self) -> str:
        """Return the text of config.json; labels stand where model hubs look for them."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "library_name": "hicmae",
            "hicmae_version": hicmae.__version__,
            "model_type": "hicmae",
            **asdict(self),
            "preprocessing_constants": CONSTANTS,
        }
        content["id2label"] = dict(enumerate(content.pop("names")))
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def parse_config(text: str, source: str | Path) -> ModelConfig:
    """Read the text of a config.json, which messages call `source`; ValueError where it is none."""

    def known(kind: type, values: Mapping[str, Any]) -> Any:
        given = {item.name: values[item.name] for item in fields(kind) if item.name in values}
        return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})

    try:
        content = json.loads(text)
        if content["format"] != FORMAT or content.get("format_version", 0) > FORMAT_VERSION:
            raise ValueError(
                f"format '{content['format']}' {content.get('format_version', 0)}, expected "
                f"'{FORMAT}' up to {FORMAT_VERSION}, which this version of hicmae reads"
            )
        if content["task"] not in TASKS or content["modality"] not in MODALITIES:
            raise ValueError(
                f"task '{content['task']}' and modality '{content['modality']}', expected "
                f"{', '.join(TASKS)} and {', '.join(MODALITIES)}"
            )
        labels = content["id2label"]
        content["names"] = [labels[str(k)] for k in range(len(labels))]
        for kind in (Architecture, Preprocessing):
            content[kind.__name__.lower()] = known(kind, content[kind.__name__.lower()])
        return known(ModelConfig, content)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"'{source}' describes no model of this project: {reason}; make it with: "
            "python -m hicmae.inference export CHECKPOINT OUTPUT"
        ) from None


# Reading


def find_weights(path: Path) -> Path:
    """Return the weights file that a path means: itself, or the best there is in a folder."""
    kinds = ("", f"{EXPORT}/best", f"{EXPORT}/last", "best", "last")
    places = [path, *(path / kind / WEIGHTS for kind in kinds), path / "checkpoint-best.pth"]
    if path.is_dir():
        places += [saved for _, saved in reversed(checkpoint.numbered(path))]
    for place in places:
        if place.is_file():
            return place
    problem = f"holds no {WEIGHTS} and no checkpoint" if path.is_dir() else "does not exist"
    raise FileNotFoundError(
        f"checkpoint '{path}' {problem}; name a folder with {WEIGHTS}, the output folder of a run, "
        "or a .pth"
    )


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
    path = find_weights(Path(path))
    given = {name: value for name, value in overrides.items() if value is not None}
    if path.suffix != ".safetensors":
        return _read_checkpoint(path, class_names, given)
    try:
        with safe_open(path, "pt") as file:
            text, source = (file.metadata() or {}).get(METADATA), path
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged or no safetensors file: {error}") from None
    beside = path.with_name(CONFIG)
    if beside.is_file() or text is None:  # people may have edited it
        text, source = beside.read_text(encoding="utf-8"), beside
    config = parse_config(text, source)
    if given:
        raise ValueError(f"--{next(iter(given))} is for a .pth; '{source}' says it already")
    if class_names:
        config = replace(config, names=chosen_names(class_names, len(config.names)))
    return config, weights


def _read_checkpoint(
    path: Path, class_names: Sequence[str], given: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    state = checkpoint.load(path)
    weights = weights_of(state, f"'{path}'")
    settings = {**flat_settings(state.get("args")), **given}
    modality = "".join(
        m for m, part in ENCODERS.items() if any(n.startswith(part) for n in weights)
    )
    if not modality:
        raise ValueError(
            f"'{path}' holds no HiCMAE model: expected weights named encoder.* or encoder_audio.*, "
            f"got {', '.join(list(weights)[:3])}"
        )
    task, names = "pretraining", tuple[str, ...]()
    if "head.weight" in weights:
        task = "regression" if "regress" in str(settings.get("task")) else "classification"
        chosen = {"class_names": class_names} if class_names else {}
        names = names_of_run(settings | chosen, task, len(weights["head.weight"]))
    else:  # encoders and fusion are all that inference needs
        kept = (*ENCODERS.values(), FUSION)
        weights = {name: w for name, w in weights.items() if name.startswith(kept)}
    epoch = state.get("epoch")
    config = ModelConfig(
        task=task,
        modality=modality,
        names=names,
        architecture=_architecture(weights, modality, settings, path),
        preprocessing=_preprocessing(weights, settings),
        test_num_segment=int(settings.get("test_num_segment") or 2),
        test_num_crop=int(settings.get("test_num_crop") or 2),
        training={
            "checkpoint": path.name,
            "epoch": epoch if isinstance(epoch, (int, str)) else None,
            "settings": {name: value for name, value in settings.items() if _is_plain(value)},
        },
    )
    return config, weights


def _architecture(
    weights: Mapping[str, Tensor], modality: str, settings: Mapping[str, Any], source: Path
) -> Architecture:
    width = len(weights.get(f"{ENCODERS[modality[-1]]}norm.weight", ()))
    if width not in WIDTHS:
        raise ValueError(
            f"'{source}' has encoders of width {width}, expected one of "
            f"{', '.join(map(str, WIDTHS))}, the sizes of HiCMAE"
        )

    def depth_of(part: str) -> int:
        names = "\n".join(weights)
        return len(set(re.findall(rf"^{re.escape(part)}blocks\.(\d+)\.", names, re.MULTILINE)))

    depth, depth_audio = depth_of(ENCODERS["v"]), depth_of(ENCODERS["a"])
    # Other arguments of the builder; not those with their default, for earlier versions' sake.
    arguments = inspect.signature(HiCMAEClassifier).parameters
    known = {n: v for n, v in settings.items() if n in arguments and n not in FOLLOWS}
    activation = settings.get("head_activation")
    return Architecture(
        model=f"avit_dim{width}_patch16_160_a256",
        depth=depth or depth_audio,
        depth_audio=depth_audio or depth,
        fusion_depth=depth_of(FUSION) or 1,
        # Whether there are any gammas; their values are weights.
        init_values=float(any(".gamma_" in name for name in weights)),
        head_activation=activation if activation in ACTIVATIONS else None,
        options={n: v for n, v in known.items() if v != arguments[n].default},
    )


def _preprocessing(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Preprocessing:
    clip = Preprocessing()
    numbers = ("num_frames", "sampling_rate", "input_size", "frame_rate")
    given = {n: type(getattr(clip, n))(settings[n]) for n in numbers if settings.get(n)}
    sizes: Any = settings.get("input_size_audio") or clip.input_size_audio
    steps, bins = [*(sizes if isinstance(sizes, (tuple, list)) else [sizes]), 128][:2]
    kernel = weights.get("encoder.patch_embed.proj.weight")
    given["tubelet_size"] = clip.tubelet_size if kernel is None else kernel.shape[2]
    return Preprocessing(**given, input_size_audio=(int(steps), int(bins)))


def _is_plain(value: Any) -> bool:
    """Tell whether JSON can hold a value; the original's Namespace may hold other things."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def load_model(
    path: str | Path, streams: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, ModelConfig]:
    """Build the model that `read_model` finds, in evaluation mode, and return its description too.

    Of a model of both, the stream "a" or "v" leaves the other encoder out.
    """
    config, weights = read_model(path)
    sizes, clip = asdict(config.architecture), config.preprocessing
    model = timm.create_model(
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
        raise ValueError(
            f"the weights of '{path}' do not fit its description: {len(wrong)} are missing or of "
            f"another shape, e.g. {wrong[0]}; export the checkpoint again"
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False, assign=True)
    return model.eval().requires_grad_(False).to(device), config


# Writing


def export_checkpoint(
    path: str | Path,
    output: str | Path,
    class_names: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Write config.json and model.safetensors of one model to a folder, and return that.

    `facts` are put beside the training settings in config.json; the rest is as in `read_model`.
    """
    config, weights = read_model(path, class_names, **overrides)
    config.training.update(facts or {})
    text, output = config.to_json(), Path(output)
    # Tensors that share memory are written twice.
    single = {name: tensor.float().clone().contiguous() for name, tensor in weights.items()}
    with whole_file(output / WEIGHTS) as part:
        save_file(single, part, metadata={"format": "pt", METADATA: text})
    write_whole(output / CONFIG, text)
    logger.info("exported %s to %s", path, output)
    return output


def export_run(
    output_dir: str | Path, output: str | Path | None = None, **overrides: Any
) -> list[Path]:
    """Export the last and the best epoch of a run to last/ and best/ in a folder; rank 0 does.

    The folder is `output`, or <output_dir>/export. Returns what was written; `overrides` are those
    of `read_model`.
    """
    if not distributed.is_main():
        return []
    run = Path(output_dir)
    numbered, best = checkpoint.numbered(run), run / "checkpoint-best.pth"
    sources = {"last": numbered[-1][1]} if numbered else {}
    sources |= {"best": best} if best.is_file() else {}
    if not sources:
        raise FileNotFoundError(f"'{output_dir}' holds no checkpoint-<epoch>.pth to export")

    def read(name: str) -> dict[str, Any]:
        path = run / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    overrides["frame_rate"] = overrides.get("frame_rate") or _measured_frame_rate(read(CONFIG))
    written = []
    for kind, path in sources.items():
        metrics = read("metrics.json" if kind == "last" else "metrics_best.json")
        means = {n: v.get("mean") if isinstance(v, dict) else v for n, v in metrics.items()}
        scores = {n: v for n, v in means.items() if isinstance(v, (int, float))}
        facts = {"command": shlex.join(sys.argv), "scores": scores}
        target = Path(output or run / EXPORT) / kind
        written.append(export_checkpoint(path, target, facts=facts, **overrides))
    return written


def _measured_frame_rate(saved: Mapping[str, Any], clips: int = 16) -> float | None:
    """Return the median frames a second of training clips: frames of a folder over its wav's time.

    None where that cannot be told: a modality alone, a list that is gone.
    """
    settings, rates = flat_settings(saved), []
    if settings.get("modality") != "av" or not settings.get("data_path"):
        return None
    task, root = settings.get("task", "classification"), settings.get("data_root", "")
    with suppress(OSError, ValueError):
        listed = read_labelled_list(Path(settings["data_path"]) / "train.csv", task, None, root)
        for clip in listed[:: max(len(listed) // clips, 1)][:clips]:
            with suppress(UnreadableClip, OSError, soundfile.LibsndfileError, ZeroDivisionError):
                seconds = soundfile.info(str(clip.audio)).duration
                rates.append(len(FrameFolder(clip.video)) / seconds)
    return round(statistics.median(rates), 2) if rates else None
