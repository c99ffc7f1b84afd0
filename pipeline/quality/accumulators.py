"""What comparisons sum up on the way over a scene: a predicted image against a measured one, and gradients at seams."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.geometry.box import Box

F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A predicted image against the measured one; errors are predicted less measured, in the measured image's unit."""

    pixels: int
    """Pixels that are valid in all bands of both."""
    sam_deg: float
    """Mean spectral angle (degrees)."""
    rmse: float
    """Root of the mean square error over all bands."""
    bias: float
    """Mean error over all bands."""
    r2: float
    """Mean over bands of the squared correlation: the share of variance that is explained after a gain and an offset."""
    band_bias: list[float]
    """Mean error per band."""
    band_rmse: list[float]
    """Root of the mean square error per band."""
    band_r2: list[float]
    """Squared correlation per band; 0 for a band without variance."""
    band_mean: list[float]
    """Mean of the measured band."""


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Mean absolute gradient by the distance from a line between two tiles."""

    score: float
    """Across the lines, over that one and two coarse pixels beside them, less 1; 0 where tiles are invisible."""
    spread: float
    """Standard deviation of the profile beside the lines, over its mean there: what scenery alone makes of a score."""
    lines: int
    """Lines between tiles, rows and columns."""
    profile: list[float | None]
    """From one side to the other, a fine pixel apart; the middle is the line itself."""


class Moments:
    """Running sums of a predicted and a measured image, per band.

    Parameters
    ----------
    n_bands : int
    """

    def __init__(self, n_bands: int) -> None:
        self.n = 0
        self._sums = np.zeros((6, n_bands))  # predicted, measured, their squares, their product, the squared error
        self._angle, self._angles = 0.0, 0

    def add(self, predicted: F32, measured: F32) -> tuple[F32, F32]:
        """Add pixels, shape (band, pixel), all valid; returns their spectral angle (degrees) and RMS error."""
        p, m = predicted.astype(np.float64), measured.astype(np.float64)
        error = (p - m) ** 2
        self.n += p.shape[1]
        self._sums += np.stack([p.sum(1), m.sum(1), (p * p).sum(1), (m * m).sum(1), (p * m).sum(1), error.sum(1)])
        length = np.sqrt((p * p).sum(axis=0) * (m * m).sum(axis=0))
        shown = length > 0
        cosine = np.divide((p * m).sum(axis=0), length, out=np.ones_like(length), where=shown)
        angle = np.where(shown, np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))), np.nan)
        self._angle += float(angle[shown].sum())
        self._angles += int(shown.sum())
        return angle.astype(np.float32), np.sqrt(error.mean(axis=0)).astype(np.float32)

    def agreement(self) -> Agreement | None:
        """What they say; None if nothing was added."""
        if self.n == 0:
            return None
        p, m, pp, mm, pm, error = self._sums / self.n
        spread = np.maximum(pp - p * p, 0.0) * np.maximum(mm - m * m, 0.0)
        r2 = np.divide((pm - p * m) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)
        return Agreement(
            pixels=self.n,
            sam_deg=self._angle / max(self._angles, 1),
            rmse=float(np.sqrt(error.mean())),
            bias=float((p - m).mean()),
            r2=float(r2.mean()),
            band_bias=(p - m).tolist(),
            band_rmse=np.sqrt(error).tolist(),
            band_r2=np.minimum(r2, 1.0).tolist(),
            band_mean=m.tolist(),
        )


class SeamSums:
    """Running sums of gradients near the lines between tiles.

    Parameters
    ----------
    core : int
        Edge of a tile in product pixels.
    ratio : int
        Fine pixels per coarse pixel: lines beside a border are compared at the same phase of the coarse lattice, because
        what fusion leaves of that lattice is no seam.
    shape : (int, int)
        Rows and columns of the product.
    """

    def __init__(self, core: int, ratio: int, shape: tuple[int, int]) -> None:
        self._core, self._ratio, self._half, self._shape = core, ratio, 2 * ratio, shape
        self._total, self._n = np.zeros(2 * self._half + 1), np.zeros(2 * self._half + 1)
        self._left: tuple[F32, NDArray[np.bool_]] | None = None
        self._next = (-1, -1)
        self._above: dict[int, tuple[F32, NDArray[np.bool_]]] = {}

    def add(self, box: Box, samples: F32, valid: NDArray[np.bool_], *, counted: bool) -> None:
        """Add a chunk, samples (band, y, x); chunks come row by row, from left to right."""
        keep = self._half + 1
        if counted and box.x0 % self._core == 0 and self._left is not None and self._next == (box.y0, box.x0):
            self._add_line(*self._left, samples, valid)
        if counted and box.y0 and box.y0 % self._core == 0 and box.x0 in self._above:
            above, above_valid = self._above[box.x0]
            self._add_line(above, above_valid, samples.swapaxes(1, 2), valid.T)
        self._left, self._next = (samples[..., -keep:].copy(), valid[:, -keep:].copy()), (box.y0, box.x1)
        self._above[box.x0] = samples[:, -keep:].swapaxes(1, 2).copy(), valid[-keep:].T.copy()

    def seams(self) -> Seams | None:
        """What they say; None if there is no line between tiles, or nothing is valid at any."""
        lines = sum((size - 1) // self._core for size in self._shape)
        beside = [self._half + k * self._ratio for k in (-2, -1, 1, 2) if self._n[self._half + k * self._ratio]]
        if not lines or not self._n[self._half] or not beside:
            return None
        mean = np.divide(self._total, self._n, out=np.full_like(self._total, np.nan), where=self._n > 0)
        usual = float(self._total[beside].sum() / self._n[beside].sum())
        others = np.delete(mean, self._half)
        return Seams(
            score=float(mean[self._half] / usual - 1.0) if usual > 0 else 0.0,
            spread=float(np.nanstd(others) / usual) if usual > 0 else 0.0,
            lines=lines,
            profile=[float(value) if math.isfinite(value) else None for value in mean],
        )

    def _add_line(
        self, before: F32, before_valid: NDArray[np.bool_], after: F32, after_valid: NDArray[np.bool_]
    ) -> None:
        """Gradients along the last axis, on both sides of a line."""
        reach = self._half + 1
        image = np.concatenate([before, after[..., :reach]], axis=-1)
        valid = np.concatenate([before_valid, after_valid[:, :reach]], axis=-1)
        gradient = np.abs(np.diff(image, axis=-1)).mean(axis=0)
        both = valid[:, 1:] & valid[:, :-1]
        # The gradient of index i lies before pixel i + 1; the line lies before pixel `before.shape[-1]`.
        first = self._half + 1 - before.shape[-1]
        inside = slice(first, first + gradient.shape[-1])
        self._total[inside] += np.where(both, gradient, 0.0).sum(axis=0)
        self._n[inside] += both.sum(axis=0)
