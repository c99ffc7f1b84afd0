"""Universal networks: what the training-free estimate leaves, learned once for all sensor pairs and ratios.

    pair -> `map_subspace` -> the planes in which a linear regression leaves most -> a network -> residual of these planes
                           -> what remains of the estimate                                     +

A network of another module, the core, is given one plane after the other, and nothing of the sensors: neither its weights
nor what they mean depends on the bands of the HSI, on those of the MSI, on the ratio, or on how many planes there are. Its
last layer begins at zero, so that an untrained one, or one without weights, is `map_subspace` to the bit.

Papers: of each core, see its module. That a network is better given an estimate and asked for what is missing: Kim, Lee &
Lee (2016), Accurate image super-resolution using very deep convolutional networks, CVPR, arXiv 1511.04587.
Code: written for HyperFuse, Apache-2.0.

Notes
-----
The planes are the principal axes of what a linear regression on all MSI bands leaves of the coarse samples, less their
noise, once each band is divided by the standard deviation of what is left of it, noise and all. PSNR is a mean of
logarithms per band: a tenth less error counts the same in a dark band as in a bright one, and so it does in these planes. The
square of a residual in planes is its weighted square in bands. A scene with fewer has planes of zeros. Scales make
scenes alike, and there are two of them:

- an estimate is divided by its plane's own standard deviation in the scene,
- a residual by that of the first plane's residual, one number for the scene: errors of different planes stay comparable.

What the core sees of a plane: at the coarse pixels what the regression leaves of the HSI (residual scale); at the fine ones
the estimate (its own scale), how far it lies from the regression, and detail of the coarse residual guessed by color, see
`models.subspace.guided` (residual scale); at both, how strong the first planes are, which tells the materials apart.

The sign of a plane means nothing, so the answer is odd: half the difference of the core's answers to a plane and to its
negative. What was measured of these choices, after 300 steps on four real cubes:

- One core for all planes, odd, with the guessed detail: a plain core of four convolutions lowered the squared error of three
  other cubes by 0.05 dB, without the guessed detail by 0.01 dB; CSAKD's student over 16 planes at once not at all.
- Bands weighted by 1, by the root of 1 / deviation, by 1 / deviation: PSNR of these cubes 0.07, 0.06 and 0.07 dB above the
  estimate, SAM 0.036, 0.037 and 0.044 degrees below.
- Pairs with displacements of up to 0.4 pixels and gains of 2 percent to learn from: 0.52 dB below the estimate, 0.07 dB above
  it without these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from hyperfuse.models import _plain, map_subspace
from hyperfuse.models._findings import Findings
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed, method
from hyperfuse.models.subspace.guided import REACH as GUIDED_REACH
from hyperfuse.models.subspace.guided import guided_detail
from hyperfuse.models.subspace.guides import degrade_guides
from hyperfuse.models.subspace.patches import Patches, PatchPass
from hyperfuse.models.weights_io import take_weights

CARD = MethodCard(
    title="Residual of the training-free estimate, by a network for all sensors",
    paper="Kim, Lee & Lee (2016), Accurate image super-resolution using very deep convolutional networks, arXiv:1511.04587; "
    "with the networks of csakd, s3rnet and hyfusion, see there",
    code="HyperFuse, Apache-2.0",
)
TAKES_DISPLACEMENT = True
# The estimate works with samples beside their blocks; of the planes, the detail by colors alone takes them for centered.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "csakd-student": {"core": "csakd-student", "core_options": {"growth": 4, "layers": [0, 1, 0, 1]}},
    "csakd-teacher": {"core": "csakd-teacher", "core_options": {"growth": 8, "layers": [0, 1, 1, 1]}},
    "s3rnet": {"core": "s3rnet-paper", "core_options": {"growth": 4, "layers": [0, 1, 1, 1], "attention": "released"}},
    "hyfusion-s": {"core": "hyfusion-s", "core_options": {"blocks": [1, 1], "width": 16, "growth": 8}},
    "plain": {"core": "plain"},
}
"""Cores, smaller than their papers': one plane is little, and context beyond some coarse pixels is the estimate's affair."""
LOSSES: Mapping[str, float] = {"relative": 1.0}
"""Terms of `models.losses`, on residuals in their scale."""
COMPONENTS = 4
"""Planes that get a residual: beyond them lie a few percent of what the estimate leaves, and each costs as much as the first."""
CONTEXT = 3
"""Planes whose strength is told with every plane."""
_PLAIN = "plain"
"""Core that is no method by itself, see `models._plain`."""
_LEAST_VARIANCE = 1e-3
"""Of what is not explained of a band, in the mean of all bands."""
_SEEN = 0.9
"""Share of a coarse sample's PSF that must lie on valid pixels for its residual to count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Planes:
    """A window as the core sees it, P planes at once."""

    coarse: torch.Tensor
    """What the regression leaves of the HSI, residual scale, shape (N, P, h, w); 0 where it is not known."""
    fine: torch.Tensor
    """The estimate, how far it lies from the regression, and guessed detail, shape (N, 3 P, H, W); 0 where the MSI is not
    known."""


class PlaneByPlane(nn.Module):
    """A core on all planes in turn; a plane's negative is answered by the negative.

    Parameters
    ----------
    core : Module
        Its HSI has 1 + CONTEXT bands, its MSI 3 + CONTEXT; of its output the first counts.
    """

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core
        # The guessed detail is right in part on every scene that was looked at, so that a share of it is learned first.
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """`Planes.coarse` and `Planes.fine` to residuals, shape (N, P, H, W), in their scale."""
        n_planes, ratio = coarse.shape[1], fine.shape[-1] // coarse.shape[-1]
        own = torch.stack(fine.chunk(3, dim=1), dim=2)  # (N, P, 3, H, W)
        strengths = own[:, :CONTEXT, 0].abs()  # (N, CONTEXT, H, W)
        strengths = nn.functional.pad(strengths, (0, 0, 0, 0, 0, CONTEXT - strengths.shape[1]))
        low = nn.functional.avg_pool2d(strengths, ratio)
        # All planes at once learn faster, one after the other they need less memory.
        at_once = n_planes if torch.is_grad_enabled() else 1
        found = []
        for first in range(0, n_planes, at_once):
            some = slice(first, first + at_once)
            x, y = coarse[:, some, None].flatten(0, 1), own[:, some].flatten(0, 1)  # (N n, 1, h, w), (N n, 3, H, W)
            around = [t.repeat_interleave(min(at_once, n_planes), dim=0) for t in (low, strengths)]
            answers = [
                self.core(torch.cat([sign * x, around[0]], dim=1), torch.cat([sign * y, around[1]], dim=1))[:, 0]
                for sign in (1.0, -1.0)
            ]
            found.append(((answers[0] - answers[1]) / 2).unflatten(0, (len(coarse), -1)))
        return torch.cat(found, dim=1) + self.share * own[:, :, 2]


class Universal(nn.Module):
    """The estimate of a scene, and the core's residual on it; see the module.

    Parameters
    ----------
    spec : ModelSpec
    patches : Patches
        The sample of the scene.
    core : Module or None
        Network of `build_core`; None leaves the estimate as it is.
    """

    def __init__(self, spec: ModelSpec, patches: Patches, core: nn.Module | None) -> None:
        super().__init__()
        self.spec, self.core = spec, core
        self.base = base = map_subspace.MAPSubspace(_base_spec(spec), patches)
        n_planes, valid = spec.options["components"], patches.valid
        cut = patches.margin
        guides = degrade_guides(base.denoise(patches.guides), base.observed)[..., cut:-cut, cut:-cut]
        samples = torch.einsum("kc,mchw->mkhw", base.analysis, patches.hsi - base.mean[:, None, None])
        x, y = (t.movedim(1, -1)[valid].double() for t in (guides, samples))  # (n, c), (n, K)
        self._color = x.mean(dim=0).float()
        slopes = torch.linalg.lstsq(x - x.mean(dim=0), y - y.mean(dim=0), driver="gelsd").solution  # (c, K)
        left = y - y.mean(dim=0) - (x - x.mean(dim=0)) @ slopes
        synthesis = base.synthesis.double()
        weights = _weights(patches.hsi.movedim(1, -1)[valid].double(), (y - left) @ synthesis.T)
        into, out_of, energy = _planes(left, weights[:, None] * synthesis, n_planes)
        self.weights = weights.float()
        """Of the bands, shape (C,), in the sum of squares that planes keep; their own mean square is 1."""
        self.scale = float(energy[0].clamp_min(1e-24).sqrt())
        """Standard deviation of the first plane's residual, the HSI's unit in weighted bands."""
        values = y @ into.T
        spread = values.std(dim=0).clamp_min(1e-3 * self.scale)
        self._into = into.float()  # (P, K): components to planes
        self._out_of = (self.scale * out_of).float()  # (K, P): residuals, in their scale, to components
        self._slopes = (into @ slopes.T).float()  # (P, c): guides to planes
        self._offset = (into @ y.mean(dim=0)).float()
        self._mean, self._spread = values.mean(dim=0).float(), spread.float()
        self.axes = (synthesis @ out_of).float()
        """Spectra of the planes, shape (C, P): columns that are zero, or orthonormal once their bands are weighted."""

    def forward(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        hsi_valid: torch.Tensor | None = None,
        msi_valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `models.FusionModel`, and `models.ModelSpec.masked`."""
        parts = self.base.parts(hsi, msi, hsi_valid, msi_valid)
        if self.core is not None:
            seen = self.planes(parts, hsi_valid, msi_valid)
            residual = self.core(seen.coarse, seen.fine).to(parts.fine)
            if msi_valid is not None:
                residual = residual * msi_valid
            parts = replace(parts, fine=parts.fine + torch.einsum("kp,nphw->nkhw", self._out_of.to(hsi), residual))
        return self.base.spectra(hsi, parts, hsi_valid)

    def planes(
        self,
        parts: map_subspace.Parts,
        hsi_valid: torch.Tensor | None = None,
        msi_valid: torch.Tensor | None = None,
    ) -> Planes:
        """What the core sees of a window, of which the estimate and the valid pixels are given."""
        into, slopes = self._into.to(parts.fine), self._slopes.to(parts.fine)
        offset, color, mean, spread = (
            t.to(parts.fine)[:, None, None] for t in (self._offset, self._color, self._mean, self._spread)
        )
        low = degrade_guides(parts.smooth, self.base.observed) - color
        coarse = torch.einsum("pk,nkhw->nphw", into, parts.samples) - offset
        coarse = (coarse - torch.einsum("pc,nchw->nphw", slopes, low)) / self.scale
        estimate = torch.einsum("pk,nkhw->nphw", into, parts.fine)
        regression = torch.einsum("pc,nchw->nphw", slopes, parts.smooth - color) + offset
        fine = torch.cat([(estimate - mean) / spread, (estimate - regression) / self.scale], dim=1)
        known = torch.ones_like(coarse[:, :1], dtype=torch.bool) if hsi_valid is None else hsi_valid
        if msi_valid is not None and not msi_valid.all():
            share = self.base.seen(msi_valid.to(coarse))
            known, fine = known & (share > _SEEN), fine * msi_valid
        detail = guided_detail(coarse, known, fine[:, :CONTEXT], self.spec.observed.ratio)
        if msi_valid is not None:
            detail = detail * msi_valid
        return Planes(coarse=coarse * known, fine=torch.cat([fine, detail], dim=1))

    def residual(self, error: torch.Tensor) -> torch.Tensor:
        """What the core should have given for spectra that the estimate is short of: (N, C, H, W) -> (N, P, H, W)."""
        spectra = self.weights.square()[:, None] * self.axes
        found: torch.Tensor = torch.einsum("cp,nchw->nphw", spectra.to(error), error) / self.scale
        return found

    def standard_error(self) -> torch.Tensor:
        """That of the estimate, see `models.map_subspace`; the core says nothing of it."""
        return self.base.standard_error()

    def findings(self) -> tuple[Findings, ...]:
        """Those of the estimate."""
        return self.base.findings()


def specify(
    observed: Observed,
    *,
    core: str,
    core_options: Mapping[str, Any] | None = None,
    components: int = COMPONENTS,
) -> ModelSpec:
    """Needs: those of the estimate, and around it those of the core.

    Parameters
    ----------
    observed : Observed
    core : str
        Name of a network that sums nothing over the scene, or `plain`.
    core_options : mapping, optional
        Its options.
    components : int
        Planes that get a residual.

    Raises
    ------
    ValueError
        If there is no such core, or an option is out of range.
    """
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    options = {"core": core, "core_options": dict(core_options or {}), "components": components}
    inner, base = _core_spec(observed, options), map_subspace.specify(observed)
    if inner.needs_first_pass:
        raise ValueError(f"{core} with {options['core_options']} sums over the scene, which a core cannot")
    halo = base.halo + GUIDED_REACH + inner.halo
    return replace(
        base,
        name="universal",
        base="map_subspace",
        halo=halo,
        multiple_of=math.lcm(base.multiple_of, inner.multiple_of),
        parameters=inner.parameters,
        options=options,
        tile=inner.tile,
        work_floats=base.work_floats + inner.work_floats + 16 * components,
    )


def first_pass(
    spec: ModelSpec,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (they change nothing of it)
) -> PatchPass:
    """A sample of the scene."""
    return PatchPass(spec)


def build(
    spec: ModelSpec, sums: Mapping[str, torch.Tensor] | None, weights: Mapping[str, torch.Tensor] | None = None
) -> Universal:
    """The method, ready to run; without weights it is the estimate.

    Raises
    ------
    ValueError
        If the sums of the first pass are missing or hold too few pixels, or the weights do not fit.
    """
    core = None if weights is None else build_core(spec, weights)
    return Universal(spec, Patches.from_sums(spec, sums), core)


def build_core(spec: ModelSpec, weights: Mapping[str, torch.Tensor] | None = None) -> PlaneByPlane:
    """The network alone, for any ratio and number of planes; without weights seeded, with a last layer of zeros.

    Raises
    ------
    ValueError
        If the weights do not fit.
    """
    core = bare_core(spec)
    # All of them end in a linear convolution, on which nothing is added.
    nn.init.zeros_(cast("nn.Conv2d", core.last).weight)
    network = PlaneByPlane(core)
    take_weights(network, spec, weights)
    return network.eval()


def bare_core(spec: ModelSpec) -> nn.Module:
    """The core as its own module makes it, for one plane at a time."""
    inner, name = core_spec(spec), spec.options["core"]
    return _plain.build(inner) if name == _PLAIN else cast("nn.Module", method(name).build(inner))


def core_spec(spec: ModelSpec) -> ModelSpec:
    """Spec of the core alone, on what it sees of one plane in the place of bands."""
    return _core_spec(spec.observed, spec.options)


def _core_spec(observed: Observed, options: Mapping[str, Any]) -> ModelSpec:
    seen = Observed(
        hsi_bands=1 + CONTEXT, msi_bands=3 + CONTEXT, ratio=observed.ratio, psf_sigma_px=observed.psf_sigma_px
    )
    if options["core"] == _PLAIN:
        return _plain.specify(seen, **options["core_options"])
    try:
        return method(options["core"]).specify(seen, **options["core_options"])
    except LookupError as error:
        raise ValueError(str(error)) from error


def _base_spec(spec: ModelSpec) -> ModelSpec:
    """The estimate's own spec, under the method's name, which its messages give."""
    return replace(map_subspace.specify(spec.observed), name=spec.name)


def _weights(spectra: torch.Tensor, explained: torch.Tensor) -> torch.Tensor:
    """Of the bands: 1 over the standard deviation of what is not explained, noise and all, and 1 in their quadratic mean.

    Parameters
    ----------
    spectra, explained : Tensor, shape (n, C), float64
    """
    variance = (spectra - explained).var(dim=0)
    # A band that the regression explains whole must not rule all others.
    weights = variance.clamp_min((_LEAST_VARIANCE * variance.mean()).clamp_min(1e-24)).rsqrt()
    return weights / weights.square().mean().sqrt()


def _planes(
    left: torch.Tensor, synthesis: torch.Tensor, n_planes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Principal axes, in bands, of what is left in components of white noise of variance 1.

    Parameters
    ----------
    left : Tensor, shape (n, K), float64
    synthesis : Tensor, shape (C, K), float64
        Spectra of the components.
    n_planes : int

    Returns
    -------
    into : Tensor, shape (P, K)
        Components to planes; rows beyond what the scene has are 0.
    out_of : Tensor, shape (K, P)
        Planes to components.
    energy : Tensor, shape (P,)
        Variance along each.
    """
    n_kept = min(left.shape[1], n_planes)
    values, vectors = torch.linalg.eigh(left.T @ left / max(len(left) - 1, 1))
    root = vectors * (values - 1.0).clamp_min(1e-3).sqrt()  # (K, K), its square is the covariance without noise
    energy, axes = torch.linalg.eigh(root.T @ synthesis.T @ synthesis @ root)
    energy, axes = energy.flip(0)[:n_kept], axes.flip(1)[:, :n_kept]
    energy = energy.clamp_min(1e-24)
    out_of = root @ axes / energy.sqrt()  # (K, kept): synthesis @ out_of has orthonormal columns
    into = out_of.T @ synthesis.T @ synthesis
    missing = n_planes - n_kept
    pad = nn.functional.pad
    return pad(into, (0, 0, 0, missing)), pad(out_of, (0, missing)), pad(energy, (0, missing))
