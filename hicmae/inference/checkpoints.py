"""What a .pth says about its model: sizes from the weights, the rest from the settings in it."""

import argparse
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hicmae.inference.model_config import Architecture, ModelConfig, Preprocessing
from hicmae.inference.names import chosen_names, names_of_run
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.training import checkpoint
from hicmae.training.transfer import weights_of

WIDTHS = (128, 256, 384, 512)  # of the registered models
# Arguments of the classifier that are known without the settings, or stand elsewhere.
FOLLOWS = frozenset(
    "embed_dim num_heads num_classes depth depth_audio fusion_depth drop_path_rate head_activation "
    "init_values modality num_frames img_size img_size_audio tubelet_size".split()
)
# Encoder and fusion weights: all that inference needs of a pre-training checkpoint.
ENCODERS = ("encoder.", "encoder_audio.", "encoder_fusion.")


class Described(NamedTuple):
    """A model: its description and its weights."""

    config: ModelConfig
    weights: dict[str, Tensor]


def read_checkpoint(
    path: str | Path, class_names: Sequence[str] = (), **overrides: Any
) -> Described:
    """Read a .pth of this project or of the original authors.

    Args:
        path: checkpoint; its weights alone (a bare state dict) will do.
        class_names: instead of those the settings lead to, see `names.chosen_names`.
        overrides: settings, by the names of the training flags, that the file lacks or has wrong;
            None is no override. `frame_rate` is one of them.

    Raises:
        ValueError: no checkpoint of HiCMAE, or sizes that no registered model has.
    """
    state = checkpoint.load(path)
    weights = weights_of(state, "model|module", f"'{path}'")
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = {**flat_settings(state.get("args")), **given}
    modality = "".join(m for m, p in zip("av", ENCODERS[1::-1], strict=True) if _has(weights, p))
    if not modality:
        raise ValueError(
            f"'{path}' holds no HiCMAE model: expected weights named encoder.* or encoder_audio.*, "
            f"got {', '.join(list(weights)[:3])}"
        )
    is_classifier = "head.weight" in weights
    task, names = "pretraining", tuple[str, ...]()
    if is_classifier:
        task = str(settings.get("task") or "classification")
        task = "regression" if "regress" in task else "classification"
        count = len(weights["head.weight"])
        names = (
            chosen_names(class_names, count) if class_names else names_of_run(settings, task, count)
        )
    else:
        weights = {name: w for name, w in weights.items() if name.startswith(ENCODERS)}
    config = ModelConfig(
        task=task,
        modality=modality,
        names=names,
        architecture=_architecture(weights, settings, str(path)),
        preprocessing=_preprocessing(weights, settings),
        test_num_segment=int(settings.get("test_num_segment") or 2),
        test_num_crop=int(settings.get("test_num_crop") or 2),
        training={
            "checkpoint": Path(path).name,
            "epoch": state.get("epoch") if isinstance(state.get("epoch"), (int, str)) else None,
            "settings": {n: v for n, v in settings.items() if _is_plain(v)},
        },
    )
    return Described(config, weights)


def flat_settings(args: Any) -> dict[str, Any]:
    """Return settings by flag from a Namespace, a dict of flags, or a dict of groups of flags."""
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for name, value in args.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat


def _architecture(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], source: str
) -> Architecture:
    prefix = ENCODERS[0] if _has(weights, ENCODERS[0]) else ENCODERS[1]
    width = len(weights[f"{prefix}norm.weight"]) if f"{prefix}norm.weight" in weights else 0
    if width not in WIDTHS:
        raise ValueError(
            f"'{source}' has encoders of width {width}, expected one of "
            f"{', '.join(map(str, WIDTHS))}, the sizes of HiCMAE"
        )
    depth, depth_audio = (_depth(weights, encoder) for encoder in ENCODERS[:2])
    gammas = [tensor for name, tensor in weights.items() if ".gamma_" in name]
    activation = settings.get("head_activation")
    return Architecture(
        model=f"avit_dim{width}_patch16_160_a256",
        depth=depth or depth_audio,
        depth_audio=depth_audio or depth,
        fusion_depth=_depth(weights, ENCODERS[2]) or 1,
        init_values=1.0 if gammas else 0.0,  # whether there are any; their values are weights
        head_activation=activation if activation in ("sigmoid", "relu", "tanh") else None,
        options=_other_options(settings),
    )


def _other_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are arguments of the classifier but follow from no weight.

    Those that have their default are left out, so that earlier versions can read the export.
    """
    parameters = inspect.signature(HiCMAEClassifier).parameters
    known = {n: v for n, v in settings.items() if n in parameters and n not in FOLLOWS}
    return {name: value for name, value in known.items() if value != parameters[name].default}


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
    found = [int(match[1]) for name in weights if (match := pattern.match(name))]
    return max(found, default=-1) + 1


def _has(weights: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def _is_plain(value: Any) -> bool:
    """Tell whether JSON can hold a value; the original's Namespace may hold other things."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
