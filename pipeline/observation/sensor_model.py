"""The observation model of a pair: PSF of the HSI, spectral responses of the MSI, and how far they are from holding."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.radiometry import RadiometricFit, fit_line
from hyperfuse.pipeline.observation.sample import Sample

GOOD_R2 = 0.9
"""An MSI band of whose variance at the coarse pixels the HSI predicts less than this is named in the log."""


Origin = Literal["given", "sensor", "table", "measured", "blind"]


class Observation(BaseModel):
    """The observation model of a co-registered pair."""

    model_config = ConfigDict(frozen=True)

    psf_sigma_px: float
    """Standard deviation of the HSI's Gaussian PSF, in fine pixels."""
    psf_center_px: tuple[float, float] = (0.0, 0.0)
    """Center (y, x) of the PSF from the center of the coarse pixel, in fine pixels: where the HSI's samples lie, as they were
    measured, and what is left of a misregistration."""
    band_shifts_px: tuple[tuple[float, float], ...] = ()
    """Rows and columns (fine pixels) by which each HSI band's samples lie beside that center; empty if all lie there."""
    psf_origin: Origin
    """`given` by the user, from the MTF of the `sensor`, `measured` on the pair, or estimated together with the SRF (`blind`)."""
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

    @property
    def hsi_psf(self) -> Psf:
        """The PSF of all bands."""
        return Psf(self.psf_sigma_px, *self.psf_center_px)

    def hsi_shifts(self, ratio: int) -> tuple[tuple[float, float], ...]:
        """Rows and columns (coarse pixels) by which each HSI band's samples lie beside their pixels; empty if none does."""
        n_bands = len(self.srf[0]) if self.srf else 0
        beside = self.band_shifts_px or ((0.0, 0.0),) * n_bands
        (y, x) = self.psf_center_px
        shifts = tuple(((y + row) / ratio, (x + col) / ratio) for row, col in beside)
        return shifts if any(any(pair) for pair in shifts) else ()


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


def with_misfit(observation: Observation, sample: Sample) -> Observation:
    """The same observation model with its misfit on a sample of the pair."""
    psf = observation.hsi_psf
    srf = np.array(observation.srf)
    low = sample.degraded(psf)[:, sample.valid].astype(np.float64) + sample.msi_mean[:, None]
    misfit = tuple(
        fit_line(predicted, band, sample.cells) if row.any() else None
        for band, predicted, row in zip(low, sample.predicted(srf), srf, strict=True)
    )
    return observation.model_copy(update={"misfit": misfit})
