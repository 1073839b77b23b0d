"""A contact sheet of the data set: speakers down, classes and moments across."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from preprocess.toy.clips import AROUSALS, CLASSES, VALENCES, ClipKey, make_tracks, plan_clip
from preprocess.toy.render import align, draw_frames

# A clip number that no data set uses: the sheet shows speakers, not training clips.
SHEET_CLIP = 900
MARGIN = 26
INK = (40, 40, 40)


def write_preview(path: Path, seed: int, speakers: int, face_size: int) -> None:
    """Write a contact sheet: per speaker and valence the mouth shut, open, and the aligned face.

    Speech and motion are the same in every column, so only the expression differs.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--preview must name a .png or .jpg file, got '{path}'")
    if speakers < 1:
        raise ValueError(f"--preview_speakers must be 1 or more, got {speakers}")
    rows = [sheet_row(seed, speaker, face_size) for speaker in range(speakers)]
    sheet = np.vstack([header(rows[0].shape[1], len(VALENCES)), *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not with cv2: its PNG writer fails in a process that has loaded decord's older zlib.
    Image.fromarray(sheet[..., ::-1]).save(path)


def sheet_row(seed: int, speaker: int, face_size: int) -> np.ndarray:
    """One speaker in the three valences: (224, width, 3) uint8."""
    parts = []
    for valence in range(len(VALENCES)):
        clip = plan_clip(ClipKey(seed, speaker, SHEET_CLIP), valence * len(AROUSALS))
        tracks = make_tracks(clip)
        awake = tracks.eyelids == 1
        moments = [int(np.argmin(tracks.opening + ~awake)), int(np.argmax(tracks.opening * awake))]
        frames = list(draw_frames(clip))
        parts += [frames[moment][0] for moment in moments]
        parts.append(
            cv2.resize(
                align(*frames[moments[0]], face_size), (224, 224), interpolation=cv2.INTER_CUBIC
            )
        )
    return np.hstack(parts)


def header(width: int, columns: int) -> np.ndarray:
    """The names of the valences over their columns: (MARGIN, width, 3) uint8."""
    strip = np.full((MARGIN, width, 3), 255, np.uint8)
    for column in range(columns):
        pair = " and ".join(CLASSES[column * len(AROUSALS) : (column + 1) * len(AROUSALS)])
        text = f"{pair}: mouth shut, open, aligned face"
        where = (column * width // columns + 8, MARGIN - 8)
        cv2.putText(strip, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.55, INK, 1, cv2.LINE_AA)
    return strip
