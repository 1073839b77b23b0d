"""MTCNN face detection (Zhang et al. 2016) in torch, with the weights of the pip package `mtcnn`.

Three small nets: P-Net slides over a pyramid of the image, R-Net sorts out its proposals, O-Net
gives a box and five points: left eye, right eye, nose, left and right corner of the mouth, left and
right as in the image.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

INSTALL = 'install them with: pip install "mtcnn==1.0.0"'
# The files are pickles, which are not unpickled: the places of numbers in exactly these are known.
WEIGHTS_SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
CELL, STRIDE = 12, 2  # pixels that P-Net sees for one score, and between scores
MIN_FACE = 0.1  # least size of a face, as a share of the shorter side
PYRAMID_STEP = 0.709  # about 1 / sqrt(2): each level halves the area
PROPOSED, REFINED, ACCEPTED = 0.6, 0.7, 0.7  # least scores after the three nets
SAME_PROPOSAL, SAME_FACE = 0.7, 0.6  # overlaps from which one of two boxes is dropped
GREY = 127  # around an image: 0 once normalised


class Face(NamedTuple):
    """A detected face: `box` (4,) left, top, right, bottom and `points` (5, 2) x, y in pixels."""

    box: np.ndarray
    points: np.ndarray
    score: float

    @property
    def size(self) -> float:
        """Mean of width and height, in pixels."""
        return float(self.box[2:].sum() - self.box[:2].sum()) / 2

    @property
    def centre(self) -> np.ndarray:
        """(2,) x, y of the middle of the box."""
        return (self.box[:2] + self.box[2:]) / 2

    def scaled(self, factor: float) -> Face:
        """Return the face in an image `factor` times as large."""
        return Face(self.box * factor, self.points * factor, self.score)


class Net(nn.Module):
    """A trunk and several linear outputs on top of it."""

    def __init__(self, trunk: list[nn.Module], outputs: list[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.outputs = nn.Sequential(*trunk), nn.ModuleList(outputs)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) in [-1, 1] to one tensor an output."""
        features = self.trunk(images)
        return [output(features) for output in self.outputs]


@lru_cache(maxsize=1)
def load_nets() -> tuple[Net, ...]:
    """Build P-Net, R-Net and O-Net with the weights of the installed package."""

    def conv(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel), nn.PReLU(outputs)]

    def dense(inputs: int, outputs: int) -> list[nn.Module]:
        columns_first = Rearrange("b c h w -> b (w h c)")  # the order that the weights are for
        return [columns_first, nn.Linear(inputs, outputs), nn.PReLU(outputs)]

    def pool(side: int, keep_edge: bool = True) -> nn.Module:
        return nn.MaxPool2d(side, 2, ceil_mode=keep_edge)

    proposing = [*conv(3, 10), pool(2), *conv(10, 16), *conv(16, 32)]
    refining = [*conv(3, 28), pool(3), *conv(28, 48), pool(3, keep_edge=False)]
    refining += [*conv(48, 64, kernel=2), *dense(576, 128)]
    placing = [*conv(3, 32), pool(3), *conv(32, 64), pool(3, keep_edge=False)]
    placing += [*conv(64, 64), pool(2), *conv(64, 128, kernel=2), *dense(1152, 256)]
    nets = (
        Net(proposing, [nn.Conv2d(32, size, 1) for size in (4, 2)]),
        Net(refining, [nn.Linear(128, size) for size in (4, 2)]),
        Net(placing, [nn.Linear(256, size) for size in (4, 10, 2)]),
    )
    files = check_weights()
    from lz4 import frame  # part of the optional weights, see INSTALL

    for net, data in zip(nets, files.values(), strict=True):
        _fill(net, frame.decompress(data))
    return nets


def _fill(net: Net, data: bytes) -> None:
    """Copy the float32 arrays of a pickle, written in the order of a net's parameters, into them.

    Before each is a block of opcodes that says how long it is, and then some padding, likewise.
    """
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # stored are (H, W, in, out) and (in, out)
    position = 2
    for parameter in net.eval().parameters():
        position += 9 + int.from_bytes(data[position + 1 : position + 9], "little")
        position += 1 + data[position]
        axes = order[parameter.ndim]
        array = np.frombuffer(data, "<f4", parameter.numel(), position)
        position += array.nbytes
        array = array.reshape([parameter.shape[axis] for axis in axes]).transpose(np.argsort(axes))
        parameter.data.copy_(torch.from_numpy(array.copy()))


class Detector:
    """Finds faces in images, and the points of faces whose place is roughly known."""

    def __init__(self) -> None:
        self.pnet, self.rnet, self.onet = load_nets()

    @torch.inference_mode()
    def detect(self, images: list[np.ndarray]) -> list[list[Face]]:
        """Return the faces of each image, best first; images (H, W, 3) uint8 RGB of one size."""
        boxes, owner = self._propose(images)
        if len(boxes):  # drop those in which R-Net sees no face, and shift the others
            moved, _, face = map(torch.from_numpy, _closer(self.rnet, 24, images, boxes, owner))
            good = torch.nonzero(face >= REFINED)[:, 0]
            owners = torch.from_numpy(owner)[good]
            kept = good[_suppressed(moved[good], face[good], owners, SAME_PROPOSAL)]
            boxes, owner = squared(moved[kept].numpy()), owner[kept.numpy()]
        boxes, _, scores = _closer(self.onet, 48, images, boxes, owner)
        nested = overlaps(boxes, boxes, of_smaller=True)
        found: list[list[int]] = [[] for _ in images]
        for index in np.argsort(-scores):
            others = found[owner[index]]
            if scores[index] >= ACCEPTED and (nested[index, others] < SAME_FACE).all():
                others.append(index)
        # Once more, from the box found: it brings faces in all frames to O-Net alike.
        pairs = zip(images, found, strict=True)
        return [self.locate([image] * len(faces), boxes[faces]) for image, faces in pairs]

    @torch.inference_mode()
    def locate(self, images: list[np.ndarray], boxes: np.ndarray) -> list[Face]:
        """Place the points of one face in each image, knowing roughly its box (len(images), 4).

        Returns one Face an image; a score under ACCEPTED says that there is none.
        """
        placed = _closer(self.onet, 48, images, squared(boxes), np.arange(len(images)))
        return [Face(box, points, float(score)) for box, points, score in zip(*placed, strict=True)]

    def _propose(self, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return square boxes (N, 4) that may hold faces, and the image (N,) each is in."""
        height, width = images[0].shape[:2]
        scale = CELL / max(MIN_FACE * min(height, width), CELL)
        found = []
        while min(height, width) * scale >= CELL:
            size = round(width * scale), round(height * scale)
            level = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
            shifts, scores = self.pnet(_normalised(level))
            face = scores.softmax(1)[:, 1]  # (B, rows, columns)
            owner, row, column = torch.nonzero(face >= PROPOSED, as_tuple=True)
            corner = STRIDE * torch.stack([column, row], 1)
            box = torch.cat([corner, corner + CELL], 1) + CELL * shifts[owner, :, row, column]
            box = box * torch.tensor([width / size[0], height / size[1]] * 2)
            kept = _suppressed(box, face[owner, row, column], owner, 0.5)
            found.append((box[kept], face[owner, row, column][kept], owner[kept]))
            scale *= PYRAMID_STEP
        if not found:  # an image smaller than a cell
            return np.empty((0, 4)), np.empty(0, int)
        boxes, scores, owner = (torch.cat(part) for part in zip(*found, strict=True))
        kept = _suppressed(boxes, scores, owner, SAME_PROPOSAL)
        return squared(boxes[kept].numpy()), owner[kept].numpy()


def _closer(
    net: Net, size: int, images: list[np.ndarray], boxes: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Show a net the square boxes (N, 4) of images in patches of `size` pixels.

    Returns the boxes and points (N, 5, 2), or (N, 0, 2) of R-Net, that it gives, and scores (N,).
    """
    if not len(boxes):
        return boxes, np.empty((0, 5, 2)), np.empty(0)
    corners = np.rint(boxes[:, :2]).astype(int)
    sides = np.maximum(np.rint(boxes[:, 2:] - boxes[:, :2]).astype(int), 1)
    patches = []
    for (x, y), (width, height), index in zip(corners, sides, owner, strict=True):
        left, top = max(x, 0), max(y, 0)
        patch = part = images[index][top : max(y + height, 0), left : max(x + width, 0)]
        if part.shape[:2] != (height, width):  # it leaves the image
            patch = np.full((height, width, 3), GREY, np.uint8)
            patch[top - y :, left - x :][: part.shape[0], : part.shape[1]] = part
        method = cv2.INTER_AREA if width > size else cv2.INTER_LINEAR
        patches.append(cv2.resize(patch, (size, size), interpolation=method))
    shifts, *points, scores = net(_normalised(patches))
    corners, sides = corners.astype(np.float32), sides.astype(np.float32)
    edges = np.concatenate([corners, corners + sides], 1) + shifts.numpy() * np.tile(sides, 2)
    places = points[0].unflatten(1, (2, 5)).mT if points else torch.empty(len(boxes), 0, 2)
    places = corners[:, None] + places.numpy() * sides[:, None]  # all x come before all y
    return edges, places, scores.softmax(1)[:, 1].numpy()


def _normalised(images: list[np.ndarray]) -> Tensor:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (batch.float() - 127.5) / 128


def _suppressed(boxes: Tensor, scores: Tensor, owner: Tensor, overlap: float) -> np.ndarray:
    """Return which boxes (N, 4) overlap no better one of the same owner (N,); the best first."""
    corners = boxes.double().numpy()
    rectangles = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    # Not torchvision's: that would be all that inference needs of it, and takes a second to import.
    suppress: Any = cv2.dnn.NMSBoxesBatched  # takes arrays too
    kept = suppress(rectangles, scores.numpy(), owner.int().numpy(), 0.0, overlap)
    return np.asarray(kept, int)


def squared(boxes: np.ndarray) -> np.ndarray:
    """Widen boxes (N, 4) to squares around the same centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], 1)


def overlaps(first: np.ndarray, second: np.ndarray, of_smaller: bool = False) -> np.ndarray:
    """Return how boxes (N, 4) and (M, 4) overlap, (N, M): of their union, or of the smaller one."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    one, other = ((box[:, 2:] - box[:, :2]).clip(0).prod(1).clip(1e-6) for box in (first, second))
    if of_smaller:
        return shared / np.minimum(one[:, None], other)
    return shared / (one[:, None] + other - shared)


def check_weights() -> dict[str, bytes]:
    """Return the files of weights; FileNotFoundError or ValueError where they are not the known."""
    found: Any = {name: importlib.util.find_spec(name) for name in ("mtcnn", "lz4")}
    if missing := [name for name, package in found.items() if package is None]:
        text = f"the package {missing[0]}, which the weights need, is missing"
        raise FileNotFoundError(f"{text}; {INSTALL}")
    # mtcnn is not imported: that would need TensorFlow.
    folder, files = Path(found["mtcnn"].submodule_search_locations[0], "assets", "weights"), {}
    for name, expected in WEIGHTS_SHA256.items():
        path = folder / f"{name}.lz4"
        if not path.is_file():
            raise FileNotFoundError(f"weights '{path}' do not exist; {INSTALL}")
        files[name] = path.read_bytes()
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != expected:
            text = f"weights '{path}' have SHA-256 {digest[:12]}, expected {expected[:12]}"
            raise ValueError(f"{text}; {INSTALL}")
    return files
