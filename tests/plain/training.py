"""Losses, training steps and scoring around the plain models: no lever of ours is pulled.

Targets of all patches are computed and then masked, the optimiser is an unfused loop over
parameters, a GPU computes in fp16 with a loss scaler, every step waits for its figures, and test
views are scored one after the other, those with the same pixels again.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

from tests.plain.model import PATCH, TUBELET

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CLIP, PATCHES = "b c (t p) (h q) (w r)", "b (t h w) (p q r) c"


@torch.no_grad()
def video_labels(video, mask, frame_diff=True):
    """Normalise every patch of the clip, take differences, and keep the masked patches."""
    mean, std = (video.new_tensor(values).reshape(1, 3, 1, 1, 1) for values in (MEAN, STD))
    patch = {"p": TUBELET, "q": PATCH, "r": PATCH}
    patches = rearrange(video * std + mean, f"{CLIP} -> {PATCHES}", **patch)
    centred = patches - patches.mean(dim=-2, keepdim=True)
    patches = centred / (patches.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    if frame_diff:
        grid = {"t": video.shape[2] // TUBELET, "h": video.shape[3] // PATCH}
        clip = rearrange(patches, f"{PATCHES} -> {CLIP}", **grid, **patch)
        first, second = clip[:, :, ::2], clip[:, :, 1::2]
        clip = torch.stack([first, second - first], dim=3).reshape(video.shape)
        patches = rearrange(clip, f"{CLIP} -> {PATCHES}", **patch)
    labels = patches.flatten(2)
    return labels[mask].reshape(labels.shape[0], -1, labels.shape[-1])


@torch.no_grad()
def audio_labels(audio, mask):
    patches = rearrange(audio, "b 1 (t p) (f q) -> b (t f) (p q)", p=PATCH, q=PATCH)
    mean, var = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    patches = (patches - mean) / (var.sqrt() + 1e-6)
    return patches[mask].reshape(len(audio), -1, patches.shape[-1])


def pretraining_losses(model, video, video_mask, audio, audio_mask, frame_diff=True):
    """Run the model and return its total, video, audio and contrastive loss, and its output."""
    output = model(video, video_mask, audio, audio_mask)
    predicted, predicted_audio, features, features_audio = output
    loss_video = F.mse_loss(predicted, video_labels(video, video_mask, frame_diff))
    loss_audio = F.mse_loss(predicted_audio, audio_labels(audio, audio_mask))
    pairs = torch.arange(video.shape[0], device=video.device)
    contrast = 0.0
    for level in zip(features, features_audio, strict=True):
        units, units_audio = (F.normalize(feature.mean(dim=1), dim=-1) for feature in level)
        logits = units @ units_audio.t() / 0.07
        contrast = contrast + 0.5 * F.cross_entropy(logits, pairs)
        contrast = contrast + 0.5 * F.cross_entropy(logits.t(), pairs)
    total = loss_video + loss_audio + 0.0025 * contrast
    return total, loss_video, loss_audio, contrast, output


class PlainTrainer:
    """One optimisation step after the other, waiting for each."""

    def __init__(self, model, device, betas):
        self.model = model
        self.device = torch.device(device)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
        groups = [{"params": decayed, "weight_decay": 0.05}, plain]
        one_by_one = {"foreach": False, "fused": False}
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=betas, **one_by_one)
        self.half = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half)

    def update(self, loss):
        """Backpropagate and step; return the loss and the gradient norm as numbers."""
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"loss is {value}, stopping training")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad.detach() for p in self.model.parameters() if p.grad is not None]
        norm = torch.norm(torch.stack([torch.norm(grad, 2) for grad in grads]), 2)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.half:
            torch.cuda.synchronize()
        return value, norm.item()

    def pretrain_step(self, *clips):
        """Take one pre-training step on clips and masks, booleans on the device."""
        self.model.train()
        with self.autocast():
            total, *parts, _ = pretraining_losses(self.model, *clips)
        return [part.item() for part in parts], self.update(total)

    def finetune_step(self, video, audio, target):
        """Take one fine-tuning step with soft targets (B, K)."""
        self.model.train()
        with self.autocast():
            scores = self.model(video, audio)
            loss = torch.sum(-target * F.log_softmax(scores, dim=-1), dim=-1).mean()
        return self.update(loss)


@torch.no_grad()
def score_views(model, views, device):
    """Score a list of batches of views one after the other; return probabilities, (views, B, K).

    A clip's views are 2 windows x 2 crops as in the original; crops of square frames are the same
    pixels, and are computed again all the same.
    """
    model.eval()
    kind, scores = torch.device(device).type, []
    for video, audio in views:
        with torch.autocast(kind, dtype=torch.float16, enabled=kind == "cuda"):
            output = model(video, audio)
        scores.append(output.float().softmax(dim=-1).cpu())
    return torch.stack(scores)
