"""Pages, subtitles and tiers, and a folder of films that is gone on with."""

import base64
import json
import logging
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from hicmae import EmotionRecognizer
from hicmae.inference import cli, timeline
from hicmae.inference.commands import Journal
from tests.conftest import save_wav
from tests.preprocess.media_files import pictures, save_media
from tests.small_recognizers import FPS, GLAD, MAD, said, speech
from tests.small_runs import rows


def data_of(page: Path) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(text[1])


def film_of(page: Path) -> bytes:
    return base64.b64decode(re.search(r'id="bytes">(.*?)</script>', page.read_text(), re.S)[1])


# Subtitles and tiers


def test_subtitles_join_windows_of_one_answer_and_name_people_where_there_are_several(tmp_path):
    first = said("none", GLAD, GLAD, (), MAD)
    assert [part[:3] for part in timeline.stretches(first)] == [
        *((0.0, 1.25, "glad"), (1.75, 2.5, "mad"))
    ]
    timeline.write_subtitles([first], tmp_path / "a.srt")
    assert (tmp_path / "a.srt").read_text().split("\n\n") == [
        "1\n00:00:00,000 --> 00:00:01,250\nglad 70 %",
        "2\n00:00:01,750 --> 00:00:02,500\nmad 80 %\n",
    ]
    second = said("none", GLAD, MAD, MAD, MAD, person=1)
    timeline.write_subtitles([first, second], tmp_path / "a.vtt", for_web=True)
    cues = (tmp_path / "a.vtt").read_text().split("\n\n")
    assert cues[0] == "WEBVTT"
    assert [cue.strip() for cue in cues[1:]] == [
        "00:00:00.000 --> 00:00:00.750\nPerson 1: glad 70 %\nPerson 2: glad 70 %",
        "00:00:00.750 --> 00:00:01.250\nPerson 1: glad 70 %\nPerson 2: mad 80 %",
        "00:00:01.250 --> 00:00:01.750\nPerson 2: mad 80 %",
        "00:00:01.750 --> 00:00:02.500\nPerson 1: mad 80 %\nPerson 2: mad 80 %",
    ]


def test_a_tier_has_begin_end_and_label(tmp_path):
    timeline.write_elan([said("none", GLAD, (), MAD)], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "tier,begin,end,label",
        "Person 1,0.000,0.750,glad",
        "Person 1,1.250,2.000,mad",
    ]
    values = said("none", (0.5, -0.25), (1.0, 0.0), names=("a", "b"), task="regression")
    timeline.write_elan([values], tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text().splitlines()[1:] == [
        "Person 1,0.000,0.750,a +0.50  b -0.25",
        "Person 1,0.750,1.500,a +1.00  b +0.00",
    ]


def test_subtitles_of_a_film_whose_picture_begins_late_are_late_too(tmp_path):
    """Players begin with the sound, answers with the first frame."""
    film = save_media(tmp_path / "a.mp4", pictures(25), speech(2.0)[None], fps=FPS)
    with av.open(str(film)) as source, av.open(str(tmp_path / "late.mkv"), "w") as target:
        copies = {s.type: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                late = 0.5 if packet.stream.type == "video" else 0
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
                packet.stream = copies[packet.stream.type]
                target.mux(packet)
    begin = timeline.begin_of(tmp_path / "late.mkv")
    assert begin == pytest.approx(0.53, abs=0.05) and timeline.begin_of(film) < 0.03
    timeline.write_elan([said(str(tmp_path / "late.mkv"), GLAD)], tmp_path / "a.csv")
    assert f"Person 1,{begin:.3f},{begin + 1:.3f},glad" in (tmp_path / "a.csv").read_text()


# The page


def test_a_page_holds_film_boxes_and_answers_and_loads_nothing(tmp_path, video):
    boxes = np.array([[0.0, 1.4, 2, 30, 40], [0.5, 3, 4, 31, 42]])
    people = [said(video, GLAD, (), MAD, boxes=boxes, person=k) for k in range(2)]
    seen = {(1, 2): ("c2hlZXQ=", "c291bmQ=")}
    timeline.write_page(people, tmp_path / "a.html", seen)
    data = data_of(tmp_path / "a.html")
    assert film_of(tmp_path / "a.html") == Path(video).read_bytes()
    assert data["people"][0]["boxes"] == [[0, 1, 2, 30, 40], [0.5, 3, 4, 31, 42]]
    windows = data["people"][1]["windows"]
    assert [w["label"] for w in windows] == ["glad", "", "mad"]
    assert windows[1]["status"] == "no face"
    assert windows[2]["scores"] == list(MAD) and data["moments"] == {"1 2": list(seen[1, 2])}
    page = (tmp_path / "a.html").read_text()
    assert not re.search(r'(src|href)="|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', page)


def test_names_of_users_are_text_in_a_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    person = said(f"{evil}\udcff.mp4", (0.4, 0.6), names=(evil, "b"), notes=("<img onerror=x>",))
    timeline.write_page([person], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<script>alert" not in page and "<img onerror" not in page
    assert data_of(tmp_path / "a.html")["names"][0] == evil


def test_films_that_browsers_do_not_play_are_converted_and_too_long_ones_left_out(tmp_path, caplog):
    film = str(save_media(tmp_path / "a.avi", pictures(50), speech(2.0)[None], codec="pcm_s16le"))
    timeline.write_page([said(film, GLAD)], tmp_path / "a.html")
    (tmp_path / "copy.mp4").write_bytes(film_of(tmp_path / "a.html"))
    with av.open(str(tmp_path / "copy.mp4")) as copy:
        codecs = [s.codec_context.codec.canonical_name for s in copy.streams]
    assert sorted(codecs) == ["aac", "h264"]
    timeline.write_page([said(film, GLAD)], tmp_path / "b.html", most_bytes=30_000)
    assert film_of(tmp_path / "b.html") == b"" and "minutes" in caplog.text
    assert "No film here" in (tmp_path / "b.html").read_text()
    sound = save_wav(tmp_path / "a.wav", speech(0.5))
    timeline.write_page([said(sound, GLAD)], tmp_path / "c.html")
    assert film_of(tmp_path / "c.html") == Path(sound).read_bytes()


# A folder of films


def test_a_stopped_command_goes_on_where_it_was(models, tmp_path, monkeypatch, caplog):
    """The second start answers what is missing, and its files are those of one start."""
    caplog.set_level(logging.INFO)
    for name in "abc":
        save_media(tmp_path / "films" / f"{name}.mp4", pictures(20), speech(0.8)[None], fps=FPS)
    each, asked = EmotionRecognizer.each, []

    def stopped(self, files, **options):
        asked.append([Path(file).name for file, _ in files])
        for count, answer in enumerate(each(self, files, **options)):
            if count == 2 and len(asked) == 2:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(EmotionRecognizer, "each", stopped)

    def run(out: str) -> int:
        kinds = ("csv", "windows_csv", "json", "html", "srt", "elan")
        outputs = [f for k in kinds for f in (f"--{k}", f"{tmp_path / out}/{k}.{k}")]
        model = ["--checkpoint", str(models / "av.pth"), "--batch_size", "1", "--device", "cpu"]
        return cli.predict([str(tmp_path / "films"), *model, "--faces", "cut", *outputs])

    assert run("whole") == 0 and run("parts") == 1
    assert "interrupted: 2 clips are answered" in caplog.text
    told = [row["reason"] for row in rows(tmp_path / "parts" / "csv.csv")]
    assert told == ["", "", "interrupted"]
    left = next((tmp_path / "parts").glob("*.unfinished"))
    left.write_text(left.read_text() + '["c.mp4", [1')  # killed while it wrote
    (tmp_path / "parts" / "html-a.html").unlink()  # it is not made again
    assert run("parts") == 0 and asked[2] == ["c.mp4"] and "2 of 3 videos" in caplog.text
    whole, parts = (sorted((tmp_path / name).iterdir()) for name in ("whole", "parts"))
    assert [p.name for p in parts] == [p.name for p in whole if p.name != "html-a.html"]
    for part in parts:
        assert part.read_bytes() == (tmp_path / "whole" / part.name).read_bytes()


def test_another_command_and_a_changed_film_begin_anew(models, tmp_path, video):
    outputs = dict.fromkeys("windows_csv json plot overlay html srt vtt elan".split())
    given = {"checkpoint": str(models / "av.pth"), "csv": str(tmp_path / "a.csv"), **outputs}
    args, other = (Namespace(**given, faces=faces) for faces in ("cut", "all"))
    told = replace(said(video, GLAD, ()), notes=("a note",))
    Journal(args, 2).add(video, [told])
    assert Journal(args, 2).answer(video) == [told]
    assert Journal(other, 2).answer(video) is None
    Path(video).write_bytes(b"another film")
    assert Journal(args, 2).answer(video) is None
