"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Reference: Lavin & Gray (2016), Fast algorithms for convolutional neural networks, CVPR, arXiv 1509.09308.
Code: written from the paper for HyperFuse, Apache-2.0.

Notes
-----
A GPU's library chooses such an algorithm by itself; PyTorch's CPU library does not. What is gained here comes from
three things: fewer multiplications; in a dense unit every map is transformed once, although up to five convolutions
read it; maps lie as 4 x 4 planes, one per position in a tile, so that neighbors of tiles are shifts of whole planes.
The result differs from the direct sum by rounding, about 1e-6 of the largest value in float32. Work goes by strips of
rows, so that the transformed maps, which are large, take a bounded share of memory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

SLOPE = 0.2
"""Negative slope of the leaky ReLU between the convolutions of a dense stack."""
_MIN_CHANNELS = 24  # with fewer, transforming costs more than it saves
_MIN_PIXELS = 48 * 48  # with fewer, transforming the weights does
_STRIP_BYTES = 320 * 2**20
_CHUNK_TILES = 256  # their tiles and products fit in a few MB of cache
_INPUT = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64
)  # fmt: skip
_KERNEL = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


def pays(x: torch.Tensor, conv: nn.Conv2d) -> bool:
    """Whether `dense_stack` is allowed, and faster than the library's convolution, on such input."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS
        and x.shape[-2] * x.shape[-1] >= _MIN_PIXELS
    )


def convolve(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """The same as `conv(x)` of a 3x3 convolution with padding 1, the faster way."""
    result: torch.Tensor = dense_stack(x, [conv]) if pays(x, conv) else conv(x)
    return result


def dense_stack(x: torch.Tensor, convs: Sequence[nn.Conv2d]) -> torch.Tensor:
    """Densely connected 3x3 convolutions: each reads `x` and what all before it gave, after a leaky ReLU.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W)
    convs : sequence of Conv2d
        Ungrouped, with zero padding 1; no gradient is recorded.

    Returns
    -------
    Tensor, shape (N, D, H, W)
        Of the last one, without activation.
    """
    height, width = x.shape[-2:]
    tiles_high, tiles_wide = -(-height // 4), -(-width // 4)
    n_read = convs[-1].in_channels
    margin = -(-len(convs) // 4)  # tiles that one pixel of reach per convolution makes wrong at the rim of a strip
    rows = max(4, _STRIP_BYTES // (36 * n_read * tiles_wide * x.element_size()) - 2 * margin)
    out = x.new_empty(x.shape[0], convs[-1].out_channels, height, width)
    work = _Work.prepare(x, convs, min(rows + 2 * margin, tiles_high), tiles_wide)
    for image in range(x.shape[0]):
        for start in range(0, tiles_high, rows):
            stop = min(start + rows, tiles_high)
            first, last = max(start - margin, 0), min(stop + margin, tiles_high)
            planes = _strip(x[image, :, 4 * first : 4 * last], work)
            _from_planes(planes[..., start - first : stop - first, :], out[image, :, 4 * start : 4 * stop])
    return out


class _Work(NamedTuple):
    """Transforms, transformed filters and the memory of one call."""

    filters: list[torch.Tensor]
    """Shape (36, D, C) each."""
    biases: list[torch.Tensor | None]
    into: torch.Tensor
    """Shape (36, 36)."""
    back: torch.Tensor
    """Shape (16, 36)."""
    read: torch.Tensor
    """Transformed maps (36, all C, tiles) for each chunk of rows, one chunk after the other."""
    tiles: torch.Tensor
    """Of one chunk, before the transform."""
    products: torch.Tensor
    """Of one chunk, after the filters."""
    planes: tuple[torch.Tensor, torch.Tensor]
    """Ringed planes of what a convolution reads, and of what it gives."""
    chunk: int
    """Rows of tiles that are worked on together."""

    @classmethod
    def prepare(cls, x: torch.Tensor, convs: Sequence[nn.Conv2d], tiles_high: int, tiles_wide: int) -> _Work:
        chunk = min(max(1, _CHUNK_TILES // tiles_wide), tiles_high)
        widest_out = max(conv.out_channels for conv in convs)
        widest = max(x.shape[1], widest_out)
        ringed = 16 * widest * (tiles_high + 2) * (tiles_wide + 2)
        read, tiles, products, one, other = _lend(
            x,
            36 * convs[-1].in_channels * tiles_high * tiles_wide,
            36 * widest * chunk * tiles_wide,
            36 * widest_out * chunk * tiles_wide,
            ringed,
            ringed,
        )
        kernel = torch.kron(_KERNEL, _KERNEL).to(x)
        filters = []
        for conv in convs:
            n_out, n_in = conv.weight.shape[:2]
            spread = kernel @ conv.weight.detach().reshape(n_out * n_in, 9).T  # (36, D * C)
            filters.append(spread.view(36, n_out, n_in))
        return cls(
            filters,
            [None if conv.bias is None else conv.bias.detach() for conv in convs],
            torch.kron(_INPUT, _INPUT).to(x),
            torch.kron(_OUTPUT, _OUTPUT).to(x),
            read,
            tiles,
            products,
            (one, other),
            chunk,
        )


_lent = threading.local()


def _lend(like: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
    """Flat memory that every call of a thread uses again: the kernel's fresh pages cost a third of the time."""
    needed = sum(sizes) * like.element_size()
    if getattr(_lent, "memory", None) is None or _lent.memory.numel() < needed:
        _lent.memory = None  # the old one goes first
        with torch.inference_mode(mode=False):  # or it could only be written in that mode
            _lent.memory = torch.empty(needed, dtype=torch.uint8)
    memory: torch.Tensor = _lent.memory[:needed].view(like.dtype)
    parts: tuple[torch.Tensor, ...] = memory.split(sizes)
    return parts


def _strip(strip: torch.Tensor, work: _Work) -> torch.Tensor:
    """The stack on one strip (C, H, W), as planes (4, 4, D, h, w) that are overwritten by the next strip."""
    size = (strip.shape[-2], strip.shape[-1])
    high, wide = (-(-n // 4) for n in size)
    here, there = work.planes
    planes = _ringed(here, strip.shape[0], high, wide)
    _to_planes(strip, planes)
    n_read, n_done = work.filters[-1].shape[2], 0
    for step, (filters, bias) in enumerate(zip(work.filters, work.biases, strict=True)):
        n_new, n_out = planes.shape[2], filters.shape[1]
        following = _ringed(there, n_out, high, wide)
        # By chunks of rows, so that tiles and products stay in the cache: memory is the limit, not arithmetic.
        for top in range(0, high, work.chunk):
            rows = min(work.chunk, high - top)
            n_tiles = rows * wide
            read = work.read[36 * n_read * top * wide :][: 36 * n_read * n_tiles].view(36, n_read, n_tiles)
            tiles = work.tiles[: 36 * n_new * n_tiles].view(6, 6, n_new, rows, wide)
            _gather(planes, top, tiles)
            torch.mm(work.into, tiles.view(36, -1), out=read[:, n_done : n_done + n_new].view(36, -1))
            products = work.products[: 36 * n_out * n_tiles].view(36, n_out, n_tiles)
            torch.bmm(filters, read[:, : n_done + n_new], out=products)
            part = work.tiles[: 16 * n_out * n_tiles].view(16, -1)  # the tiles are spent
            torch.mm(work.back, products.view(36, -1), out=part)
            part = part.view(4, 4, n_out, rows, wide)
            if bias is not None:
                part += bias[:, None, None]
            if step + 1 < len(work.filters):
                functional.leaky_relu_(part, SLOPE)
            following[..., top + 1 : top + rows + 1, 1:-1] = part
        _clear(following, size)
        planes, here, there = following, there, here
        n_done += n_new
    return planes[..., 1:-1, 1:-1]


def _gather(planes: torch.Tensor, top: int, tiles: torch.Tensor) -> None:
    """Fill overlapping 6 x 6 tiles (6, 6, C, rows, w) from the ringed planes, from row `top` of tiles on."""
    rows, wide = tiles.shape[-2:]
    # Row 0 of a tile is row 3 of the tile above, row 5 is row 0 of that below; columns likewise.
    spans = ((slice(0, 1), slice(3, 4), 0), (slice(1, 5), slice(0, 4), 1), (slice(5, 6), slice(0, 1), 2))
    for to_row, from_row, down in spans:
        for to_col, from_col, right in spans:
            tiles[to_row, to_col] = planes[from_row, from_col, :, top + down : top + down + rows, right : right + wide]


def _clear(planes: torch.Tensor, size: tuple[int, int]) -> None:
    """Zero what lies beyond the image: the next convolution must see its zero padding there."""
    for phase in range(4):
        planes[phase, ..., 1 + (size[0] - phase + 3) // 4 :, :] = 0
        planes[:, phase, ..., 1 + (size[1] - phase + 3) // 4 :] = 0


def _ringed(memory: torch.Tensor, n_bands: int, high: int, wide: int) -> torch.Tensor:
    """Planes (4, 4, C, h + 2, w + 2) in that memory, whose ring is zero."""
    planes = memory[: 16 * n_bands * (high + 2) * (wide + 2)].view(4, 4, n_bands, high + 2, wide + 2)
    for rim in (planes[..., 0, :], planes[..., -1, :], planes[..., 0], planes[..., -1]):
        rim.zero_()
    return planes


def _to_planes(image: torch.Tensor, planes: torch.Tensor) -> None:
    """Write (C, H, W) into ringed planes; what lies beyond the image is zero."""
    for i in range(4):
        for j in range(4):
            part = image[:, i::4, j::4]
            planes[i, j, :, 1 : 1 + part.shape[1], 1 : 1 + part.shape[2]] = part
    _clear(planes, (image.shape[-2], image.shape[-1]))


def _from_planes(planes: torch.Tensor, image: torch.Tensor) -> None:
    """Write planes (4, 4, C, h, w) to the image (C, H, W), without what lies beyond it."""
    for i in range(4):
        for j in range(4):
            part = image[:, i::4, j::4]
            part.copy_(planes[i, j, :, : part.shape[1], : part.shape[2]])
