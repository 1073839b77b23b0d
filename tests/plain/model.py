"""HiCMAE written out plainly, from the paper and the parameter names of released checkpoints.

It shares no line with `hicmae.models`. It is the slow reference that the fast models must agree
with and the baseline that scripts/benchmark.py measures against: what a ViT-MAE looked like in
2022. Convolutions embed every token, a boolean mask picks the visible ones, attention is spelled
out as matrix product, softmax, matrix product. Models are made from the arguments of ours, `told`.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, to_2tuple
from torch import nn

PATCH, TUBELET = 16, 2


def sine_cosine_table(num_positions, dim):
    table = torch.zeros(num_positions, dim, dtype=torch.float64)
    position = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1)
    frequency = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float().unsqueeze(0)


class Attention(nn.Module):
    """Attention of tokens to each other or, crossed, to a context; keys have no bias."""

    def __init__(self, dim, heads, cross=False):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        if cross:
            self.q = nn.Linear(dim, dim, bias=False)
            self.kv = nn.Linear(dim, dim * 2, bias=False)
        else:
            self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, context=None):
        bias = torch.cat([torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias])
        if context is None:
            q, k, v = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, bias])).chunk(3, -1)
        else:
            q = F.linear(x, self.q.weight, self.q_bias)
            k, v = F.linear(context, self.kv.weight, bias).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer; with `cross` it reads a context before itself."""

    def __init__(self, dim, heads, drop=0.0, init_values=0.0, cross=False):
        super().__init__()
        if cross:
            self.cross_norm1 = nn.LayerNorm(dim, eps=1e-6)
            self.cross_norm2 = nn.LayerNorm(dim, eps=1e-6)
            self.cross_attn = Attention(dim, heads, cross=True)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dim * 4)
        self.drop_path = DropPath(drop)
        for number in range(0 if cross else 1, 3 if init_values > 0 else 0):
            gamma = nn.Parameter(init_values * torch.ones(dim))
            self.register_parameter(f"gamma_{number}", gamma)

    def scaled(self, branch, name):
        gamma = getattr(self, name, None)
        return self.drop_path(branch if gamma is None else gamma * branch)

    def forward(self, x, context=None):
        if context is not None:
            branch = self.cross_attn(self.cross_norm1(x), self.cross_norm2(context))
            x = x + self.scaled(branch, "gamma_0")
        x = x + self.scaled(self.attn(self.norm1(x)), "gamma_1")
        return x + self.scaled(self.mlp(self.norm2(x)), "gamma_2")


def layers(dim, depth, heads, drop=0.0, init_values=0.0, cross=()):
    """Make layers whose rates of dropped paths rise; those at the places in `cross` are crossed."""
    rates = torch.linspace(0, drop, depth).tolist()
    kinds = [(dim, heads, rate, init_values, k in cross) for k, rate in enumerate(rates)]
    return nn.ModuleList([Layer(*kind) for kind in kinds])


class Encoder(nn.Module):
    def __init__(self, size, patch, channels, dim, depth, heads, **options):
        super().__init__()
        convolution = nn.Conv3d if len(size) == 3 else nn.Conv2d
        self.patch_embed = nn.ModuleDict({"proj": convolution(channels, dim, patch, patch)})
        self.blocks = layers(dim, depth, heads, **options)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.num_patches = math.prod(s // p for s, p in zip(size, patch, strict=True))
        table = sine_cosine_table(self.num_patches, dim)
        self.register_buffer("pos_embed", table, persistent=False)

    def forward(self, clip, mask=None, keep=None):
        """Return normed tokens and the normed outputs of the blocks in `keep`, or of all."""
        x = self.patch_embed["proj"](clip).flatten(2).transpose(1, 2)
        x = x + self.pos_embed.type_as(x)
        if mask is not None:
            x = x[~mask].reshape(x.shape[0], -1, x.shape[-1])
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if keep is None or index in keep:
                features.append(self.norm(x))
        return self.norm(x), features


class Fusion(nn.Module):
    def __init__(self, dim, depth, heads, **options):
        super().__init__()
        self.blocks = layers(dim, depth, heads, cross=range(depth), **options)
        self.blocks_audio = layers(dim, depth, heads, cross=range(depth), **options)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.norm_audio = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, video, audio):
        for block, block_audio in zip(self.blocks, self.blocks_audio, strict=True):
            video, audio = block(video, audio), block_audio(audio, video)
        return self.norm(video), self.norm_audio(audio)


class Decoder(nn.Module):
    def __init__(self, dim, depth, heads, values, **options):
        super().__init__()
        self.blocks = layers(dim, depth, heads, cross=range(1, depth), **options)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, values)

    def forward(self, x, skips, num_masked):
        x = self.blocks[0](x)
        for i, block in enumerate(self.blocks[1:], start=1):
            x = block(x, skips[-i])
        return self.head(self.norm(x[:, -num_masked:]))


def both_encoders(told, depth, depth_audio, **options):
    patch, size = (TUBELET, PATCH, PATCH), (told["num_frames"], *to_2tuple(told["img_size"]))
    dim, heads, size_audio = told["embed_dim"], told["num_heads"], told["img_size_audio"]
    video = Encoder(size, patch, 3, dim, depth, heads, **options)
    return video, Encoder(size_audio, patch[1:], 1, dim, depth_audio, heads, **options)


class PlainPretraining(nn.Module):
    """The masked autoencoder; returns predictions and the kept features of both modalities."""

    def __init__(self, told):
        super().__init__()
        dim, decoder_dim = told["embed_dim"], told["decoder_embed_dim"]
        depths = told["encoder_depth"], told["encoder_depth_audio"]
        fusion = dim, told["encoder_fusion_depth"], told["num_heads"]
        options = {"init_values": told["init_values"]}
        self.keep = told["return_intermediate_features"]
        self.encoder, self.encoder_audio = both_encoders(told, *depths, **options)
        self.encoder_fusion = Fusion(*fusion, **options)
        size = (decoder_dim, len(self.keep) + 1, told["decoder_num_heads"])
        self.decoder = Decoder(*size, values=3 * TUBELET * PATCH**2, **options)
        self.decoder_audio = Decoder(*size, values=PATCH**2, **options)
        self.encoder_to_decoder = nn.Linear(dim, decoder_dim, bias=False)
        self.encoder_to_decoder_audio = nn.Linear(dim, decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.mask_token_audio = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        for name, encoder in (("", self.encoder), ("_audio", self.encoder_audio)):
            table = sine_cosine_table(encoder.num_patches, decoder_dim)
            self.register_buffer(f"decoder_pos{name}", table, persistent=False)

    def forward(self, video, video_mask, audio, audio_mask):
        x, features = self.encoder(video, video_mask, self.keep)
        x_audio, features_audio = self.encoder_audio(audio, audio_mask, self.keep)
        x, x_audio = self.encoder_fusion(x, x_audio)
        predicted = self.decode("", x, features, video_mask)
        predicted_audio = self.decode("_audio", x_audio, features_audio, audio_mask)
        return predicted, predicted_audio, features, features_audio

    def decode(self, stream, x, features, mask):
        decoder, project, mask_token, table = (
            getattr(self, name + stream)
            for name in ("decoder", "encoder_to_decoder", "mask_token", "decoder_pos")
        )
        batch, dim = len(x), mask_token.shape[-1]
        table = table.expand(batch, -1, -1).type_as(x)
        visible_pos = table[~mask].reshape(batch, -1, dim)
        masked_pos = table[mask].reshape(batch, -1, dim)
        skips = [project(feature) + visible_pos for feature in features]
        full = torch.cat([project(x) + visible_pos, mask_token + masked_pos], dim=1)
        return decoder(full, skips, masked_pos.shape[1])


class PlainClassifier(nn.Module):
    """Encoders over all tokens, layer-weighted features, fusion, linear head (audio and video)."""

    def __init__(self, told):
        super().__init__()
        dim, options = told["embed_dim"], {"drop": told["drop_path_rate"]}
        depths = {"video": told["depth"], "audio": told["depth_audio"]}
        self.encoder, self.encoder_audio = both_encoders(told, *depths.values(), **options)
        self.encoder_fusion = Fusion(dim, told["fusion_depth"], told["num_heads"], **options)
        for name, depth in depths.items():
            weights = nn.Parameter(torch.full((depth,), 1.0 / depth))
            self.register_parameter(f"{name}_layer_weights", weights)
        self.fc_norm = nn.LayerNorm(4 * dim, eps=1e-6)
        self.head = nn.Linear(4 * dim, told["num_classes"])

    def forward(self, video, audio):
        return self.head(self.forward_features(video, audio))

    def forward_features(self, video, audio):
        x, features = self.encoder(video)
        x_audio, features_audio = self.encoder_audio(audio)
        mixed = self.mix(features, self.video_layer_weights)
        mixed_audio = self.mix(features_audio, self.audio_layer_weights)
        fused, fused_audio = self.encoder_fusion(x, x_audio)
        parts = [mixed, mixed_audio, fused.mean(dim=1), fused_audio.mean(dim=1)]
        return self.fc_norm(torch.cat(parts, dim=-1))

    def mix(self, features, layer_weights):
        stacked = torch.stack(features)  # (L, B, N, D)
        weights = torch.softmax(layer_weights, dim=0).reshape(-1, 1, 1)
        return (stacked.mean(dim=2) * weights).sum(dim=0)


def plain_like(ours):
    """Make the plain model with the sizes and weights of one of ours."""
    kind = PlainPretraining if hasattr(ours, "decoder") else PlainClassifier
    plain = kind(ours.arguments).to(ours.encoder_fusion.norm.weight.dtype)
    plain.load_state_dict(ours.state_dict())
    return plain
