"""How the two sensors see one scene: the PSF of the HSI and the spectral responses (SRF) of the MSI.

    degraded MSI = gain * (SRF x HSI) + offset            per MSI band, at the coarse pixels

holds for the right SRF, and for the right PSF, with which the MSI is degraded. What the tables of the sensors tell is
`known`, a `Sample` of the pair tests it, and how far it is from holding is the misfit; `pipeline.blind` seeks PSF and
SRF such that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.ndimage import gaussian_filter

from catalogs.bands import Bands
from catalogs.sensors import sigma_from_mtf
from pipeline.radiometry import RadiometricFit, fit_line
from pipeline.tiles import Box

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MAX_PIXELS = 25_600
"""Coarse pixels that are looked at, at most; fewer where the bands are so many that `_MAX_SAMPLES` is reached."""
MIN_PIXELS = 64
"""Fewer valid coarse pixels than these tell nothing."""
GOOD_R2 = 0.9
"""An MSI band of whose variance at the coarse pixels the HSI predicts less than this is named in the log."""
MTF_RANGE = (0.9, 0.05)
"""Modulation at the Nyquist frequency of the narrowest and the widest PSF that is believed."""
BLUR = 1.5
"""Standard deviation of the strong blur, in coarse pixels: three times that of a usual PSF."""
_EDGE = 40
"""Coarse pixels along the edge of a sampled block."""
_SHARP_PX = 0.3
"""Narrowest blur, in fine pixels."""
_CELL = 5
"""Coarse pixels along the edge of a neighborhood whose residuals are not taken for independent."""
_MAX_SAMPLES = 1 << 23
"""Samples of both images that are looked at, at most: 32 MiB in single precision."""
_MAX_LOST = 0.05
"""A coarse pixel counts if less than this share of the widest PSF falls on invalid fine pixels."""

Origin = Literal["given", "sensor", "table", "blind"]


class NotEstimable(ValueError):
    """The pair does not tell how it was observed; the message says why."""


class Observation(BaseModel):
    """The observation model of a co-registered pair."""

    model_config = ConfigDict(frozen=True)

    psf_sigma_px: float
    """Standard deviation of the HSI's Gaussian PSF, in fine pixels."""
    psf_center_px: tuple[float, float] = (0.0, 0.0)
    """Center (y, x) of the PSF from the center of the coarse pixel, in fine pixels: what is left of a misregistration."""
    psf_origin: Origin
    """`given` by the user, from the MTF of the `sensor`, or estimated (`blind`)."""
    srf: tuple[tuple[float, ...], ...]
    """Weights of the HSI bands in each MSI band; rows sum to 1, or to 0 where the HSI does not see the band."""
    srf_origin: Origin
    """From the `table` of bands of both sensors, `given` by the user as measured, or estimated (`blind`)."""
    coverage: tuple[float, ...]
    """Share of each MSI band's response, by the table, that lies inside HSI bands."""
    misfit: tuple[RadiometricFit | None, ...] = ()
    """Per MSI band, None where the HSI does not see it; empty if too few pixels are valid to tell."""
    note: str = ""
    """Why it was not tested, or not estimated though that was asked for; empty otherwise."""


class Psf(NamedTuple):
    """A Gaussian, in fine pixels."""

    sigma: float
    """Standard deviation."""
    y: float = 0.0
    """Row of its center from that of the coarse pixel."""
    x: float = 0.0
    """Column of the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Blocks of both images, filled; only coarse pixels that are valid in both are compared."""

    ratio: int
    """Fine pixels per coarse pixel along one axis."""
    hsi: F32
    """Shape (C, block, h, w)."""
    msi: F32
    """Less `msi_mean`, 0 in holes, shape (c, block, h * ratio, w * ratio)."""
    msi_mean: F64
    """Shape (c,)."""
    msi_weight: F32
    """1 where all bands are valid, else 0, shape (block, h * ratio, w * ratio)."""
    valid: NDArray[np.bool_]
    """Coarse pixels that count, shape (block, h, w)."""
    own_sigma_px: tuple[float, ...]
    """Standard deviation of the blur that each MSI band has of its own, in fine pixels."""

    @classmethod
    def of(cls, hsi: F32, msi: F32, ratio: int, own_sigma_px: Sequence[float] = ()) -> Sample:
        """A sample of blocks as they are read.

        Parameters
        ----------
        hsi : ndarray, shape (block, C, h, w), float32
            NaN where invalid.
        msi : ndarray, shape (block, c, h * ratio, w * ratio), float32
            NaN where invalid; registered to the HSI.
        ratio : int
        own_sigma_px : sequence of float, optional
            Standard deviation of the blur that each MSI band has of its own, in fine pixels; 0 unless given.

        Raises
        ------
        NotEstimable
            If fewer than `MIN_PIXELS` coarse pixels are valid in both images, away from holes and from the rim.
        """
        hsi_valid, msi_valid = (np.isfinite(image).all(axis=1) for image in (hsi, msi))
        weight: F32 = np.asarray(msi_valid, np.float32)
        reached = _blurred(weight, ratio, Psf(sigma_from_mtf(MTF_RANGE[1], ratio)))
        valid = hsi_valid & (reached > 1.0 - _MAX_LOST)
        if valid.sum() < MIN_PIXELS:
            raise NotEstimable(
                f"{valid.sum()} of {valid.size} sampled coarse pixels are valid in both images, away from holes and from the "
                f"rim, expected {MIN_PIXELS} or more"
            )
        coarse, fine = (image.swapaxes(0, 1) for image in (hsi, msi))
        coarse_mean, fine_mean = coarse[:, valid].mean(axis=1), fine[:, msi_valid].mean(axis=1, dtype=np.float64)
        return cls(
            ratio=ratio,
            hsi=np.where(valid, coarse, _per_band(coarse_mean)),
            msi=np.where(msi_valid, fine - _per_band(fine_mean), np.float32(0.0)),
            msi_mean=fine_mean,
            msi_weight=weight,
            valid=valid,
            own_sigma_px=tuple(own_sigma_px) or (0.0,) * len(fine),
        )

    def degraded(self, psf: Psf) -> F32:
        """The MSI less its mean as the HSI's sensor would see it, shape (c, block, h, w)."""
        seen = np.empty((len(self.msi), *self.valid.shape), np.float32)
        for own in set(self.own_sigma_px):
            # A band of coarser pixels is blurred already; what it lacks of the HSI's PSF is left to do.
            lacking = psf._replace(sigma=math.sqrt(max(psf.sigma**2 - own**2, _SHARP_PX**2)))
            reached = _blurred(self.msi_weight, self.ratio, lacking)
            bands = [k for k, sigma in enumerate(self.own_sigma_px) if sigma == own]
            seen[bands] = _blurred(self.msi[bands], self.ratio, lacking) / np.maximum(reached, np.float32(0.5))
        return seen

    @property
    def cells(self) -> NDArray[np.int64]:
        """Label of the neighborhood of each valid pixel, shape (pixel,)."""
        block, y, x = np.nonzero(self.valid)
        rows, cols = (-(-size // _CELL) for size in self.valid.shape[1:])
        labels: NDArray[np.int64] = (block * rows + y // _CELL) * cols + x // _CELL
        return labels

    def strongly_blurred(self, images: F32) -> F64:
        """Two strong blurs of coarse images (layer, block, h, w), less their means, shape (2, layer, pixel).

        Each blurs the valid pixels of one color of a checkerboard: the same scene, with independent noise.
        """
        color = np.indices(self.valid.shape[1:]).sum(axis=0) % 2
        return np.stack([self._blurred_over(images, self.valid & (color == used)) for used in (0, 1)])

    def predicted(self, srf: F64) -> F64:
        """SRF x HSI at the valid pixels, shape (c, pixel)."""
        return (srf.astype(np.float32) @ self.hsi[:, self.valid]).astype(np.float64)

    def _blurred_over(self, images: F32, used: NDArray[np.bool_]) -> F64:
        share = gaussian_filter(used.astype(np.float32), (0.0, BLUR, BLUR), mode="constant")
        total = gaussian_filter(np.where(used, images, np.float32(0.0)), (0.0, 0.0, BLUR, BLUR), mode="constant")
        return centered(total[:, self.valid] / np.maximum(share[self.valid], 1e-6))


def known(hsi: Bands, msi: Bands, *, psf_sigma_px: float, psf_origin: Origin) -> Observation:
    """The observation model of the sensors' tables: measured responses, or Gaussians of the given centers and widths."""
    srf, coverage = hsi.srf(msi)
    return Observation(
        psf_sigma_px=psf_sigma_px,
        psf_origin=psf_origin,
        srf=srf.tolist(),
        srf_origin="table" if msi.curves is None else "given",
        coverage=coverage.tolist(),
    )


def sampled_blocks(shape: tuple[int, ...], *, n_hsi: int, n_msi: int, ratio: int) -> list[Box]:
    """Blocks of equal shape (coarse pixels), evenly over the scene, `MAX_PIXELS` in all at most but one block at least.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the coarse grid.
    n_hsi, n_msi : int
        Bands of both images.
    ratio : int
    """
    edges = [min(_EDGE, size) for size in shape]
    most = min(MAX_PIXELS, _MAX_SAMPLES // (n_hsi + n_msi * ratio**2)) // math.prod(edges)
    # As many per row as per column, by the shape of the scene.
    rows = min(max(round(math.sqrt(most * shape[0] / shape[1])), 1), shape[0] // edges[0])
    cols = min(max(most // rows, 1), shape[1] // edges[1])
    starts = [
        [(size - edge * n) * (2 * i + 1) // (2 * n) + edge * i for i in range(n)]
        for size, edge, n in zip(shape, edges, (rows, cols), strict=True)
    ]
    return [Box(y0=y, y1=y + edges[0], x0=x, x1=x + edges[1]) for y in starts[0] for x in starts[1]]


def assess(observation: Observation, sample: Sample) -> Observation:
    """The same observation model with its misfit on a sample of the pair."""
    psf = Psf(observation.psf_sigma_px, *observation.psf_center_px)
    srf = np.array(observation.srf)
    low = sample.degraded(psf)[:, sample.valid].astype(np.float64) + sample.msi_mean[:, None]
    misfit = tuple(
        fit_line(predicted, band, sample.cells) if row.any() else None
        for band, predicted, row in zip(low, sample.predicted(srf), srf, strict=True)
    )
    return observation.model_copy(update={"misfit": misfit})


def centered(pixels: NDArray[Any]) -> F64:
    """Pixels (layer, pixel) less the mean of their layer."""
    return cast("F64", pixels - pixels.mean(axis=1, keepdims=True, dtype=np.float64))


def _blurred(fine: F32, ratio: int, psf: Psf) -> F32:
    """Sums of fine pixels (..., h * ratio, w * ratio) under the PSF of each coarse pixel; nothing lies outside the image."""
    height, width = (size // ratio for size in fine.shape[-2:])
    return cast("F32", _taps(height, ratio, psf.sigma, psf.y) @ fine @ _taps(width, ratio, psf.sigma, psf.x).T)


def _taps(n_coarse: int, ratio: int, sigma: float, center: float) -> F32:
    """Weights of the fine pixels of one axis, shape (coarse pixel, fine pixel)."""
    # Over four coarse pixels on each side they sum to 1; near the rim a part is missing, which `Sample` looks at.
    margin = 4 * ratio
    fine = np.arange(-margin, n_coarse * ratio + margin) + 0.5
    middle = (np.arange(n_coarse) + 0.5) * ratio + center
    weights = np.exp(-0.5 * ((fine - middle[:, None]) / sigma) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, margin:-margin].astype(np.float32)


def _per_band(values: NDArray[Any]) -> F32:
    return values.astype(np.float32)[:, None, None, None]
