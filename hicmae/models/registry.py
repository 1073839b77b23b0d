"""What timm's `create_model` hands to our builder functions besides the model's own options."""

from typing import Any

TIMM_EXTRAS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def model_options(pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the options that belong to the model.

    Raises:
        ValueError: weights were asked for by `pretrained=True`; none are hosted.
    """
    if pretrained:
        raise ValueError(
            "pretrained=True: no weights are hosted for HiCMAE; create the model without it and "
            "load a file with hicmae.training.checkpoint.load_pretrained (scripts: --finetune)"
        )
    return {name: value for name, value in kwargs.items() if name not in TIMM_EXTRAS}
