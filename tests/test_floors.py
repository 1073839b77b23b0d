"""Imports go one way: no room of the house knows those above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    ["io"],
    ["data", "models", "faces"],
    ["config"],
    ["training"],
    ["inference"],
    ["visualize", "report", "knn"],
    ["pretraining", "finetuning"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted((ROOT / "hicmae").rglob("*.py"))


def imported(path):
    """Return every module that a file names in an import, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(ROOT / "hicmae").with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_below(path):
    room = room_of(path)
    if room == "__init__":  # the package offers EmotionRecognizer from its top
        return
    for name in imported(path):
        first, *rest = name.split(".")
        assert first not in ("tests", "preprocess", "scripts", "run_pretraining", "run_finetuning")
        if first == "hicmae" and rest and rest[0] in FLOOR_OF and rest[0] != room:
            assert FLOOR_OF[rest[0]] <= FLOOR_OF[room], f"{path} imports {name}, which is above"


def test_no_two_rooms_know_each_other():
    arrows = set()
    for path in MODULES:
        for name in imported(path):
            first, *rest = name.split(".")
            if first == "hicmae" and rest and rest[0] in FLOOR_OF and room_of(path) in FLOOR_OF:
                arrows.add((room_of(path), rest[0]))
    assert {"data", "models"} <= {room for room, _ in arrows}
    circles = {pair for pair in arrows if pair[::-1] in arrows and pair[0] != pair[1]}
    assert not circles and ("data", "models") not in arrows and ("models", "data") not in arrows
