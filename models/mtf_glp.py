"""Generalized Laplacian pyramid with an MTF-matched filter and high-pass modulation (MTF-GLP-HPM), for several bands.

Papers: Aiazzi, Alparone, Baronti, Garzelli & Selva (2006), MTF-tailored multiscale fusion of high-resolution MS and Pan
imagery, PE&RS 72(5), 591-596; high-pass modulation: Vivone, Restaino, Dalla Mura, Licciardi & Chanussot (2014),
Contrast and error-based fusion schemes for multispectral image pansharpening, IEEE GRSL 11(5), 930-934; guides: Selva,
Aiazzi, Butera, Chiarantini & Baronti (2015), Hyper-sharpening: a first approach on SIM-GA data, IEEE JSTARS 8(6),
3008-3024.
Code: written from the papers for HyperFuse, Apache-2.0.

Notes
-----
The same guide per HSI band as in `gsa-regressed`, but its detail is multiplied by the local contrast: fused = U * guide /
low, with U the interpolated HSI and low the guide as the coarse sensor sees it, interpolated. Departure from the papers:
the gain U / low has a meaning only where both are clearly positive, so it is kept within `GAINS`; within them lies
every gain of a guide that resembles its band, beyond them a dark or negative sample would turn noise into detail.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hyperfuse.models._moments import Moments, RegressedGuide, first_pass, linear_spec
from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed
from hyperfuse.models.subspace.guides import low_pass_reach, sharpened_reach

__all__ = ["CARD", "build", "first_pass", "specify"]

CARD = MethodCard(
    title="Laplacian pyramid by the HSI's MTF, high-pass modulation",
    paper="Aiazzi, Alparone, Baronti, Garzelli & Selva (2006), MTF-tailored multiscale fusion of high-resolution MS and "
    "Pan imagery, doi:10.14358/PERS.72.5.591",
    code="HyperFuse, Apache-2.0",
)
TAKES_DISPLACEMENT = True
GAINS = (0.0, 2.0)
"""Least and largest ratio of the interpolated HSI and its low-pass guide by which detail is multiplied."""


class MTFGLP:
    """Fused = U + gain * (guide - low), with gain = U / low where that is within `GAINS`."""

    def __init__(self, spec: ModelSpec, moments: Moments) -> None:
        self.spec = spec
        self._guide = RegressedGuide.from_moments(moments, spec.observed)
        # Below a hundredth of the band's mean a sample is noise, and so is what it divides.
        self._floor = (0.01 * moments.hsi_mean.abs()).clamp_min(1e-20).float()  # (C,)

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        weights, bias = self._guide.weights.to(hsi), self._guide.bias.to(hsi)[:, None, None]
        low, detail = (torch.einsum("ck,nkhw->nchw", weights, part) for part in self._guide.split(msi))
        gain = upsample(hsi, self.spec.observed.ratio, self.spec.observed.shift_px)
        fused = gain.clone()
        gain.div_(low.add_(bias).maximum(self._floor.to(hsi)[:, None, None])).clamp_(*GAINS)
        return fused.addcmul_(gain, detail)


def specify(observed: Observed) -> ModelSpec:
    """Needs: the cubic kernel's two coarse pixels, what the low-pass guide looks at, and the moments of the scene."""
    around = sharpened_reach(observed) + low_pass_reach(observed)  # fine pixels
    return linear_spec("mtf_glp", observed, around=around, band_copies=5.2)


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> MTFGLP:
    """The method, ready to run; see `models.spec.Method.build`."""
    return MTFGLP(spec, Moments.from_sums(spec, sums))
