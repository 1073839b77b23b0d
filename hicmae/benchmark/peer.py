"""An outside peer: Hugging Face's VideoMAE pre-training model, where transformers is installed.

It has the width, depth, tokens and batch of our video stream. It sees no audio, contrasts nothing
and has no skip connections, so it has less to do.
"""

import importlib.util

import torch

from hicmae.benchmark.settings import BenchmarkConfig
from hicmae.benchmark.workload import Step, heads_of, random_clips
from hicmae.training.run import Precision


def is_installed() -> bool:
    """Return whether transformers can be imported."""
    return importlib.util.find_spec("transformers") is not None


def make_step(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build its pre-training step: autocast as ours, torch's default AdamW."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    ours = config.pretraining_model()
    width, decoder_width = config.width, ours.decoder.head.in_features
    torch.manual_seed(config.seed)
    model = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=config.input_size,
            num_frames=config.num_frames,
            hidden_size=width,
            num_hidden_layers=config.depth,
            num_attention_heads=heads_of(ours.encoder),
            intermediate_size=4 * width,
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=len(config.levels) + 1,
            decoder_num_attention_heads=heads_of(ours.decoder),
            decoder_intermediate_size=4 * decoder_width,
        )
    ).to(precision.device)
    clips = random_clips(config, ours, batch, precision.device)
    video, mask = clips.video.transpose(1, 2), clips.video_mask.to(precision.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    scaler = precision.grad_scaler()

    def step() -> None:
        with precision.autocast():
            loss = model(video, bool_masked_pos=mask).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step
