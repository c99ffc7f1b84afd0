"""Smoothing filter-based intensity modulation (SFIM), hyper-sharpened: the HSI times the ratio of a guide to its own low-pass.

Papers: Liu (2000), Smoothing filter-based intensity modulation: a spectral preserve image fusion technique for improving
spatial details, International Journal of Remote Sensing 21(18), 3461-3472; guides: Selva, Aiazzi, Butera, Chiarantini &
Baronti (2015), Hyper-sharpening: a first approach on SIM-GA data, IEEE JSTARS 8(6), 3008-3024.
Code: written from the papers for HyperFuse, Apache-2.0.

Two forms. `sfim` takes for every HSI band the MSI band with which it correlates best at the coarse resolution (the
selected band of hyper-sharpening), `sfim-regressed` the affine function of all MSI bands that fits it best (the
synthesized band).

Notes
-----
A ratio of two views of one image knows nothing of the radiometry of the other, and little of where its edges lie: a
misplaced guide makes misplaced detail, but no wrong color, so the method loses less than others on pairs that are not
perfect. Departures from the papers: the smoothing filter is the HSI's PSF, sampled as the HSI is and interpolated, where
Liu takes a mean over a window of the ratio; the modulation is kept within `GAINS`, since a dark guide divides by noise.
The selected band is one of the finest step: bands of coarser steps have no detail of their own to give. Synthesized guides
use all, sharpened by the finer ones first, see `models._moments.RegressedGuide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from hyperfuse.models._moments import Moments, RegressedGuide, best_guide, first_pass, linear_spec
from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed
from hyperfuse.models.subspace.guides import low_pass_reach, sharpened_reach

__all__ = ["CARD", "VARIANTS", "build", "first_pass", "specify"]

CARD = MethodCard(
    title="Smoothing filter-based intensity modulation, a guide for each band",
    paper="Liu (2000), Smoothing filter-based intensity modulation, doi:10.1080/014311600750037499; Selva, Aiazzi, Butera, "
    "Chiarantini & Baronti (2015), doi:10.1109/JSTARS.2015.2440092",
    code="HyperFuse, Apache-2.0",
)
VARIANTS: Mapping[str, Mapping[str, Any]] = {"": {"guides": "selected"}, "regressed": {"guides": "synthesized"}}
TAKES_DISPLACEMENT = True
GAINS = (0.25, 4.0)
"""Least and largest modulation."""


class SFIM:
    """Fused = U * guide / low, with U the interpolated HSI and low the guide as the coarse sensor sees it, interpolated."""

    def __init__(self, spec: ModelSpec, moments: Moments) -> None:
        self.spec = spec
        self._guide = RegressedGuide.from_moments(moments, spec.observed)
        if spec.options["guides"] == "selected":
            n_hsi, n_msi = moments.hsi_msi.shape
            weights = torch.zeros(n_hsi, n_msi)
            weights[torch.arange(n_hsi), best_guide(moments, spec.observed)] = 1.0
            bias, level = torch.zeros(n_hsi), weights @ moments.msi_mean.float()
        else:
            weights, bias, level = self._guide.weights, self._guide.bias, moments.hsi_mean.float()
        self._weights, self._bias = weights, bias  # (C, c), (C,)
        # Below a hundredth of its mean a guide is noise, and so is what it divides.
        self._floor = (0.01 * level.abs()).clamp_min(1e-20)  # (C,)

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        observed = self.spec.observed
        weights, bias, floor = (
            t.to(hsi) for t in (self._weights, self._bias[:, None, None], self._floor[:, None, None])
        )
        low, detail = (torch.einsum("ck,nkhw->nchw", weights, part) for part in self._guide.split(msi))
        low = low.add_(bias).maximum(floor)
        gain = detail.div_(low).add_(1.0).clamp_(*GAINS)
        return upsample(hsi, observed.ratio, observed.shift_px).mul_(gain)


def specify(observed: Observed, *, guides: Literal["selected", "synthesized"] = "selected") -> ModelSpec:
    """Needs: the cubic kernel's two coarse pixels, what the low-pass guide looks at, and the moments of the scene.

    Parameters
    ----------
    observed : Observed
    guides : {"selected", "synthesized"}
        One MSI band for each HSI band, or an affine function of all MSI bands.
    """
    around = sharpened_reach(observed) + low_pass_reach(observed)  # fine pixels
    return linear_spec("sfim", observed, around=around, band_copies=5.2, options={"guides": guides})


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> SFIM:
    """The method, ready to run.

    Raises
    ------
    ValueError
        If the sums of the first pass are missing or hold too few pixels.
    """
    return SFIM(spec, Moments.from_sums(spec, sums))
