"""Whether a clip's sound finds its video among others, and the other way round."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hicmae.data.clip_list import AnyClip
from hicmae.models.encoder import pooled_unit
from hicmae.models.layers import split_tokens
from hicmae.models.pretrain import HiCMAE
from hicmae.visualize.features import Opened, batches, draw_lines, open_model, read_clips
from hicmae.visualize.style import OKABE_ITO, STYLE, check_format, save_figure

RANKS = (1, 5, 10)
DIRECTIONS = ("audio to video", "video to audio")
LEVELS = (3, 6, 9)  # of the original, where a checkpoint does not say which blocks are contrasted


class Recall(NamedTuple):
    """How often the match is among the k nearest.

    Attributes:
        level: encoder block, from 0.
        direction: of DIRECTIONS.
        rank: k.
        value: share of clips, in 0..1.
        chance: that of guessing.
    """

    level: int
    direction: str
    rank: int
    value: float
    chance: float


def recall_at(similarity: np.ndarray, rank: int) -> float:
    """Return how often the match is among the `rank` nearest; ties are broken by lot.

    Args:
        similarity: (n, n), row = what is searched with, column = what is found; matches on the
            diagonal.
        rank: k.
    """
    match = np.diag(similarity)[:, None]
    nearer = (similarity > match).sum(1)
    equal = (similarity == match).sum(1)  # with the match itself
    return float(np.clip((rank - nearer) / equal, 0.0, 1.0).mean())


@torch.inference_mode()
def pooled_levels(
    opened: Opened, clips: Sequence[AnyClip], levels: Sequence[int], masked: bool, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute the features that pre-training contrasts.

    Args:
        opened: pre-trained model.
        clips: to encode.
        levels: encoder blocks.
        masked: hide the tokens that training would hide.
        seed: of windows, crops and masks.

    Returns:
        Of video and audio, one (n, D) array of unit vectors a level.
    """
    found: tuple[list[list[torch.Tensor]], ...] = ([], [])
    model = cast(HiCMAE, opened.model)
    for batch in batches(opened, clips, seed=seed):
        streams = (
            (model.encoder, batch.video, batch.video_mask, "video_mask"),
            (model.encoder_audio, batch.audio, batch.audio_mask, "audio_mask"),
        )
        for encoder, clip, mask, name in streams:
            visible = None
            if masked and mask is not None:
                split = split_tokens(mask, encoder.patch_embed.num_tokens, name)
                visible = split.visible.to(opened.device)
            output = encoder(clip, visible, levels)
            kept = found[0] if name == "video_mask" else found[1]
            kept.append([pooled_unit(level).float().cpu() for level in output.levels])
    video, audio = (
        [torch.cat(parts).numpy() for parts in zip(*kept, strict=True)] for kept in found
    )
    return video, audio


def recalls(
    video: Sequence[np.ndarray], audio: Sequence[np.ndarray], levels: Sequence[int]
) -> list[Recall]:
    """Score both directions at every level."""
    found = []
    for level, video_level, audio_level in zip(levels, video, audio, strict=True):
        similarity = audio_level.astype(np.float64) @ video_level.astype(np.float64).T
        num_clips = len(similarity)
        for direction, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
            for rank in RANKS:
                chance = min(rank / num_clips, 1.0)
                found.append(Recall(level, direction, rank, recall_at(matrix, rank), chance))
    return found


def table(found: Sequence[Recall], num_clips: int) -> str:
    """Lay the figures out as plain text."""
    lines = [f"recall in percent among {num_clips} clips"]
    heading = "".join(f"{f'R@{rank}':>8}" for rank in RANKS)
    lines.append(f"{'level':<22}{heading}")
    for level in dict.fromkeys(r.level for r in found):
        for direction in DIRECTIONS:
            own = [r for r in found if (r.level, r.direction) == (level, direction)]
            cells = "".join(f"{100 * r.value:8.2f}" for r in own)
            lines.append(f"{f'block {level}, {direction}':<22}{cells}")
    chances = {r.rank: r.chance for r in found}
    lines.append(f"{'chance':<22}" + "".join(f"{100 * chances[rank]:8.2f}" for rank in RANKS))
    return "\n".join(lines)


def retrieval_figure(found: Sequence[Recall], num_clips: int) -> Figure:
    """Draw one panel a direction: bars of recall for every level, chance as lines across them."""
    levels = list(dict.fromkeys(r.level for r in found))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(5.4, 2.5), sharey=True, layout="constrained")
        for axes, direction in zip(panels, DIRECTIONS, strict=True):
            for number, rank in enumerate(RANKS):
                own = [r for r in found if (r.direction, r.rank) == (direction, rank)]
                place = np.arange(len(levels)) + (number - 1) * 0.27
                axes.bar(
                    place, [100 * r.value for r in own], 0.25, color=OKABE_ITO[number],
                    label=f"R@{rank}",
                )  # fmt: skip
                chance = [100 * r.chance for r in own]
                axes.hlines(
                    chance, place - 0.125, place + 0.125, color="black", linewidth=1.5,
                    label="chance" if rank == RANKS[-1] else None,
                )  # fmt: skip
            axes.set_xticks(range(len(levels)), [str(level) for level in levels])
            axes.grid(axis="x", visible=False)
            axes.set(title=direction, xlabel="encoder block")
        panels[0].set_ylabel(f"recall (%), {num_clips} clips")
        handles, labels = panels[0].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda k: labels[k] == "chance")
        figure.legend(
            [handles[k] for k in order], [labels[k] for k in order],
            loc="outside upper center", ncols=4,
        )  # fmt: skip
    return figure


def retrieval(
    checkpoint_file: str | Path,
    data_path: str | Path,
    output: str | Path,
    num_clips: int = 0,
    masked: bool = False,
    csv_file: str = "",
    data_root: str = "",
    device: str = "auto",
    seed: int = 0,
) -> tuple[Path, str]:
    """Measure and draw the retrieval of a pre-training checkpoint on a list.

    Args:
        checkpoint_file: of pre-training.
        data_path: pre-training list, or its folder.
        output: picture to write.
        num_clips: that many are drawn from the list; 0: all.
        masked: hide what training hides.
        csv_file: where to write the figures; "": nowhere.
        data_root: folder that relative paths in the list start from.
        device: where to compute.
        seed: of the draw, of windows, crops and masks.

    Returns:
        The picture, and the figures as text.
    """
    check_format(output)
    opened = open_model(checkpoint_file, device, "pre-trained")
    listed = read_clips(opened.config, data_path, data_root)
    clips = [listed[k] for k in draw_lines(len(listed), num_clips, seed)]
    if len(clips) < 2:
        raise ValueError(f"retrieval needs at least 2 clips to choose from, got {len(clips)}")
    settings = opened.config.training.get("settings", {})
    levels = tuple(settings.get("return_intermediate_features") or LEVELS)
    found = recalls(*pooled_levels(opened, clips, levels, masked, seed), levels)
    if csv_file:
        Path(csv_file).parent.mkdir(parents=True, exist_ok=True)
        with open(csv_file, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([Recall._fields, *found])
    picture = save_figure(retrieval_figure(found, len(clips)), output)
    return picture, table(found, len(clips))
