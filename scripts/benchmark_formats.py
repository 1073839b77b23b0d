"""What scripts/benchmark.py measures of a classifier's formats: speed, size and answers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from hicmae.inference import formats, forward
from hicmae.inference.commands import read_items
from hicmae.inference.export import export_checkpoint
from hicmae.inference.recognizer import EmotionRecognizer
from hicmae.training.checkpoint import WEIGHTS
from hicmae.training.evaluate import classification_metrics
from hicmae.training.run import Precision
from scripts import benchmark_models as models
from scripts.benchmark import SIZES, BenchmarkConfig, FormatsConfig, written

CPU = torch.device("cpu")
COLUMNS = {
    "one clip, p50": ("p50_ratio", "{:.2f}x"),
    "p95": ("p95_ratio", "{:.2f}x"),
    "clips a second": ("throughput_ratio", "{:.2f}x"),
    "the same in CPU time": ("cpu_ratio", "{:.2f}x"),
    "MB": ("megabytes", "{:.1f}"),
    "largest difference": ("difference", "{:.0e}"),
    "same class": ("same", "{:.1%}"),
    "UAR": ("uar", "{:.2f}"),
}


def run_formats(config: FormatsConfig) -> dict[str, Any]:
    """Measure the formats, see `scripts.benchmark`."""
    items = read_items(config.data_path) if config.data_path != "-" else []
    few = [clip for clip, _ in formats.spread(items)]
    compared, reading = (few, {}) if few else ([formats.sample_film()], {"faces": "cut"})
    with TemporaryDirectory(prefix="hicmae-formats-") as name:
        folder = Path(name)
        plain = EmotionRecognizer.from_checkpoint(_exported(config, folder), "cpu", "fp32")
        kinds = {"fp32": plain, "bf16": replace(plain, precision=Precision("bf16", CPU))}
        sizes = dict.fromkeys(kinds, (folder / WEIGHTS).stat().st_size)
        for kind in ("onnx", "int8"):
            path = folder / formats.FORMATS[kind].file
            source = folder / formats.FORMATS["onnx"].file if kind == "int8" else ""
            formats.write(plain, path, kind, compared, source, **reading)
            kinds[kind] = replace(plain, model=formats.open_onnx(path)[0])
            sizes[kind] = path.stat().st_size
    single, many = (_times(kinds, config, count) for count in (1, config.batch_size))
    low, high = (single.groupby("variant").wall.quantile(q) for q in (0.5, 0.95))
    spent = many.groupby("variant").cpu.median()
    rates = config.batch_size / many.groupby("variant").wall.median()
    rows = {}
    for kind, recognizer in kinds.items():
        rows[kind] = {
            "p50_s": low[kind],
            "p95_s": high[kind],
            "clips_per_s": rates[kind],
            "p50_ratio": low["fp32"] / low[kind],
            "p95_ratio": high["fp32"] / high[kind],
            "cpu_ratio": spent["fp32"] / spent[kind],
            "throughput_ratio": rates[kind] / rates["fp32"],
            "megabytes": sizes[kind] / 1e6,
            **formats.compare(plain, recognizer, compared, **reading),
            **({"uar": _uar(recognizer, items)} if items else {}),
        }
    cells = [{"format": kind} | written(row, COLUMNS) for kind, row in rows.items()]
    device = f"cpu ({models.processor()}), {torch.get_num_threads()} threads"
    title = config.checkpoint or f"random weights of HiCMAE-{config.model.upper()}"
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    about = {"device": device, "model": title, "batch_size": config.batch_size}
    return {"text": f"{title}, {device}:\n\n{table}", **about, "formats": rows}


def _exported(config: FormatsConfig, folder: Path) -> Path:
    """Write the classifier to a folder, in fp32."""
    if config.checkpoint:
        return export_checkpoint(config.checkpoint, folder)
    size = SIZES[config.model]
    options = BenchmarkConfig(model=config.model, seed=config.seed)
    torch.save(models.make_model("infer", options).state_dict(), folder / "random.pth")
    clip = {"num_frames": size.num_frames, "input_size": size.side, "input_size_audio": size.audio}
    return export_checkpoint(folder / "random.pth", folder, sampling_rate=4, **clip)


def _times(kinds: dict[str, EmotionRecognizer], config: FormatsConfig, count: int) -> pd.DataFrame:
    """Time the network of each format on so many random clips, see `models.measure_in_turns`."""
    clip = kinds["fp32"].config.preprocessing
    generator = torch.Generator().manual_seed(config.seed)
    side = (clip.input_size, clip.input_size)
    video = torch.randn(count, 3, clip.num_frames, *side, generator=generator)
    audio = torch.randn(count, 1, *clip.input_size_audio, generator=generator)

    def step(recognizer: EmotionRecognizer) -> None:
        streams = recognizer.config.modality
        given = (video if "v" in streams else None, audio if "a" in streams else None)
        with torch.inference_mode(), recognizer.precision.autocast():
            forward.scores(recognizer.model, *given)

    steps = {kind: (lambda r=recognizer: step(r)) for kind, recognizer in kinds.items()}
    return models.measure_in_turns(steps, config.steps, config.warmup, CPU)


def _uar(recognizer: EmotionRecognizer, items: Sequence[tuple[Any, list[str]]]) -> float:
    """Return the UAR of the test protocol, in percent."""
    answers = recognizer.each([clip for clip, _ in items], protocol="test")
    scores = [[*answer.scores.values()] for answer in answers]
    labels = [int(label[0]) for _, label in items]
    return 100 * float(classification_metrics(labels, scores)["uar"])
