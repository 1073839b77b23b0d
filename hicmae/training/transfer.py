"""Which weights of a checkpoint fit a model: compared by name, judged, and told in a few lines."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from hicmae.training.changes import BEFORE, all_flags

ENCODERS = ("encoder", "encoder_audio", "encoder_fusion")
MIN_SHARE = 0.5  # less than this of the encoders' weights cannot be meant as pre-training
_BLOCK = re.compile(r"(encoder|encoder_audio|encoder_fusion)\.blocks(?:_audio)?\.(\d+)\.")


def weights_of(content: Mapping[str, Any], model_key: str, source: str) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint and strip the prefixes of DDP and torch.compile.

    Args:
        content: a checkpoint, or itself a state dict.
        model_key: names under which the weights may stand, split by "|".
        source: what to call the checkpoint in messages.
    """
    keys = [key for key in model_key.split("|") if isinstance(content.get(key), Mapping)]
    weights = content[keys[0]] if keys else content
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise ValueError(
            f"{source} holds no weights: expected a state dict under "
            f"{' or '.join(repr(key) for key in model_key.split('|'))}, got the keys {found}"
        )
    return {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): w for name, w in weights.items()}


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
                f"{_folded(self.unused, 6)}; the model has "
                f"{_folded(self.new, 6)}; is it a HiCMAE checkpoint of this --model?"
            )
        if self.problems and not allow_partial:
            raise ValueError(
                f"{self.source} does not fit the model's encoders: {'; '.join(self.problems)}; "
                "choose the --model and depths of the checkpoint, or add --allow_partial"
            )
        if self.share < MIN_SHARE:
            loaded = _folded(self.loaded, 6) or "nothing"
            raise ValueError(
                f"only {self.share:.0%} of the model's encoder weights are in {self.source}, "
                f"expected at least {MIN_SHARE:.0%}: loaded {loaded}; "
                "choose the --model and depths of the checkpoint"
            )
        if require_all and self._ignores_layer_weights():
            raise ValueError(
                f"{self.source} has layer weights, which this model does not read; test it without "
                "--no-hierarchical_fusion, as it was trained"
            )
        if require_all and (self.new or self.mismatched):
            raise ValueError(
                f"{self.source} lacks weights of the model: "
                f"{_folded(self.new + self.mismatched, 6)}; testing needs a fine-tuned checkpoint "
                "of the same model and --nb_classes"
            )

    def _ignores_layer_weights(self) -> bool:
        own = (*self.loaded, *self.new, *self.mismatched)
        return _has_layer_weights(self.unused) and not _has_layer_weights(own)

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
    loaded = tuple(n for n, w in own.items() if n in weights and weights[n].shape == w.shape)
    wrong = tuple(n for n, w in own.items() if n in weights and weights[n].shape != w.shape)
    new = tuple(name for name in own if name not in weights)
    unused = tuple(name for name in weights if name not in own)
    encoder_size = sum(w.numel() for name, w in own.items() if _is_encoder(name))
    found = sum(own[name].numel() for name in loaded if _is_encoder(name))
    shapes = {n: f"{n}: {tuple(weights[n].shape)} -> {tuple(own[n].shape)}" for n in wrong}
    return LoadReport(
        source=source,
        loaded=loaded,
        new=new,
        unused=unused,
        mismatched=tuple(shapes.values()),
        share=found / encoder_size if encoder_size else 1.0,
        problems=tuple(_problems(own, weights, shapes)),
    )


def _problems(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], shapes: Mapping[str, str]
) -> list[str]:
    """Say for each encoder of the model what keeps it from being the checkpoint's encoder."""
    problems = []
    encoder_shapes = [text for name, text in shapes.items() if _is_encoder(name)]
    if encoder_shapes:
        more = f" and {len(encoder_shapes) - 1} more" if len(encoder_shapes) > 1 else ""
        problems.append(f"other shapes (checkpoint -> model): {encoder_shapes[0]}{more}")
    mine, theirs = _blocks(own), _blocks(weights)
    for encoder in ENCODERS:
        names = [name for name in own if name.split(".")[0] == encoder]
        if not names:
            continue
        if not any(name in weights for name in names):
            problems.append(f"{encoder}.* is missing from the checkpoint")
            continue
        if surplus := theirs[encoder] - mine[encoder]:
            problems.append(f"{encoder} blocks {_span(surplus)} of the checkpoint are unused")
        if lacking := mine[encoder] - theirs[encoder]:
            problems.append(f"{encoder} blocks {_span(lacking)} are missing from the checkpoint")
        single = [n for n in names if n not in weights and _block_of(n) not in lacking]
        if single:
            problems.append(f"the checkpoint lacks {_folded(single, 3)}, e.g. {single[0]}")
    return problems


def other_fusion_order(model: nn.Module, content: Mapping[str, Any], source: str) -> str:
    """Say that a checkpoint's fusion layers were trained in another order, which no weight shows.

    Args:
        model: that gets the weights.
        content: of the checkpoint; one without settings is not judged.
        source: what to call it.

    Returns:
        One line, empty if there is nothing to say.
    """
    fusion, settings = getattr(model, "encoder_fusion", None), content.get("args")
    if fusion is None or not settings:
        return ""
    order = {**BEFORE, **all_flags(settings)}["fusion_order"]
    if order == fusion.order:
        return ""
    return (
        f"{source} was trained with --fusion_order {order}, this model has --fusion_order "
        f"{fusion.order}"
    )


def _has_layer_weights(names: Iterable[str]) -> bool:
    return any(name.endswith("_layer_weights") for name in names)


def _is_encoder(name: str) -> bool:
    return name.split(".")[0] in ENCODERS


def _block_of(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[2]) if match else None


def _blocks(names: Iterable[str]) -> dict[str, set[int]]:
    """Return the block numbers that occur for each encoder."""
    found: dict[str, set[int]] = {encoder: set() for encoder in ENCODERS}
    for name in names:
        if match := _BLOCK.match(name):
            found[match[1]].add(int(match[2]))
    return found


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}..{high}"


def _fold(name: str) -> str:
    """Shorten a name to its family: encoder.blocks.3.attn.proj.bias -> encoder.blocks.*."""
    parts = name.split(":")[0].split(".")
    if parts[0] in ENCODERS and len(parts) > 2:
        return f"{parts[0]}.{parts[1]}.*"
    return f"{parts[0]}.*" if len(parts) > 1 else parts[0]


def _folded(names: Iterable[str], limit: int | None = None) -> str:
    """List the families of names with the number of tensors in each."""
    counts: dict[str, int] = {}
    for name in names:
        counts[_fold(name)] = counts.get(_fold(name), 0) + 1
    shown = [f"{n} ({c})" if n.endswith("*") else n for n, c in list(counts.items())[:limit]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
