"""Pre-trained weights for fine-tuning: compared by name and shape, judged, told in a few lines."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from hicmae.training import trained
from hicmae.training.trained import Trained

logger = logging.getLogger(__name__)

ENCODERS = ("encoder.", "encoder_audio.", "encoder_fusion.")
MIN_SHARE = 0.5  # less than this of the encoders' weights cannot be meant as pre-training
_FAMILY = re.compile(r"(encoder(?:_audio|_fusion)?\.(?:blocks(?:_audio)?\.\d+|\w+)|\w+)\.")


class LoadReport(NamedTuple):
    """Names of weights by what happens to them."""

    loaded: list[str]  # in both, same shape
    new: list[str]  # in the model only; they keep their initial values
    unused: list[str]  # in the checkpoint only
    mismatched: list[str]  # in both, as "name: (checkpoint) -> (model)"; not loaded
    share: float  # of the model's encoder weights (counted in numbers) that is loaded, 0..1
    problems: list[str]  # reasons why encoders do not fit


def load_pretrained(
    model: nn.Module,
    source: str | Path | Trained | Mapping[str, Any],
    allow_partial: bool = False,
    require_all: bool = False,
) -> LoadReport:
    """Copy every weight whose name and shape fit into the model, and report the rest.

    `source` is what `trained.read` takes or returns, or the content of a file. Decoders, mask
    tokens and projections of a pre-training checkpoint are left over, as are streams that the model
    lacks; the classifier's head, `fc_norm` and layer weights stay new. `allow_partial` accepts
    encoders of another depth or with missing weights, as long as half of the model's encoder
    weights are found. `require_all`, for testing without training, refuses when any weight of the
    model is not loaded.

    Raises:
        ValueError: the checkpoint does not fit; the model is as it was.
    """
    if isinstance(source, Mapping):
        source = trained.describe(source, "the given weights")
    elif not isinstance(source, Trained):
        source = trained.read(source)
    name, weights = f"'{source.source}'", source.weights
    report = compare(model, weights)
    enough = report.share >= MIN_SHARE
    if report.problems and not (allow_partial and enough):
        raise ValueError(
            f"{name} does not fit the model's encoders ({report.share:.0%} of their weights are "
            f"in it): {'; '.join(report.problems)}; choose the --model, depths and "
            f"--init_values of the checkpoint{', or add --allow_partial' if enough else ''}"
        )
    if require_all and (lacking := report.new + report.mismatched):
        raise ValueError(
            f"{name} lacks weights of the model: {_folded(lacking)}; testing needs a fine-tuned "
            "checkpoint of the same model"
        )
    order, fusion = source.settings.get("fusion_order"), getattr(model, "encoder_fusion", None)
    if fusion is not None and order not in (None, fusion.order):
        logger.warning(
            "%s was trained with --fusion_order %s, this model has --fusion_order %s: the fusion "
            "layers have to learn the new order",
            *(name, order, fusion.order),
        )
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    parts = {
        "new, keep their initial values": _folded(report.new),
        "left over in the checkpoint": _folded(report.unused),
        "of another shape, not loaded": ", ".join(report.mismatched[:6]),
        "accepted although": "; ".join(report.problems),
    }
    logger.info(
        "loaded %d of %d tensors (%.1f%% of the encoder weights) from %s%s",
        *(len(report.loaded), len(model.state_dict()), 100 * report.share, name),
        "".join(f"\n  {what}: {names}" for what, names in parts.items() if names),
    )
    return report


def compare(model: nn.Module, weights: Mapping[str, Tensor]) -> LoadReport:
    """Compare a state dict with a model's by name and shape, without changing the model."""
    own = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    both = [name for name in own if name in given]
    loaded = [name for name in both if own[name] == given[name]]
    other = {n: f"{n}: {given[n]} -> {own[n]}" for n in both if own[n] != given[n]}
    sizes = {n: w.numel() for n, w in model.state_dict().items() if n.startswith(ENCODERS)}
    streams, families = {name.split(".")[0] for name in sizes}, set(map(_family, own))
    lacking = [name for name in sizes if name not in given]
    blocks = [name for name in given if name.split(".")[0] in streams and ".blocks" in name]
    surplus = [name for name in blocks if _family(name) not in families]
    wrong = [text for name, text in other.items() if name in sizes]
    problems = {
        f"the checkpoint lacks {_folded(lacking)}": lacking,
        f"it has no more than {_folded(weights)}": lacking and not both,
        f"its {_folded(surplus)} would be unused": surplus,
        f"other shapes (checkpoint -> model): {', '.join(wrong[:2])}, {len(wrong)} in all": wrong,
    }
    return LoadReport(
        loaded,
        new=[name for name in own if name not in given],
        unused=[name for name in given if name not in own],
        mismatched=list(other.values()),
        share=sum(sizes.get(n, 0) for n in loaded) / sum(sizes.values()) if sizes else 1.0,
        problems=[text for text, there in problems.items() if there],
    )


def _family(name: str) -> str:
    """Return encoder.blocks.3.* for a weight of an encoder's block, encoder.norm.*, else head.*."""
    match = _FAMILY.match(name)
    return f"{match[1]}.*" if match else name.split(":")[0]


def _folded(names: Iterable[str], limit: int = 8) -> str:
    """List families of names with the number of tensors in each."""
    counts = Counter(map(_family, names))
    shown = [f"{n} ({c})" if n.endswith("*") else n for n, c in list(counts.items())[:limit]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
