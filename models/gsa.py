"""Gram-Schmidt adaptive component substitution (GSA), extended to an MSI of several bands.

Papers: Aiazzi, Baronti & Selva (2007), Improving component substitution pansharpening through multivariate regression
of MS + Pan data, IEEE TGRS 45(10), 3230-3239; the extension by groups of bands: Selva, Aiazzi, Butera, Chiarantini &
Baronti (2015), Hyper-sharpening: a first approach on SIM-GA data, IEEE JSTARS 8(6), 3008-3024.
Code: written from the papers for HyperFuse, Apache-2.0.

Two forms. `gsa` works on groups of bands, `gsa-regressed` on one synthesized guide per HSI band (hyper-sharpening).

Notes
-----
Groups: every HSI band belongs to the MSI band of the finest step with which it correlates best at the coarse resolution. Within a group
the MSI band is regressed on the group's HSI bands; the intensity so found, interpolated, is replaced by the MSI band,
and the difference is injected with the gain cov(band, intensity) / var(intensity). Departure from the paper: regression
uses a ridge of `RIDGE` times the mean variance, because neighboring HSI bands are nearly collinear and their noise
would otherwise be amplified into the intensity.

Regressed: every HSI band is regressed on all MSI bands at the coarse resolution; what the guide so found has beyond its
own image by the coarse sensor, interpolated, is added with gain 1, the gain that the regression already holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from hyperfuse.models._moments import Moments, RegressedGuide, best_guide, first_pass, linear_spec
from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed
from hyperfuse.models.subspace.guides import guide_reach, low_pass_reach, sharpened_reach, smooth_guides

__all__ = ["CARD", "VARIANTS", "build", "first_pass", "specify"]

CARD = MethodCard(
    title="Gram-Schmidt adaptive, by groups of bands or regressed guides",
    paper="Aiazzi, Baronti & Selva (2007), Improving component substitution pansharpening through multivariate "
    "regression of MS + Pan data, doi:10.1109/TGRS.2007.901007",
    code="HyperFuse, Apache-2.0",
)
VARIANTS: Mapping[str, Mapping[str, Any]] = {"": {"guides": "grouped"}, "regressed": {"guides": "regressed"}}
TAKES_DISPLACEMENT = True
RIDGE = 1e-3


class GSA:
    """Fused = U + gain * (MSI - intensity), with U the interpolated HSI and intensity = U @ weights + bias."""

    def __init__(self, spec: ModelSpec, moments: Moments) -> None:
        self.spec = spec
        weights, bias, injection = _regress(moments, spec.observed)
        self._weights = weights.float()  # (c, C)
        self._bias = bias.float()  # (c,)
        self._injection = injection.float()  # (C, c), one nonzero per row

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        weights, bias, injection = (t.to(hsi) for t in (self._weights, self._bias, self._injection))
        # Interpolation is linear and keeps constants, so the intensity may be formed on the few coarse pixels.
        intensity = torch.einsum("kc,nchw->nkhw", weights, hsi) + bias[None, :, None, None]
        observed = self.spec.observed
        detail = smooth_guides(msi, observed) - upsample(intensity, observed.ratio, observed.shift_px)  # (N, c, H, W)
        return _injected(upsample(hsi, observed.ratio, observed.shift_px), injection, detail)


class RegressedGSA:
    """Fused = U + (guide - its low-pass version), with U the interpolated HSI and one guide per HSI band."""

    def __init__(self, spec: ModelSpec, moments: Moments) -> None:
        self.spec = spec
        self._guide = RegressedGuide.from_moments(moments, spec.observed)

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        _, detail = self._guide.split(msi)  # (N, c, H, W)
        observed = self.spec.observed
        return _injected(upsample(hsi, observed.ratio, observed.shift_px), self._guide.weights.to(hsi), detail)


def specify(observed: Observed, *, guides: Literal["grouped", "regressed"] = "grouped") -> ModelSpec:
    """Needs: the cubic kernel's two coarse pixels, what the guides look at, and the moments of the scene.

    Parameters
    ----------
    observed : Observed
    guides : {"grouped", "regressed"}
        One MSI band per group of HSI bands, or one guide per HSI band from all MSI bands.
    """
    regressed = guides == "regressed"
    around = sharpened_reach(observed) + low_pass_reach(observed) if regressed else guide_reach(observed)  # fine pixels
    return linear_spec("gsa", observed, around=around, options={"guides": guides})


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> GSA | RegressedGSA:
    """The method, ready to run; see `models.spec.Method.build`."""
    form = RegressedGSA if spec.options["guides"] == "regressed" else GSA
    return form(spec, Moments.from_sums(spec, sums))


def _injected(fused: torch.Tensor, injection: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
    """Adds injection (C, c) @ detail (N, c, H, W) to an image (N, C, H, W) in place: it is the largest array there is."""
    n_images, n_bands, height, width = fused.shape
    flat = fused.view(n_images, n_bands, height * width)
    flat.baddbmm_(injection.expand(n_images, -1, -1), detail.reshape(n_images, -1, height * width))
    return fused


def _regress(moments: Moments, observed: Observed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (c, C) and bias (c,) of the intensities, and the injection matrix (C, c)."""
    n_hsi, n_msi = moments.hsi_msi.shape
    group = best_guide(moments, observed)
    weights = torch.zeros(n_msi, n_hsi, dtype=torch.float64)
    injection = torch.zeros(n_hsi, n_msi, dtype=torch.float64)
    for k in range(n_msi):
        members = torch.nonzero(group == k).flatten()
        if members.numel() == 0:
            continue
        gram = moments.hsi_hsi[members][:, members]
        # The floor keeps a group of constant bands solvable: its weights become 0.
        ridge = (RIDGE * gram.diagonal().mean()).clamp_min(1e-20)
        solution = torch.linalg.solve(
            gram + ridge * torch.eye(len(members), dtype=torch.float64), moments.hsi_msi[members, k]
        )
        weights[k, members] = solution
        with_intensity = moments.hsi_hsi[members][:, members] @ solution  # cov(band, intensity)
        variance = (solution @ with_intensity).clamp_min(1e-20)
        injection[members, k] = with_intensity / variance
    bias = moments.msi_mean - weights @ moments.hsi_mean
    return weights, bias, injection
