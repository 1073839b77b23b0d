"""Draw a face's box, its answer and the bars of its scores into frames."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hicmae.inference.results import Prediction
from hicmae.visualize.style import OKABE_ITO

LONGEST_GAP = 1.0  # seconds between two boxes over which the face is thought to be there
MOST_BARS = 8
OTHER = "#999999"  # colour of classes beyond those that have one
DARK = (20, 20, 20)


class Annotator:
    """Draws one person's answers; frames must all have one size.

    Args:
        prediction: of that person.
        size: width and height of the frames.
        with_bars: draw the scores of all classes in the corner.
    """

    def __init__(self, prediction: Prediction, size: tuple[int, int], with_bars: bool) -> None:
        self.prediction, self.size = prediction, size
        self.names = list(prediction.scores)
        answered = [window for window in prediction.windows if window.scores]
        self.centres = np.array([(window.start + window.end) / 2 for window in answered])
        rows = [[window.scores[name] for name in self.names] for window in answered]
        self.scores = np.array(rows)
        self.font_size = max(round(min(size) / 24), 9)
        self.thickness = max(round(min(size) / 200), 1)
        order = np.argsort(-self.scores.mean(0)) if len(answered) else np.arange(0)
        self.shown = sorted(order[:MOST_BARS]) if with_bars else []

    def draw(self, frame: np.ndarray, time: float) -> None:
        """Draw into a frame (H, W, 3) uint8 RGB, in place, what is said about a moment."""
        scores = self._at(time)
        box = self._box(time)
        if box is not None:
            best = int(scores.argmax())
            _outline(frame, box, _colour(best), self.thickness)
            _paste(frame, self._label(best, scores), box[0], box[1])
        if self.shown:
            self._bars(frame, scores)

    def _at(self, time: float) -> np.ndarray:
        """Return the scores at a moment, on the way between the windows around it."""
        return np.array([np.interp(time, self.centres, column) for column in self.scores.T])

    def _box(self, time: float) -> np.ndarray | None:
        """Return left, top, right, bottom at a moment; None where the face was not seen."""
        boxes = self.prediction.boxes
        if not len(boxes):
            return None
        times = boxes[:, 0]
        after = int(np.searchsorted(times, time))
        near = times[max(after - 1, 0)], times[min(after, len(times) - 1)]
        if near[1] - near[0] > LONGEST_GAP or min(abs(time - t) for t in near) > LONGEST_GAP:
            return None
        return np.array([np.interp(time, times, boxes[:, k]) for k in range(1, 5)]).round()

    def _label(self, best: int, scores: np.ndarray) -> np.ndarray:
        if self.prediction.task == "regression":
            text = "  ".join(
                f"{name} {score:+.2f}" for name, score in zip(self.names, scores, strict=True)
            )
            return text_image(text, self.font_size, _colour(0))
        text = f"{self.names[best]} {100 * scores[best]:.0f} %"
        return text_image(text, self.font_size, _colour(best))

    def _bars(self, frame: np.ndarray, scores: np.ndarray) -> None:
        """Draw a bar for each shown class or output, from the lower left corner up."""
        line = round(1.5 * self.font_size)
        labels = [text_image(self.names[k], self.font_size, DARK) for k in self.shown]
        margin, width = line // 3, max(round(self.size[0] / 4), 20)
        left = margin + max(label.shape[1] for label in labels)
        top = self.size[1] - margin - line * len(self.shown)
        panel = frame[max(top - margin, 0) :, : left + width + 2 * margin]
        panel[:] = panel // 3  # darker, so that the writing can be read on any picture
        low, high = self._range()
        for row, (k, label) in enumerate(zip(self.shown, labels, strict=True)):
            y = top + row * line
            _paste(frame, label, margin, y + label.shape[0])
            share = float(np.clip((scores[k] - low) / (high - low), 0, 1))
            bar = slice(max(y + line // 6, 0), max(y + line - line // 6, 0))
            frame[bar, left + margin : left + margin + round(share * width)] = _colour(int(k))

    def _range(self) -> tuple[float, float]:
        """Return the scores of an empty and of a full bar."""
        if self.prediction.task == "classification":
            return 0.0, 1.0
        low, high = float(self.scores.min()), float(self.scores.max())
        return low, max(high, low + 1e-6)


@lru_cache(maxsize=512)
def text_image(text: str, size: int, background: tuple[int, int, int]) -> np.ndarray:
    """Return (h, w, 3) pixels of a text in white or black on a colour."""
    font = _font(size)
    left, top, right, bottom = font.getbbox(text)
    pad = max(size // 4, 2)
    ascent, descent = font.getmetrics()
    image = Image.new("RGB", (round(right - left) + 2 * pad, ascent + descent + pad), background)
    bright = np.dot(background, (0.299, 0.587, 0.114)) > 140
    ImageDraw.Draw(image).text((pad - left, pad // 2), text, (0, 0, 0) if bright else "white", font)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The font that matplotlib brings: there is one on every machine, and it has most scripts.
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


@lru_cache(maxsize=64)
def _colour(index: int) -> tuple[int, int, int]:
    code = OKABE_ITO[index] if index < len(OKABE_ITO) else OTHER
    code = "#FFFFFF" if code == "#000000" else code  # the bars stand on dark ground
    red, green, blue = (int(code[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue


def _outline(frame: np.ndarray, box: np.ndarray, colour: Sequence[int], thickness: int) -> None:
    """Draw a rectangle, cut at the edges of the frame."""
    height, width = frame.shape[:2]
    left, right = (int(np.clip(x, 0, width - 1)) for x in box[[0, 2]])
    top, bottom = (int(np.clip(y, 0, height - 1)) for y in box[[1, 3]])
    frame[top : top + thickness, left:right] = colour
    frame[max(bottom - thickness, 0) : bottom, left:right] = colour
    frame[top:bottom, left : left + thickness] = colour
    frame[top:bottom, max(right - thickness, 0) : right] = colour


def _paste(frame: np.ndarray, image: np.ndarray, left: float, bottom: float) -> None:
    """Put an image into a frame with its lower left corner at a place, moved inside if need be."""
    height, width = frame.shape[:2]
    image = image[:height, :width]
    x = int(np.clip(left, 0, width - image.shape[1]))
    y = int(np.clip(bottom - image.shape[0], 0, height - image.shape[0]))
    frame[y : y + image.shape[0], x : x + image.shape[1]] = image
