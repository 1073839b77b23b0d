"""Print the tables of ratios for the README, from the JSON files of a folder."""

import argparse
import json
from pathlib import Path
from typing import Any

from hicmae.io import markdown

NAMES = {"pretrain": "pre-training", "finetune": "fine-tuning", "infer": "testing"}
SIZES = {"dim256": "HiCMAE-T", "dim384": "HiCMAE-S", "dim512": "HiCMAE-B"}
HEADER = (
    "task",
    "model",
    "clips a step",
    "arithmetic",
    "faster than plain",
    "in CPU time",
    "per forward pass",
    "memory of plain's",
    "share of measured peak",
    "error against float64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("folder", metavar="FOLDER", help="holds the files that --json wrote")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the files of model benchmarks.

    Raises:
        ValueError: a file that is no JSON object, or none of a model benchmark in the folder.
    """
    rows = []
    for path in sorted(Path(args.folder).glob("*.json")):
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: no JSON ({error}); run its benchmark again") from error
        if isinstance(figures, dict) and figures.get("benchmark") in NAMES:
            rows.append(figures)
    if not rows:
        raise ValueError(
            f"'{args.folder}' holds no JSON file of pretrain, finetune or infer; run "
            "scripts/benchmark.sh"
        )
    return {"rows": rows}


def show(figures: dict[str, Any]) -> str:
    """Make one Markdown table for each device."""
    by_device: dict[str, list[dict[str, Any]]] = {}
    for row in figures["rows"]:
        by_device.setdefault(row["device"], []).append(row)
    texts = []
    for device, rows in by_device.items():
        dates = sorted({row["date"][:10] for row in rows})
        texts.append(f"{device}, {', '.join(dates)}:\n\n{markdown(HEADER, _cells(rows))}")
    return "\n".join(texts)


def _cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    order = list(NAMES)
    rows = sorted(rows, key=lambda r: (order.index(r["benchmark"]), r["model"], r["precision"]))
    return [_row(row) for row in rows]


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    levers = [n for n in ("compile", "cuda_graphs", "checkpoint_activations") if row.get(n)]
    arithmetic = row["precision"] + (f" ({row['cpu_gemm']})" if row.get("cpu_gemm") else "")
    size = row["model"].split()[-1]
    return (
        NAMES[row["benchmark"]],
        SIZES.get(size, size),
        str(row["batch_size"]),
        ", ".join([arithmetic, *(lever.replace("_", " ") for lever in levers)]),
        _times(row.get("ratio")),
        _times(row.get("ratio_cpu_time")),
        _times(row.get("ratio_per_view")),
        _percent(row.get("peak_memory_ratio")),
        _percent(row.get("share_of_peak")),
        f"{row['prediction_error']:.0e}" if "prediction_error" in row else "",
    )


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
