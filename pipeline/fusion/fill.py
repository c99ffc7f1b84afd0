"""What takes the place of samples that were not seen, for networks: they look at every sample and cannot leave any out.

    moments of the scene (`FillPass`)  ->  `Filler`  ->  windows of both images without holes

A hole of the HSI under a whole MSI holds what the HSI's bands regress on the MSI as the HSI sees it; a hole of the MSI what its
bands regress on the HSI, interpolated; both with the mean of what the regression leaves in the nearest samples that were seen.
Where neither was seen there is the mean of the nearest samples, and far from all the mean of the scene. Nothing that is filled
is published: a product holds what both images show.

Every filled sample depends on the samples within `Filler.reach` coarse pixels alone, so that windows agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d

from hyperfuse.models import Observed
from hyperfuse.models.operators import blur_reach, degrade, upsample

_NEAR = (1, 4, 16)
"""Coarse pixels around a hole in which seen samples are looked for, from near to far."""
_SEEN = 0.5
"""A sample of the HSI counts as seen by the MSI if at least this share of its PSF is."""
_RIDGE = 1e-4
"""Share of the predictors' mean variance that is added to theirs: bands of an HSI are nearly copies of each other."""
_FEWEST = 16
"""Samples that both images must hold for a regression; with fewer, only means are filled in."""


class FillPass:
    """Sums of [1, HSI, degraded MSI] and of their products where both were seen; a `models.FirstPass`."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.margin = _blur_margin(observed)

    def sums(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        valid: torch.Tensor,
        origin: tuple[int, int] = (0, 0),  # noqa: ARG002 (it matters not where)
    ) -> dict[str, torch.Tensor]:
        """See `models.FirstPass.sums`; `products` has shape (1 + C + c, 1 + C + c)."""
        low = degrade(msi, self.observed.ratio, self.observed.psf_sigma_px)
        joint = torch.cat([torch.ones_like(hsi[:, :1]), hsi, low], dim=1).movedim(1, -1)[valid].double()
        return {"products": joint.T @ joint}


@dataclass(frozen=True, kw_only=True, eq=False)
class Filler:
    """Fills windows of a pair, in the range that its method wants."""

    observed: Observed
    """The pair."""
    hsi_mean: torch.Tensor
    """Shape (C, 1, 1)."""
    msi_mean: torch.Tensor
    """Shape (c, 1, 1)."""
    to_hsi: torch.Tensor
    """Change of each HSI band with the bands of the degraded MSI, shape (C, c)."""
    to_msi: torch.Tensor
    """Change of each MSI band with the bands of the HSI, shape (c, C)."""

    @classmethod
    def from_sums(cls, observed: Observed, sums: Mapping[str, torch.Tensor]) -> Filler:
        """From the summed result of `FillPass.sums`."""
        products, split = sums["products"].double(), observed.hsi_bands
        n_pixels = float(products[0, 0])
        mean = products[0, 1:] / max(n_pixels, 1.0)
        covariance = products[1:, 1:] / max(n_pixels, 1.0) - torch.outer(mean, mean)
        if n_pixels < _FEWEST:
            covariance = torch.zeros_like(covariance)
        hsi, msi = slice(None, split), slice(split, None)
        return cls(
            observed=observed,
            hsi_mean=mean[hsi, None, None].float(),
            msi_mean=mean[msi, None, None].float(),
            to_hsi=_regressed(covariance[msi, msi], covariance[hsi, msi]),
            to_msi=_regressed(covariance[hsi, hsi], covariance[msi, hsi]),
        )

    @property
    def reach(self) -> int:
        """See `fill_reach`."""
        return fill_reach(self.observed)

    def fill(
        self, hsi: torch.Tensor, msi: torch.Tensor, hsi_valid: torch.Tensor, msi_valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both images of a window without holes.

        Parameters
        ----------
        hsi : Tensor, shape (1, C, h, w)
            Finite everywhere; what stands in holes is not looked at.
        msi : Tensor, shape (1, c, h * ratio, w * ratio)
        hsi_valid : Tensor, shape (1, C, h, w), bool
        msi_valid : Tensor, shape (1, c, h * ratio, w * ratio), bool
        """
        ratio = self.observed.ratio
        if not hsi_valid.all():
            share = degrade(msi_valid.all(dim=1, keepdim=True).float(), ratio, self.observed.psf_sigma_px)
            beside = torch.where(msi_valid, msi - self.msi_mean, 0.0)
            low = degrade(beside, ratio, self.observed.psf_sigma_px) / share.clamp_min(_SEEN)
            shown = share >= _SEEN
            told = torch.einsum("ck,nkhw->nchw", self.to_hsi, low)
            departure = hsi - self.hsi_mean
            told = torch.where(
                shown, told + _around(departure - told, hsi_valid & shown, 1), _around(departure, hsi_valid, 1)
            )
            hsi = torch.where(hsi_valid, hsi, self.hsi_mean + told)
        if not msi_valid.all():
            told = upsample(torch.einsum("kc,nchw->nkhw", self.to_msi, hsi - self.hsi_mean), ratio) + self.msi_mean
            msi = torch.where(msi_valid, msi, told + _around(msi - told, msi_valid, ratio))
        return hsi, msi


def fill_reach(observed: Observed) -> int:
    """Coarse pixels around a sample that what is filled in there may depend on."""
    # The MSI's fill looks around in what the interpolated HSI leaves, and the HSI's around in what the degraded MSI leaves.
    interpolation = 2
    return _NEAR[-1] + interpolation + _NEAR[-1] + _blur_margin(observed)


def _around(values: torch.Tensor, known: torch.Tensor, step: int) -> torch.Tensor:
    """Mean of the known values around each pixel, of the smallest square that holds any; 0 far from all.

    Parameters
    ----------
    values : Tensor, shape (1, band, y, x)
    known : Tensor, the same shape, bool
    step : int
        Pixels per coarse pixel along an axis.
    """
    found = torch.zeros_like(values)
    weight, share = values.where(known, 0.0), known.to(values)
    for near in reversed(_NEAR):
        size = 2 * near * step + 1
        total, seen = (_mean(part, size) for part in (weight, share))
        # A mean over n x n pixels of which one is known is 1 / n ** 2; sums of float32 leave less than that of nothing.
        found = torch.where(seen > 0.5 / size**2, total / seen.clamp_min(0.5 / size**2), found)
    return found


def _mean(image: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over squares, with zeros beyond the rim: rows first, then columns."""
    half = size // 2
    rows = avg_pool2d(image, (size, 1), stride=1, padding=(half, 0))
    return avg_pool2d(rows, (1, size), stride=1, padding=(0, half))


def _blur_margin(observed: Observed) -> int:
    return math.ceil(blur_reach(observed.ratio, observed.psf_sigma_px) / observed.ratio)


def _regressed(gram: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Least-squares weights (b, k) on k predictors, given their covariance and that (b, k) with them, float32."""
    ridge = (_RIDGE * gram.diagonal().mean()).clamp_min(1e-20)
    weights: torch.Tensor = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype), covariance, left=False
    )
    return weights.float()
