"""What a method found out about a pair on the scene itself, for those who judge the product."""

from __future__ import annotations

from dataclasses import dataclass

from hyperfuse.models.operators import Shift


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How some bands of the HSI see the scene, as the method uses it; a model that has any gives them by `findings()`."""

    bands: tuple[int, ...]
    """Indices of the bands."""
    sigma_px: float
    """Standard deviation of the PSF, in fine pixels ..."""
    sigma_error_px: float
    """... and its standard error."""
    shift_px: Shift
    """Rows and columns by which the samples lie beside the centers of their blocks, in fine pixels ..."""
    shift_error_px: Shift
    """... and their standard errors."""
    changed_share: float
    """Of the samples that were looked at: those that changed between the dates of the two images."""
    samples: int
    """Samples that were looked at."""
