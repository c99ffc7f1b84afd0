"""One step of the estimate in the subspace: from coarser samples of the components to those at an MSI step's resolution.

With bands of several steps the first level goes from the HSI's samples to the resolution of the coarsest bands, with all
of them, and the next from there to that of finer ones, with those alone. So a band lends what it has seen and no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d, pad

from hyperfuse.models.operators import blur_reach, degrade
from hyperfuse.models.spec import Observed
from hyperfuse.models.subspace import kriging as _kriging
from hyperfuse.models.subspace.features import Features
from hyperfuse.models.subspace.guides import block_variance, guide_sigmas
from hyperfuse.models.subspace.patches import EDGE, MOST
from hyperfuse.models.subspace.regression import Fit, fit, products

_NO_BLUR = 0.1
"""Standard deviation (fine pixels) below which a Gaussian on pixels is none."""
_SEEN = 0.9
"""Share of a coarser sample's PSF that must lie on valid pixels for the sample to count."""
_NARROWEST = 0.3
"""Least standard deviation (fine pixels) of the blur between two resolutions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Components in patches of the scene."""

    values: torch.Tensor
    """Shape (M, K, h, w), float64."""
    valid: torch.Tensor
    """Shape (M, h, w), bool."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """The MSI around a sample."""

    smooth: torch.Tensor
    """Without blocks and noise, shape (M, c, H + 2 rim, W + 2 rim)."""
    shown: torch.Tensor
    """Valid fine pixels, shape (M, H, W), bool."""
    rim: int
    """Fine pixels; a multiple of what samples are apart."""

    @property
    def core(self) -> torch.Tensor:
        """`smooth` without its rim."""
        return self.smooth[..., self.rim : -self.rim, self.rim : -self.rim]


class Level:
    """Components at the resolution of one step of the MSI.

    Parameters
    ----------
    observed : Observed
    step : int
        Of the coarsest bands that take part.
    sampling : int
        Fine pixels from one coarser sample to the next.
    sampled_sigma : float
        PSF of the coarser samples (standard deviation, fine pixels).
    """

    def __init__(self, observed: Observed, step: int, sampling: int, sampled_sigma: float) -> None:
        own = guide_sigmas(observed)
        self.step, self.sampling, self.sampled_sigma = step, sampling, sampled_sigma
        finest = step == min(observed.steps)
        self.sigma = 0.0 if finest else max(own[k] for k, band_step in enumerate(observed.steps) if band_step == step)
        """PSF of the result (standard deviation, fine pixels), that of the guides; 0 for the product's own pixel."""
        self.bands = [k for k, band_step in enumerate(observed.steps) if band_step <= step]
        """Indices of the MSI bands that take part."""
        self._lacking = [math.sqrt(max(self.sigma**2 - own[k] ** 2, 0.0)) for k in self.bands]
        self._unsharp = math.sqrt(max(sampled_sigma**2 - self.sigma**2, _NARROWEST**2))

    @property
    def pooled_sigma(self) -> float:
        """PSF of `pooled` samples of the result: that of the bands themselves, since means over blocks blur a little more."""
        return math.sqrt(self.sigma**2 + block_variance(self.step))

    @property
    def reach(self) -> int:
        """Fine pixels from an MSI pixel to the farthest one of the result that it changes."""
        guides = blur_reach(1, self.sigma) if self.sigma else 0
        return (_kriging.REACH + 1) * self.sampling + blur_reach(self.sampling, self._unsharp) + guides

    def pooled(self, image: torch.Tensor) -> torch.Tensor:
        """One sample per block of the step: (N, K, H, W) -> (N, K, H / step, W / step)."""
        return avg_pool2d(image, self.step)

    def learn(self, around: Surroundings) -> torch.Tensor:
        """Choose features for a sample of the scene, and return them as the coarser samples see them.

        Returns
        -------
        Tensor, shape (M, Q, h, w)
        """
        guides, rim = self._guides(around.smooth), around.rim
        self.features = Features(guides[..., rim:-rim, rim:-rim].movedim(1, -1)[around.shown].T.double())
        cut = rim // self.sampling
        return degrade(self.features(guides), self.sampling, self._unsharp)[..., cut:-cut, cut:-cut]

    def settle(self, sample: Sample, seen: torch.Tensor) -> torch.Tensor:
        """Regress the sample on what it sees of the features, and make the filters.

        Returns
        -------
        Tensor, shape (K, sampling ** 2)
            Variance that they leave open in the pixels of a sample.
        """
        fits = _fits(sample, seen, self.features, self.sampled_sigma / self.sampling)
        self._coefficients = [fitted.coefficients.float() for fitted in fits]
        self._filters, left = [], []
        for fitted in fits:
            each = [
                _kriging.filters(
                    self.sampling,
                    self.sampled_sigma / self.sampling,
                    field.length,
                    field.signal,
                    self.sigma / self.sampling,
                )
                for field in fitted.fields
            ]
            self._filters.append(torch.stack([weights for weights, _ in each]))
            left.append(torch.stack([open_ for _, open_ in each]) * fitted.noise.float()[:, None])
        return torch.stack(left).mean(dim=0)

    def finer(self, sample: Sample, around: Surroundings) -> Sample:
        """The sample for the next level."""
        fine, _ = self(sample.values.float(), around.core, sample.valid[:, None], around.shown[:, None])
        return Sample(
            values=self.pooled(fine).double(), valid=self.pooled(around.shown[:, None].float())[:, 0] > 1 - 1e-6
        )

    def __call__(
        self,
        samples: torch.Tensor,
        smooth: torch.Tensor,
        known: torch.Tensor | None = None,
        shown: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Components at the level's resolution, and the guides that they are linear in.

        Parameters
        ----------
        samples : Tensor, shape (N, K, h, w)
        smooth : Tensor, shape (N, c, h * sampling, w * sampling)
        known : Tensor, shape (N, 1, h, w), bool, optional
            Samples that are valid.
        shown : Tensor, shape (N, 1, h * sampling, w * sampling), bool, optional
            Pixels of the MSI that are valid.

        Returns
        -------
        components : Tensor, shape (N, K, H, W)
        linear : Tensor, shape (N, bands, H, W)
        """
        features = self.features(self._guides(smooth))
        if shown is None or shown.all():
            coarse = degrade(features, self.sampling, self._unsharp)
        else:
            share = degrade(shown.to(samples), self.sampling, self._unsharp)
            coarse = degrade(features * shown, self.sampling, self._unsharp) / share.clamp_min(_SEEN)
            known = share > _SEEN if known is None else known & (share > _SEEN)
        fine = samples.new_zeros(*samples.shape[:2], *smooth.shape[-2:])
        for columns, coefficients, weights in zip(
            self.features.families, self._coefficients, self._filters, strict=True
        ):
            mapped = coefficients.to(samples)
            residual = samples - torch.einsum("kq,nqhw->nkhw", mapped, coarse[:, columns])
            if known is not None:
                residual = _kriging.bridged(residual, known)
            fine += torch.einsum("kq,nqhw->nkhw", mapped, features[:, columns])
            fine += _kriging.predict(residual, weights.to(samples), self.sampling)
        return fine / len(self._filters), features[:, 1 : self.features.n_free]

    def _guides(self, smooth: torch.Tensor) -> torch.Tensor:
        """The level's bands, all at its resolution."""
        bands = [
            degrade(smooth[:, k : k + 1], 1, lacking) if lacking > _NO_BLUR else smooth[:, k : k + 1]
            for k, lacking in zip(self.bands, self._lacking, strict=True)
        ]
        return torch.cat(bands, dim=1)


def levels(observed: Observed) -> list[Level]:
    """From the coarsest step below the ratio to the finest; a band no finer than the HSI is left out."""
    finest = min(observed.steps)
    made: list[Level] = []
    sampling, sampled_sigma = observed.ratio, observed.psf_sigma_px
    for step in sorted({step for step in observed.steps if step < observed.ratio} | {finest}, reverse=True):
        made.append(Level(observed, step, sampling, sampled_sigma))
        sampling, sampled_sigma = step, made[-1].pooled_sigma
    return made


def _fits(sample: Sample, seen: torch.Tensor, features: Features, sigma: float) -> list[Fit]:
    """The regressions of all components on each family of features; `sigma` in samples."""
    columns = torch.cat([seen.double(), sample.values], dim=1) * sample.valid[:, None]
    valid, n_components = sample.valid, sample.values.shape[1]
    if columns.shape[-1] >= 2 * EDGE:
        columns, valid = _smaller(columns), _smaller(valid[:, None])[:, 0]
        used = valid.any(dim=(1, 2)).nonzero().flatten()
        used = used[torch.linspace(0, len(used) - 1, min(MOST, len(used))).round().long()]
        columns, valid = columns[used], valid[used]
    whitened = products(columns.flatten(2).transpose(1, 2).contiguous(), valid.flatten(1), sigma)
    n_samples = int(valid.sum())
    return [fit(whitened, family, features.n_free, n_components, n_samples) for family in features.families]


def _smaller(patches: torch.Tensor) -> torch.Tensor:
    """Patches cut into pieces of `EDGE`, (M, Q, h, w) -> (M', Q, EDGE, EDGE); what is missing is 0."""
    height, width = patches.shape[-2:]
    filled = pad(patches, (0, -width % EDGE, 0, -height % EDGE))
    pieces = filled.unfold(2, EDGE, EDGE).unfold(3, EDGE, EDGE)  # (M, Q, rows, columns, EDGE, EDGE)
    return pieces.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
