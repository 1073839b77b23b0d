"""Imports go one way: no room of the house knows those above it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    ["io"],
    ["data", "models", "faces"],
    ["config"],
    ["training"],
    ["inference"],
    ["report", "knn"],
    ["visualize"],
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


def test_a_room_imports_only_from_below():
    """So no two rooms know each other, and none another one on its floor."""
    outside, count = ("tests", "preprocess", "scripts", "run_pretraining", "run_finetuning"), 0
    for path in MODULES:
        room = path.relative_to(ROOT / "hicmae").with_suffix("").parts[0]
        for name in imported(path):
            first, second = [*name.split("."), ""][:2]
            assert first not in outside, f"{path} imports {name}"
            # The package offers EmotionRecognizer from its top.
            if first == "hicmae" and second in FLOOR_OF and room not in (second, "__init__"):
                assert FLOOR_OF[second] < FLOOR_OF[room], f"{path} imports {name}, not from below"
                count += 1
    assert count > 100
