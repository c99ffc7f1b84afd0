"""HyFusion: two streams of shifted-window attention with dense connections, one on each grid, merged by a third.

Paper: Lee et al. (2025), HyFusion: enhanced reception field transformer for hyperspectral image fusion,
arXiv:2501.04665, IGARSS 2025. No code of the network and no weights were released.
Code: written for HyperFuse, Apache-2.0; reconstructed from the abstracts and figures of the paper and from the
successor that keeps its skeleton and one of its blocks, HSSDCT (arXiv:2602.00490, code by the same group, MIT).
Weights: none are published.

Notes
-----
Certain: two coupled streams, SpaNet and SpeNet, one fed by the bilinearly upsampled HSI and one by the bicubically
reduced MSI; their block is the ERFB, shifted-window attention with dense connections.
Reconstructed: all widths, the merge by sum, window 8, growth 32, MLP ratios 4, 4, 4, 1, the factor 0.2, `gamma`, head
counts; two (`s`, as in HSSDCT) or six (`l`, as in the figure of 2024) blocks per stream.

How the streams are coupled: both see both images, and their features are added before the last block. In between neither feeds
the other: the paper calls them coupled, but no source says where else features would cross.

Departures, so that any C, c >= 1 and any whole ratio can be fused; none of them shows at C = 172 and ratio 4:

- SpeNet works on an intermediate grid of `rate` pixels per coarse pixel, the largest proper divisor of the ratio: half
  the fine resolution for even ratios, as published; 3 for ratio 9; the coarse grid itself for 3, 5 and 7, since nearest
  upsampling by a fraction would repeat pixels unevenly.
- Windows of both grids begin at the scene's first pixel: `multiple_of` is the least number of coarse pixels that holds
  whole windows of the intermediate grid, and so of the fine one, for `rate` divides the ratio.
- Heads: where the published formula gives a number that does not divide the width, the next lower one that does.

HSSDCT builds its ERFB for a 4 x 4 image, which silently means windows of 4 that never shift. Here they are 8 and shift.

Speed: only a GELU lies between an MLP's two matrices, none after them, so the second is multiplied into the layer's
last map (8 instead of 12 squared widths per pixel); a layer runs over strips that stay in cache, and writes its
features where the next one reads them; windows are never rolled, only those that wrap are put together and masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its customary name)

from hyperfuse.models.spec import MethodCard, ModelSpec, Observed, TwoRateSpec
from hyperfuse.models.weights_io import take_weights

CARD = MethodCard(
    title="HyFusion, enhanced reception field transformer (reconstruction)",
    paper="Lee et al. (2025), HyFusion: enhanced reception field transformer for HSI fusion, arXiv:2501.04665",
    code="HyperFuse, Apache-2.0; no code was published, reconstructed with the help of HSSDCT (MIT)",
)
VARIANTS = {"s": {"blocks": [2, 2], "layers": 4}, "l": {"blocks": [6, 6], "layers": 4}}
LOSSES = {"pixel": 1.0, "sam": 0.1, "wavelet": 0.01}
"""Terms of `models.losses`; the paper names the last two, their weights are ours."""
SLOPE = 0.2
"""Of LeakyReLU."""
RESIDUAL = 0.2
"""Share of a block's last features that is added to its input."""
GAMMA = 1e-4
"""A layer's shortcut before training."""
MASKED = -100.0
"""Added to the logits of pixels that are neighbors only by wrapping."""
STRIP_TOKENS = {"cpu": 2048, "cuda": 1 << 17}
"""Pixels that pass a layer at once: the widest activations of a strip fit a core's cache, or fill a GPU."""

Pieces = tuple[slice, ...]
"""Stretches of one axis, one after the other: two where it wraps around."""


class WindowLayer(nn.Module):
    """One attention layer (ISTL) and the linear map after it, on the pixels of windows.

    t = x + attention(norm x); t = t + mlp(norm t); features = out(t + gamma x).
    """

    bias_index: torch.Tensor

    def __init__(self, width: int, out: int, *, heads: int, mlp: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.attention_macs = 2 * window**2 * width  # per pixel: logits, and values weighed by them
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp * width)
        self.fc2 = nn.Linear(mlp * width, width)
        self.gamma = nn.Parameter(torch.full((width,), GAMMA))
        self.out = nn.Linear(width, out)  # a 1 x 1 convolution
        at = torch.arange(window**2)
        dy, dx = (u[:, None] - u[None, :] + window - 1 for u in (at // window, at % window))
        self.register_buffer("bias_index", dy * (2 * window - 1) + dx, persistent=False)  # (L, L)

    def prepare(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bias of the logits (heads, L, L), and `out` after `fc2` as one matrix and bias."""
        bias = self.bias_table[self.bias_index].permute(2, 0, 1)
        return bias, self.out.weight @ self.fc2.weight, F.linear(self.fc2.bias, self.out.weight, self.out.bias)

    def forward(self, x: torch.Tensor, bias: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Features (B, L, out) of windows x (B, L, width), with `prepare`'s bias, to which a mask may be added."""
        n_windows, n_pixels, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n_windows, n_pixels, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d), views
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        attended = attended.transpose(1, 2).reshape(n_windows * n_pixels, width)
        x = x.view(n_windows * n_pixels, width)
        t = self.proj(attended).add_(x)
        hidden = F.gelu(self.fc1(self.norm2(t)))
        features = F.linear(torch.addcmul(t, self.gamma, x), self.out.weight, offset)
        return features.addmm_(hidden, matrix.T).view(n_windows, n_pixels, -1)


class ERFB(nn.Module):
    """Enhanced reception field block: window layers, each of which reads the input and all features before it."""

    masks: torch.Tensor

    def __init__(self, width: int, *, layers: int, window: int, growth: int) -> None:
        super().__init__()
        self.width, self.window, self.growth = width, window, growth
        self.stages = nn.ModuleList()
        for i in range(layers):
            n, out = width + i * growth, growth if i < layers - 1 else width
            self.stages.append(WindowLayer(n, out, heads=_heads(width, n), mlp=4 if i < 3 else 1, window=window))
        at = torch.arange(window**2)
        beyond = torch.stack([at // window, at % window]) >= window // 2  # (2, L): after the wrap along y, x
        y, x = (beyond[:, :, None] != beyond[:, None, :]) * MASKED  # each (L, L)
        masks = torch.stack([torch.zeros_like(x), x, y, torch.minimum(x, y)]).unflatten(0, (2, 2))
        self.register_buffer("masks", masks, persistent=False)  # [rows wrap, columns wrap], (2, 2, L, L)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (N, H, W, width) of an image that whole windows fill, to the same shape."""
        # Backpropagation needs every layer's input untouched: only inference writes into one buffer.
        learns = torch.is_grad_enabled()
        dense = x if learns else F.pad(x, (0, (len(self.stages) - 1) * self.growth))
        for i in range(len(self.stages) - 1):
            width = self.width + i * self.growth
            features = self._layer(i, dense[..., :width], None if learns else dense[..., width : width + self.growth])
            dense = torch.cat([dense, features], dim=-1) if learns else dense
        return torch.add(x, self._layer(len(self.stages) - 1, dense, None), alpha=RESIDUAL)

    def _layer(self, index: int, x: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Features (N, H, W, out) of one layer, written into `features` if given."""
        stage = cast("WindowLayer", self.stages[index])
        bias, matrix, offset = stage.prepare()
        if features is None:
            features = x.new_empty(*x.shape[:3], len(offset))
        shift = self.window // 2 if index % 2 else 0
        for rows in _stretches(x.shape[1], self.window, shift, self._strip(x)):
            for cols in _stretches(x.shape[2], self.window, shift, x.shape[2]):
                logits = bias + self.masks[len(rows) - 1, len(cols) - 1]  # two pieces: it wraps
                y = stage(_windows(x, rows, cols, self.window), logits, matrix, offset)
                y = F.leaky_relu(y, SLOPE) if index < len(self.stages) - 1 else y
                _write(features, y, rows, cols, self.window)
        return features

    def _strip(self, x: torch.Tensor) -> int:
        """Rows of x (N, H, W, width) to work on at once."""
        if torch.is_grad_enabled():  # autograd's backward of each write costs a whole image: training takes one strip
            return x.shape[1]
        tokens = STRIP_TOKENS.get(x.device.type, STRIP_TOKENS["cuda"])
        return max(tokens // (x.shape[0] * x.shape[2] * self.window), 1) * self.window


class HyFusion(nn.Module):
    """The network; `model(hsi, msi)` is `model.fine(hsi, msi, model.coarse(hsi, msi))`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        bands, both = spec.observed.hsi_bands, spec.observed.hsi_bands + spec.observed.msi_bands
        n_spatial, n_spectral = spec.options["blocks"]
        window, width = spec.options["window"], spec.options["width"]

        def block(channels: int) -> ERFB:
            return ERFB(channels, layers=spec.options["layers"], window=window, growth=spec.options["growth"])

        self.spatial_head = nn.Conv2d(both, width // 2, 3, padding=1)
        self.spatial_blocks = nn.Sequential(*(block(width // 2) for _ in range(n_spatial)))
        self.spatial_tail = nn.Conv2d(width // 2, width, 3, padding=1)
        self.spectral_head = nn.Conv2d(both, 2 * width, 3, padding=1)
        self.spectral_blocks = nn.Sequential(*(block(2 * width) for _ in range(n_spectral)))
        self.spectral_tail = nn.Conv2d(2 * width, width, 3, padding=1)
        self.merge = nn.Conv2d(width, bands, 3, padding=1)
        self.merge_block = block(bands)
        self.last = nn.Conv2d(bands, bands, 3, padding=1, bias=False)
        for layer in self.modules():  # as DRCT initializes its layers; the other maps keep PyTorch's default
            if isinstance(layer, WindowLayer):
                nn.init.trunc_normal_(layer.bias_table, std=0.02)
                for linear in (layer.qkv, layer.proj, layer.fc1, layer.fc2):
                    nn.init.trunc_normal_(linear.weight, std=0.02)
                    nn.init.zeros_(linear.bias)

    def coarse(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """SpeNet up to its last upsampling: (N, 2 width, h rate, w rate)."""
        self._check(hsi, msi)
        rate = _rate(msi.shape[-1] // hsi.shape[-1])
        reduced = F.interpolate(msi, size=hsi.shape[-2:], mode="bicubic", align_corners=False)  # (N, c, h, w)
        p = self.spectral_head(torch.cat([hsi, reduced], dim=1))
        p = F.leaky_relu(p, SLOPE).permute(0, 2, 3, 1)  # (N, h, w, 2 width)
        p = p.repeat_interleave(rate, dim=1).repeat_interleave(rate, dim=2)  # nearest, (N, h rate, w rate, 2 width)
        return torch.add(p, self.spectral_blocks(p)).permute(0, 3, 1, 2)

    def fine(self, hsi: torch.Tensor, msi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """SpaNet, the merge with SpeNet's features, and the last block: (N, C, H, W)."""
        self._check(hsi, msi)
        upsampled = F.interpolate(hsi, size=msi.shape[-2:], mode="bilinear", align_corners=False)  # (N, C, H, W)
        s = self.spatial_head(torch.cat([msi, upsampled], dim=1).contiguous(memory_format=torch.channels_last))
        s = F.leaky_relu(s, SLOPE).permute(0, 2, 3, 1)  # (N, H, W, width / 2)
        s = F.leaky_relu(s + self.spatial_blocks(s), SLOPE).permute(0, 3, 1, 2)
        merged = self.spatial_tail(s)  # (N, width, H, W)
        _add_upsampled_conv(merged, F.leaky_relu(features, SLOPE), self.spectral_tail)
        f = F.leaky_relu(self.merge(merged), SLOPE).permute(0, 2, 3, 1)  # (N, H, W, C)
        fused: torch.Tensor = self.last(self.merge_block(f).permute(0, 3, 1, 2))
        return fused.contiguous()

    def forward(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        return self.fine(hsi, msi, self.coarse(hsi, msi))

    def nominal_share(self, layer: str) -> float:
        """Pixels of the grid on which the paper draws a layer, per fine pixel; for counting MACs."""
        ratio = self.spec.observed.ratio
        per_axis = {"spectral_head": 1, "spectral_blocks": _rate(ratio)}.get(layer.partition(".")[0], ratio)
        return (per_axis / ratio) ** 2

    def _check(self, hsi: torch.Tensor, msi: torch.Tensor) -> None:
        (height, width), ratio = hsi.shape[-2:], max(msi.shape[-1] // hsi.shape[-1], 2)
        step = self.spec.options["window"] // gcd(self.spec.options["window"], _rate(ratio))
        if height % step or width % step or msi.shape[-2:] != (height * ratio, width * ratio):
            raise ValueError(f"{self.spec.name} takes an HSI whose sides are multiples of {step} pixels and an MSI that is "
                             f"whole times as large, got {tuple(hsi.shape)} and {tuple(msi.shape)}; repeat the rim to fill "
                             "the last window")  # fmt: skip


def specify(
    observed: Observed, *, blocks: Sequence[int], layers: int = 4, window: int = 8, width: int = 96, growth: int = 32
) -> ModelSpec:
    """Needs of the network on this pair.

    Parameters
    ----------
    observed : Observed
    blocks : sequence of two int
        Blocks of SpaNet and of SpeNet.
    layers : int
        Attention layers per block, at least 2.
    window : int
        Edge of an attention window in pixels of its grid, even.
    width : int
        Channels where the streams merge; SpaNet has half of it, SpeNet twice. A multiple of 4.
    growth : int
        Channels that a layer adds within a block.

    Raises
    ------
    ValueError
        If an option is out of range.
    """
    options = {"blocks": [*blocks], "layers": layers, "window": window, "width": width, "growth": growth}
    if len(blocks) != 2 or min(*blocks, growth) < 1 or layers < 2 or window < 2 or window % 2 or width < 4 or width % 4:
        raise ValueError(
            f"hyfusion cannot be built with {options}: expected two counts of blocks and a growth of at least 1, at least "
            "2 layers, an even window and a width that is a multiple of 4"
        )
    ratio, rate = observed.ratio, _rate(observed.ratio)
    step = window // gcd(window, rate)
    whole, coarse, fine = (-(-reach // step) * step for reach in _reaches(ratio, blocks, layers, window))
    spec = ModelSpec(
        name="hyfusion",
        observed=observed,
        halo=whole,
        hsi_reach=whole,
        msi_reach=whole * ratio,
        multiple_of=step,
        options=options,
        needs_weights=True,
        symmetric_range=True,
        tile=1024,
        band_copies=5.5,
        work_floats=400,
        two_rate=TwoRateSpec(coarse_halo=coarse, fine_halo=fine, channels=2 * width, rate=rate),
    )
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in HyFusion(spec).parameters())
    return replace(spec, parameters=n_parameters)


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (needs none)
    weights: Mapping[str, torch.Tensor] | None = None,
) -> HyFusion:
    """The network with these weights, or with seeded random ones, in evaluation mode.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown or of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = HyFusion(spec)
    take_weights(network, spec, weights)
    return network.eval()


def _rate(ratio: int) -> int:
    """Pixels of the intermediate grid per coarse pixel: the largest proper divisor of the ratio."""
    return next(d for d in range(ratio // 2, 0, -1) if ratio % d == 0)


def _heads(width: int, channels: int) -> int:
    """Heads of a layer of `channels` in a block of `width`: HSSDCT's formula, lowered to a divisor of the channels."""
    base = 8 - width % 8
    return next(n for n in range(base - channels % base, 0, -1) if channels % n == 0)


def _stretches(size: int, window: int, shift: int, step: int) -> Iterator[Pieces]:
    """Stretches of about `step` pixels that partition an axis into whole windows; if these are shifted, the last wraps."""
    end = size - window + shift if shift else size
    for first in range(shift, end, step):
        yield (slice(first, min(first + step, end)),)
    if shift:
        yield slice(size - shift, size), slice(0, shift)


def _windows(x: torch.Tensor, rows: Pieces, cols: Pieces, window: int) -> torch.Tensor:
    """Pixels (B, L, width) of the windows that fill these rows and columns of x (N, H, W, width)."""
    x = torch.cat([x[:, r] for r in rows], dim=1) if len(rows) > 1 else x[:, rows[0]]
    x = torch.cat([x[:, :, c] for c in cols], dim=2) if len(cols) > 1 else x[:, :, cols[0]]
    n_images, height, width, channels = x.shape
    x = x.view(n_images, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def _write(image: torch.Tensor, y: torch.Tensor, rows: Pieces, cols: Pieces, window: int) -> None:
    """Put windows y (B, L, out) where they came from in the image (N, H, W, out)."""
    heights, widths = ([piece.stop - piece.start for piece in pieces] for pieces in (rows, cols))
    y = y.view(len(image), sum(heights) // window, sum(widths) // window, window, window, -1)
    y = y.transpose(2, 3).reshape(len(image), sum(heights), sum(widths), -1)
    for r, band in zip(rows, y.split(heights, dim=1), strict=True):
        for c, part in zip(cols, band.split(widths, dim=2), strict=True):
            image[:, r, c] = part


def _add_upsampled_conv(image: torch.Tensor, x: torch.Tensor, conv: nn.Conv2d) -> None:
    """Add `conv` of the nearest-upsampled x to the image: per phase, a kernel of the sums of taps on one pixel of x."""
    step, (height, width) = image.shape[-1] // x.shape[-1], x.shape[-2:]
    x = F.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    for a in range(step):
        top, rows = _collapse(conv.weight, 2, a, step)
        for b in range(step):
            left, kernel = _collapse(rows, 3, b, step)
            part = x[..., top : top + height + kernel.shape[2] - 1, left : left + width + kernel.shape[3] - 1]
            image[..., a::step, b::step] += F.conv2d(part, kernel, conv.bias)


def _collapse(kernel: torch.Tensor, dim: int, phase: int, step: int) -> tuple[int, torch.Tensor]:
    """First pixel of x, padded by one, that a 3-tap kernel reads at a phase, and the kernel with equal taps summed."""
    at = [(phase + tap) // step for tap in (-1, 0, 1)]  # pixel of x per tap
    summed = kernel.new_zeros(*kernel.shape[:dim], at[2] - at[0] + 1, *kernel.shape[dim + 1 :])
    return at[0] + 1, summed.index_add(dim, torch.tensor(at, device=kernel.device) - at[0], kernel)


def _reaches(ratio: int, blocks: Sequence[int], layers: int, window: int) -> tuple[int, int, int]:
    """Coarse pixels that the whole network, its coarse part and its fine part look beyond a coarse pixel.

    An interval of output pixels is followed back through every step; the worst phase of the windows counts.
    """

    def beyond(pixel: int, first: int, last: int, per: int) -> int:
        return max(pixel - first // per, last // per - pixel)

    rate = _rate(ratio)
    whole = coarse = fine = 0
    for pixel in range(window):  # coarse pixels; their phases repeat after `multiple_of`, a divisor of the window
        first, last = pixel * ratio - 1, pixel * ratio + ratio  # the last convolution
        first, last = _through_blocks(first, last, 1, layers, window)
        first, last = first - 2, last + 2  # the merge, and the streams' tails
        features = first // (ratio // rate), last // (ratio // rate)
        first, last = _through_blocks(first, last, blocks[0], layers, window)
        first, last = first - 1, last + 1  # SpaNet's head
        # Bilinear taps: the coarse pixels whose centers lie left and right of the fine one's.
        taps = (2 * first + 1 - ratio) // (2 * ratio), (2 * last + 1 - ratio) // (2 * ratio) + 1
        near = max(beyond(pixel, first, last, ratio), beyond(pixel, *taps, 1), beyond(pixel, *features, rate))
        fine = max(fine, near)
        far = []
        for start, end in ((pixel * rate, pixel * rate + rate - 1), features):
            first, last = _through_blocks(start, end, blocks[1], layers, window)
            first, last = first // rate - 1, last // rate + 1  # SpeNet's head
            # Cubic taps: two fine pixels to each side of a coarse center, the center alone if the ratio is odd.
            more = (2 - ratio // 2) * (1 - ratio % 2)
            low, high = first * ratio - more, (last + 1) * ratio - 1 + more
            far.append(max(beyond(pixel, first, last, 1), beyond(pixel, low, high, ratio)))
        coarse, whole = max(coarse, far[0]), max(whole, near, far[1])
    return whole, coarse, fine


def _through_blocks(first: int, last: int, blocks: int, layers: int, window: int) -> tuple[int, int]:
    """The interval that blocks read to give one: whole windows of every layer, from the last to the first."""
    for _ in range(blocks):
        for index in reversed(range(layers)):
            shift = window // 2 if index % 2 else 0
            first = (first - shift) // window * window + shift
            last = (last - shift) // window * window + shift + window - 1
    return first, last
