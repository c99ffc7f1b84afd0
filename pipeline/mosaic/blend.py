"""One block of the area from all products that reach into it.

    value = sum(weight * sample) / sum(weight)      over the products that have a sample there, band by band

A product on the lattice of the area is copied, any other is resampled, once, by `pipeline.geometry.resample`. Sums are taken in
double precision: where one product alone has a sample, or all have the same, that very sample comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.mosaic.feather import NOTHING, reach, seen, weights
from hyperfuse.pipeline.mosaic.inputs import AreaInputs
from hyperfuse.pipeline.mosaic.seams import JoinSums, joined, pair_sums, step_sums

_BYTES_PER_SAMPLE = 24
"""Of one sample of one product in a block: as read, warped, and in the sums."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A finished block of the area."""

    samples: NDArray[np.float32]
    """Physical values, shape (band, y, x); NaN where no product has a sample."""
    source: NDArray[np.uint16]
    """Number of the product with the largest weight, from 1, shape (y, x); 0 where there is none."""
    seams: JoinSums
    """What can be seen of the joins in it."""


def blend_block(
    inputs: AreaInputs,
    validity: Sequence[store.Array],
    box: Box,
    *,
    among: Sequence[int],
    feather_px: int,
    budget: float,
) -> Block:
    """Blend one block.

    Parameters
    ----------
    inputs : AreaInputs
    validity : sequence of Array
        Maps of `pipeline.mosaic.feather`, one per product.
    box : Box
        Pixels of the area.
    among : sequence of int
        Positions of the products that may reach into the block; no other is looked at.
    feather_px : int
    budget : float
        Bytes of samples to hold at once.

    Raises
    ------
    InputRejected
        If a product cannot be read there.
    """
    grown = box.grown(reach(feather_px))
    inner = tuple(slice(reach(feather_px), -reach(feather_px)) for _ in range(2))
    numbers, shares, shown = [], [], []
    for number in among:
        flags = seen(validity[number], inputs.scenes[number].geobox, inputs.target, grown)
        if (flags[inner] != NOTHING).any():
            numbers.append(number)
            shares.append(weights(flags, feather_px))
            shown.append(flags[inner] != NOTHING)
    n_bands = len(inputs.bands)
    samples = np.full((n_bands, *box.shape), np.nan, np.float32)
    if not numbers:
        return Block(samples=samples, source=np.zeros(box.shape, np.uint16), seams=JoinSums())
    step = max(1, int(budget / (_BYTES_PER_SAMPLE * (len(numbers) + 1) * samples[0].size)))
    parts = []
    for first in range(0, n_bands, step):
        part = slice(first, min(first + step, n_bands))
        read = [_read(inputs, number, box, part, valid=valid) for number, valid in zip(numbers, shown, strict=True)]
        samples[part] = blended(read, shares)
        parts.append(_seams(read, numbers, samples[part], part, n_bands))
    # The steps are summed over bands, whose parts are of one block: the same pixels, so they simply add up.
    return Block(samples=samples, source=_sources(shares, numbers), seams=joined(parts))


def blended(samples: Sequence[NDArray[np.float32]], shares: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Weighted mean of what the products show.

    Parameters
    ----------
    samples : sequence of ndarray, shape (band, y, x), float32
        NaN where a product has none.
    shares : sequence of ndarray, shape (y, x), float64
        Weight of each product.
    """
    if len(samples) == 1:
        return samples[0]  # the mean of one
    total, weight = np.zeros(samples[0].shape), np.zeros(samples[0].shape)
    for product, share in zip(samples, shares, strict=True):
        here = np.where(np.isfinite(product), share, 0.0)
        total += here * np.nan_to_num(product)
        weight += here
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan).astype(np.float32)


def _read(inputs: AreaInputs, number: int, box: Box, part: slice, *, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    samples = warp(inputs.scenes[number], inputs.target, box.slices, bands=inputs.picked[number][part])
    # The warp repeats the outermost pixels for a target pixel; in a mosaic a neighbor knows better.
    samples[:, ~valid] = np.nan
    return samples


def _seams(
    read: Sequence[NDArray[np.float32]],
    numbers: Sequence[int],
    samples: NDArray[np.float32],
    part: slice,
    n_bands: int,
) -> JoinSums:
    """Sums of some bands of a block, padded with zeros to all bands."""
    inside = np.stack([np.isfinite(product).any(axis=0) for product in read])
    count, total = step_sums(samples, inside)
    before, after = part.start, n_bands - part.stop
    pairs = [
        pair.model_copy(
            update={name: [0] * before + getattr(pair, name) + [0] * after for name in ("pixels", "total", "square")}
        )
        for pair in pair_sums(read, numbers)
    ]
    return JoinSums(pairs=pairs, neighbors=count, steps=total)


def _sources(shares: Sequence[NDArray[np.float64]], numbers: Sequence[int]) -> NDArray[np.uint16]:
    stack = np.stack(shares)
    return np.where(stack.max(axis=0) > 0, np.array(numbers, np.uint16)[stack.argmax(axis=0)] + 1, 0).astype(np.uint16)
