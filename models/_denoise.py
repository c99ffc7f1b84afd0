"""The MSI's noise: how strong it is, and a local Wiener filter that takes it from smooth places.

References: Lee (1980), Digital image enhancement and noise filtering by use of local statistics, IEEE TPAMI 2(2), 165-168;
the Laplacian mask, Immerkaer (1996), Fast noise variance estimation, CVIU 64(2), 300-302; noise in the weakest direction
of a covariance, after Pyatykh, Hesser & Zheng (2013), Image noise level estimation by principal component analysis, IEEE
TIP 22(2), 687-699.
Code: written from the references for HyperFuse, Apache-2.0.

Notes
-----
A regression with large coefficients turns the MSI's noise into spectra. Texture is taken for noise by every estimate from
one band; but texture is common to the bands, and noise is not. So the level is that of the direction in color space in
which the quietest blocks vary least, under equal signal-to-noise ratios of the bands: an upper bound that texture moves
little. It needs three bands at least; with fewer nothing is filtered.
"""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

REACH = 1
"""Fine pixels to each side that the filter looks at."""
_FEWEST = 3
_BLOCK = 8
_QUIETEST = 0.1
_LAPLACIAN = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6  # keeps white noise's variance


class LocalWiener:
    """Takes noise from the bands of step 1, in the principal directions of their colors."""

    def __init__(
        self, bands: list[int], rms: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor, level: float
    ) -> None:
        self._bands, self._rms, self._mean, self._axes, self.level = bands, rms, mean, axes, level

    @classmethod
    def of(cls, guides: torch.Tensor, shown: torch.Tensor, bands: list[int]) -> LocalWiener:
        """The filter for a scene.

        Parameters
        ----------
        guides : Tensor, shape (M, c, H, W), float32
            A sample of the MSI.
        shown : Tensor, shape (M, H, W), bool
            Where it is valid.
        bands : list of int
            Those of step 1; the others are as smooth as their interpolation.
        """
        chosen = guides[:, bands]
        colors = chosen.movedim(1, -1)[shown].double()  # (n, bands)
        rms = colors.square().mean(dim=0).sqrt().clamp_min(1e-12)
        colors = colors / rms
        mean = colors.mean(dim=0)
        _, axes = torch.linalg.eigh((colors - mean).T @ (colors - mean))
        level = _level(chosen / rms.float()[:, None, None], shown) if len(bands) >= _FEWEST else 0.0
        return cls(bands, rms.float(), mean.float(), axes.float(), level)

    def __call__(self, guides: torch.Tensor, shown: torch.Tensor | None = None) -> torch.Tensor:
        """The guides without noise.

        Parameters
        ----------
        guides : Tensor, shape (N, c, H, W)
            At the rim the outermost pixel is repeated.
        shown : Tensor, shape (N, 1, H, W), bool, optional
            Pixels that are valid; the others tell their neighbors nothing.

        Returns
        -------
        Tensor, shape (N, c, H, W)
        """
        if self.level == 0.0:
            return guides
        axes, rms, mean = self._axes.to(guides), self._rms.to(guides)[:, None, None], self._mean.to(guides)
        along = torch.einsum("kj,nkhw->njhw", axes, guides[:, self._bands] / rms - mean[:, None, None])
        share = None if shown is None or shown.all() else shown.to(along)
        smooth = _local_mean(along, share)
        variance = _local_mean(along.square(), share) - smooth.square()
        signal = (1.0 - self.level / variance.clamp_min(1e-12)).clamp_(0.0, 1.0)
        filtered = torch.einsum("kj,njhw->nkhw", axes, torch.lerp(smooth, along, signal))
        result = guides.clone()
        result[:, self._bands] = (filtered + mean[:, None, None]) * rms
        return result


def _local_mean(image: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    """Mean around each pixel, over those that are shown."""
    if share is None:
        return avg_pool2d(pad(image, (REACH,) * 4, mode="replicate"), 2 * REACH + 1, stride=1)
    total, count = (
        avg_pool2d(pad(t, (REACH,) * 4, mode="replicate"), 2 * REACH + 1, stride=1) for t in (image * share, share)
    )
    return total / count.clamp_min(1e-3)


def _level(bands: torch.Tensor, shown: torch.Tensor) -> float:
    """Variance of the noise, relative to the bands' mean squares; 0 if there is no whole block to tell it from."""
    n_bands = bands.shape[1]
    detail = conv2d(bands.flatten(0, 1)[:, None], _LAPLACIAN.to(bands)[None, None]).view(-1, n_bands, bands.shape[2] - 2,
                                                                                      bands.shape[3] - 2)  # fmt: skip
    if min(detail.shape[-2:]) < _BLOCK:
        return 0.0
    hidden = max_pool2d((~shown).float()[:, None], 3, stride=1)
    whole = max_pool2d(hidden, _BLOCK)[:, 0] == 0  # (M, blocks, blocks)
    products = torch.stack([avg_pool2d(detail * detail[:, k : k + 1], _BLOCK) for k in range(n_bands)], dim=1)
    covariance = products.movedim((1, 2), (-2, -1))[whole].double()  # (n, bands, bands)
    power = covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    covariance = covariance[power > 0]  # a constant block was filled, or is saturated
    if not len(covariance):
        return 0.0
    order = power[power > 0].argsort()[: max(int(_QUIETEST * len(covariance)), min(3, len(covariance)))]
    return float(torch.linalg.eigvalsh(covariance[order].mean(dim=0))[0].clamp_min(0.0))
