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
little. It needs three bands of step 1 at least; with fewer nothing is filtered.

Bands of a coarser step are filtered at their own samples, together with the finer bands as their sensor would see them:
averaging has taken most of the noise from these, and bands that are much alike then share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from hyperfuse.models.operators import blur_reach, degrade
from hyperfuse.models.spec import Observed
from hyperfuse.models.subspace.guides import from_blocks, kinds, lacking_sigmas

REACH = 1
"""Samples to each side that a filter looks at."""
_FEWEST = 3
_BLOCK = 8
_QUIETEST = 0.1
_WHOLE = 1.0 - 1e-3
"""Share of what a coarser sample sees that must be valid for it to count."""
_LAPLACIAN = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6  # keeps white noise's variance


class Denoiser:
    """Takes noise from guides: from the bands of step 1, then from those of each coarser step."""

    def __init__(self, observed: Observed, filters: Mapping[int, LocalWiener]) -> None:
        self._observed, self._filters = observed, filters

    @classmethod
    def of(cls, guides: torch.Tensor, shown: torch.Tensor, observed: Observed) -> Self:
        """The filters for a scene.

        Parameters
        ----------
        guides : Tensor, shape (M, c, H, W), float32
            A sample of the guides, from `models.subspace.guides.smooth_guides`; begins and ends on a block of every band.
        shown : Tensor, shape (M, H, W), bool
            Where they are valid.
        observed : Observed
        """
        finest = [k for k, step in enumerate(observed.steps) if step == 1]
        filters: dict[int, LocalWiener] = {}
        made = cls(observed, filters)
        if (level := noise_level(guides[:, finest], shown)) == 0.0:
            return made
        power = guides.movedim(1, -1)[shown].double().square().mean(dim=0).clamp_min(1e-24)
        for step in sorted(set(observed.steps)):
            finer, own = made._bands(step)
            # White noise under a Gaussian; a finer band is less noisy still, for it was filtered already.
            blurred = [
                min(1.0, observed.steps[k] ** 2 / (4 * math.pi * sigma**2)) for k, sigma in made._lacking(finer, step)
            ]
            noise = level * power[finer + own] * torch.tensor(blurred + [1.0] * len(own), dtype=torch.float64)
            samples, seen = made._sampled(guides, shown[:, None], step)
            if seen is None or not seen.any():
                return made
            filters[step] = LocalWiener.of(samples, seen[:, 0], noise)
            guides = made._filtered(guides, shown[:, None], step)
        return made

    def __call__(self, guides: torch.Tensor, shown: torch.Tensor | None = None) -> torch.Tensor:
        """The guides without noise.

        Parameters
        ----------
        guides : Tensor, shape (N, c, H, W)
            Begins and ends on a block of every band; at the rim the outermost sample is repeated.
        shown : Tensor, shape (N, 1, H, W), bool, optional
            Pixels that are valid; the others tell their neighbors nothing.

        Returns
        -------
        Tensor, shape (N, c, H, W)
        """
        if shown is not None and shown.all():
            shown = None
        for step in self._filters:
            guides = self._filtered(guides, shown, step)
        return guides

    def _filtered(self, guides: torch.Tensor, shown: torch.Tensor | None, step: int) -> torch.Tensor:
        """The guides, those of a step without noise."""
        finer, own = self._bands(step)
        samples, seen = self._sampled(guides, shown, step)
        change = (self._filters[step](samples, seen) - samples)[:, len(finer) :]
        if seen is not None:
            change = change * seen
        result = guides.clone()
        result[:, own] += change if step == 1 else from_blocks(change, step)
        return result

    def _sampled(
        self, guides: torch.Tensor, shown: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Finer bands and those of a step at its samples, and which of these count."""
        finer, own = self._bands(step)
        if step == 1:
            return guides[:, own], shown
        parts, seen = [], None
        for k, sigma in self._lacking(finer, step):
            band = guides[:, k : k + 1]
            if shown is None:
                parts.append(degrade(band, step, sigma))
                continue
            share = degrade(shown.to(band), step, sigma)
            parts.append(degrade(band * shown, step, sigma) / share.clamp_min(0.5))
            seen = share > _WHOLE if seen is None else seen & (share > _WHOLE)
        return torch.cat([*parts, avg_pool2d(guides[:, own], step)], dim=1), seen

    def _bands(self, step: int) -> tuple[list[int], list[int]]:
        """Indices of the bands of finer steps, and of this one."""
        steps = self._observed.steps
        return [k for k, own in enumerate(steps) if own < step], [k for k, own in enumerate(steps) if own == step]

    def _lacking(self, finer: list[int], step: int) -> list[tuple[int, float]]:
        """Finer bands, each with the blur (standard deviation, fine pixels) that it lacks of the samples of a step."""
        lacking = _lacking(self._observed, step)
        return [(k, lacking[k]) for k in finer]


def reach(observed: Observed) -> int:
    """Fine pixels from a guide's pixel to the farthest one that it changes by the filters."""
    total = REACH
    for step in sorted(set(observed.steps) - {1}):
        pairs = zip(observed.steps, _lacking(observed, step), strict=True)
        widest = max((sigma for own, sigma in pairs if own < step), default=0.0)
        total += blur_reach(step, widest) + REACH * step + 3 * step
    return total


def _lacking(observed: Observed, step: int) -> list[float]:
    """Blur that each guide lacks of the samples of a step."""
    return lacking_sigmas(observed, max(sigma for own, sigma in kinds(observed) if own == step))


class LocalWiener:
    """Takes noise from bands, in the principal directions of their colors under equal noise."""

    def __init__(self, scale: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor) -> None:
        self._scale, self._mean, self._axes = scale, mean, axes

    @classmethod
    def of(cls, bands: torch.Tensor, shown: torch.Tensor, noise: torch.Tensor) -> Self:
        """The filter for a scene.

        Parameters
        ----------
        bands : Tensor, shape (M, b, H, W), float32
        shown : Tensor, shape (M, H, W), bool
            Where they are valid.
        noise : Tensor, shape (b,), float64
            Variance of each band's noise; positive.
        """
        scale = noise.sqrt()
        colors = bands.movedim(1, -1)[shown].double() / scale  # (n, b)
        mean = colors.mean(dim=0)
        _, axes = torch.linalg.eigh((colors - mean).T @ (colors - mean))
        return cls(scale.float(), mean.float(), axes.float())

    def __call__(self, bands: torch.Tensor, shown: torch.Tensor | None = None) -> torch.Tensor:
        """The bands (N, b, H, W) without noise; `shown` (N, 1, H, W) as for `Denoiser`."""
        axes, scale, mean = self._axes.to(bands), self._scale.to(bands)[:, None, None], self._mean.to(bands)
        along = torch.einsum("kj,nkhw->njhw", axes, bands / scale - mean[:, None, None])
        share = None if shown is None else shown.to(along)
        smooth = _local_mean(along, share)
        variance = _local_mean(along.square(), share) - smooth.square()
        signal = (1.0 - 1.0 / variance.clamp_min(1e-12)).clamp_(0.0, 1.0)
        filtered = torch.einsum("kj,njhw->nkhw", axes, torch.lerp(smooth, along, signal))
        return (filtered + mean[:, None, None]) * scale


def _local_mean(image: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    """Mean around each pixel, over those that are shown."""
    if share is None:
        return avg_pool2d(pad(image, (REACH,) * 4, mode="replicate"), 2 * REACH + 1, stride=1)
    total, count = (
        avg_pool2d(pad(t, (REACH,) * 4, mode="replicate"), 2 * REACH + 1, stride=1) for t in (image * share, share)
    )
    return total / count.clamp_min(1e-3)


def noise_level(bands: torch.Tensor, shown: torch.Tensor) -> float:
    """Variance of the noise, relative to the bands' mean squares.

    Parameters
    ----------
    bands : Tensor, shape (M, b, H, W), float32
        Of step 1.
    shown : Tensor, shape (M, H, W), bool
        Where they are valid.

    Returns
    -------
    float
        0 if there are fewer than three bands, or no whole block to tell it from.
    """
    n_bands = bands.shape[1]
    if n_bands < _FEWEST:
        return 0.0
    squares = bands.movedim(1, -1)[shown].double().square().mean(dim=0)
    bands = bands / squares.sqrt().clamp_min(1e-12).float()[:, None, None]
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
