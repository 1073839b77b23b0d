"""Compare shards with their indexes, and every frame with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from hicmae.data.shards import SUFFIX, PackedClip, PackedClips, open_packed, read_index
from hicmae.io import UnreadableClip
from preprocess.lists.probe import bounded_map
from preprocess.packing.shards import MEMBERS, index_path, member_places, sha256_of


def verify(folder: Path, num_workers: int) -> tuple[int, list[str]]:
    """Check all shards of a folder, and that no clip is in two.

    Returns:
        Number of clips, and what is wrong, a line each.
    """
    indexes = sorted(folder.glob("*" + SUFFIX))
    problems = [
        f"'{tar}' has no index: it is not whole, delete it"
        for tar in sorted(folder.glob("*.tar"))
        if not index_path(tar).is_file()
    ]
    seen: dict[tuple[str, str | None], str] = {}
    with ThreadPoolExecutor(num_workers) as executor:  # hashing leaves the other threads alone
        checked = bounded_map(executor, check_shard, indexes, 2 * num_workers)
        for path, (clips, found) in zip(
            indexes, tqdm(checked, total=len(indexes), unit="shard", disable=None), strict=True
        ):
            problems += found
            for clip in clips:
                names = clip.video, clip.audio
                if names in seen:
                    problems.append(f"clip {clip.video!r} is in '{seen[names]}' and in '{path}'")
                seen[names] = str(path)
    return len(seen), problems


def check_shard(index: Path) -> tuple[list[PackedClip], list[str]]:
    """Return the clips of a shard and what is wrong with it."""
    try:
        entry = read_index(index)
    except ValueError as error:
        return [], [str(error)]
    shard, clips = entry[0], list(PackedClips([entry]))
    try:
        if sha256_of(shard.path) != shard.sha256:
            return clips, [f"'{shard.path}' has changed: its SHA-256 is not that of the index"]
        problems = list(_check_members(Path(shard.path), clips))
        for clip in [] if problems else clips:
            video, wav = open_packed(clip)
            video.check()
            wav.read(0, len(wav))
    except (OSError, ValueError, UnreadableClip) as error:
        return clips, [f"'{shard.path}': {error}"]
    return clips, problems


def _check_members(path: Path, clips: list[PackedClip]) -> Iterator[str]:
    """Yield how the members of a shard differ from the places in its index."""
    members = member_places(path)
    places = [place for clip in clips for place in clip.places]
    if [number for _, *place in members for number in place] != places:
        yield f"'{path}' has other members than its index says"
    kinds = [name.rpartition(".")[2] for name, _, _ in members]
    if kinds != list(MEMBERS) * len(clips):
        yield f"'{path}' has members other than {', '.join(MEMBERS)} of each clip"
