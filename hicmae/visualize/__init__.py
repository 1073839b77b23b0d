"""Pictures of results: ``python -m hicmae.visualize --help`` lists them."""

from hicmae.config.flags import Settings, option

CHECKPOINT = "checkpoint, or its run; of a classifier also its export"
DRAWN = "clips drawn at random; 0: all, of reconstruction and attention the first"
SEEDS = "of draw, windows, crops and masks (default: 0, of a pre-training the training's)"


class Clips(Settings):
    """Model and clips."""

    checkpoint: str = option("", CHECKPOINT, required=True, metavar="FILE")
    data_path: str = option("", "list that fits it, or its folder", required=True, metavar="LIST")
    data_root: str = option("", "start of relative paths", metavar="DIR")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ... or mps")
    num_clips: int = option(0, DRAWN)
    seed: int | None = option(None, SEEDS)
