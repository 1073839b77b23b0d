"""Random transforms of a labelled clip, and mixup / cutmix of a labelled batch."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from hicmae.data.batches import LabelledBatch
from hicmae.data.video import normalise, to_tensor
from hicmae.io import UnreadableClip, describe, one_line


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the generators of `random`, numpy and torch (CPU); put their states back after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class ClipTransform:
    """RandAugment, normalisation, random resized crop, flip, erasing of a clip, in this order.

    `aa` is timm's name of a RandAugment, "none" leaves it out. Of a crop `scale` are the smallest
    and the largest share of the area, `ratio` those of width / height; `flip` is the probability of
    the horizontal flip, `reprob` that of erasing up to `recount` boxes, filled by `remode`:
    "const", "rand" or "pixel".
    """

    def __init__(
        self,
        input_size: int,
        *,
        aa: str = "rand-m7-n4-mstd0.5-inc1",
        reprob: float = 0.25,
        remode: str = "pixel",
        recount: int = 1,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        self.input_size, self.scale, self.ratio, self.flip = input_size, scale, ratio, flip
        # Translations in shares of the image and bicubic warps, as the original.
        bicubic = Image.Resampling.BICUBIC
        hparams = {"translate_const": int(0.45 * input_size), "interpolation": bicubic}
        try:
            named = aa not in ("", "none")
            self.rand_augment = rand_augment_transform(aa, hparams) if named else None
        except (AssertionError, LookupError, ValueError) as error:
            text = "--aa must name a RandAugment of timm such as 'rand-m7-n4-mstd0.5-inc1'"
            raise ValueError(f"{text}, got {aa!r} ({one_line(error)})") from None
        for operation in self.rand_augment.ops if self.rand_augment else ():
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
        self.erase = RandomErasing(reprob, mode=remode, max_count=recount, device="cpu")

    def __call__(self, images: Sequence[Image.Image], rng: np.random.Generator) -> torch.Tensor:
        """Transform T RGB images of input_size x input_size to (3, T, H, W) float32, normalised.

        UnreadableClip for whatever a library raises: one clip must not end a run.
        """
        try:
            return self._transformed(images, rng)
        except Exception as error:
            reason = f"{type(error).__name__}: {describe(error)}"
            raise UnreadableClip(f"its frames cannot be augmented: {reason}") from error

    def _transformed(self, images: Sequence[Image.Image], rng: np.random.Generator) -> torch.Tensor:
        frame_seed, clip_seed = (int(seed) for seed in rng.integers(2**32, size=2))
        if self.rand_augment is not None:
            augmented: dict[int, Image.Image] = {}
            for image in images:
                if id(image) not in augmented:  # a repeated frame is one object
                    with seeded_globals(frame_seed):  # the same draw for every frame
                        augmented[id(image)] = self.rand_augment(image)
            images = [augmented[id(image)] for image in images]
        video = normalise(to_tensor(images))
        size = self.input_size, self.input_size
        with seeded_globals(clip_seed):
            shape = list(self.scale), list(self.ratio)
            top, left, height, width = RandomResizedCrop.get_params(video, *shape)
            crop = video[..., top : top + height, left : left + width].flatten(0, 1)  # (3 T, h, w)
            frames = interpolate(crop[None], size, mode="bilinear", align_corners=False)[0]
            if random.random() < self.flip:
                frames = frames.flip(-1)
            # As one image of 3 T channels, so that all frames lose the same box.
            return self.erase(frames).view(3, -1, *size)


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep some bits of each colour; black without any, as Pillow 12 had it: 13 refuses that."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, min(bits, 8))


def mix_batch(batch: LabelledBatch, mixup: Mixup, mix_audio: bool = False) -> LabelledBatch:
    """Mix each clip of a batch with its mirror in the batch, and smooth and mix the targets.

    The video is (B, 3, T, H, W) float, normalised, the target (B,) int64 and then (B, K) float32;
    all tensors are new. timm's draws come from numpy's global generator. The audio is blended with
    the same share if `mix_audio` is set (the original leaves it as it is) or there is no video.
    """
    if batch.target.is_floating_point():
        text = "mixup needs class indices as targets, got numbers"
        raise ValueError(f"{text}; set --mixup 0 --cutmix 0")
    video, audio = batch.video, batch.audio
    # Not timm's mixup(video, target), which takes even batches only and keeps the share to itself.
    if video is None:
        share, _ = mixup._params_per_batch()
    else:
        video = video.clone(memory_format=torch.contiguous_format)
        share = mixup._mix_batch(video.flatten(1, 2))  # a view: frames as channels
    if audio is not None and (mix_audio or video is None):
        audio = audio * share + audio.flip(0) * (1 - share)
    target = mixup_target(batch.target, mixup.num_classes, share, mixup.label_smoothing)
    return batch._replace(video=video, audio=audio, target=target)
