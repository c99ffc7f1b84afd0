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

Real pairs break the observation model, so it is doubted (`hyperfuse evaluate --preset field-4`):

- Samples beside the centers of their blocks are taken where they lie, in the blur and in the kriging, and not resampled.
- Displacement and width of the PSF are refined on the scene, and detectors that are displaced against each other are found
  and estimated apart, see `models.subspace.calibration`. A displacement of the scene's own bands below some hundredths of a pixel
  cannot be told from one of the samples; it is left alone.
- What the operator still misses is caught by further columns, the slopes of the guides with respect to displacement and
  blur, where the likelihood of a component asks for them; the fine estimate does not have them, see `models.subspace.level`.
- What changed between the dates leaves the regression, and there the HSI is followed, see `models._change`. Of detectors
  that the MSI does not see, changes are not found.
- Gains of the HSI's columns (stripes) are not estimated here: what of them is left ends up in the kriged residual.

A hole is worked around: its samples count for nothing, and around it the regression and the other samples carry on. Only
what was not seen itself is lost.

All statistics come from a sample of patches, see `models.subspace.patches`; the rest is local, and exact over tiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from hyperfuse.models import _change
from hyperfuse.models._change import Change
from hyperfuse.models._detectors import GroupedModel, grouped, of_group
from hyperfuse.models._findings import Findings
from hyperfuse.models.operators import degrade, upsample
from hyperfuse.models.spec import MOST_DISPLACED, MethodCard, ModelSpec, Observed
from hyperfuse.models.subspace import noise as _denoise
from hyperfuse.models.subspace.basis import MOST as MOST_COMPONENTS
from hyperfuse.models.subspace.basis import Subspace
from hyperfuse.models.subspace.features import Features
from hyperfuse.models.subspace.guides import guide_reach, smooth_guides
from hyperfuse.models.subspace.kriging import bridged
from hyperfuse.models.subspace.level import SEEN, Sample, Surroundings, levels
from hyperfuse.models.subspace.noise import Denoiser
from hyperfuse.models.subspace.patches import Patches, PatchPass

CARD = MethodCard(
    title="MAP estimate in the scene's subspace, bent regression and kriging",
    paper="Hardie, Eismann & Wilson (2004), MAP estimation for hyperspectral image resolution enhancement using an "
    "auxiliary sensor, doi:10.1109/TIP.2004.829779; Kyriakidis (2004), doi:10.1111/j.1538-4632.2004.tb01135.x",
    code="HyperFuse, Apache-2.0",
)
TAKES_DISPLACEMENT = True
_FEWEST_KEPT = 0.2
"""Share of the sample below which what is left after changes is no scene."""
_SIDES = {-2: ((0, 0, 0, 1), (0, 0, 1, 0)), -1: ((0, 1), (1, 0))}  # of `pad`: a difference belongs to both its pixels
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
    """Those of its bands that the finest level uses, 0 where the scene changed, shape (N, bands, H, W)."""
    changed: torch.Tensor
    """Samples that changed between the dates of the two images, shape (N, 1, h, w), bool; there the HSI alone is followed."""


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
        n_free = self._levels[0].features.n_free
        changed = Change.of(components, seen[:, 1:n_free], valid).if_minor(components, seen[:, 1:n_free], valid)
        kept = _unchanged(changed, components, seen[:, 1:n_free], valid)
        # Components along which the residual of a linear map is uncorrelated: each then has a field of its own.
        rotation = _decorrelating(seen[:, :n_free].double(), components, kept)
        self.analysis = (rotation @ subspace.analysis).float()  # (K, C)
        self.synthesis = (subspace.synthesis @ rotation.T).float()  # (C, K)
        sample = Sample(values=torch.einsum("jk,mkhw->mjhw", rotation, components), valid=kept)
        inside = kept & self._levels[0].within(_real(patches.guides), rim)
        inside = inside if int(inside.sum()) >= max(16, int(kept.sum()) // 4) else kept
        self.calibration = self._levels[0].calibrate(replace(sample, valid=inside), around)
        """How the HSI's samples see the fine pixels, refined on the scene."""
        if self.calibration.operator != self.calibration.believed:
            seen = self._levels[0].learn(around)
        self.band_shifts = self._levels[0].shifts(patches.hsi, inside, around)
        """Displacement of each band's samples as the scene shows it, fine pixels; one value unless detectors differ."""
        self._change = Change.of(sample.values, seen[:, 1:n_free], valid).if_minor(
            sample.values, seen[:, 1:n_free], valid
        )
        kept = _unchanged(self._change, sample.values, seen[:, 1:n_free], valid)
        sample = replace(sample, valid=kept)
        self.changed_share = 1.0 - float(kept.sum() / valid.sum())
        """Of the sample that sees what changed between the dates of the two images."""
        _, own = self._change(sample.values.float(), seen[:, 1:n_free], valid[:, None])
        self._n_samples, self._n_changed = int(valid.sum()), int((own[:, 0] & valid).sum())
        self._left = self._levels[0].settle(sample, seen)  # (K, sampling ** 2)
        for coarser, level in itertools.pairwise(self._levels):
            sample = coarser.finer(sample, around)
            seen = level.learn(around)
            self._left = level.settle(sample, seen) + self._left.mean(dim=1, keepdim=True)
        outside = patches.hsi - self.mean[:, None, None]
        outside = outside - self._inside(torch.einsum("kc,nchw->nkhw", self.analysis, outside))
        finest_guides = self.seen(around.smooth[:, self._levels[-1].bands])
        cut = patches.margin
        linear = self._levels[-1].features.linear(finest_guides[..., cut:-cut, cut:-cut])
        self._lent, self._kept = _outside(outside * kept[:, None], linear, kept)  # (C, c), (C,)

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
        guides, share = self._levels[0].guides(smooth, msi_valid)
        known = torch.ones_like(samples[:, :1], dtype=torch.bool) if hsi_valid is None else hsi_valid
        known = known if share is None else known & (share > SEEN)
        touched, changed = self._change(samples, guides, known)
        if touched.any():
            hsi_valid = known & ~touched
        fine, linear = self._levels[0](samples, smooth, hsi_valid, msi_valid)
        for coarser, level in itertools.pairwise(self._levels):
            fine, linear = level(coarser.pooled(fine), smooth, None, msi_valid)
        if changed.any():
            # There the MSI shows another scene: the samples alone are followed.
            ratio, shift = self.spec.observed.ratio, self.calibration.operator.shift_px
            blend = upsample(changed.to(fine), ratio, shift).clamp(0.0, 1.0)
            fine = torch.lerp(fine, upsample(bridged(samples, known), ratio, shift), blend)
            linear = linear * (1.0 - blend)
        return Parts(samples=samples, fine=fine, smooth=smooth, linear=linear, changed=changed)

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
            outside = kept * (outside - torch.einsum("ck,nkhw->nchw", lent, self.seen(parts.linear)))
            shift = self.calibration.operator.shift_px
            fused += upsample(outside if hsi_valid is None else outside * hsi_valid, observed.ratio, shift)
        return fused

    def changed(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        hsi_valid: torch.Tensor | None = None,
        msi_valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Where the two images do not show the same, shape (N, 1, h, w), bool; arguments are those of a call."""
        return self.parts(hsi, msi, hsi_valid, msi_valid).changed

    @property
    def observed(self) -> Observed:
        """What is known of the pair once its operator is refined."""
        operator, told = self.calibration.operator, self.spec.observed
        rows, cols = (shift / told.ratio for shift in operator.shift_px)
        shifts = ((rows, cols),) * told.hsi_bands if rows or cols else ()
        return replace(told, psf_sigma_px=operator.sigma_px, hsi_shifts=shifts)

    def findings(self) -> tuple[Findings, ...]:
        """What the scene told of operator and changes."""
        found = self.calibration
        return (
            Findings(
                bands=tuple(range(self.spec.observed.hsi_bands)),
                sigma_px=found.operator.sigma_px,
                sigma_error_px=found.sigma_error_px,
                shift_px=found.operator.shift_px,
                shift_error_px=found.shift_error_px,
                changed_share=self._n_changed / max(self._n_samples, 1),
                samples=self._n_samples,
            ),
        )

    def seen(self, fine: torch.Tensor) -> torch.Tensor:
        """Fine images as the HSI's samples see them: (N, b, H, W) -> (N, b, h, w)."""
        operator = self.calibration.operator
        return degrade(fine, self.spec.observed.ratio, operator.sigma_px, operator.shift_px)

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
    reach += _change.REACH * observed.ratio
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
) -> MAPSubspace | GroupedModel:
    """The method, ready to run.

    Raises
    ------
    ValueError
        If the sums of the first pass are missing or hold too few pixels.
    """
    model = MAPSubspace(spec, Patches.from_sums(spec, sums))
    if len(set(model.band_shifts)) == 1:
        return model
    # Detectors that are displaced against each other: one estimate for each, of the same sample.
    ratio = spec.observed.ratio
    shifts = tuple((rows / ratio, cols / ratio) for rows, cols in model.band_shifts)
    if max(abs(shift) for pair in shifts for shift in pair) > MOST_DISPLACED:
        return model  # nonsense: such detectors would have been seen to be misregistered
    displaced = replace(spec.observed, hsi_shifts=shifts)
    groups = grouped(shifts)
    patches = Patches.from_sums(spec, sums)
    each = [
        MAPSubspace(replace(spec, observed=of_group(displaced, bands)), replace(patches, hsi=patches.hsi[:, bands]))
        for bands in groups
    ]
    return GroupedModel(spec, each, groups)


def _real(guides: torch.Tensor) -> torch.Tensor:
    """Pixels of patches (M, c, H, W) that were seen, not repeated from the scene's edge: shape (M, 1, H, W), float32."""
    real = torch.ones_like(guides[:, :1])
    for axis in (-2, -1):
        same = (guides.diff(dim=axis) == 0).all(dim=1, keepdim=True).all(dim=-1 if axis == -2 else -2, keepdim=True)
        before, after = (pad(same, side) for side in _SIDES[axis])
        real *= ~(before | after)
    return real


def _unchanged(change: Change, components: torch.Tensor, guides: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Samples of the patches that did not change; all that are valid if next to none would be left."""
    touched, _ = change(components.float(), guides, valid[:, None])
    kept = valid & ~touched[:, 0]
    return kept if int(kept.sum()) >= max(16, _FEWEST_KEPT * int(valid.sum())) else valid


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
