"""Find the two halves of the clips: folders of face frames and wavs, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")  # what hicmae.data.video reads
ALIGNED = "_aligned"  # OpenFace's and extract_face's ending of a folder of faces
SHOWN = 8  # entries of a folder that a message names


class Halves(NamedTuple):
    """Files of one kind by the name of their clip.

    `unusable` holds what has a clip's name but cannot serve: name -> (kind of reason, detail).
    """

    paths: dict[str, str]
    unusable: dict[str, tuple[str, str]]


def frame_folders(root: str) -> Halves:
    """Find folders that directly hold pictures; `x/x_aligned/` and `x/` are both clip x."""
    paths: dict[str, str] = {}
    unusable: dict[str, tuple[str, str]] = {}
    for folder, subfolders, names in _walk(root, unusable):
        if any(_is_frame(name) for name in names):
            subfolders.clear()  # frames lie in a folder of their own
            _add(paths, unusable, os.path.basename(folder).removesuffix(ALIGNED), folder)
        elif not subfolders and folder != root:
            name = os.path.basename(folder).removesuffix(ALIGNED)
            unusable.setdefault(name, ("no face frames", f"'{folder}' holds no picture"))
    return Halves(paths, {name: why for name, why in unusable.items() if name not in paths})


def wav_files(root: str) -> Halves:
    """Find the wavs under a folder; the name of the clip is the name of the file."""
    paths: dict[str, str] = {}
    unusable: dict[str, tuple[str, str]] = {}
    for folder, _, names in _walk(root, unusable):
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() == ".wav" and not name.startswith("."):
                _add(paths, unusable, stem, os.path.join(folder, name))
    return Halves(paths, unusable)


def find_folder(root: str, flag: str, chosen: str | None, candidates: Sequence[str]) -> str:
    """Return the folder that holds one kind of files.

    Args:
        root: --data_root.
        flag: "--video_dir" or "--audio_dir", for the message.
        chosen: its value, absolute or relative to the root; None looks for the candidates.
        candidates: places under the root, best first.
    """
    for candidate in candidates if chosen is None else [chosen]:
        folder = os.path.normpath(os.path.join(root, candidate))
        if os.path.isdir(folder):
            return folder
    expected = " or ".join(f"'{name}'" for name in (candidates if chosen is None else [chosen]))
    raise FileNotFoundError(
        f"expected the folder {expected} in '{root}', found {contents(root)}; give {flag}"
    )


def find_file(root: str, candidates: Sequence[str], purpose: str) -> str:
    """Return the first of the candidate files under a root; say what the file is for if none is."""
    for candidate in candidates:
        path = os.path.join(root, candidate)
        if os.path.isfile(path):
            return path
    expected = " or ".join(f"'{name}'" for name in candidates)
    raise FileNotFoundError(
        f"expected {expected} in '{root}' ({purpose}), found {contents(root)}; "
        "it comes with the data set"
    )


def contents(folder: str) -> str:
    """Name what is in a folder, shortened."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name + ("/" if e.is_dir() else "") for e in entries)
    except OSError as error:
        return f"that it cannot be read ({error.strerror})"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more if names else "nothing"


def _is_frame(name: str) -> bool:
    return name.lower().endswith(FRAME_EXTENSIONS) and not name.startswith(".")


def _add(paths: dict[str, str], unusable: dict[str, tuple[str, str]], name: str, path: str) -> None:
    """Note a file under its clip's name; of two with one name, neither can be chosen."""
    if name in paths:
        detail = f"'{paths.pop(name)}' and '{path}'"
        unusable[name] = ("two of one name", detail)
    elif unusable.get(name, ("",))[0] != "two of one name":
        paths[name] = path


def _walk(
    root: str, unusable: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, subfolders, file names) top down, links followed, each folder once.

    A subfolder taken out of its list is not entered. Folders that cannot be read go to `unusable`.
    """
    pending, linked = [root], {os.path.realpath(root)}
    while pending:
        folder = pending.pop()
        subfolders, names = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir():
                        names.append(entry.name)
                    elif not entry.is_symlink() or os.path.realpath(entry.path) not in linked:
                        if entry.is_symlink():
                            linked.add(os.path.realpath(entry.path))
                        subfolders.append(entry.path)
        except OSError as error:
            if folder == root:
                raise
            name = os.path.basename(folder).removesuffix(ALIGNED)
            unusable[name] = ("cannot be read", f"'{folder}': {error.strerror}")
            continue
        yield folder, subfolders, sorted(names)
        pending += sorted(subfolders, reverse=True)
