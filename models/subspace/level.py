"""One step of the estimate in the subspace: from coarser samples of the components to those at an MSI step's resolution.

With bands of several steps the first level goes from the HSI's samples to the resolution of the coarsest bands, with all
of them, and the next from there to that of finer ones, with those alone. So a band lends what it has seen and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import avg_pool2d, pad

from hyperfuse.models.operators import Shift, blur_reach, degrade, degrade_slopes
from hyperfuse.models.spec import Observed
from hyperfuse.models.subspace import kriging as _kriging
from hyperfuse.models.subspace.calibration import (
    FARTHEST,
    WIDEST,
    Calibration,
    Operator,
    band_shifts,
    calibrated,
    detectors,
    mean_shift,
)
from hyperfuse.models.subspace.features import Features
from hyperfuse.models.subspace.guides import block_variance, guide_sigmas
from hyperfuse.models.subspace.patches import EDGE, MOST
from hyperfuse.models.subspace.regression import Fit, fit_with, products

_NO_BLUR = 0.1
"""Standard deviation (fine pixels) below which a Gaussian on pixels is none."""
_REAL = 0.98
"""Share of a sample's PSF that must lie within the scene for the sample to tell where it lies."""
SEEN = 0.9
"""Share of a coarser sample's PSF that must lie on valid pixels for the sample to count."""
_FEWEST_WITNESSES = 24.0
"""Samples that must share in what displacement and blur would change for these to be taken into account."""
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
    operator : Operator
        How the coarser samples see fine pixels.
    """

    def __init__(self, observed: Observed, step: int, sampling: int, operator: Operator) -> None:
        own = guide_sigmas(observed)
        self.step, self.sampling, self.operator = step, sampling, operator
        finest = step == min(observed.steps)
        self.sigma = 0.0 if finest else max(own[k] for k, band_step in enumerate(observed.steps) if band_step == step)
        """PSF of the result (standard deviation, fine pixels), that of the guides; 0 for the product's own pixel."""
        self.bands = [k for k, band_step in enumerate(observed.steps) if band_step <= step]
        """Indices of the MSI bands that take part."""
        self._lacking = [math.sqrt(max(self.sigma**2 - own[k] ** 2, 0.0)) for k in self.bands]

    @property
    def unsharp(self) -> float:
        """Blur that the guides lack of the samples (standard deviation, fine pixels)."""
        return self._lacks(self.operator)

    @property
    def pooled_sigma(self) -> float:
        """PSF of `pooled` samples of the result: that of the bands themselves, since means over blocks blur a little more."""
        return math.sqrt(self.sigma**2 + block_variance(self.step))

    @property
    def reach(self) -> int:
        """Fine pixels from an MSI pixel to the farthest one of the result that it changes, however it is calibrated."""
        guides = blur_reach(1, self.sigma) if self.sigma else 0
        farthest = max(map(abs, self.operator.shift_px)) + FARTHEST * self.sampling
        widest = self._lacks(replace(self.operator, sigma_px=WIDEST * self.operator.sigma_px))
        return (_kriging.REACH + 1) * self.sampling + blur_reach(self.sampling, widest, farthest) + guides

    def pooled(self, image: torch.Tensor) -> torch.Tensor:
        """One sample per block of the step: (N, K, H, W) -> (N, K, H / step, W / step)."""
        return avg_pool2d(image, self.step)

    def calibrate(self, sample: Sample, around: Surroundings) -> Calibration:
        """Refine how the samples see fine pixels, by what they show of the guides."""
        found = calibrated(self.operator, self.sampling, self._look(around), sample.values, sample.valid)
        self.operator = found.operator
        return found

    def within(self, real: torch.Tensor, rim: int) -> torch.Tensor:
        """Samples of patches that see next to nothing but real pixels: (M, 1, H + 2 rim, W + 2 rim) -> (M, h, w), bool."""
        share = degrade(real, self.sampling, self.unsharp, self.operator.shift_px)[:, 0]
        cut = rim // self.sampling
        return share[..., cut:-cut, cut:-cut] > _REAL

    def shifts(self, bands: torch.Tensor, valid: torch.Tensor, around: Surroundings) -> list[Shift]:
        """Displacement of each HSI band's samples (fine pixels): one per run of bands between which it jumps.

        Parameters
        ----------
        bands : Tensor, shape (M, C, h, w)
        valid : Tensor, shape (M, h, w), bool
        around : Surroundings
        """
        away, errors = band_shifts(self._look(around)(self.operator), bands, valid)
        found: list[Shift] = []
        for run in detectors(away, errors, self.sampling):
            rows, cols = mean_shift(away[run], errors[run], self.sampling)
            shift = self.operator.shift_px[0] + rows, self.operator.shift_px[1] + cols
            found += [shift] * (run.stop - run.start)
        return found

    def _look(self, around: Surroundings) -> Callable[[Operator], torch.Tensor]:
        """Constant, guides and slopes as an operator sees them, for `calibrated`."""
        guides, cut = self._guides(around.smooth), around.rim // self.sampling
        linear = guides - guides.mean(dim=(0, 2, 3), keepdim=True)
        linear = linear / linear.square().mean().sqrt().clamp_min(1e-12)
        linear = torch.cat([torch.ones_like(linear[:, :1]), linear], dim=1)
        return lambda operator: self._seen(linear, operator, linear.shape[1])[..., cut:-cut, cut:-cut]

    def learn(self, around: Surroundings) -> torch.Tensor:
        """Choose features for a sample of the scene, and return them as the coarser samples see them.

        Returns
        -------
        Tensor, shape (M, Q + 3 bands, h, w)
            Features, and what the guides would bring if samples were displaced or blurred otherwise than believed.
        """
        guides, rim = self._guides(around.smooth), around.rim
        self.features = Features(guides[..., rim:-rim, rim:-rim].movedim(1, -1)[around.shown].T.double())
        cut = rim // self.sampling
        return self._seen(self.features(guides))[..., cut:-cut, cut:-cut]

    def settle(self, sample: Sample, seen: torch.Tensor) -> torch.Tensor:
        """Regress the sample on what it sees of the features, and make the filters.

        Returns
        -------
        Tensor, shape (K, sampling ** 2)
            Variance that they leave open in the pixels of a sample.
        """
        fits = _fits(sample, seen, self.features, self.operator.sigma_px / self.sampling)
        sizes = [len(family) for family in self.features.families]
        self._coefficients = [fitted.coefficients[:, :n].float() for fitted, n in zip(fits, sizes, strict=True)]
        self._doubts = [fitted.coefficients[:, n:].float() for fitted, n in zip(fits, sizes, strict=True)]
        self._filters, left = [], []
        rows, cols = (shift / self.sampling for shift in self.operator.shift_px)
        for fitted in fits:
            each = [
                _kriging.filters(
                    self.sampling,
                    self.operator.sigma_px / self.sampling,
                    field.length,
                    field.signal,
                    self.sigma / self.sampling,
                    shift=(rows, cols),
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
            coarse = self._seen(features)
        else:
            coarse, share = self._shown(features, shown, self.features.n_free)
            known = share > SEEN if known is None else known & (share > SEEN)
        fine = samples.new_zeros(*samples.shape[:2], *smooth.shape[-2:])
        n_features = features.shape[1]
        for columns, coefficients, doubts, weights in zip(
            self.features.families, self._coefficients, self._doubts, self._filters, strict=True
        ):
            mapped = coefficients.to(samples)
            residual = samples - torch.einsum("kq,nqhw->nkhw", mapped, coarse[:, columns])
            # What the samples owe to another operator than the believed one is theirs alone: the fine pixels have none.
            residual -= torch.einsum("kq,nqhw->nkhw", doubts.to(samples), coarse[:, n_features:])
            if known is not None:
                residual = _kriging.bridged(residual, known)
            fine += torch.einsum("kq,nqhw->nkhw", mapped, features[:, columns])
            fine += _kriging.predict(residual, weights.to(samples), self.sampling)
        return fine / len(self._filters), features[:, 1 : self.features.n_free]

    def guides(
        self, smooth: torch.Tensor, shown: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The linear guides as the samples see them, (N, bands, h, w), and the share of a sample that is shown."""
        linear = self.features.linear(self._guides(smooth))
        if shown is None or shown.all():
            return degrade(linear, self.sampling, self.unsharp, self.operator.shift_px), None
        how = self.sampling, self.unsharp, self.operator.shift_px
        share = degrade(shown.to(linear), *how)
        return degrade(linear * shown, *how) / share.clamp_min(SEEN), share

    def _shown(self, features: torch.Tensor, shown: torch.Tensor, n_free: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`_seen` where pixels are missing, and the share of each sample, (N, 1, h, w), that is not."""
        how = self.sampling, self.unsharp, self.operator.shift_px
        mask = shown.to(features)
        share, turns = degrade(mask, *how), degrade_slopes(mask, *how)  # (N, 1, h, w), (N, 1, 3, h, w)
        coarse = self._seen(features * mask) / share.clamp_min(SEEN)
        # Of a mean over what is shown: where that share itself changes with the operator, the mean changes less.
        values = coarse[:, 1:n_free]
        each = [values * turns[:, :, which] for which in range(turns.shape[2])]
        coarse[:, features.shape[1] :] -= torch.cat(each, dim=1) / share.clamp_min(SEEN)
        return coarse, share

    def _seen(
        self, features: torch.Tensor, operator: Operator | None = None, n_free: int | None = None
    ) -> torch.Tensor:
        """Features (N, Q, H, W) as the coarser samples see them, and the slopes of the guides, (N, Q + 3 bands, h, w)."""
        operator, n_free = operator or self.operator, n_free or self.features.n_free
        how = self.sampling, self._lacks(operator), operator.shift_px
        slopes = degrade_slopes(features[:, 1:n_free], *how).movedim(2, 1).flatten(1, 2)
        return torch.cat([degrade(features, *how), slopes], dim=1)

    def _lacks(self, operator: Operator) -> float:
        return math.sqrt(max(operator.sigma_px**2 - self.sigma**2, _NARROWEST**2))

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
    sampling, operator = observed.ratio, Operator(sigma_px=observed.psf_sigma_px, shift_px=observed.shift_px)
    for step in sorted({step for step in observed.steps if step < observed.ratio} | {finest}, reverse=True):
        made.append(Level(observed, step, sampling, operator))
        sampling, operator = step, Operator(sigma_px=made[-1].pooled_sigma)
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
    n_slopes = (seen.shape[1] - features.n_features) // 3
    slopes = features.n_features + torch.arange(3 * n_slopes)
    doubts = (slopes[: 2 * n_slopes], slopes[2 * n_slopes :])
    # Where one bright object makes all slopes, however well they fit, they tell of it and not of the sensor.
    witnessed = tuple(_witnesses(columns[:, which], valid) >= _FEWEST_WITNESSES for which in doubts)
    return [
        fit_with(
            whitened,
            family,
            doubts,
            witnessed,
            n_free=features.n_free,
            n_components=n_components,
            n_samples=n_samples,
        )
        for family in features.families
    ]


def _witnesses(columns: torch.Tensor, valid: torch.Tensor) -> float:
    """How many samples share in the power of some columns: all of them if it is even, 1 if one has it all."""
    power = (columns.square().sum(dim=1) * valid).flatten()
    return float(power.sum() ** 2 / power.square().sum().clamp_min(1e-300))


def _smaller(patches: torch.Tensor) -> torch.Tensor:
    """Patches cut into pieces of `EDGE`, (M, Q, h, w) -> (M', Q, EDGE, EDGE); what is missing is 0."""
    height, width = patches.shape[-2:]
    filled = pad(patches, (0, -width % EDGE, 0, -height % EDGE))
    pieces = filled.unfold(2, EDGE, EDGE).unfold(3, EDGE, EDGE)  # (M, Q, rows, columns, EDGE, EDGE)
    return pieces.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
