"""Names of classes and regression outputs, in the order of their numbers."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# In the order of the lists that preprocess/ makes, which is that of the published protocols.
DATA_SETS = {
    ("cremad", 6): ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
    ("cremad", 4): ("ANG", "HAP", "NEU", "SAD"),
    ("mafw", 11): tuple(
        "anger disgust fear happiness neutral sadness surprise contempt anxiety helplessness "
        "disappointment".split()
    ),
    ("ravdess", 8): tuple("neutral calm happy sad angry fearful disgust surprised".split()),
    ("mspimprov", 4): ("A", "H", "N", "S"),
    ("werewolfxl", 3): ("valence", "arousal", "dominance"),
}


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read a file of names, one a line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(
            f"'{path}' is no file; expected the names of classes or outputs, one a line"
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def chosen_names(chosen: Sequence[str], count: int) -> tuple[str, ...]:
    """Read --class_names: the names themselves, one file with a name a line, or a data set's name.

    Args:
        chosen: values of the flag.
        count: number of classes or outputs.

    Raises:
        ValueError: not `count` names, or one twice.
    """
    names = tuple(chosen)
    if len(names) == 1:
        known = data_set_names(names[0], count)
        names = known if known else read_names(names[0])
    return checked(names, count, "--class_names")


def checked(names: Sequence[str], count: int, source: str) -> tuple[str, ...]:
    """Refuse names that are not as many as the outputs, or not distinct."""
    if len(names) != count:
        raise ValueError(
            f"{source} gives {len(names)} names ({', '.join(names)[:80]}), expected {count}, one "
            "for each class or output"
        )
    if len(set(names)) != count:
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"{source} gives the name '{twice}' twice; names must differ")
    return tuple(names)


def data_set_names(data_set: str, count: int) -> tuple[str, ...]:
    """Return the names of a known data set's classes, () for an unknown one."""
    key = re.sub(r"[^a-z0-9]", "", data_set.lower())
    return DATA_SETS.get((key, count), ())


def names_of_run(settings: dict[str, Any], task: str, count: int) -> tuple[str, ...]:
    """Return the names for a model by the settings it was trained with.

    The flag --class_names comes first, then classes.txt (regression: targets.txt) in the folder of
    the lists or in the one above, then the table of known data sets, then "class 0", "class 1".

    Args:
        settings: flags by name.
        task: "classification" or "regression".
        count: number of classes or outputs.
    """
    if settings.get("class_names"):
        return chosen_names(settings["class_names"], count)
    folder = Path(settings.get("data_path") or ".")
    if settings.get("data_path"):
        for place in (folder, folder.parent):
            path = place / ("classes.txt" if task == "classification" else "targets.txt")
            if path.is_file():
                names = read_names(path)
                if len(names) == count == len(set(names)):
                    return names
                logger.warning("%s has %d names for %d outputs: unused", path, len(names), count)
    known = data_set_names(str(settings.get("data_set") or ""), count)
    word = "class" if task == "classification" else "output"
    return known or tuple(f"{word} {k}" for k in range(count))
