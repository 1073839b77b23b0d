import errno
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import Clip, read_labelled_list, read_packed, write_list
from hicmae.data.dataset import LabelledClips
from hicmae.io import UnreadableClip
from preprocess import pack_clips
from preprocess.face_and_audio.batch import read_summary
from tests.conftest import same, save_frames, save_mp4, save_wav


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Return a folder with six clips of 20 to 25 frames and a list with relative names."""
    folder = tmp_path_factory.mktemp("media")
    clips = []
    for k in range(6):
        save_mp4(folder / f"v{k}.mp4", 20 + k)
        save_wav(folder / f"v{k}.wav", (20 + k) * 640)
        clips.append(Clip(f"v{k}.mp4", None, None))
    write_list(folder / "list.csv", clips)
    return folder


def pack(media: Path, output: Path, *flags: str, workers: int = 1, name: str = "list.csv") -> int:
    where = ["--data_root", str(media), "--output_dir", str(output)]
    return pack_clips.main([str(media / name), *where, "--num_workers", str(workers), *flags])


NAMES = [f"v{k}.mp4" for k in range(6)]


def names_in(folder: Path) -> list[str]:
    return sorted(clip.video for clip in read_packed(folder))


def state(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("clips*")}


def test_clips_are_packed_under_the_names_of_the_list(media, tmp_path, caplog):
    caplog.set_level("INFO")
    assert pack(media, tmp_path) == 0
    assert names_in(tmp_path) == NAMES
    assert {clip.audio for clip in read_packed(tmp_path)} == {f"v{k}.wav" for k in range(6)}
    rows = read_summary(tmp_path / "pack_clips.csv")
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows["v3.mp4"]["frames"] == "23"
    assert rows["v3.mp4"]["output"] == str(tmp_path / "clips-000000.tar")
    shard, index = (tmp_path / f"clips-000000.{end}" for end in ("tar", "index.json"))
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    assert json.loads(index.read_text())["sha256"] == digest
    assert re.search("clips are packed, 0.00 GB; a clip takes [1-9]", caplog.text)


def test_quality_is_followed(media, tmp_path):
    sizes = []
    for quality in ("50", "95"):
        pack(media, tmp_path / quality, "--quality", quality)
        sizes.append(sum(clip.frames[1] for clip in read_packed(tmp_path / quality)))
    assert sizes[0] < 0.7 * sizes[1]


def test_parts_of_an_array_share_the_list_without_asking_each_other(media, tmp_path):
    write_list(media / "twice.csv", [Clip(name, None, None) for name in [*NAMES, "v1.mp4"]])
    for part in (1, 2, 3):
        assert pack(media, tmp_path, "--shard", f"{part}/3", name="twice.csv") == 0
    assert names_in(tmp_path) == NAMES
    tars = {path.name for path in tmp_path.glob("*.tar")}
    assert tars == {f"clips-{part}of3-000000.tar" for part in (1, 2, 3)}
    assert len(list(tmp_path.glob("pack_clips_*of3.csv"))) == 3


def test_failures_are_listed_and_another_run_packs_only_what_is_missing(media, tmp_path, caplog):
    folder = Path(shutil.copytree(media, tmp_path / "media"))
    (folder / "v1.mp4").write_text("no film")
    (folder / "v2.wav").unlink()
    save_wav(folder / "v3.wav", 9000, rate=44100)
    (folder / "v4.mp4").unlink()
    save_frames(folder / "v4.mp4", 3)
    output = tmp_path / "out"
    assert pack(folder, output) == 1
    assert names_in(output) == ["v0.mp4", "v5.mp4"]
    rows = read_summary(output / "pack_clips.csv")
    assert "is no video or sound file" in rows["v1.mp4"]["reason"]
    assert "v2.wav' does not exist" in rows["v2.mp4"]["reason"]
    assert "sample rate 44100" in rows["v3.mp4"]["reason"]
    assert "no frame times" in rows["v4.mp4"]["reason"]
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 4
    shutil.rmtree(folder / "v4.mp4")
    for name in ("v1.mp4", "v2.wav", "v3.wav", "v4.mp4"):
        shutil.copy(media / name, folder / name)
    before = state(output)
    for _ in range(2):
        assert pack(folder, output) == 0
        assert names_in(output) == NAMES
        after = state(output)
        assert {name: after[name] for name in before} == before and len(after) == 4
    assert {row["status"] for row in read_summary(output / "pack_clips.csv").values()} == {"done"}


class Stopping(io.BufferedWriter):
    """A file that fails after so many bytes."""

    left = 60_000
    error: type[BaseException] | OSError = KeyboardInterrupt

    def write(self, data) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return super().write(data)


@pytest.mark.parametrize(
    "error, code, message",
    [
        (KeyboardInterrupt, 3, "interrupted: 6 clips are left"),
        (OSError(errno.ENOSPC, "No space left"), 3, "the disk is full: 6 clips are left"),
        (OSError(errno.EIO, "Input/output error"), 2, "Input/output error"),
    ],
)
def test_half_a_shard_is_not_there(media, tmp_path, monkeypatch, caplog, error, code, message):
    def opened(path, mode="r", *args, **options):
        if mode == "wb":
            return Stopping(io.FileIO(path, "w"))
        return open(path, mode, *args, **options)

    monkeypatch.setattr(Stopping, "error", error)
    monkeypatch.setattr("preprocess.pack_clips.open", opened, raising=False)
    assert pack(media, tmp_path, "--shard_size", "30KB") == code
    assert any(re.search(message, record.message) for record in caplog.records)
    assert [path.name for path in tmp_path.iterdir()] == ["pack_clips.csv"]
    monkeypatch.undo()
    assert pack(media, tmp_path) == 0
    (tmp_path / "clips-000000.index.json").unlink()  # nor is one without its index
    assert names_in(tmp_path) == []
    assert pack(media, tmp_path) == 0
    assert names_in(tmp_path) == NAMES
    assert [path.name for path in tmp_path.glob("*.tar")] == ["clips-000000.tar"]


def test_any_number_of_processes_packs_the_same_shards_of_the_asked_size(media, tmp_path, caplog):
    found = []
    write_list(media / "with_gone.csv", [Clip(f"v{k}.mp4", None, None) for k in (9, *range(6), 8)])
    for workers, name in ((1, "one"), (2, "two")):
        caplog.clear()
        size = ("--shard_size", "100KB")
        assert pack(media, tmp_path / name, *size, workers=workers, name="with_gone.csv") == 1
        assert names_in(tmp_path / name) == NAMES
        shards = read_packed(tmp_path / name).shards
        assert len(shards) >= 2 and all(100_000 <= shard.size < 200_000 for shard in shards[:-1])
        files = [path.read_bytes() for path in sorted((tmp_path / name).glob("clips*"))]
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        found.append((files, [message[:8] for message in told[:2]]))
    assert found[0] == found[1] and found[0][1] == ["'v9.mp4'", "'v8.mp4'"]


@pytest.mark.parametrize("left_out", ["video", "audio"])
def test_a_stream_that_is_not_read_is_not_packed(tmp_path, labelled_clips, left_out):
    clips = [clip._replace(**{left_out: "-"}) for clip in labelled_clips]
    write_list(tmp_path / "list.csv", clips)
    assert pack(tmp_path, tmp_path / "out", "--task", "classification") == 0
    assert len(read_summary(tmp_path / "out" / "pack_clips.csv")) == 4
    packed = sorted(read_labelled_list(tmp_path / "out"), key=lambda clip: clip.label)
    assert [clip[:3] for clip in packed] == [clip[:3] for clip in clips]
    modality = "a" if left_out == "video" else "v"
    plain, stored = (LabelledClips(some, modality=modality) for some in (clips, packed))
    for index in range(4):
        assert same(plain[ClipIndex(0, index)], stored[ClipIndex(0, index)])
    with pytest.raises(UnreadableClip, match=f"without {left_out}.*--modality {modality}"):
        LabelledClips(packed).read(packed[0], np.random.default_rng(0))


# bad input


def test_sizes_are_read_with_units(capsys):
    sizes = {"1GB": 10**9, "1.5g": 1.5e9, "300 MB": 3e8, "20kb": 20_000, "77": 77}
    assert {text: pack_clips.parse_size(text) for text in sizes} == sizes
    for text in ("big", "0"):
        with pytest.raises(SystemExit):
            pack_clips.main(["list.csv", "--output_dir", "x", "--shard_size", text])
        assert f"expected a size such as 1GB or 500MB, got '{text}'" in capsys.readouterr().err


def test_bad_input_is_one_line(media, tmp_path, caplog):
    def said(code: int) -> str:
        text = caplog.text
        caplog.clear()
        assert code == 2
        return text

    assert "list.csv' does not exist" in said(pack(tmp_path, tmp_path / "out"))
    (tmp_path / "list.csv").write_text("a b c d e\n")
    assert "list.csv:1: expected" in said(pack(tmp_path, tmp_path / "out"))
    assert "--quality must be" in said(pack(media, tmp_path / "out", "--quality", "0"))
    pack(media, tmp_path / "shards")
    shutil.copytree(tmp_path / "shards", tmp_path / "again" / "list")
    said(2)
    assert "name a list of files" in said(pack(tmp_path / "again", tmp_path / "out"))
