import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from hicmae.faces import align, similarity, template
from hicmae.faces.detector import Detector, Face, check_weights
from hicmae.faces.tracking import fill_gaps, follow, main_face, search, smooth
from tests.preprocess.media_files import PORTRAIT_EYES, camera, needs_weights, portrait, shoot


def face_at(x: float, y: float, size: float, score: float = 1.0) -> Face:
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2])
    points = np.array([[-1, -1], [1, -1], [0, 0], [-1, 1], [1, 1]]) * size / 5 + [x, y]
    return Face(box, points, score)


def test_the_template_is_openfaces_frame():
    """Of 256 pixels, by OpenFace's mean shape at 1.6 pixels a millimetre around the middle."""
    expected = [[75, 67], [181, 66], [130, 115], [82, 174], [174, 173]]
    assert np.abs(template(256) - expected).max() < 0.6
    assert np.allclose(template(128), template(256) / 2)


def test_similarity_finds_turn_scale_and_shift():
    points = np.random.default_rng(0).normal(size=(5, 2)) * 20
    angle, scale, shift = 0.4, 1.7, np.array([3.0, -8.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(points, points @ turn.T + shift)
    assert np.allclose(matrix, np.column_stack([turn, shift]))
    assert np.linalg.det(similarity(points, points * [-1, 1])[:, :2]) > 0  # it never mirrors


@pytest.mark.parametrize("scale", [0.2, 0.45, 1.0, 2.3])
def test_align_puts_points_on_the_template_at_any_size(scale):
    """A dot at each point of a large or small face ends up at the template's points."""
    points = template(256) * scale / 0.9 + [40, 20]
    image = np.zeros((int(340 * scale) + 60, int(330 * scale) + 90, 3), np.uint8)
    radius = max(round(6 * scale), 1)
    for point in points:
        cv2.circle(image, np.rint(point).astype(int).tolist(), radius, (255, 255, 255), -1)
    crop = align(image, points, 256)
    for x, y in template(256):
        left, top = int(x) - 15, int(y) - 15
        part = crop[top : top + 31, left : left + 31, 0].astype(float)
        rows, columns = np.mgrid[top : top + 31, left : left + 31]
        found = np.array([(columns * part).sum(), (rows * part).sum()]) / part.sum()
        assert np.abs(found - [x, y]).max() < 0.6 + 0.6 / scale


def test_align_is_black_outside_the_image():
    crop = align(np.full((20, 20, 3), 200, np.uint8), template(64) + 500, 64)
    assert crop.max() == 0


LARGE, SMALL, LEFT = face_at(100, 80, 60), face_at(20, 20, 30), face_at(30, 80, 40)
PASSING, MIDDLE = face_at(160, 80, 90), face_at(100, 80, 50)
TURNED = LARGE._replace(score=0.8)
FILMS = (
    ([[SMALL, LARGE]] * 5 + [[TURNED, SMALL]] * 5, [60] * 10),
    ([[MIDDLE]] * 10 + [[PASSING, MIDDLE]] * 3 + [[MIDDLE]] * 10, [50] * 23),
    (
        [[LARGE, LEFT]] * 6 + [[LEFT]] * 2 + [[]] + [[LARGE]] * 3,
        [60] * 6 + [40] * 2 + [None] + [60] * 3,
    ),
)


def test_the_main_face_is_large_central_kept_and_replaced_only_where_it_is_gone():
    for faces, sizes in FILMS:
        chosen = main_face(faces, (200, 150))
        assert [None if face is None else face.size for face in chosen] == sizes


def test_faces_are_followed_so_that_all_overlap_most():
    """Pairing the two that overlap most first would leave the others without a partner."""
    left, right = face_at(100, 80, 40), face_at(118, 80, 40)
    moved = face_at(88, 80, 40), face_at(104, 80, 40)  # the right one is now where the left one was
    tracks = follow([[left, right], list(moved)], (200, 150))
    centres = [[round(face.centre[0]) for face in track.values()] for track in tracks]
    assert sorted(centres) == [[100, 88], [118, 104]]


def test_gaps_take_the_points_of_the_nearest_frame():
    first, last = face_at(10, 10, 5), face_at(90, 90, 5)
    points, longest = fill_gaps([None, first, None, None, None, last, None])
    assert points[:, 2, 0].tolist() == [10, 10, 10, 10, 90, 90, 90]
    assert longest == 3
    assert fill_gaps([first])[1] == 0
    with pytest.raises(ValueError, match="expected a face in at least one frame, got none"):
        fill_gaps([None, None])


def test_smoothing_takes_out_jitter_but_not_motion():
    rng = np.random.default_rng(0)
    path = np.stack([face_at(50 + k, 60, 40).points for k in range(60)])
    noisy = path + rng.normal(size=path.shape)
    calm = smooth(noisy, 2.0)
    inner = slice(6, -6)
    assert np.abs(calm - path)[inner].std() < 0.5 * np.abs(noisy - path)[inner].std()
    assert np.abs((calm - path)[inner].mean()) < 0.1
    assert np.allclose(smooth(path, 2.0), path, atol=1e-6)  # steady motion is kept, ends too
    assert np.array_equal(smooth(noisy, 0), noisy)
    assert smooth(noisy[:1], 2.0).shape == (1, 5, 2)


def test_smoothing_does_not_reach_across_a_cut():
    left = np.repeat(face_at(50, 60, 40).points[None], 10, 0)
    right = np.repeat(face_at(150, 60, 40).points[None], 10, 0)
    assert np.allclose(smooth(np.concatenate([left, right]), 3.0)[9], left[0])


class DrawnFaces:
    """A detector that knows the faces of frames, each of the grey of its number.

    It places a face that is less than `reach` of its size beside the box.
    """

    def __init__(self, faces: list[list[Face]], reach: float = 0.3) -> None:
        self.faces, self.reach, self.searched = faces, reach, []

    def detect(self, images: list[np.ndarray]) -> list[list[Face]]:
        self.searched += [int(image[0, 0, 0]) for image in images]
        return [self.faces[int(image[0, 0, 0])] for image in images]

    def locate(self, images: list[np.ndarray], boxes: np.ndarray) -> list[Face]:
        placed = []
        for image, box in zip(images, boxes, strict=True):
            near = face_at(*(box[:2] + box[2:]) / 2, box[2] - box[0], score=0.1)
            for face in self.faces[int(image[0, 0, 0])]:
                if np.abs(face.centre - near.centre).max() < self.reach * face.size:
                    near = face
            placed.append(near)
        return placed


def nodding(frame: int) -> Face:
    return face_at(100, 60 + 8 * np.sin(frame / 2.5), 60)


FACES_OF = {  # of a frame by its number; frames that are searched at most, of 100
    "one that nods, followed alone": (lambda k: [nodding(k)], 5),
    "one comes in and goes": (lambda k: [LARGE, *[SMALL] * (37 <= k < 72)], 5 + 2 * 5),
    "shots of less than a second": (lambda k: [LEFT] if 30 <= k < 44 else [LARGE], 5 + 3 * 5),
    "two who cross": (lambda k: [face_at(30 + k, 50, 30), face_at(140 - k, 60, 30)], 5 + 45),
    "nobody for a while": (lambda k: [] if 20 <= k < 60 else [LARGE], 5 + 2 * 5),
}


@pytest.mark.parametrize("film", FACES_OF)
def test_every_frame_has_its_faces_though_few_are_searched(film):
    faces_of, most = FACES_OF[film]
    faces = [faces_of(k) for k in range(100)]
    seen = DrawnFaces(faces)
    frames = (np.full((150, 200, 3), k, np.uint8) for k in range(100))
    found, size = search(frames, seen, 25)
    assert size == (200, 150) and len(seen.searched) == len(set(seen.searched)) <= most

    def centres(of: list[Face]) -> list[list[float]]:
        return sorted(np.round(face.centre, 6).tolist() for face in of)

    assert list(map(centres, found)) == list(map(centres, faces))


@needs_weights
def test_the_eyes_of_a_photograph_are_found():
    (face,) = Detector().detect([portrait()])[0]
    assert np.abs(face.points[:2] - PORTRAIT_EYES).max() < 0.06 * 84  # of the inter-ocular distance
    assert (face.box[:2] < PORTRAIT_EYES.min(0)).all() and (face.box[2:] > 280).all()
    assert face.score > 0.9


@needs_weights
def test_images_are_searched_alike_alone_and_together():
    frames = shoot([camera((0, 0), 1.0, 0), camera((30, -20), 0.8, 10)])
    frames.append(np.zeros_like(frames[0]))
    together = Detector().detect(frames)
    assert [len(found) for found in together] == [1, 1, 0]
    for frame, found in zip(frames[:2], together, strict=False):
        (alone,) = Detector().detect([frame])[0]
        assert np.allclose(alone.points, found[0].points, atol=0.05)


@needs_weights
def test_an_image_too_small_for_a_face_has_none():
    for size in ((8, 8), (300, 10), (13, 13)):
        assert Detector().detect([np.full((*size, 3), 99, np.uint8)]) == [[]]


@needs_weights
def test_weights_that_are_not_the_known_ones_are_never_loaded(tmp_path, monkeypatch):
    source = Path(importlib.util.find_spec("mtcnn").submodule_search_locations[0])
    shutil.copytree(source / "assets", tmp_path / "mtcnn" / "assets")
    weights = tmp_path / "mtcnn" / "assets" / "weights" / "rnet.lz4"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "mtcnn")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"rnet.lz4' have SHA-256 .*, expected cb00e6460f3c"):
        check_weights()
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"rnet.lz4' do not exist; install"):
        check_weights()
