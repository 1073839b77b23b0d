"""Who speaks: to whose face in a film the sound belongs, window by window.

"lips": the speaker's lips move most when the sound is loud or its loudness changes. "contrast":
pre-training pulled picture and sound of a clip together, so the speaker's picture is nearest to the
sound.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hicmae.config import ClipConfig, PretrainLossConfig, PretrainModelConfig
from hicmae.config.flags import from_flags
from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.film import FRAME_RATE
from hicmae.data.media import Sound
from hicmae.data.video import normalise
from hicmae.faces import align
from hicmae.inference.clips import Chooser, Clip, frame_step
from hicmae.inference.model import Preprocessing, load_model
from hicmae.models.losses import contrasted
from hicmae.training.run import Precision

FACE = 64  # pixels of the aligned face in which lips are looked at
MOUTH = slice(38, 55), slice(16, 48)  # rows and columns of it
LEAST = 0.2  # correlation of lips and sound below which nobody is taken for the speaker
CONTEXT = 2.5  # seconds that are looked at for a shorter window
FEWEST = 8  # frames from which a correlation means something


class Lips(NamedTuple):
    """Lip motion and sound of a film over time; both are measured once a frame."""

    times: np.ndarray  # (n,) seconds
    motion: np.ndarray  # (P, n) of each person
    loudness: np.ndarray  # (n,)

    def agreement(self, start: float, end: float) -> np.ndarray:
        """Correlate motion with loudness and its changes from `start` to `end` seconds, (P,)."""
        more = max(CONTEXT - (end - start), 0.0) / 2
        inside = (self.times >= start - more) & (self.times < end + more)
        motion, loud = self.motion[:, inside], self.loudness[inside]
        if len(loud) < FEWEST or not loud.std():
            return np.zeros(len(motion))
        change = np.abs(np.diff(loud, prepend=loud[:1]))
        heard = loud / loud.std() + change / change.std()
        own, sound = motion - motion.mean(1, keepdims=True), heard - heard.mean()
        norms = np.linalg.norm(own, axis=1) * np.linalg.norm(sound)
        return own @ sound / np.maximum(norms, 1e-9)


def lip_motion(frames: Iterable[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Measure how far the mouths of faces at points (P, n, 5, 2) change from frame to frame.

    Frames are n of (H, W, 3) uint8. Returns (P, n), the logarithm of the mean difference in grey.
    """
    moved, before = [], None
    for number, frame in enumerate(frames):
        faces = (align(frame, person[number], FACE) for person in points)
        mouths = np.stack([cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[MOUTH] for face in faces])
        now = mouths.astype(np.float32)
        moved.append(np.abs(now - (now if before is None else before)).mean((1, 2)))
        before = now
    motion = np.log1p(moved).T
    motion[:, 0] = motion[:, 1]  # nothing is known of the first one
    return motion


def loudness(samples: np.ndarray | Sound, times: np.ndarray) -> np.ndarray:
    """Return the root mean square of samples (S,) in each frame from times (n,), seconds."""
    ends = np.append(times, 2 * times[-1] - times[-2])
    places = np.round(ends * SAMPLE_RATE).astype(int).clip(0, len(samples))
    energy = [np.square(samples[a:b], dtype=float).sum() for a, b in itertools.pairwise(places)]
    return np.sqrt(np.array(energy) / np.diff(places).clip(1))


def read_lips(clip: Clip) -> Lips:
    """Look at the lips of all people of a prepared clip, in about 25 frames a second."""
    assert clip.frames is not None and clip.times is not None and clip.points is not None
    assert clip.waveform is not None
    source = clip.frames.source
    if len(source.times) < FEWEST:
        return Lips(np.empty(0), np.empty((len(clip.points), 0)), np.empty(0))
    step = max(round(1 / (FRAME_RATE * frame_step(source.times))), 1)
    times = source.times[::step]
    # Points are known at the moments that the model looks at.
    at_times = functools.partial(np.interp, times, clip.times)
    points = np.apply_along_axis(at_times, 1, clip.points)
    motion = lip_motion(source.frames(range(0, len(source.times), step)), points)
    return Lips(times, motion, loudness(clip.waveform, times))


class Contrast(NamedTuple):
    """The encoders of a pre-training, and the blocks after which it contrasted the streams."""

    model: Any
    levels: tuple[int, ...]
    precision: Precision

    @torch.inference_mode()
    def similarity(self, pictures: Sequence[Tensor], audio: Tensor) -> np.ndarray:
        """Return the cosine of each picture (3, T, H, W) uint8 and a sound (1, T, F), (P,)."""
        device = self.precision.device
        video, sound = normalise(torch.stack(list(pictures)).to(device)), audio[None].to(device)
        with self.precision.autocast():
            seen = self.model.encoder(video, None, self.levels, pool=True).levels
            heard = self.model.encoder_audio(sound, None, self.levels, pool=True).levels
            pairs = zip(seen, heard, strict=True)
            cosines = [F.cosine_similarity(v.float(), a.float()) for v, a in pairs]
        return torch.stack(cosines).mean(0).cpu().numpy()


def load_contrast(path: str | Path, clip: Preprocessing, precision: Precision) -> Contrast:
    """Load a pre-training that reads clips as a model does; ValueError where there is none."""
    model, config = load_model(path, precision.device)
    levels: tuple[int, ...] = ()
    if config.task == "pretraining" and config.modality == "av":
        settings = config.training.get("settings", {})
        kept = from_flags(settings, PretrainModelConfig).return_intermediate_features
        loss = from_flags(settings, PretrainLossConfig)
        which = loss.contrastive_levels if loss.loss_weight else "none"
        levels = tuple(kept[k] for k in contrasted(len(kept), which))
    sizes = config.architecture
    if not levels or max(levels) >= min(sizes.depth, sizes.depth_audio):
        raise ValueError(
            f"'{path}' has no contrast of picture and sound, expected a pre-training checkpoint "
            "with one; use --speaker lips"
        )
    for name in (item.name for item in fields(ClipConfig)):
        own, wanted = getattr(config.preprocessing, name), getattr(clip, name)
        if own != wanted:
            raise ValueError(
                f"'{path}' reads clips of {name} {own}, the model of {wanted}; name the "
                "pre-training that it was fine-tuned from, or use --speaker lips"
            )
    return Contrast(model, levels, precision)


def chooser(clip: Clip, way: str, contrast: Contrast | None) -> Chooser | None:
    """Return what chooses the speaker in each window of a clip, as `Options.speaker` says.

    Whoever is alone in the film, or is seen alone in a window, speaks there. None: everybody has
    the sound.
    """
    if way == "none":
        return None
    lips = functools.cache(functools.partial(read_lips, clip))  # read when they are first needed

    def choose(number: int, pictures: Sequence[Tensor | None], audio: Tensor) -> int | None:
        seen = {person: video for person, video in enumerate(pictures) if video is not None}
        people = list(seen) if len(pictures) > 1 else [0]
        if len(people) < 2:
            return people[0] if people else None
        if contrast is not None and way != "lips":
            return people[int(contrast.similarity(list(seen.values()), audio).argmax())]
        window = clip.windows[number]
        scores = lips().agreement(window.start, window.end)[people]
        return people[int(scores.argmax())] if scores.max() >= LEAST else None

    return choose
