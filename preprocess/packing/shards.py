"""Shards: tar files written by WebDataset, whole or not there, each with its index beside it."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import webdataset

from hicmae.data.shards import FORMAT, SUFFIX, read_index
from preprocess.face_and_audio.staging import staged
from preprocess.packing.encode import Encoded, PackJob

MEMBERS = ("json", "mjpeg", "wav")  # of a sample, in the order of the index's places
_HASH_BLOCK = 1 << 22

Packed = tuple[PackJob, Encoded]


class _Hashing:
    """A file to write to that keeps the SHA-256 and the number of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def index_path(shard: Path) -> Path:
    """Return where the index of a shard stands."""
    return shard.with_name(shard.stem + SUFFIX)


def packed_names(folder: Path) -> dict[tuple[str, str | None], str]:
    """Return the (video, audio) of the clips in a folder's shards, and the shard of each."""
    names: dict[tuple[str, str | None], str] = {}
    for path in sorted(folder.glob("*" + SUFFIX)):
        shard, rows = read_index(path)
        names.update({(row[0], row[1]): shard.path for row in rows})
    return names


def next_number(folder: Path, prefix: str) -> int:
    """Return the first number behind a prefix that no finished shard of a folder has."""
    names = (path.name.removesuffix(SUFFIX) for path in folder.glob(f"{prefix}-*{SUFFIX}"))
    numbers = [int(name.rpartition("-")[2]) for name in names if name.rpartition("-")[2].isdigit()]
    return max(numbers, default=-1) + 1


def write_shard(path: Path, clips: Iterable[Packed], limit: int) -> list[Packed]:
    """Write clips until a shard has `limit` bytes, or there are none left; then its index.

    The shard gets its name when it is whole, the index after it: without index it does not count,
    and is written anew.

    Returns:
        The clips that are in it, without their bytes.
    """
    done: list[Packed] = []
    with staged(str(path)) as part:
        with open(part, "wb") as file:
            hashing = _Hashing(file)
            writer = webdataset.TarWriter(hashing, "hicmae", "hicmae", encoder=False, mtime=0)
            for job, encoded in clips:
                sample = dict(zip(MEMBERS, encoded[: len(MEMBERS)], strict=True))
                writer.write({"__key__": f"{path.stem}-{len(done):05d}", **sample})
                done.append((job, encoded._replace(info=b"", frames=b"", wav=b"")))
                if hashing.size >= limit:
                    break
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        places = member_places(part)
        os.chmod(part, 0o644)
    content = {
        "format": FORMAT,
        "shard": path.name,
        "size": hashing.size,
        "sha256": hashing.digest.hexdigest(),
        "clips": [_row(job, places[k * 3 : k * 3 + 3]) for k, (job, _) in enumerate(done)],
    }
    with staged(str(index_path(path))) as part:
        part.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")
    return done


def member_places(path: Path) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each member; ValueError for what no shard of ours has."""
    places = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isreg():
                raise ValueError(f"member {member.name[:80]!r} is no file")
            if "/" in member.name or "\\" in member.name or member.name.startswith("."):
                raise ValueError(f"member {member.name[:80]!r} has a path for a name")
            places.append((member.name, member.offset_data, member.size))
    return places


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _row(job: PackJob, places: list[tuple[str, int, int]]) -> list[object]:
    """Return a clip's row of the index."""
    clip = job.clip
    return [clip.video, clip.audio, clip.label, *(n for _, *place in places for n in place)]
