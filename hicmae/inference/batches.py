"""Views of many clips through a model, in batches across clips; each clip given back when done."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hicmae.data.clip_list import UnreadableClip
from hicmae.data.video import normalise
from hicmae.inference.media import Source
from hicmae.inference.model_config import ModelConfig
from hicmae.inference.views import Options, PreparedClip, View, prepare, views_of

# From batches of video (B, 3, T, H, W) and audio (B, 1, T, F), None where missing, to results.
Compute = Callable[[Tensor | None, Tensor | None], dict[str, Tensor]]
Rows = dict[tuple[int, int], list[dict[str, np.ndarray]]]  # of each view, by (person, window)
OpenClip = Callable[[], Source]


class Computed(NamedTuple):
    """A clip with what was computed of its views, or the reason why it cannot be read."""

    clip: PreparedClip | UnreadableClip
    rows: Rows


class BatchRunner:
    """Fills batches with views of clips that come one after the other.

    Args:
        config: of the model.
        streams: what is read.
        compute: what the model does with a batch.
        device: where it does so.
        batch_size: views of a batch.
        progress: show progress bars.
    """

    def __init__(
        self,
        config: ModelConfig,
        streams: str,
        compute: Compute,
        device: torch.device,
        batch_size: int,
        progress: bool = False,
    ) -> None:
        self.config, self.streams, self.compute = config, streams, compute
        self.device, self.batch_size, self.progress = device, batch_size, progress
        self.rows: dict[int, Rows] = {}  # of clips that are not given back yet
        self.outstanding: dict[int, int] = {}  # their views that wait for a batch
        # Views of one batch have the same streams.
        self.waiting: dict[tuple[bool, bool], list[tuple[int, View]]] = {}

    def run(self, opens: Sequence[OpenClip], options: Options) -> Iterator[Computed]:
        """Yield each clip, in order, as soon as all its views are computed."""
        read: dict[int, PreparedClip | UnreadableClip] = {}  # and not given back yet
        given = 0
        several = self.progress and len(opens) > 1
        for place, open_clip in enumerate(tqdm(opens, "clips", disable=not several)):
            self.rows[place], self.outstanding[place] = {}, 0
            read[place] = self._read(place, open_clip, options)
            while given in read and not self.outstanding[given]:
                yield Computed(read.pop(given), self.rows.pop(given))
                given += 1
        for batch in self.waiting.values():
            self._compute(batch)
        for place in sorted(read):
            yield Computed(read.pop(place), self.rows.pop(place))

    def _read(
        self, place: int, open_clip: OpenClip, options: Options
    ) -> PreparedClip | UnreadableClip:
        """Prepare a clip and hand its views to the batches."""
        try:
            clip = prepare(open_clip(), self.config, self.streams, options)
            views = views_of(clip, self.config, self.streams, options.missing_modality != "error")
            total = len(clip.windows) * clip.num_people * clip.num_crops
            quiet = not self.progress
            for view in tqdm(views, "windows", total, leave=False, disable=quiet):
                self._add(place, view)
        except UnreadableClip as error:
            return error
        clip.waveform = None  # heard to its end; many clips may wait for their batch
        return clip

    def _add(self, place: int, view: View) -> None:
        kind = view.video is None, view.audio is None
        batch = self.waiting.setdefault(kind, [])
        batch.append((place, view))
        self.outstanding[place] += 1
        if len(batch) == self.batch_size:
            self._compute(self.waiting.pop(kind))

    @torch.inference_mode()
    def _compute(self, batch: list[tuple[int, View]]) -> None:
        views = [view for _, view in batch]
        video = audio = None
        if views[0].video is not None:
            pixels = [view.video for view in views if view.video is not None]
            video = normalise(torch.stack(pixels).to(self.device))
        if views[0].audio is not None:
            features = [view.audio for view in views if view.audio is not None]
            audio = torch.stack(features).to(self.device)
        computed = self.compute(video, audio)
        arrays = {name: value.float().cpu().numpy() for name, value in computed.items()}
        for index, (place, view) in enumerate(batch):
            row = {name: array[index] for name, array in arrays.items()}
            self.rows[place].setdefault((view.person, view.window), []).append(row)
            self.outstanding[place] -= 1
