"""Names, tables and places as users have them, through every tool that works clip by clip."""

import csv
import os
import re

import pytest

from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from preprocess import check_lists, data_sets, own_videos, pack_clips
from preprocess.face_and_audio import extract_audio, extract_face
from preprocess.face_and_audio.batch import read_summary
from tests.preprocess.media_files import HARD_NAMES, chirp, fake_openface, pictures, save_media

NAMES = [*HARD_NAMES, " two  blanks .mp4"]
ONE = ["--num_workers", "1"]


def test_odd_names_go_through_every_tool(tmp_path):
    videos = tmp_path / "videos"
    for k, name in enumerate(NAMES):
        save_media(videos / name, pictures(8 + k), chirp(0.32 + k / 25, 16000))
    save_media(videos / "mute.mp4", pictures(5))
    save_media(videos / "voice.m4a", sound=chirp(0.4, 16000))
    labels, out = tmp_path / "labels.csv", tmp_path / "out"
    with open(labels, "w", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\r\n")  # as Excel writes it
        table.writerow(["note", " label", "video", ""])
        table.writerows(["a, b", "wütend" if k % 2 else "10", n, ""] for k, n in enumerate(NAMES))
        table.writerows([["", "9", "mute", ""], []])
    flags = ["--videos", str(videos), "--labels", str(labels), "--output_dir", str(out)]
    assert own_videos.main([*flags, *fake_openface(tmp_path), *ONE]) == 1
    assert (out / "classes.txt").read_text("utf-8").split() == ["9", "10", "wütend"]
    lists = [read_labelled_list(out / f"{part}.csv") for part in ("train", "test")]
    wavs = {os.path.basename(str(clip.audio)): clip for clips in lists for clip in clips}
    assert wavs.keys() == {f"{name[:-4]}.wav" for name in NAMES}
    assert [wavs[f"{name[:-4]}.wav"].label for name in NAMES] == [1, 2, 1, 2, 1, 2, 1]
    rows = read_summary(out / "audio" / "extract_audio.csv")
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(NAMES, "done") | {
        "mute.mp4": "failed"
    }


TOOLS = {
    "extract_audio": (extract_audio.main, ["--input", "{videos}"]),
    "extract_face": (extract_face.main, ["--input", "{videos}", "--backend=openface"]),
    "own_videos": (own_videos.main, ["--videos", "{videos}", "--modality=a"]),
    "check_lists": (check_lists.main, ["{list}"]),
    "pack_clips": (pack_clips.main, ["{list}"]),
    "voxceleb2": (data_sets.voxceleb2, ["--data_root", "{vox}"]),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("place", ["read-only", "a file"])
def test_a_place_that_cannot_be_written_is_said_before_any_work(
    tmp_path, monkeypatch, caplog, tool, place
):
    film = save_media(tmp_path / "vox/dev/mp4/id/b/a.mp4", pictures(5), chirp(0.2, 16000))
    save_media(tmp_path / "vox/dev/aac/id/b/a.wav", sound=chirp(0.2, 16000), codec="pcm_s16le")
    write_list(tmp_path / "list.csv", [Clip(str(film), None, None)])
    names = {"videos": film.parent, "list": tmp_path / "list.csv", "vox": tmp_path / "vox"}
    main, flags = TOOLS[tool]
    flags = [flag.format(**names) for flag in flags]
    flags += fake_openface(tmp_path)[2:] if tool == "extract_face" else []
    out = tmp_path / "out"
    if place == "a file":
        out.touch()
    else:  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: str(path).find("out") < 0)
    assert main([*flags, "--output_dir", str(out), *ONE]) == 2
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert str(out) in record.getMessage() and "\n" not in record.getMessage()
    assert not out.is_dir() or not [path for path in out.rglob("*") if path.is_file()]


def test_a_shard_is_every_nth_of_the_sorted_inputs(tmp_path):
    parts = 3
    # names that sort otherwise once their endings are replaced
    names = sorted(["a.mp4", "aB.mp4", "a-b.mp4", "ab.mp4", "a b.mp4", "a.b.mp4"])
    videos, out = tmp_path / "videos", tmp_path / "out"
    for k, name in enumerate(names):
        save_media(videos / name, pictures(4), chirp(0.16 + k / 100, 16000))
    flags = ["--videos", str(videos), "--output_dir", str(out), *fake_openface(tmp_path), *ONE]
    for part in range(1, parts + 1):
        assert not (out / "inference.csv").exists()
        mine = [name[:-4] for name in names[part - 1 :: parts]]
        assert own_videos.main([*flags, "--shard", f"{part}/{parts}"]) == 0
        for folder, tool in (("audio", "extract_audio"), ("faces", "extract_face")):
            rows = read_summary(out / folder / f"{tool}_{part}of{parts}.csv")
            assert [name[:-4] for name in rows] == mine
        films = [Clip(str(videos / n), str(out / f"audio/{n[:-4]}.wav"), 0) for n in names[::-1]]
        write_list(tmp_path / "list.csv", films)
        shard = [str(tmp_path / "list.csv"), "--shard", f"{part}/{parts}", *ONE]
        for tool in (pack_clips, check_lists):
            tool.main([*shard, "--output_dir", str(tmp_path / tool.__name__)])
            name = tool.__name__.removeprefix("preprocess.")
            rows = read_summary(tmp_path / tool.__name__ / f"{name}_{part}of{parts}.csv")
            assert [re.search(r"([^/]+)\.mp4", row)[1] for row in rows] == mine
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
    assert own_videos.main(flags) == 0  # makes the lists
    assert {path: path.stat().st_mtime_ns for path in made} == made and len(made) == len(names)
    assert len(read_labelled_list(out / "inference.csv")) == len(names)
