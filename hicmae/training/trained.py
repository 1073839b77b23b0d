"""A trained model's file: what it knows of the model, and its weights for another one.

The weights show their sizes; what they cannot show, such as the sizes of clips and the activation
of the head, is in the settings of the run or in the config.json of the export.
"""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
MIN_SHARE = 0.5  # less than this of the encoders' weights cannot be meant as pre-training
# Other names of the same: in pre-training, in the original, of arguments in hicmae.models.
_ALIASES = {f"encoder_{flag}": flag for flag in DEPTHS}
_ALIASES |= {"head_activation_func": "head_activation"}
_ALIASES |= {"img_size": "input_size", "img_size_audio": "input_size_audio"}


class Trained(NamedTuple):
    """A trained model as a file tells it."""

    source: Path | str  # the file, or what messages call the weights
    weights: dict[str, Tensor]
    settings: dict[str, Any]  # by flag, lists for tuples, as far as the file says
    told: dict[str, Any]  # settings of its run by flag, as they were written; {} without
    epoch: Any  # its last whole one, as the file has it
    config: Mapping[str, Any] | None  # of an export: its config.json


def read(path: str | Path) -> Trained:
    """Read a model from what `checkpoint.find` takes; ValueError: no weights, or not finite."""
    path = checkpoint.find(path)
    return describe(checkpoint.load(path), path)


def describe(content: Mapping[str, Any], source: Path | str) -> Trained:
    """Tell what the content of a file says; see `read`."""
    weights, config, args = weights_of(content, f"'{source}'"), None, content.get("args")
    known: dict[str, Any] = {}  # of config.json
    if "description" in content:
        text, place = content["description"]
        with suppress(ValueError, TypeError):  # as the classes in hicmae.models write it
            args = dict(json.loads(text))
        if not args or "format" in args or "embed_dim" not in args:
            config = read_config(text, place)
            args = config["training"].get("settings")
            known = flat_settings(config["architecture"]) | config["preprocessing"]
            known |= {"task": config["task"], "class_names": config["names"]}
    told = flat_settings(args)
    settings = _with_bins({_ALIASES.get(name, name): v for name, v in (told | known).items()})
    if settings:  # earlier versions and the original know no other order
        settings.setdefault("fusion_order", "both")
    if "head.weight" not in weights:
        settings["task"] = "pretraining"
    elif "task" in settings:
        regresses = "regress" in str(settings["task"])
        settings["task"] = "regression" if regresses else "classification"
    settings |= _shown_by(weights)
    return Trained(source, weights, settings, told, content.get("epoch"), config)


def weights_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint, without added prefixes and half precision as float32."""
    weights = next((content[k] for k in PLACES if isinstance(content.get(k), Mapping)), content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{source} holds no weights: expected a state dict under one of "
            f"{', '.join(map(repr, PLACES))}, got the keys "
            f"{', '.join(map(str, list(content)[:6])) or 'nothing'}"
        )
    half = torch.float16, torch.bfloat16
    for name, weight in weights.items():
        is_real = weight.dtype in (*half, torch.float32, torch.float64)
        ends = weight.aminmax() if is_real and weight.numel() else ()  # one pass, without a copy
        if not all(map(math.isfinite, ends)):
            raise ValueError(
                f"{source} is of no use: '{name}' holds values that are nan or inf; take an "
                "earlier checkpoint"
            )
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


def check_agrees(model: Trained, given: Mapping[str, Any], flags: Iterable[str] = SETTLED) -> None:
    """Refuse settings, by flag, that contradict those the model was trained with.

    What the file does not say, or is not given, contradicts nothing. ValueError names the flags.
    """
    mine = _with_bins(flat_settings(given))
    if "init_values" in mine:  # of the start of layer scales, weights tell only whether it was 0
        mine["init_values"] = float(mine["init_values"] > 0)
    wrong = [
        f"--{flag} {shown(mine[flag])} (trained with {shown(model.settings[flag])})"
        for flag in flags
        if flag in mine and flag in model.settings and mine[flag] != model.settings[flag]
    ]
    if wrong:
        raise ValueError(
            f"'{model.source}' was trained otherwise: {', '.join(wrong)}; leave the flag out, or "
            "name another checkpoint"
        )


def warn_of_clips(model: Trained, given: Mapping[str, Any]) -> None:
    """Warn of the geometry of clips that neither the file nor the given flags tell."""
    known, usual = {**model.settings, **given}, vars(ClipConfig())
    unseen = {"a": "input_size", "v": "input_size_audio"}.get(known["modality"])
    if assumed := [f for f in CLIP if f not in {"tubelet_size", unseen, *known}]:
        values = ", ".join(f"--{f} {shown(usual[f])}" for f in assumed)
        logger.warning("'%s' does not say how its clips were, assuming %s", model.source, values)


def shown(value: Any) -> str:
    """Return a setting as a message has it: as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value) or "''"


def _shown_by(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings that names and shapes of weights show."""
    shown: dict[str, Any] = {}
    for flag, part in DEPTHS.items():
        if blocks := {name.split(".")[2] for name in weights if name.startswith(f"{part}blocks.")}:
            shown[flag] = len(blocks)
    widths = {s: len(weights.get(f"{part}norm.weight", ())) for s, part in ENCODERS.items()}
    modality = "".join(stream for stream, width in widths.items() if width)
    if not modality:
        return shown
    stage = "pretrain_hicmae"
    if "head.weight" in weights:
        stage, shown["nb_classes"] = "avit", len(weights["head.weight"])
        shown["hierarchical_fusion"] = any(n.endswith("_layer_weights") for n in weights)
    shown["init_values"] = float(any(".gamma_" in name for name in weights))  # 0: none
    shown |= {"modality": modality, "model": f"{stage}_dim{widths[modality[-1]]}_patch16_160_a256"}
    if (kernel := weights.get(f"{ENCODERS['v']}patch_embed.proj.weight")) is not None:
        shown["tubelet_size"] = kernel.shape[2]
    return shown


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
        for name, allowed in (("task", TASKS), ("modality", MODALITIES)):
            if config[name] not in allowed:
                raise ValueError(f"{name} '{config[name]}', expected {', '.join(allowed)}")
        labels = config["id2label"]
        config["names"] = [labels[str(k)] for k in range(len(labels))]
        config["training"] = config.get("training") or {}
        parts = ("architecture", "preprocessing", "training")
        return config | {part: dict(config[part]) for part in parts}
    except (LookupError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"'{source}' describes no model of this project: {reason}; make it with: "
            "hicmae-export CHECKPOINT OUTPUT"
        ) from None


class LoadReport(NamedTuple):
    """Names of weights by what happens to them; those of another shape are new and unused."""

    loaded: list[str]  # in both, same shape
    new: list[str]  # of the model; they keep their initial values
    unused: list[str]  # of the checkpoint
    share: float  # of the model's encoder weights (counted in numbers) that is loaded, 0..1


def load_pretrained(
    model: nn.Module,
    source: str | Path | Trained | Mapping[str, Any],
    allow_partial: bool = False,
    require_all: bool = False,
) -> LoadReport:
    """Copy every weight whose name and shape fit into the model, and report the rest.

    `source` is what `read` takes or returns, or the content of a file. Decoders, mask tokens and
    projections of a pre-training are left over, as are streams that the model lacks; the head,
    `fc_norm` and layer weights stay new. `allow_partial` accepts encoders of another depth or with
    missing weights, if half of the model's encoder weights are found; `require_all`, to test
    without training, only what has every weight. ValueError: it does not fit; the model is as it
    was.
    """
    if isinstance(source, Mapping):
        source = describe(source, "the given weights")
    elif not isinstance(source, Trained):
        source = read(source)
    name, weights, own = f"'{source.source}'", source.weights, model.state_dict()
    fitting = {n: w for n, w in weights.items() if n in own and w.shape == own[n].shape}
    new, unused = [n for n in own if n not in fitting], [n for n in weights if n not in fitting]
    sizes = {n: w.numel() for n, w in own.items() if n.startswith((*ENCODERS.values(), FUSION))}
    share = sum(sizes.get(n, 0) for n in fitting) / sum(sizes.values()) if sizes else 1.0
    streams = {n.split(".")[0] for n in sizes}
    surplus = [n for n in unused if ".blocks" in n and n.split(".")[0] in streams]
    wrong = dict.fromkeys([*(n for n in new if n in sizes), *surplus])
    if wrong and not (allow_partial and share >= MIN_SHARE):
        first = next(iter(wrong))
        was, wanted = (tuple(d[first].shape) if first in d else "missing" for d in (weights, own))
        raise ValueError(
            f"{name} does not fit the model's encoders: {share:.0%} of their weights are in it, "
            f"{len(wrong)} differ, first {first}: {was}, expected {wanted}; choose the --model, "
            "depths and --init_values of the checkpoint"
            + (", or add --allow_partial" if share >= MIN_SHARE else "")
        )
    if require_all and new:
        raise ValueError(
            f"{name} lacks weights of the model: {_counted(new)}; testing needs a fine-tuned "
            "checkpoint of the same model"
        )
    model.load_state_dict(fitting, strict=False)
    logger.info(
        "loaded %d of %d tensors (%.1f%% of the encoder weights) from %s\n  new: %s\n"
        "  left over in the checkpoint: %s",
        *(len(fitting), len(own), 100 * share, name, _counted(new), _counted(unused)),
    )
    return LoadReport(list(fitting), new, unused, share)


def _counted(names: Iterable[str]) -> str:
    """List the first parts of names with the number of tensors in each."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "none"
