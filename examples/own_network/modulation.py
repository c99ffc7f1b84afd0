"""Modulation of the HSI by the mean intensity of the MSI: an example of a network in one file.

Paper: Liu (2000), Smoothing filter-based intensity modulation: a spectral preserve image fusion technique for improving
spatial details, International Journal of Remote Sensing 21(18), 3461-3472.
Code: written from the paper for HyperFuse, Apache-2.0.

In `models/` this file would be found by its name; the tests in `tests/contracts` would hold it to what it promises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from hyperfuse.models import ModelSpec, Observed
from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import MethodCard
from hyperfuse.models.subspace.guides import degrade_guides, guide_reach, low_pass_reach, smooth_guides

CARD = MethodCard(
    title="Smoothing filter-based intensity modulation",
    paper="Liu (2000), Smoothing filter-based intensity modulation, doi:10.1080/014311600750037499",
    code="HyperFuse, Apache-2.0",
)
GAINS = (0.5, 2.0)
"""Least and largest modulation: a dark intensity must not divide by next to nothing."""


class Modulation:
    """Fused = U * intensity / smoothed intensity, with U the interpolated HSI and the intensity the mean of the MSI bands."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`: (N, C, h, w) and (N, c, H, W) to (N, C, H, W)."""
        observed = self.spec.observed
        guides = smooth_guides(msi, observed)
        low = upsample(degrade_guides(guides, observed), observed.ratio)
        gain = guides.mean(dim=1, keepdim=True) / low.mean(dim=1, keepdim=True).clamp_min(1e-6)
        return upsample(hsi, observed.ratio) * gain.clamp(*GAINS)


def specify(observed: Observed) -> ModelSpec:
    """Needs: the cubic kernel's two coarse pixels, and what the smoothed intensity looks at."""
    around = guide_reach(observed) + low_pass_reach(observed)  # fine pixels
    return ModelSpec(
        name="modulation",
        observed=observed,
        halo=2 + math.ceil(around / observed.ratio),
        hsi_reach=2,
        msi_reach=around,
        multiple_of=observed.whole_blocks,
    )


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (needs no first pass)
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> Modulation:
    """The method, ready to run."""
    return Modulation(spec)
