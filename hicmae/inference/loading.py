"""From an export, a weights file or a .pth to a model that holds only what it needs."""

from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import hicmae  # noqa: F401  (registers the models)
from hicmae.inference.checkpoints import read_checkpoint
from hicmae.inference.export import CONFIG, EXPORT, METADATA, WEIGHTS
from hicmae.inference.model_config import ModelConfig, parse_config
from hicmae.training import checkpoint

# Parameters that only one stream of a model of both needs.
STREAMS = {
    "v": ("encoder", "video_layer_weights", "encoder_fusion.blocks", "encoder_fusion.norm"),
    "a": (
        "encoder_audio",
        "audio_layer_weights",
        "encoder_fusion.blocks_audio",
        "encoder_fusion.norm_audio",
    ),
}
ReadWeights = Callable[[set[str]], dict[str, Tensor]]


def load_model(
    path: str | Path, streams: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, ModelConfig]:
    """Build the model that a file or folder describes.

    Args:
        path: export folder, its parent, the output folder of a run, model.safetensors, or a .pth.
        streams: "a" or "v" leaves the other encoder of a model of both out; None takes all.
        device: where the model goes.

    Returns:
        The model in evaluation mode, and its description.

    Raises:
        FileNotFoundError, ValueError: in one line.
    """
    config, read = open_weights(Path(path))
    model = build(config)
    if streams is not None and config.modality == "av":
        for dropped in set(config.modality) - set(streams):
            _leave_out(model, dropped)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = read(set(wanted))
    if config.task == "pretraining":  # it has no classifier
        wanted = {n: s for n, s in wanted.items() if n.startswith(("encoder", "encoder_audio"))}
    wrong = [n for n, shape in wanted.items() if n not in weights or weights[n].shape != shape]
    if wrong:
        raise ValueError(
            f"the weights of '{path}' do not fit its description: {len(wrong)} are missing or of "
            f"another shape, e.g. {wrong[0]}; export the checkpoint again"
        )
    model.load_state_dict(weights, strict=False, assign=True)
    return model.eval().requires_grad_(False).to(device), config


def build(config: ModelConfig) -> nn.Module:
    """Create the classifier of a description, with random weights."""
    sizes, clip = config.architecture, config.preprocessing
    return timm.create_model(
        sizes.model,
        num_classes=max(len(config.names), 1),
        depth=sizes.depth,
        depth_audio=sizes.depth_audio,
        fusion_depth=sizes.fusion_depth,
        init_values=sizes.init_values,
        head_activation=sizes.head_activation,
        modality=config.modality,
        num_frames=clip.num_frames,
        img_size=clip.input_size,
        img_size_audio=clip.input_size_audio,
        tubelet_size=clip.tubelet_size,
        **sizes.options,
    )


def open_weights(path: Path) -> tuple[ModelConfig, ReadWeights]:
    """Return the description of what `path` names, and what reads its weights by name."""
    path = find_weights(path)
    if path.suffix != ".safetensors":
        config, weights = read_checkpoint(path)
        return config, lambda names: {name: weights[name] for name in names & weights.keys()}

    def read(names: set[str]) -> dict[str, Tensor]:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names & set(file.keys())}

    try:
        with safe_open(path, "pt") as file:
            embedded = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged or no safetensors file: {error}") from None
    beside = path.with_name(CONFIG)
    if beside.is_file():  # first, as people may have edited it
        return parse_config(beside.read_text(encoding="utf-8"), beside), read
    if embedded is None:
        raise FileNotFoundError(f"'{path}' describes no model and there is no '{beside}'")
    return parse_config(embedded, path), read


def find_weights(path: Path) -> Path:
    """Return the weights file that a path means: itself, or the best there is in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"checkpoint '{path}' does not exist; name a folder with {WEIGHTS}, the output folder "
            "of a run, or a .pth"
        )
    places = [path / kind for kind in ("", f"{EXPORT}/best", f"{EXPORT}/last", "best", "last")]
    for place in places:
        if (place / WEIGHTS).is_file():
            return place / WEIGHTS
    if (path / "checkpoint-best.pth").is_file():
        return path / "checkpoint-best.pth"
    numbered = checkpoint.numbered(path)
    if not numbered:
        raise FileNotFoundError(
            f"'{path}' holds no {WEIGHTS} and no checkpoint-*.pth; is it the folder of a run?"
        )
    return numbered[-1][1]


def _leave_out(model: nn.Module, stream: str) -> None:
    """Take the parameters that only `stream` needs out of a model of both."""
    for name in STREAMS[stream]:
        owner_name, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner_name), attribute, None)
