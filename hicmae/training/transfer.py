"""Pre-trained weights for fine-tuning: compared by name and shape, judged, told in a few lines."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from hicmae.config import all_flags
from hicmae.training.checkpoint import load

logger = logging.getLogger(__name__)

ENCODERS = ("encoder", "encoder_audio", "encoder_fusion")
MIN_SHARE = 0.5  # less than this of the encoders' weights cannot be meant as pre-training
_BLOCK = re.compile(r"(encoder|encoder_audio|encoder_fusion)\.blocks(?:_audio)?\.(\d+)\.")


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    model_key: str = "model|module",
    allow_partial: bool = False,
    require_all: bool = False,
) -> "LoadReport":
    """Copy every weight whose name and shape fit into the model, and report the rest.

    Decoders, mask tokens and projections of a pre-training checkpoint are left over; the
    classifier's head, `fc_norm` and layer weights keep their initial values. Streams that the
    model lacks (one modality only) are left over too.

    Args:
        model: pre-training model or classifier, changed in place.
        source: checkpoint file or its content; a bare state dict works as well.
        model_key: names under which the weights may stand, split by "|", first found wins.
        allow_partial: accept encoders of another depth or with missing weights, as long as half
            of the model's encoder weights are found.
        require_all: refuse when any weight of the model is not loaded (testing without training).

    Returns:
        What was loaded, what is new, left over, or of another shape; also logged.
    """
    name = "the given weights" if isinstance(source, Mapping) else f"'{source}'"
    content = source if isinstance(source, Mapping) else load(source)
    weights = weights_of(content, model_key, name)
    report = compare(model, weights, name)
    report.check(allow_partial, require_all)
    _check_fusion_order(model, content, name, require_all)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    logger.info("%s", report.text())
    return report


def weights_of(content: Mapping[str, Any], model_key: str, source: str) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint and strip the prefixes of DDP and torch.compile.

    Args:
        content: a checkpoint, or itself a state dict.
        model_key: names under which the weights may stand, split by "|".
        source: what to call the checkpoint in messages.
    """
    keys = model_key.split("|")
    weights = next((content[k] for k in keys if isinstance(content.get(k), Mapping)), content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{source} holds no weights: expected a state dict under "
            f"{' or '.join(map(repr, keys))}, got the keys "
            f"{', '.join(map(str, list(content)[:6])) or 'nothing'}"
        )
    return {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): w for name, w in weights.items()}


def _check_fusion_order(
    model: nn.Module, content: Mapping[str, Any], source: str, testing: bool
) -> None:
    """Warn, or refuse a test, where fusion layers were trained in an order that no weight shows.

    A checkpoint without settings is not judged.
    """
    fusion, settings = getattr(model, "encoder_fusion", None), content.get("args")
    if fusion is None or not settings:
        return
    order = all_flags(settings).get("fusion_order", "both")
    if order != fusion.order:
        text = (
            f"{source} was trained with --fusion_order {order}, this model has --fusion_order "
            f"{fusion.order}"
        )
        if testing:
            raise ValueError(f"{text}; test it with the order it was trained with")
        logger.warning("%s: the fusion layers have to learn the new order", text)


class LoadReport(NamedTuple):
    """Names of weights by what happens to them.

    Attributes:
        source: what the checkpoint is called in messages.
        loaded: in both, same shape.
        new: in the model only; they keep their initial values.
        unused: in the checkpoint only.
        mismatched: in both with different shapes, as "name: (checkpoint) -> (model)"; not loaded.
        share: part of the model's encoder weights (counted in numbers) that is loaded, 0..1.
        problems: reasons why encoders do not fit, for `check`.
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[str, ...]
    share: float
    problems: tuple[str, ...]

    def check(self, allow_partial: bool = False, require_all: bool = False) -> None:
        """Raise ValueError in one line when the checkpoint does not fit the model."""
        if not self.loaded and not self.mismatched:
            raise ValueError(
                f"no weight of {self.source} fits the model: the checkpoint has "
                f"{_folded(self.unused, 6)}; the model has {_folded(self.new, 6)}; is it a HiCMAE "
                "checkpoint of this --model?"
            )
        if self.problems and not allow_partial:
            raise ValueError(
                f"{self.source} does not fit the model's encoders: {'; '.join(self.problems)}; "
                "choose the --model and depths of the checkpoint, or add --allow_partial"
            )
        if self.share < MIN_SHARE:
            raise ValueError(
                f"only {self.share:.0%} of the model's encoder weights are in {self.source}, "
                f"expected at least {MIN_SHARE:.0%}: loaded {_folded(self.loaded, 6) or 'nothing'}"
                "; choose the --model and depths of the checkpoint"
            )
        if not require_all:
            return
        own = (*self.loaded, *self.new, *self.mismatched)
        mixes, mixed = (any(n.endswith("_layer_weights") for n in x) for x in (own, self.unused))
        if mixed and not mixes:
            raise ValueError(
                f"{self.source} has layer weights, which this model does not read; test it without "
                "--no-hierarchical_fusion, as it was trained"
            )
        if self.new or self.mismatched:
            raise ValueError(
                f"{self.source} lacks weights of the model: "
                f"{_folded(self.new + self.mismatched, 6)}; testing needs a fine-tuned checkpoint "
                "of the same model and --nb_classes"
            )

    def text(self) -> str:
        """Return the report as two to five short lines."""
        total = len(self.loaded) + len(self.new) + len(self.mismatched)
        lines = [
            f"loaded {len(self.loaded)} of {total} tensors ({self.share:.1%} of the encoder "
            f"weights) from {self.source}"
        ]
        parts = (
            ("new, keep their initial values", _folded(self.new)),
            ("left over in the checkpoint", _folded(self.unused)),
            ("of another shape, not loaded", ", ".join(self.mismatched[:6])),
            ("accepted although", "; ".join(self.problems)),
        )
        return "\n".join(lines + [f"  {what}: {names}" for what, names in parts if names])


def compare(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Compare a state dict with a model's by name and shape, without changing the model."""
    own = model.state_dict()
    both = [name for name in own if name in weights]
    loaded = tuple(name for name in both if weights[name].shape == own[name].shape)
    mismatched = tuple(
        f"{name}: {tuple(weights[name].shape)} -> {tuple(own[name].shape)}"
        for name in both
        if weights[name].shape != own[name].shape
    )
    size = sum(w.numel() for name, w in own.items() if _is_encoder(name))
    found = sum(own[name].numel() for name in loaded if _is_encoder(name))
    return LoadReport(
        source=source,
        loaded=loaded,
        new=tuple(name for name in own if name not in weights),
        unused=tuple(name for name in weights if name not in own),
        mismatched=mismatched,
        share=found / size if size else 1.0,
        problems=tuple(_problems(own.keys(), weights.keys(), mismatched)),
    )


def _problems(own: Iterable[str], given: Iterable[str], mismatched: Iterable[str]) -> Iterator[str]:
    """Say for each encoder of the model what keeps it from being the checkpoint's encoder."""
    own, given = list(own), set(given)
    shapes = [text for text in mismatched if _is_encoder(text)]
    if shapes:
        more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        yield f"other shapes (checkpoint -> model): {shapes[0]}{more}"
    for encoder in ENCODERS:
        names = [name for name in own if name.split(".")[0] == encoder]
        if names and not given.intersection(names):
            yield f"{encoder}.* is missing from the checkpoint"
            continue
        mine, theirs = ({_block(n, encoder) for n in x} - {None} for x in (own, given))
        if not names:
            continue
        if surplus := theirs - mine:
            yield f"{encoder} blocks {_span(surplus)} of the checkpoint are unused"
        if lacking := mine - theirs:
            yield f"{encoder} blocks {_span(lacking)} are missing from the checkpoint"
        single = [n for n in names if n not in given and _block(n, encoder) not in lacking]
        if single:
            yield f"the checkpoint lacks {_folded(single, 3)}, e.g. {single[0]}"


def _is_encoder(name: str) -> bool:
    return name.split(".")[0] in ENCODERS


def _block(name: str, encoder: str) -> int | None:
    """Return the number of the encoder's block that a weight belongs to, None for others."""
    match = _BLOCK.match(name)
    return int(match[2]) if match and match[1] == encoder else None


def _span(numbers: Iterable[Any]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}..{high}"


def _folded(names: Iterable[str], limit: int | None = None) -> str:
    """List names by family, encoder.blocks.* or head.*, with the number of tensors in each."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(":")[0].split(".")
        kept = 2 if parts[0] in ENCODERS and len(parts) > 2 else 1
        counts[".".join([*parts[:kept], "*"] if len(parts) > 1 else parts)] += 1
    shown = [f"{n} ({c})" if n.endswith("*") else n for n, c in list(counts.items())[:limit]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
