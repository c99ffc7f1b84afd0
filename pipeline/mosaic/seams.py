"""What can be seen of the joins: how products differ where they overlap, and how steep the mosaic is there.

Two figures, both summed block by block:

- differences: the later product less the earlier one, per pair and band, over the pixels where both have a sample,
  before anything is blended. A mean other than 0 is what the feather has to bridge.
- steps: mean absolute difference between neighboring pixels of the mosaic, over all bands, where one product alone is
  seen (`alone`), inside overlaps (`feather`), and between pixels that are made of different products (`rim`). Without a
  seam the three are alike, as far as the scenery is; a hard seam shows at the rim. Pairs of neighbors across the border
  of two blocks are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Place = Literal["alone", "feather", "rim"]


class PairSums(BaseModel):
    """Sums of the differences of two products over the pixels where both have a sample."""

    model_config = ConfigDict(frozen=True)

    first: int
    """Position of the earlier product among the inputs, from 0."""
    second: int
    """Position of the later one."""
    pixels: list[int]
    """Number of differences, per band."""
    total: list[float]
    """Sum of second - first, per band, physical units."""
    square: list[float]
    """Sum of squares of the same."""


class JoinSums(BaseModel):
    """Sums of one block, or of the whole area."""

    model_config = ConfigDict(frozen=True)

    pairs: list[PairSums] = []
    """Pairs that overlap."""
    neighbors: dict[Place, int] = {}
    """Pairs of neighboring samples, by where they lie."""
    steps: dict[Place, float] = {}
    """Sum of their absolute differences, physical units."""


def pair_sums(samples: Sequence[NDArray[np.float32]], numbers: Sequence[int]) -> list[PairSums]:
    """Differences of all pairs of products in a block.

    Parameters
    ----------
    samples : sequence of ndarray, shape (band, y, x), float32
        One per product, NaN where it has none.
    numbers : sequence of int
        Positions of these products among the inputs.
    """
    found = []
    for i, first in enumerate(samples):
        for j in range(i + 1, len(samples)):
            difference = samples[j].astype(np.float64) - first
            shown = np.isfinite(difference)
            if not shown.any():
                continue
            difference[~shown] = 0.0
            found.append(
                PairSums(
                    first=numbers[i],
                    second=numbers[j],
                    pixels=shown.sum(axis=(1, 2)).tolist(),
                    total=difference.sum(axis=(1, 2)).tolist(),
                    square=(difference**2).sum(axis=(1, 2)).tolist(),
                )
            )
    return found


def step_sums(blended: NDArray[np.float32], inside: NDArray[np.bool_]) -> tuple[dict[Place, int], dict[Place, float]]:
    """Number and sum of the absolute differences between neighboring pixels of a block, by where they lie.

    Parameters
    ----------
    blended : ndarray, shape (band, y, x), float32
        The mosaic, NaN where there is none.
    inside : ndarray, shape (product, y, x), bool
        Pixels to which each product contributes.
    """
    count: dict[Place, int] = {"alone": 0, "feather": 0, "rim": 0}
    total: dict[Place, float] = {"alone": 0.0, "feather": 0.0, "rim": 0.0}
    n_products = inside.sum(axis=0)
    for axis in (-2, -1):
        step = np.abs(np.diff(blended, axis=axis).astype(np.float64))
        shown = np.isfinite(step)
        step[~shown] = 0.0
        near = np.moveaxis(n_products, axis, 0)[:-1]
        several = np.moveaxis(near > 1, 0, axis)
        changed = np.asarray(np.diff(inside, axis=axis).any(axis=0))
        places: tuple[tuple[Place, NDArray[np.bool_]], ...] = (
            ("rim", changed),
            ("feather", several & ~changed),
            ("alone", ~several & ~changed),
        )
        for place, where in places:
            count[place] += int((shown & where).sum())
            total[place] += float((step * where).sum())
    return count, total


def joined(parts: Iterable[JoinSums]) -> JoinSums:
    """Sums of several blocks as one; pairs in order."""
    pairs: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    count: dict[Place, int] = {"alone": 0, "feather": 0, "rim": 0}
    total: dict[Place, float] = {"alone": 0.0, "feather": 0.0, "rim": 0.0}
    for part in parts:
        for pair in part.pairs:
            add = [np.array(column, np.float64) for column in (pair.pixels, pair.total, pair.square)]
            have = pairs.get((pair.first, pair.second))
            pairs[pair.first, pair.second] = add if have is None else [a + b for a, b in zip(have, add, strict=True)]
        for place in count:
            count[place] += part.neighbors.get(place, 0)
            total[place] += part.steps.get(place, 0.0)
    return JoinSums(
        pairs=[
            PairSums(
                first=first,
                second=second,
                pixels=[int(n) for n in n_pixels],
                total=sums.tolist(),
                square=squares.tolist(),
            )
            for (first, second), (n_pixels, sums, squares) in sorted(pairs.items())
        ],
        neighbors=count,
        steps=total,
    )


def seam_record(sums: JoinSums, names: Sequence[str]) -> dict[str, Any]:
    """The figures as JSON, all in physical units.

    Returns
    -------
    dict
        `pairs`: per pair of products the pixels of the best band, mean and RMS of the differences per band (None where
        the pair has no sample), and the largest of the absolute means; `steps`: mean step at each place (None where
        there is none), and what those of feather and rim are over that of `alone`.
    """
    mean_step = {place: sums.steps[place] / n if n else None for place, n in sums.neighbors.items()}
    alone = mean_step.get("alone")

    def relative(place: Place) -> float | None:
        step = mean_step.get(place)
        return None if step is None or not alone else step / alone

    return {
        "pairs": [_pair_record(pair, names) for pair in sums.pairs],
        "steps": mean_step | {"feather_over_alone": relative("feather"), "rim_over_alone": relative("rim")},
    }


def _pair_record(pair: PairSums, names: Sequence[str]) -> dict[str, Any]:
    means = [total / n if n else None for total, n in zip(pair.total, pair.pixels, strict=True)]
    rms = [math.sqrt(square / n) if n else None for square, n in zip(pair.square, pair.pixels, strict=True)]
    return {
        "first": names[pair.first],
        "second": names[pair.second],
        "pixels": max(pair.pixels),
        "largest_mean": max(abs(mean) for mean in means if mean is not None),
        "mean": means,
        "rms": rms,
    }
