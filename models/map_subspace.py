"""MAP estimate in the scene's spectral subspace: the training-free default.

    HSI -> components that stand out of its noise -> regressed on the MSI, straight and bent   -> mean of these
                                                  -> what the regression leaves, kriged         +
        -> what lies outside the subspace, shrunk by its noise, with the MSI's linear detail    +

Papers: the Gaussian posterior mean in a subspace, Hardie, Eismann & Wilson (2004), MAP estimation for hyperspectral image
resolution enhancement using an auxiliary sensor, IEEE TIP 13(9), 1174-1184, and Wei, Dobigeon & Tourneret (2015), Fast
fusion of multi-band images based on solving a Sylvester equation, IEEE TIP 24(11), 4109-4121; the spatial prior,
Kyriakidis (2004), A geostatistical framework for area-to-point spatial interpolation, Geographical Analysis 36(3), 259-289.
Code: written from the papers for HyperFuse, Apache-2.0.

Notes
-----
Departures from these papers, each of them measured on seven real cubes (`hyperfuse evaluate --preset real-4`):

- The prior mean is no global linear map of the MSI. Beside it, two families of features bend it, see `models.subspace.features`. They are
  formed on the fine pixels and then blurred by the PSF, as the HSI's samples are, so that a coarse pixel's mixture is a
  mixture and not a color of its own. How far a component bends is decided by the likelihood of the scene's own samples.
  The three regressions err differently, and their mean is better than each, and than one on all features.
- The prior covariance is not white in space: what the regression leaves is a field with a correlation length.
- Neither spectral responses nor radiometric agreement are needed, since the regression finds both.
- The MSI's noise is taken from smooth places beforehand, see `models.subspace.noise`: large coefficients amplify it.

MSI bands of several steps are used in turn, see `models.subspace.level`. What limits them is the noise of bands that are much alike, and how true
their guides are to what they measured: both were worth about a decibel at ratio 6 (`hyperfuse evaluate --preset gsd`).

A hole is worked around: its samples count for nothing, and around it the regression and the other samples carry on. Only
what was not seen itself is lost.

All statistics come from a sample of patches, see `models.subspace.patches`; the rest is local, and exact over tiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hyperfuse.models.operators import degrade, upsample
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed
from hyperfuse.models.subspace import noise as _denoise
from hyperfuse.models.subspace.basis import MOST as MOST_COMPONENTS
from hyperfuse.models.subspace.basis import Subspace
from hyperfuse.models.subspace.features import Features
from hyperfuse.models.subspace.guides import guide_reach, smooth_guides
from hyperfuse.models.subspace.level import Sample, Surroundings, levels
from hyperfuse.models.subspace.noise import Denoiser
from hyperfuse.models.subspace.patches import Patches, PatchPass

CARD = MethodCard(
    title="MAP estimate in the scene's subspace, bent regression and kriging",
    paper="Hardie, Eismann & Wilson (2004), MAP estimation for hyperspectral image resolution enhancement using an "
    "auxiliary sensor, doi:10.1109/TIP.2004.829779; Kyriakidis (2004), doi:10.1111/j.1538-4632.2004.tb01135.x",
    code="HyperFuse, Apache-2.0",
)
_QUIET = 0.02
"""Share of signal outside the subspace below which nothing of it is kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The estimate of a window in components, before it becomes spectra."""

    samples: torch.Tensor
    """Components of the HSI, shape (N, K, h, w)."""
    fine: torch.Tensor
    """Components of the estimate, shape (N, K, H, W)."""
    smooth: torch.Tensor
    """The MSI without blocks and noise, its holes filled, shape (N, c, H, W)."""
    linear: torch.Tensor
    """Those of its bands that the finest level uses, shape (N, bands, H, W)."""


class MAPSubspace:
    """The estimate on one scene; see the module."""

    def __init__(self, spec: ModelSpec, patches: Patches) -> None:
        self.spec = spec
        observed, valid = spec.observed, patches.valid
        ratio, rim = observed.ratio, patches.margin * observed.ratio
        subspace = Subspace.of(patches.hsi.double().movedim(1, -1)[valid].T)
        self.mean = subspace.mean.float()
        components = torch.einsum("kc,mchw->mkhw", subspace.analysis, patches.hsi.double())
        components -= (subspace.analysis @ subspace.mean)[:, None, None]
        shown = valid.repeat_interleave(ratio, dim=-2).repeat_interleave(ratio, dim=-1)
        self.denoise = Denoiser.of(patches.guides[..., rim:-rim, rim:-rim], shown, observed)
        around = Surroundings(smooth=self.denoise(patches.guides), shown=shown, rim=rim)
        self._color = around.core.movedim(1, -1)[shown].mean(dim=0)
        self._levels = levels(observed)
        seen = self._levels[0].learn(around)
        # Components along which the residual of a linear map is uncorrelated: each then has a field of its own.
        rotation = _decorrelating(seen[:, : self._levels[0].features.n_free].double(), components, valid)
        self.analysis = (rotation @ subspace.analysis).float()  # (K, C)
        self.synthesis = (subspace.synthesis @ rotation.T).float()  # (C, K)
        sample = Sample(values=torch.einsum("jk,mkhw->mjhw", rotation, components), valid=valid)
        self._left = self._levels[0].settle(sample, seen)  # (K, sampling ** 2)
        for coarser, level in itertools.pairwise(self._levels):
            sample = coarser.finer(sample, around)
            seen = level.learn(around)
            self._left = level.settle(sample, seen) + self._left.mean(dim=1, keepdim=True)
        outside = patches.hsi - self.mean[:, None, None]
        outside = outside - self._inside(torch.einsum("kc,nchw->nkhw", self.analysis, outside))
        finest_guides = degrade(around.smooth[:, self._levels[-1].bands], ratio, observed.psf_sigma_px)
        cut = patches.margin
        linear = self._levels[-1].features.linear(finest_guides[..., cut:-cut, cut:-cut])
        self._lent, self._kept = _outside(outside * valid[:, None], linear, valid)  # (C, c), (C,)

    def __call__(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        hsi_valid: torch.Tensor | None = None,
        msi_valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `models.FusionModel`, and `models.ModelSpec.masked`."""
        return self.spectra(hsi, self.parts(hsi, msi, hsi_valid, msi_valid), hsi_valid)

    def parts(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        hsi_valid: torch.Tensor | None = None,
        msi_valid: torch.Tensor | None = None,
    ) -> Parts:
        """The estimate in components, for who goes on from there; arguments are those of a call."""
        mean = self.mean.to(hsi)[:, None, None]
        if msi_valid is not None:
            msi = torch.where(msi_valid, msi, self._color.to(msi)[:, None, None])
        smooth = self.denoise(smooth_guides(msi, self.spec.observed), msi_valid)
        samples = torch.einsum("kc,nchw->nkhw", self.analysis.to(hsi), hsi - mean)
        fine, linear = self._levels[0](samples, smooth, hsi_valid, msi_valid)
        for coarser, level in itertools.pairwise(self._levels):
            fine, linear = level(coarser.pooled(fine), smooth, None, msi_valid)
        return Parts(samples=samples, fine=fine, smooth=smooth, linear=linear)

    def spectra(self, hsi: torch.Tensor, parts: Parts, hsi_valid: torch.Tensor | None = None) -> torch.Tensor:
        """The fused window of its parts, (N, C, H, W): the components, and what lies outside of the subspace."""
        observed, mean = self.spec.observed, self.mean.to(hsi)[:, None, None]
        fused: torch.Tensor = self._inside(parts.fine) + mean
        lent = self._lent.to(hsi)
        if lent.any():
            fused += torch.einsum("ck,nkhw->nchw", lent, parts.linear)
        kept = self._kept.to(hsi)[:, None, None]
        if kept.any():
            outside = hsi - mean - self._inside(parts.samples)
            low = degrade(parts.linear, observed.ratio, observed.psf_sigma_px)
            outside = kept * (outside - torch.einsum("ck,nkhw->nchw", lent, low))
            fused += upsample(outside if hsi_valid is None else outside * hsi_valid, observed.ratio)
        return fused

    def standard_error(self) -> torch.Tensor:
        """Posterior standard deviation, which recurs with the coarser samples, shape (C, p, p), float32, the HSI's unit.

        It holds what the fields leave open between samples; it knows nothing of wrong coefficients.
        """
        error: torch.Tensor = torch.einsum("ck,kp->cp", self.synthesis.square(), self._left).sqrt()
        return error.view(-1, *(self._levels[-1].sampling,) * 2)

    def _inside(self, components: torch.Tensor) -> torch.Tensor:
        """Spectra less their mean: (N, K, h, w) -> (N, C, h, w)."""
        spectra: torch.Tensor = torch.einsum("ck,nkhw->nchw", self.synthesis.to(components), components)
        return spectra


def specify(observed: Observed) -> ModelSpec:
    """Needs: at each level the kriging's neighbors and the PSF around them, and a sample of the scene."""
    of_guides = guide_reach(observed)  # fine pixels
    reach = of_guides + _denoise.reach(observed) + sum(level.reach for level in levels(observed))
    return ModelSpec(
        name="map_subspace",
        observed=observed,
        halo=math.ceil(reach / observed.ratio),
        hsi_reach=0,
        msi_reach=of_guides,
        masked=True,
        multiple_of=observed.whole_blocks,
        needs_first_pass=True,
        band_copies=2.0,
        work_floats=2 * Features.most(observed.msi_bands) + 2 * MOST_COMPONENTS,
    )


def first_pass(
    spec: ModelSpec,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> PatchPass:
    """A sample of the scene."""
    return PatchPass(spec)


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> MAPSubspace:
    """The method, ready to run; see `models.spec.Method.build`."""
    return MAPSubspace(spec, Patches.from_sums(spec, sums))


def _decorrelating(linear: torch.Tensor, components: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Rotation (K, K) of the components to principal axes of what a linear regression leaves."""
    x, y = (t.movedim(1, -1)[valid] for t in (linear, components))  # (n, q), (n, K)
    left = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    _, vectors = torch.linalg.eigh(left.T @ left)
    rotation: torch.Tensor = vectors.flip(1).T
    return rotation


def _outside(outside: torch.Tensor, linear: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What to make of the part outside the subspace: noise in most bands, signal in some.

    Returns
    -------
    lent : Tensor, shape (C, c), float32
        Regression on the guides, shrunk by what chance alone would explain.
    kept : Tensor, shape (C,), float32
        Share of signal in what is left, by its correlation between neighbors, which noise does not have.
    """
    x, y = (t.movedim(1, -1)[valid].double() for t in (linear, outside))
    n_samples, n_guides = x.shape
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    solution = torch.linalg.lstsq(x, y, driver="gelsd").solution  # (c, C)
    explained = (x @ solution).square().sum(dim=0)
    unexplained = (y.square().sum(dim=0) - explained).clamp_min(1e-30)
    chance = n_guides * unexplained / max(n_samples - n_guides - 1, 1)
    lent: torch.Tensor = (solution * (1.0 - chance / explained.clamp_min(1e-30)).clamp(0.0, 1.0)).T.float()
    left = (outside - torch.einsum("ck,mkhw->mchw", lent, linear)) * valid[:, None]
    products_ = [left[..., 1:, :] * left[..., :-1, :], left[..., 1:] * left[..., :-1]]
    pairs = (valid[:, 1:] & valid[:, :-1]).sum() + (valid[..., 1:] & valid[..., :-1]).sum()
    covariance = torch.stack([p.sum(dim=(0, 2, 3)) for p in products_]).sum(dim=0) / pairs.clamp_min(1)
    variance = left.square().sum(dim=(0, 2, 3)) / valid.sum()
    # Neighbors of a field as smooth as the PSF makes it share about half of their variance.
    kept = (2.0 * covariance / variance.clamp_min(1e-30)).clamp(0.0, 1.0)
    return lent, torch.where(kept > _QUIET, kept, 0.0)
