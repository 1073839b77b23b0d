"""What a file knows of the model in it: the one reader of a trained model's settings.

The weights show their sizes; what they cannot show, the clips and the head's activation say, stands
in the settings of the run or in the config.json of the export.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hicmae.config import ClipConfig
from hicmae.config.flags import flat_settings
from hicmae.data.video import MODALITIES
from hicmae.training import checkpoint

logger = logging.getLogger(__name__)

ENCODERS = {"a": "encoder_audio.", "v": "encoder."}  # beginnings of the names of their weights
FUSION = "encoder_fusion."
FORMAT, FORMAT_VERSION = "hicmae", 1  # of config.json
TASKS = ("classification", "regression", "pretraining")
PLACES = ("model", "module", "state_dict", "model_ema")  # keys under which weights are found
# Flags with another value of which the same weights answer otherwise, or do not fit.
CLIP = ("num_frames", "sampling_rate", "input_size", "input_size_audio", "tubelet_size")
SETTLED = (
    *("task", "nb_classes", "model", "depth", "depth_audio", "fusion_depth", "modality"),
    *("hierarchical_fusion", "fusion_order", "init_values", "head_activation", *CLIP),
)
DEPTHS = {"depth": ENCODERS["v"], "depth_audio": ENCODERS["a"], "fusion_depth": FUSION}
_BLOCK = re.compile(r"(encoder(?:_audio|_fusion)?\.)blocks\.(\d+)\.")
# Earlier names of the same, as in pre-training and in the original.
_ALIASES = {f"encoder_{flag}": flag for flag in DEPTHS}
_ALIASES["head_activation_func"] = "head_activation"
# Arguments of the classes in hicmae.models.
_ALIASES |= {"img_size": "input_size", "img_size_audio": "input_size_audio"}


class Trained(NamedTuple):
    """A trained model as a file tells it."""

    source: Path | str  # the file, or what messages call the weights
    weights: dict[str, Tensor]
    settings: dict[str, Any]  # by flag, lists for tuples, as far as the file says
    content: Mapping[str, Any]  # all of the file: epoch, optimizer, ...
    config: Mapping[str, Any] | None  # of an export: its config.json

    @property
    def told(self) -> dict[str, Any]:
        """Settings of its run by flag, as they were written; {} where the file has none."""
        return _told(self.content, self.config)


def read(path: str | Path) -> Trained:
    """Read a model from a checkpoint, weights, an export or the output folder of a run.

    See `checkpoint.find`. ValueError: it holds no weights, or some are not finite.
    """
    path = checkpoint.find(path)
    return describe(checkpoint.load(path), path)


def describe(content: Mapping[str, Any], source: Path | str) -> Trained:
    """Tell what the content of a file says; see `read`."""
    weights = weights_of(content, f"'{source}'")
    described = content.get("description")
    if described and (arguments := _arguments(described[0])):
        content, described = {**content, "args": arguments}, None
    config = read_config(*described) if described else None
    settings = _told(content, config) | ({} if config is None else _settings_of(config))
    settings = {_ALIASES.get(name, name): value for name, value in settings.items()}
    settings = _with_bins(settings)
    if settings:  # earlier versions and the original know no other order
        settings.setdefault("fusion_order", "both")
    if "head.weight" not in weights:
        settings["task"] = "pretraining"
    elif "task" in settings:
        regresses = "regress" in str(settings["task"])
        settings["task"] = "regression" if regresses else "classification"
    return Trained(source, weights, settings | _shown_by(weights), content, config)


def weights_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint, if it is none itself, and strip added prefixes.

    Weights of half precision are widened to float32, which changes no value.
    """
    weights = next((content[k] for k in PLACES if isinstance(content.get(k), Mapping)), content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{source} holds no weights: expected a state dict under one of "
            f"{', '.join(map(repr, PLACES))}, got the keys "
            f"{', '.join(map(str, list(content)[:6])) or 'nothing'}"
        )
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"{source} is of no use: '{name}' holds values that are nan or inf; take an "
                "earlier checkpoint"
            )
    half = (torch.float16, torch.bfloat16)
    return {
        re.sub(r"^(?:module\.|_orig_mod\.|model\.)+", "", name): w.float() if w.dtype in half else w
        for name, w in weights.items()
    }


def _with_bins(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by flag where a single `input_size_audio`, steps, has 128 bins beside it."""
    sizes = settings.get("input_size_audio")
    if not sizes:
        return dict(settings)
    steps, bins = [*(sizes if isinstance(sizes, list) else [sizes]), 128][:2]
    return {**settings, "input_size_audio": [int(steps), int(bins)]}


def check_agrees(
    trained: Trained, chosen: Mapping[str, Any], flags: Iterable[str] = SETTLED
) -> None:
    """Refuse settings, by flag, that contradict those the model was trained with.

    What the file does not say, or is not chosen, contradicts nothing. ValueError names the flags.
    """
    mine = _with_bins(flat_settings(chosen))
    if "init_values" in mine:  # of the start of layer scales, weights tell only whether it was 0
        mine["init_values"] = float(mine["init_values"] > 0)
    wrong = [
        f"--{flag} {_shown(mine[flag])} (trained with {_shown(trained.settings[flag])})"
        for flag in flags
        if flag in mine and flag in trained.settings and mine[flag] != trained.settings[flag]
    ]
    if wrong:
        raise ValueError(
            f"'{trained.source}' was trained otherwise: {', '.join(wrong)}; leave the flag out, or "
            "name another checkpoint"
        )


def warn_of_clips(trained: Trained, chosen: Mapping[str, Any]) -> None:
    """Warn of the geometry of clips that neither the file nor the chosen flags tell."""
    known, usual = {**trained.settings, **chosen}, vars(ClipConfig())
    unseen = {"a": "input_size", "v": "input_size_audio"}.get(known["modality"])
    if assumed := [f for f in CLIP if f not in {"tubelet_size", unseen, *known}]:
        values = ", ".join(f"--{f} {_shown(usual[f])}" for f in assumed)
        logger.warning("'%s' does not say how its clips were, assuming %s", trained.source, values)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _shown_by(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings that names and shapes of weights show."""
    parts = {n.split(".")[0] + "." for n in weights}
    modality = "".join(stream for stream, part in ENCODERS.items() if part in parts)
    blocks = [part for part, _ in {m.groups() for m in map(_BLOCK.match, weights) if m}]
    shown: dict[str, Any] = {flag: blocks.count(n) for flag, n in DEPTHS.items() if n in blocks}
    if not modality:
        return shown
    stage = "pretrain_hicmae"
    if "head.weight" in weights:
        stage, shown["nb_classes"] = "avit", len(weights["head.weight"])
        shown["hierarchical_fusion"] = any(n.endswith("_layer_weights") for n in weights)
    width = len(weights.get(f"{ENCODERS[modality[-1]]}norm.weight", ()))
    kernel = weights.get(f"{ENCODERS['v']}patch_embed.proj.weight")
    shown["init_values"] = float(any(".gamma_" in name for name in weights))  # 0: none
    shown |= {"modality": modality, "model": f"{stage}_dim{width}_patch16_160_a256"}
    return shown | ({} if kernel is None else {"tubelet_size": kernel.shape[2]})


def _arguments(text: str) -> dict[str, Any]:
    """Return what `save_pretrained` of a class in hicmae.models wrote; else {}."""
    with suppress(ValueError, TypeError):
        content = dict(json.loads(text))
        if "format" not in content and "embed_dim" in content:
            return content
    return {}


def read_config(text: str, source: Path | str) -> dict[str, Any]:
    """Read a config.json; ValueError where it describes no model."""
    try:
        config = dict(json.loads(text))
        version = config.get("format_version", 0)
        if config["format"] != FORMAT or version not in range(FORMAT_VERSION + 1):
            raise ValueError(
                f"format {config['format']!r} {version!r}, expected '{FORMAT}' up to "
                f"{FORMAT_VERSION}, which this version of hicmae reads"
            )
        if config["task"] not in TASKS or config["modality"] not in MODALITIES:
            raise ValueError(
                f"task '{config['task']}' and modality '{config['modality']}', expected "
                f"{', '.join(TASKS)} and {', '.join(MODALITIES)}"
            )
        labels = config["id2label"]
        config["names"] = [labels[str(k)] for k in range(len(labels))]
        for part in ("architecture", "preprocessing"):
            config[part] = dict(config[part])
        return config
    except (LookupError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"'{source}' describes no model of this project: {reason}; make it with: "
            "hicmae-export CHECKPOINT OUTPUT"
        ) from None


def _told(content: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return flat_settings(content.get("args"))
    return flat_settings(config.get("training", {}).get("settings"))


def _settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by flag that the description in a config.json tells."""
    settings = {name: v for name, v in config["architecture"].items() if name != "options"}
    settings |= config["architecture"].get("options", {}) | config["preprocessing"]
    return settings | {"task": config["task"], "class_names": config["names"]}
