"""Cubic interpolation of the HSI; the MSI is ignored. The control that every method must beat.

Paper: Keys (1981), Cubic convolution interpolation for digital image processing, IEEE TASSP 29(6), 1153-1160.
Code: written for HyperFuse, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed

CARD = MethodCard(
    title="Cubic convolution of the HSI",
    paper="Keys (1981), Cubic convolution interpolation for digital image processing, doi:10.1109/TASSP.1981.1163711",
    code="HyperFuse, Apache-2.0",
)


class Bicubic:
    """`upsample` as a `models.FusionModel`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 (the control ignores it)
        """See `models.FusionModel`."""
        return upsample(hsi, self.spec.observed.ratio)


def specify(observed: Observed) -> ModelSpec:
    """Needs: two coarse pixels on each side, the support of the kernel."""
    return ModelSpec(name="bicubic", observed=observed, halo=2, hsi_reach=2, msi_reach=None, mixes_bands=False)


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (needs none)
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> Bicubic:
    """The method, ready to run."""
    return Bicubic(spec)
