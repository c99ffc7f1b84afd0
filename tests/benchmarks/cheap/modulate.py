"""HSI pixels modulated by the first MSI band: about the cheapest method with the detail, and so the bytes, of a real product.

What is left of a run is the engine and the disk.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hyperfuse.models.spec import MethodCard, ModelSpec, Observed

CARD = MethodCard(title="Modulated pixels", paper="none", code="HyperFuse, Apache-2.0")


class Modulate:
    """Fused = HSI, each pixel as a block, times the first MSI band over its mean in the block."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        batch, bands, height, width = hsi.shape
        ratio = self.spec.observed.ratio
        guide = msi[:, :1].reshape(batch, 1, height, ratio, width, ratio)
        gain = guide / guide.mean(dim=(3, 5), keepdim=True).clamp_min(1e-6)
        return (hsi[..., :, None, :, None] * gain).reshape(batch, bands, height * ratio, width * ratio)


def specify(observed: Observed) -> ModelSpec:
    """Needs nothing around a coarse pixel."""
    return ModelSpec(
        name="modulate", observed=observed, halo=0, hsi_reach=0, msi_reach=observed.ratio - 1, mixes_bands=False
    )


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Modulate:
    """The method, ready to run."""
    return Modulate(spec)
