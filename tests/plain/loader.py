"""Clips loaded plainly, one after the other: the baseline of `python scripts/benchmark.py loader`.

It shares no line with `hicmae.data` and does what a competent reader of the paper writes: decord
for the 16 frames, Pillow for crop and resize, frame by frame, float pixels normalised in the
worker, torchaudio's Kaldi filter bank for each clip, masks by numpy. The random numbers are drawn
as `hicmae.data` draws them, so that both yield the same tensors.
"""

import decord
import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image

RATE = 16000
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1, 1)


def load_clip(video_path, audio_path, rng, num_frames=16, stride=4, size=160):
    """Return video (3, T, H, W) normalised, its mask, spectrogram (1, 256, 128), its mask."""
    reader = decord.VideoReader(video_path, num_threads=1)
    total = len(reader)
    span = num_frames * stride
    start = int(rng.integers(total - span + 1)) if total > span else 0
    indices = list(range(start, total, stride))[:num_frames]
    indices += [indices[-1]] * (num_frames - len(indices))

    last = min(indices[-1] + stride, total - 1)
    times = reader.get_frame_timestamp([indices[0], last])
    spectrogram = load_audio(audio_path, float(times[0][0]), float(times[1][1]))

    frames = [Image.fromarray(frame) for frame in reader.get_batch(indices).asnumpy()]
    visible_cells = np.zeros(100, dtype=bool)
    visible_cells[rng.permutation(100)[:90]] = True
    video_mask = np.tile(visible_cells, num_frames // 2)
    audio_mask = np.zeros(128, dtype=bool)
    audio_mask[rng.permutation(128)[:102]] = True

    box = random_box(frames[0].size, rng)
    frames = [frame.crop(box).resize((size, size), Image.BILINEAR) for frame in frames]
    video = torch.stack([torch.from_numpy(np.array(frame)) for frame in frames])
    video = video.permute(3, 0, 1, 2).float() / 255
    video = (video - MEAN) / STD
    return video, torch.from_numpy(video_mask), spectrogram, torch.from_numpy(audio_mask)


def random_box(frame_size, rng):
    """Draw one of the multi-scale crops of the face."""
    left, top, width, height = (
        (32, 0, 160, 160) if frame_size == (224, 224) else (0, 0, *frame_size)
    )
    sides = [int(min(width, height) * scale) for scale in (1, 0.875, 0.75, 0.66)]
    pairs = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_width, crop_height = pairs[int(rng.integers(len(pairs)))]
    dx, dy = (width - crop_width) // 4, (height - crop_height) // 4
    offsets = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
    offsets += [(1, 1), (3, 1), (1, 3), (3, 3)]
    x, y = offsets[int(rng.integers(len(offsets)))]
    x, y = left + x * dx, top + y * dy
    return x, y, x + crop_width, y + crop_height


def load_audio(path, begin, end):
    """Read the sound of the frames and turn it into a normalised spectrogram."""
    first, last = int(begin * RATE), int(end * RATE)
    waveform, _ = soundfile.read(path, start=first, stop=last, dtype="float32")
    waveform = torch.from_numpy(waveform)[None]
    waveform = waveform - waveform.mean()
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform,
        htk_compat=True,
        sample_frequency=RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )[:256]
    fbank = torch.nn.functional.pad(fbank, (0, 0, 0, 256 - len(fbank)))
    return ((fbank + 4.2677393) / (2 * 4.5689974))[None]
