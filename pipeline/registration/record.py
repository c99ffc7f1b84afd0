"""The record of a registration: displacement, decision, and the figures that they rest on."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.notebook import rows_html
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement


class DisplacedPart(BaseModel):
    """A part of the scene in which the MSI lies elsewhere than the displacement tells."""

    model_config = ConfigDict(frozen=True)

    share: float
    """Of the windows in which both images show the same."""
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top, CRS units of the product."""
    east_px: float
    """Its move beside the displacement, coarse pixels."""
    north_px: float
    """The same north."""
    tie_points: int
    """Windows that show it."""


class DetectorDisplacement(BaseModel):
    """How one of the HSI's detectors looks beside the displacement of the scene.

    A band at `nm` lies at `displacement` + (`east_px`, `north_px`) + (`east_px_per_um`, `north_px_per_um`) (`nm` - `center_nm`) / 1000;
    sign and direction as of the displacement.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    """VNIR or SWIR."""
    first_nm: float
    """Center of its first good band ..."""
    last_nm: float
    """... and of its last."""
    center_nm: float
    """Middle between them."""
    east_px: float
    """Move beside the displacement at `center_nm`, coarse pixels; 0 for the detector that the displacement was measured with."""
    north_px: float
    """The same north."""
    east_px_per_um: float = 0.0
    """Change over the wavelength (keystone), coarse pixels per micrometer; 0 where it is not significant."""
    north_px_per_um: float = 0.0
    """The same north."""
    sigma_px: float | None
    """Standard error (coarse px) of the offset; None where it was not measured."""
    tie_points: int
    """Windows that show it."""
    significant: bool
    """Whether an offset or a change over the wavelength is larger than chance."""
    decision: Literal["accept", "warn", "refuse"]
    """`refuse`: not measured, taken for 0."""
    reason: str
    """What decided."""

    def beside(self, nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move (coarse px) of bands beside the displacement of the scene, shape (2, band)."""
        away = (nm - self.center_nm) / 1e3
        return np.stack([self.east_px + self.east_px_per_um * away, self.north_px + self.north_px_per_um * away])


class Registration(BaseModel):
    """How the MSI lies on the HSI."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["accept", "warn", "refuse"]
    """`warn`: the displacement is taken, and worth a look. `refuse`: it is not believed, and the geometry stays."""
    reason: str
    """One sentence with the figures that decided."""
    model: Literal["none", "shift", "affine", "field"]
    """Kind of displacement that the data supports."""
    east: float
    """Mean move along the CRS's x axis that brings the MSI onto the HSI, CRS units."""
    north: float
    """The same along y."""
    east_m: float
    """The same in meters on the ground."""
    north_m: float
    """The same in meters on the ground."""
    correlation_before: float | None
    """Of the HSI with what the MSI predicts of it, mean over the tie points, without any move."""
    correlation_after: float | None
    """The same along the displacement."""
    band_nm: float | None
    """Center of the MSI band that matches best."""
    residual_before_px: float | None = None
    """Root mean square distance (coarse px) of the tie points without any move."""
    residual_after_px: float | None = None
    """The same along the displacement: what it leaves, and the tie points' own noise."""
    tie_points: int = 0
    """Tie points that agree with the displacement ..."""
    tie_points_tried: int = 0
    """... of so many windows with enough valid pixels."""
    displacement: Displacement = NO_DISPLACEMENT
    """The move at every position, in units of the product's CRS."""
    searched_px: float | None = None
    """Largest displacement (coarse px) that was searched."""
    parts: tuple[DisplacedPart, ...] = ()
    """Parts of the scene that match, but elsewhere than the displacement tells, largest first."""
    detectors: tuple[DetectorDisplacement, ...] = ()
    """The HSI's detectors, each beside the displacement; empty where nothing was measured."""

    def _repr_html_(self) -> str:
        left = self.residual_after_px
        return rows_html(
            f"registration: {self.decision}",
            [
                ("", self.reason),
                ("model", self.model),
                ("move of the MSI", f"{self.east_m:+.2f} m east, {self.north_m:+.2f} m north"),
                (
                    "tie points",
                    f"{self.tie_points} of {self.tie_points_tried} agree" if self.tie_points_tried else None,
                ),
                ("left", None if left is None else f"{left:.3f} coarse px"),
            ],
        )

    def beside(self, center_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move (coarse px) of HSI bands beside `displacement`, shape (2, band): what is significant and not refused, else 0."""
        beside = np.zeros((2, len(center_nm)))
        for detector in self.detectors:
            if detector.significant and detector.decision != "refuse":
                own = (center_nm >= detector.first_nm) & (center_nm <= detector.last_nm)
                beside[:, own] = detector.beside(center_nm[own])
        return beside
