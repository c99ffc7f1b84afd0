"""First and second moments of a pair at the coarse resolution: all that the regressions of classical methods need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from models._layers import BLUR_REACH, degrade
from models._spec import ModelSpec


class MomentsPass:
    """Sums of [1, HSI, degraded MSI] and of their products over valid coarse pixels; a `models.FirstPass`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.observed = spec.observed
        self.margin = int(np.ceil(BLUR_REACH * spec.observed.psf_sigma_px / spec.observed.ratio))

    def sums(self, hsi: torch.Tensor, msi: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `models.FirstPass.sums`; `products` has shape (1 + C + c, 1 + C + c)."""
        low = degrade(msi, self.observed.ratio, self.observed.psf_sigma_px)
        one = torch.ones_like(hsi[:, :1])
        joint = torch.cat([one, hsi, low], dim=1).movedim(1, -1)[valid].double()  # (pixel, 1 + C + c)
        return {"products": joint.T @ joint}


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Means and covariances over the valid coarse pixels of a scene, float64."""

    n_pixels: int
    """Pixels that counted."""
    hsi_mean: torch.Tensor
    """Shape (C,)."""
    msi_mean: torch.Tensor
    """Of the degraded MSI, shape (c,)."""
    hsi_hsi: torch.Tensor
    """Covariance, shape (C, C)."""
    hsi_msi: torch.Tensor
    """Covariance, shape (C, c)."""
    msi_msi: torch.Tensor
    """Covariance, shape (c, c)."""

    @classmethod
    def from_sums(cls, spec: ModelSpec, sums: Mapping[str, torch.Tensor] | None) -> Moments:
        """Moments from the summed result of `MomentsPass.sums`.

        Raises
        ------
        ValueError
            If there are none, or too few valid pixels for a covariance.
        """
        if sums is None or "products" not in sums:
            raise ValueError(f"{spec.name} needs the sums of its first pass over the scene")
        products = sums["products"].double()
        n_pixels = round(float(products[0, 0]))
        if n_pixels < 16:
            raise ValueError(
                f"{spec.name} needs at least 16 coarse pixels that are valid in both images, found {n_pixels}"
            )
        mean = products[0, 1:] / n_pixels
        covariance = products[1:, 1:] / n_pixels - torch.outer(mean, mean)
        split = spec.observed.hsi_bands
        return cls(
            n_pixels=n_pixels,
            hsi_mean=mean[:split],
            msi_mean=mean[split:],
            hsi_hsi=covariance[:split, :split],
            hsi_msi=covariance[:split, split:],
            msi_msi=covariance[split:, split:],
        )
