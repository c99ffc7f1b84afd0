"""The HSI where its samples do not lie on the product's lattice: resampled, and given back what the MSI tells was lost.

HSI's pixels -> coarse pixels                                    R HSI
MSI, staged -> blurred by the HSI's PSF -> at the HSI's samples -> R MSI          see `pipeline.observation.sampled_detail`
-> at the coarse pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, map_coordinates

from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.geometry.resample import gathering, target_pixels
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.observation.sampled_detail import GuideMoments, restored

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_LEAST_SEEN = 0.95
"""Share of the PSF that must fall on valid pixels."""
_TRUNCATE = 4.0
_SPLINE = 12
"""Pixels around a window that its spline needs."""
_WIDTHS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
"""Widths of the PSF that are tried, over the sensor's. Detail is taken out or put in where it is off, so steps of a tenth do."""
_ALL = 1e-3
"""How much of the kernel may lie where the MSI is not known."""


@dataclass(kw_only=True)
class SampledAnew:
    """An HSI at the pixel centers of another grid.

    Raises
    ------
    InputRejected
        If the scene cannot be read.
    """

    scene: Scene
    grid: GeoBox
    """Coarse grid."""
    displacement: Displacement
    bands: Sequence[int]
    fine: GeoBox
    msi: Path
    """Staged MSI, on the fine grid."""
    msi_bands: Sequence[int]
    """Its bands that carry signal."""
    ratio: int
    psf_sigma_px: float
    """Of the HSI's PSF, in fine pixels."""
    _weights: F32 | None = field(default=None, init=False)

    def learn(self, blocks: Sequence[Box], *, is_psf_known: bool) -> None:
        """Find how the HSI follows the MSI, and, unless it is known, how wide its PSF is, from some blocks of coarse pixels."""
        sigma = self.psf_sigma_px
        found: dict[float, GuideMoments] = {}
        for factor in (1.0,) if is_psf_known else _WIDTHS:
            self.psf_sigma_px = factor * sigma
            for block in blocks:
                if (both := self._resampled(block)) is not None:
                    part = GuideMoments.of(*both[:2])
                    found[factor] = found[factor] + part if factor in found else part
        if not found:
            self.psf_sigma_px = sigma
            return
        best = min(found, key=lambda factor: found[factor].unexplained())
        self.psf_sigma_px, self._weights = best * sigma, found[best].weights()

    def __call__(self, block: Box) -> F32:
        """Samples of a block of coarse pixels, shape (band, y, x), float32."""
        found = self._resampled(block)
        if found is None:
            return np.full((len(self.bands), *block.shape), np.nan, np.float32)
        hsi, resampled, centered = found
        return hsi if self._weights is None else restored(hsi, centered, resampled, self._weights)

    def _resampled(self, block: Box) -> tuple[F32, F32, F32] | None:
        """HSI and MSI resampled from where the HSI's samples lie, and the MSI at the centers."""
        gather = gathering(self.scene.geobox, self.grid, block.slices, displacement=self.displacement, sharp=True)
        if gather is None:
            return None
        samples = self.scene.read(gather.window, self.bands)
        beside = self._seen(*target_pixels(self.fine, self.scene.geobox, gather.window, self.displacement))
        known = np.isfinite(beside).all(axis=0)
        # Under the kernel both must weigh alike, so the MSI has the HSI's holes.
        told = np.concatenate([np.where(known, beside, np.float32(0.0)), np.expand_dims(known, 0).astype(np.float32)])
        told[:, ~np.isfinite(samples).any(axis=0)] = np.nan
        both = gather(np.concatenate([samples, told]))
        hsi, resampled, share = both[: len(samples)], both[len(samples) : -1], both[-1]
        resampled[:, ~(np.abs(share - 1.0) < _ALL)] = np.nan
        at = np.arange(block.y0, block.y1), np.arange(block.x0, block.x1)
        row, col = ((axis + 0.5) * self.ratio - 0.5 for axis in at)
        return hsi, resampled, self._seen(*np.meshgrid(row, col, indexing="ij"))

    def _seen(self, row: F64, col: F64) -> F32:
        """The MSI through the HSI's PSF at positions (fine pixels, any shape); NaN where it is not known."""
        array = store.open_array(self.msi)
        height, width = self.fine.shape
        reach = int(np.ceil(_TRUNCATE * self.psf_sigma_px)) + _SPLINE
        finite = np.isfinite(row) & np.isfinite(col) & (row > -1) & (row < height) & (col > -1) & (col < width)
        out = np.full((len(self.msi_bands), *row.shape), np.nan, np.float32)
        if not finite.any():
            return out
        window = Box(
            y0=max(int(row[finite].min()) - reach, 0),
            y1=min(int(row[finite].max()) + reach + 2, height),
            x0=max(int(col[finite].min()) - reach, 0),
            x1=min(int(col[finite].max()) + reach + 2, width),
        )
        image = store.read(array, window, np.array(self.msi_bands))
        valid = np.isfinite(image).all(axis=0)
        share = gaussian_filter(valid.astype(np.float32), self.psf_sigma_px, mode="nearest", truncate=_TRUNCATE)
        seen: NDArray[np.bool_] = share > _LEAST_SEEN
        at = np.stack([row[finite] - window.y0, col[finite] - window.x0])
        near = np.rint(at).astype(np.intp).clip(0, np.array(seen.shape)[:, None] - 1)
        good = seen[near[0], near[1]]
        for number, band in enumerate(image):
            blurred = gaussian_filter(
                np.where(valid, band, np.float32(0.0)), self.psf_sigma_px, mode="nearest", truncate=_TRUNCATE
            )
            blurred /= np.maximum(share, 0.1)
            values = map_coordinates(blurred, at, order=3, mode="nearest")
            out[number][finite] = np.where(good, values, np.nan)
        return out
