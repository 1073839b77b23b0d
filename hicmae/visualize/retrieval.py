"""Whether a clip's sound finds its video among others, and the other way round."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from hicmae.inference.style import STYLE, colour
from hicmae.io import write_whole
from hicmae.models.encoder import pooled_unit
from hicmae.models.layers import split_tokens
from hicmae.models.pretrain import HiCMAE
from hicmae.visualize.features import Opened, Source, batches

RANKS = (1, 5, 10)
DIRECTIONS = ("audio to video", "video to audio")
LEVELS = (3, 6, 9)  # of the original, where a checkpoint does not say which blocks are contrasted


def recall_at(similarity: np.ndarray, rank: int) -> float:
    """Return how often the match is among the `rank` nearest; ties are broken by lot.

    Rows of the similarity (n, n) are what is searched with, columns what is found; matches are on
    its diagonal.
    """
    match = np.diag(similarity)[:, None]
    nearer = (similarity > match).sum(1)
    equal = (similarity == match).sum(1)  # with the match itself
    return float(np.clip((rank - nearer) / equal, 0.0, 1.0).mean())


@torch.inference_mode()
def pooled_levels(
    opened: Opened, levels: Sequence[int], masked: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute the features that pre-training contrasts after the encoder blocks `levels`.

    Returns:
        Of video and audio, one (n, D) array of unit vectors a level; `masked` hides the tokens
        that training would hide.
    """
    found: dict[str, list[list[torch.Tensor]]] = {"video_mask": [], "audio_mask": []}
    model = cast(HiCMAE, opened.model)
    for batch in batches(opened):
        for encoder, clip, mask, name in (
            (model.encoder, batch.video, batch.video_mask, "video_mask"),
            (model.encoder_audio, batch.audio, batch.audio_mask, "audio_mask"),
        ):
            visible = None
            if masked and mask is not None:
                split = split_tokens(mask, encoder.patch_embed.num_tokens, name)
                visible = split.visible.to(opened.device)
            output = encoder(clip, visible, levels)
            found[name].append([pooled_unit(level).float().cpu() for level in output.levels])
    video, audio = (
        [torch.cat(parts).numpy() for parts in zip(*batches_, strict=True)]
        for batches_ in found.values()
    )
    return video, audio


def recalls(
    video: Sequence[np.ndarray], audio: Sequence[np.ndarray], levels: Sequence[int]
) -> pd.DataFrame:
    """Score both directions at every level.

    Returns:
        level, direction, rank, value: how often the match is among the `rank` nearest, and chance:
        the same for guessing, both in 0..1.
    """
    rows = []
    for level, video_level, audio_level in zip(levels, video, audio, strict=True):
        similarity = audio_level.astype(np.float64) @ video_level.astype(np.float64).T
        for direction, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
            for rank in RANKS:
                chance = min(rank / len(matrix), 1.0)
                rows.append((level, direction, rank, recall_at(matrix, rank), chance))
    return pd.DataFrame(rows, columns=["level", "direction", "rank", "value", "chance"])


def table(found: pd.DataFrame, num_clips: int) -> str:
    """Lay the figures out as plain text."""
    rows = "block " + found["level"].astype(str) + ", " + found["direction"]
    shown = found.assign(row=rows).pivot_table("value", "row", "rank", sort=False)
    shown.loc["chance"] = found.groupby("rank")["chance"].first()
    shown.columns = pd.Index([f"R@{rank}" for rank in shown], name="level")
    text = (100 * shown).rename_axis(None).to_string(float_format="{:.2f}".format, col_space=7)
    return f"recall in percent among {num_clips} clips\n{text}"


def retrieval_figure(found: pd.DataFrame, num_clips: int) -> Figure:
    """Draw one panel a direction: bars of recall for every level, chance as lines across them."""
    levels = found["level"].unique()
    with rc_context(STYLE):
        figure = Figure((5.4, 2.5))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (direction, own) in zip(panels, found.groupby("direction"), strict=True):
            handles = {}
            for number, (rank, scores) in enumerate(own.groupby("rank")):
                place = np.arange(len(levels)) + (number - 1) * 0.27
                values, chance = 100 * scores["value"], 100 * scores["chance"]
                handles[f"R@{rank}"] = axes.bar(place, values, 0.25, color=colour(number))
                edges = place - 0.125, place + 0.125
                line = axes.hlines(chance, *edges, color="black", linewidth=1.5)
            axes.set_xticks(range(len(levels)), map(str, levels))
            axes.grid(axis="x", visible=False)
            axes.set(title=direction, xlabel="encoder block")
        panels[0].set_ylabel(f"recall (%), {num_clips} clips")
        handles["chance"] = line
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=4)
    return figure


def retrieval(source: Source, masked: bool = False, csv: str = "") -> tuple[Figure, str]:
    """Measure and draw the retrieval of a pre-training checkpoint on a list.

    Returns:
        The picture, and the figures as text; they are written to `csv`, too, where it is given.
    """
    opened = source.open("pre-trained")
    count = len(opened.clips)
    if count < 2:
        raise ValueError(f"retrieval needs at least 2 clips to choose from, got {count}")
    settings = opened.config.training.get("settings", {})
    levels = tuple(settings.get("return_intermediate_features") or LEVELS)
    found = recalls(*pooled_levels(opened, levels, masked), levels)
    if csv:
        write_whole(csv, found.to_csv(index=False))
    return retrieval_figure(found, count), table(found, count)
