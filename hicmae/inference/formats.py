"""A classifier as one file for other programs: ONNX or torch.export; and an .onnx as a model.

Inputs are `video` (B, 3, T, H, W) and `audio` (B, 1, T, F), normalised, as far as the model reads
them; the output `scores` (B, K) holds logits, to be divided by the temperature, or the values of a
regression. The config.json of an export is in the file under `hicmae_config`. A file is written
only where it answers as PyTorch does, see `write`.
"""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hicmae.inference.model import ModelConfig, parse_config
from hicmae.io import one_line, whole_file
from hicmae.training.checkpoint import BUNDLED, CONFIG, METADATA
from hicmae.training.trained import read_config

if TYPE_CHECKING:
    from hicmae.inference.recognizer import EmotionRecognizer

logger = logging.getLogger(__name__)


class Format(NamedTuple):
    """A kind of file, and how near its answers must be to PyTorch's."""

    file: str  # its name in a folder
    difference: float  # at most, of a probability, or of a value as a share of it where that is > 1
    same: float  # share of windows, at least, whose likeliest class is the same


FORMATS = {
    "onnx": Format("model.onnx", 1e-4, 0.99),
    "int8": Format("model_int8.onnx", 0.15, 0.9),
    "torch": Format("model.pt2", 1e-4, 0.99),
}
COMPARED = 16  # clips that formats are compared on
EXAMPLE = BUNDLED["toy"] / "example.mp4"  # six drawn films, joined; where there are no clips


class Graph(nn.Module):
    """A classifier that another program runs; `run` takes the streams that it reads, in order."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, video: Tensor | None, audio: Tensor | None) -> Tensor:
        """Return (B, K) logits or regression outputs; a stream that is not read is None."""
        return self.run(*(stream for stream in (video, audio) if stream is not None))


def inputs_of(modality: str) -> list[str]:
    """Return the names of the inputs, the streams that are read, in order."""
    return [name for name in ("video", "audio") if name[0] in modality]


def need(package: str) -> ModuleType:
    """Import an optional package; ValueError, in one line, where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        text = f"ONNX needs the package {package}, which is missing ({one_line(error)})"
        raise ValueError(f"{text}: pip install onnx onnxscript onnxruntime") from None


def open_onnx(path: str | Path) -> tuple[Graph, ModelConfig]:
    """Open an .onnx of `write`, to compute on the CPU. ValueError, in one line."""
    runtime, program = need("onnxruntime"), Path(path).read_bytes()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:  # from its bytes: names need not be UTF-8, and no other file is read
        session = runtime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        text = f"'{path}' is damaged or no ONNX file ({one_line(error)[:120]}); export it again"
        raise ValueError(text) from None
    told = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if told is None:
        raise ValueError(
            f"'{path}' does not say which classes and clips it knows (no {METADATA} in its "
            "metadata); make it with: hicmae-export CHECKPOINT OUTPUT --format onnx"
        )
    config = parse_config(read_config(told, path), path)
    names = [item.name for item in session.get_inputs()]

    def run(*streams: Tensor) -> Tensor:
        arrays = (stream.float().numpy() for stream in streams)
        (scores,) = session.run(None, dict(zip(names, arrays, strict=True)))
        return torch.from_numpy(scores)

    return Graph(run), config


def spread(clips: Sequence[Any]) -> Sequence[Any]:
    """Return `COMPARED` of some clips at most, from all over the list."""
    return clips[:: max(len(clips) // COMPARED, 1)][:COMPARED]


def write(
    recognizer: "EmotionRecognizer", output: Path, name: str, clips: Sequence[Any], **reading: Any
) -> dict[str, float]:
    """Write a format of `FORMATS` to a file, once it answers about the clips as PyTorch does.

    The recognizer computes in fp32 on the CPU; for clips and `reading` see its `each`. Returns how
    the answers compare, see `compare`.

    Raises:
        ValueError: the answers differ by more than the format may, and nothing is written; no clip
            can be read; a package is missing.
    """
    model, config, kind = recognizer.model, recognizer.config, FORMATS[name]
    if config.task == "pretraining":
        raise ValueError(
            f"this is a pre-training checkpoint, expected a classifier for --format {name}; "
            "fine-tune it first, or export it with --format hub"
        )
    with whole_file(output) as part:
        with _quiet():
            if name == "torch":
                told = {CONFIG: config.to_json()}
                torch.export.save(_program(model, config), part, extra_files=told)
                graph = Graph(torch.export.load(part).module())
            else:
                write_onnx(model, config, part, name == "int8")
                graph, _ = open_onnx(part)
        found = compare(recognizer, replace(recognizer, model=graph), clips, **reading)
        text = (
            f"{name} and PyTorch about {found['windows']:.0f} windows (clips: "
            f"{found['clips']:.0f}): largest difference {found['difference']:.1e} (at most "
            f"{kind.difference:g}), same class {found['same']:.1%} (at least {kind.same:.0%})"
        )
        if not (found["difference"] <= kind.difference and found["same"] >= kind.same):
            raise ValueError(f"{text}: '{output}' is not written; take another format")
    logger.info("%s; written: %s, %.1f MB", text, output, output.stat().st_size / 1e6)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what libraries say of each other and of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def compare(
    one: "EmotionRecognizer", other: "EmotionRecognizer", clips: Sequence[Any], **reading: Any
) -> dict[str, float]:
    """Ask two recognizers about clips.

    Returns the number of `clips` and `windows`, the largest `difference` of a probability (or of a
    value, as a share of it where that is above 1), and the share of windows of the `same` class.
    """
    both = [list(r.each(clips, on_error="return", **reading)) for r in (one, other)]
    failed = [answer.reason for answer in both[0] if hasattr(answer, "reason")]
    if len(failed) == len(clips):
        raise ValueError(
            f"none of {len(clips)} clips to compare with can be read, the last: {failed[-1]}; name "
            "a list with --data_path"
        )
    read = ([window for a in answers for window in getattr(a, "windows", ())] for answers in both)
    mine, theirs = (np.array([[*w.scores.values()] for w in part if w.scores]) for part in read)
    is_same = mine.argmax(axis=1) == theirs.argmax(axis=1)
    is_class = one.config.task == "classification"
    return {
        "clips": len(clips) - len(failed),
        "windows": len(mine),
        "difference": float((np.abs(mine - theirs) / np.maximum(np.abs(mine), 1)).max()),
        "same": float(is_same.mean()) if is_class else 1.0,
    }


def write_onnx(model: nn.Module, config: ModelConfig, path: Path, int8: bool = False) -> None:
    """Write an ONNX file; `int8` weights have 8 bits, and activations where they meet these."""
    onnx, _ = need("onnx"), need("onnxscript")
    names: Any = {"input_names": inputs_of(config.modality), "output_names": ["scores"]}
    program: Any = torch.onnx.export(_program(model, config), dynamo=True, verbose=False, **names)
    proto = program.model_proto
    if int8:
        quantization = need("onnxruntime.quantization")
        with TemporaryDirectory() as folder:
            whole, ready, small = (Path(folder, name) for name in ("whole", "ready", "small"))
            onnx.save(proto, whole)
            quantization.quant_pre_process(whole, ready, skip_symbolic_shape=True)
            quantization.quantize_dynamic(ready, small, per_channel=True)
            proto = onnx.load(small)
    onnx.helper.set_model_props(proto, {METADATA: config.to_json()})
    onnx.save(proto, path)


def _program(model: nn.Module, config: ModelConfig) -> torch.export.ExportedProgram:
    """Trace a model for any number of clips; streams that it does not read are no inputs."""
    clip, batch = config.preprocessing, {0: torch.export.Dim("batch")}
    shapes = {
        "video": (3, clip.num_frames, clip.input_size, clip.input_size),
        "audio": (1, *clip.input_size_audio),
    }
    names = inputs_of(config.modality)
    examples = tuple(torch.zeros(2, *shapes[name]) for name in names)
    sizes = (tuple(batch for _ in names),)
    return torch.export.export(_Read(model, names), examples, dynamic_shapes=sizes)


class _Read(nn.Module):
    """A classifier called with the streams that it reads."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *streams: Tensor) -> Tensor:
        given = dict(zip(self.names, streams, strict=True))
        return self.model(given.get("video"), given.get("audio"))
