"""The record of a registration: displacement, decision, and the figures that they rest on."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement


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
