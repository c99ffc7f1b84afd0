"""Protocols: how a pair is made from a cube whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.pipeline.observation.field import Planting


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a pair is simulated and scored.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    ratio: int = 4
    """Fine pixels per coarse pixel along one axis."""
    msi: str = "s2-4"
    """Name of the MSI's bands in `catalogs.references.responses`."""
    hsi_snr_db: float | None = 35.0
    """Mean square of an HSI band over the variance of its white noise (dB); None is no noise."""
    msi_snr_db: float | None = 40.0
    """The same of the MSI."""
    seed: int = 0
    """Of the noise."""
    rim_px: int = 1
    """Coarse pixels along the edge that are not scored."""
    mtf_nyquist: float = 0.3
    """Modulation of a Gaussian PSF at the Nyquist frequency of the pixels that it belongs to."""
    psf: Literal["gaussian", "block"] = "gaussian"
    """`block` cuts the HSI's Gaussian to the coarse pixel itself."""
    psf_sigma_px: float | None = None
    """Standard deviation of the HSI's Gaussian in fine pixels; None takes that of `mtf_nyquist`."""
    scale: Literal["percentile", "range"] = "percentile"
    """Divide by the 99.9th percentile of all samples, or map all samples to 0..1."""
    planted: Planting = field(default=Planting())
    """What the images suffer from and methods are not told."""

    def __post_init__(self) -> None:
        if self.ratio < 2 or self.rim_px < 0 or not 0 < self.mtf_nyquist < 1:
            raise ValueError(f"ratio >= 2, rim_px >= 0 and 0 < mtf_nyquist < 1 are expected, got {self}")
        if self.psf == "block" and (self.planted.moves or self.planted.psf_factor != 1):
            raise ValueError(f"{self.planted.name} cannot be planted with a block PSF; take a Gaussian one")

    @property
    def sigma_px(self) -> float:
        """Standard deviation of the HSI's Gaussian in fine pixels."""
        return self.psf_sigma_px or sigma_from_mtf(self.mtf_nyquist, self.ratio)

    def to_json(self) -> dict[str, Any]:
        """All settings, and what is planted where something is."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "planted"}
        return plain | ({} if self.planted == Planting() else {"planted": self.planted.to_json()})
