"""HyFusion's forward as its siblings' published code writes it: masks per call, concatenations, rolls, one softmax.

Slow on purpose and with nothing folded: the oracle of `models.hyfusion`, and the other side of its benchmark.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its customary name)

from hyperfuse.models.hyfusion import ERFB, HyFusion, WindowLayer


@torch.no_grad()
def plain(model: HyFusion, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
    """The fused images, from the weights of `model` alone."""
    ratio = msi.shape[-1] // hsi.shape[-1]
    half = next(d for d in range(ratio // 2, 0, -1) if ratio % d == 0)
    up = F.interpolate(hsi, scale_factor=ratio, mode="bilinear", align_corners=False)
    down = F.interpolate(msi, size=hsi.shape[-2:], mode="bicubic", align_corners=False)

    s0 = F.leaky_relu(model.spatial_head(torch.cat([msi, up], 1)), 0.2)
    s = s0
    for block in model.spatial_blocks:
        s = erfb(block, s)
    s = model.spatial_tail(F.leaky_relu(s0 + s, 0.2))

    p0 = F.leaky_relu(model.spectral_head(torch.cat([hsi, down], 1)), 0.2)
    p0 = F.interpolate(p0, scale_factor=half, mode="nearest")
    p = p0
    for block in model.spectral_blocks:
        p = erfb(block, p)
    p = F.interpolate(p0 + p, scale_factor=ratio // half, mode="nearest")
    p = model.spectral_tail(F.leaky_relu(p, 0.2))

    f = F.leaky_relu(model.merge(s + p), 0.2)
    return model.last(erfb(model.merge_block, f))


def erfb(block: ERFB, x: torch.Tensor) -> torch.Tensor:
    features = [x]
    for i, stage in enumerate(block.stages):
        y = layer(stage, torch.cat(features, 1), stage.window // 2 if i % 2 else 0)
        y = F.conv2d(y, stage.out.weight[:, :, None, None], stage.out.bias)
        features.append(F.leaky_relu(y, 0.2) if i < len(block.stages) - 1 else y)
    return x + 0.2 * features[-1]


def layer(stage: WindowLayer, image: torch.Tensor, shift: int) -> torch.Tensor:
    n, c, height, width = image.shape
    w, heads = stage.window, stage.heads
    x = image.flatten(2).transpose(1, 2)  # (N, H W, C)
    y = stage.norm1(x).view(n, height, width, c)
    if shift:
        y = torch.roll(y, (-shift, -shift), (1, 2))
    windows = partition(y, w)  # (B, L, C)
    qkv = stage.qkv(windows).view(-1, w * w, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    logits = (qkv[0] * (c // heads) ** -0.5) @ qkv[1].transpose(-2, -1) + position_bias(stage)
    if shift:
        n_windows = height * width // w**2
        mask = shifted_mask(height, width, w, shift).to(logits)
        logits = logits.view(n, n_windows, heads, w * w, w * w) + mask[None, :, None]
    attention = torch.softmax(logits.view(-1, heads, w * w, w * w), -1)
    windows = stage.proj((attention @ qkv[2]).transpose(1, 2).reshape(-1, w * w, c))
    y = windows.view(n, height // w, width // w, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, c)
    if shift:
        y = torch.roll(y, (shift, shift), (1, 2))
    t = x + y.view(n, height * width, c)
    t = t + stage.fc2(F.gelu(stage.fc1(stage.norm2(t))))
    t = t + stage.gamma * x
    return t.transpose(1, 2).reshape(n, c, height, width)


def partition(x: torch.Tensor, w: int) -> torch.Tensor:
    n, height, width, c = x.shape
    x = x.view(n, height // w, w, width // w, w, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)


def position_bias(stage: WindowLayer) -> torch.Tensor:
    """(heads, L, L); built from the coordinates as Swin's code does."""
    w = stage.window
    at = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")).flatten(1)
    apart = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + w - 1
    index = apart[..., 0] * (2 * w - 1) + apart[..., 1]
    return nn.functional.embedding(index, stage.bias_table).permute(2, 0, 1)


def shifted_mask(height: int, width: int, w: int, shift: int) -> torch.Tensor:
    """(windows, L, L): -100 between pixels of different regions, Swin's nine regions."""
    regions = torch.zeros(1, height, width, 1)
    bounds = (slice(0, -w), slice(-w, -shift), slice(-shift, None))
    for i, rows in enumerate(bounds):
        for j, cols in enumerate(bounds):
            regions[:, rows, cols] = 3 * i + j
    labels = partition(regions, w)[..., 0]
    return torch.where(labels[:, None] != labels[:, :, None], -100.0, 0.0)
