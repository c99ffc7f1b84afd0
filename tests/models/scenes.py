"""Scenes with a known truth, as the pair of images that two sensors would take of it."""

from __future__ import annotations

import torch

from hyperfuse import models
from hyperfuse.models import Observed
from hyperfuse.models.operators import degrade, upsample


def mixtures(n_materials: int, *, n_bands: int = 12, size: int = 16, ratio: int = 4, seed: int = 0):
    """A scene of mixtures, of which every material is somewhere pure: truth (1, C, H, W), spectra, abundances."""
    rng = torch.Generator().manual_seed(seed)
    wave = torch.linspace(0, 1, n_bands)[:, None]
    centers = torch.linspace(0, 1, n_materials)
    spectra = 0.1 + torch.exp(-0.5 * ((wave - centers) / 0.2) ** 2)  # (C, material)
    shares = upsample(torch.rand(1, n_materials, size, size, generator=rng), ratio).clamp_min(0) ** 3
    rows = torch.arange(size * ratio)
    for k in range(n_materials):  # a field of each material, wider than the PSF
        shares[:, :, (rows // (4 * ratio)) == k, : 6 * ratio] = torch.eye(n_materials)[k][:, None, None]
    shares = shares / shares.sum(dim=1, keepdim=True)
    return torch.einsum("cm,nmhw->nchw", spectra, shares), spectra, shares


def response(n_msi: int, n_bands: int) -> torch.Tensor:
    """Of MSI bands that share the HSI's bands evenly among them, shape (c, C)."""
    rows = torch.zeros(n_msi, n_bands)
    for k, members in enumerate(torch.arange(n_bands).chunk(n_msi)):
        rows[k, members] = 1.0 / len(members)
    return rows


def seen(truth: torch.Tensor, srf: torch.Tensor, *, ratio: int = 4, noise: float = 0.0, known: bool = True):
    """The pair that two sensors take of a scene, and what is known of them; noise is a standard deviation."""
    rng = torch.Generator().manual_seed(1)
    hsi = degrade(truth, ratio, 0.5 * ratio)
    msi = torch.einsum("kc,nchw->nkhw", srf, truth)
    hsi = hsi + noise * torch.randn(hsi.shape, generator=rng)
    msi = msi + noise * torch.randn(msi.shape, generator=rng)
    observed = Observed(
        hsi_bands=len(srf[0]),
        msi_bands=len(srf),
        ratio=ratio,
        psf_sigma_px=0.5 * ratio,
        srf=tuple(tuple(row) for row in srf.tolist()) if known else (),
    )
    return hsi, msi, observed


def fused(name: str, hsi: torch.Tensor, msi: torch.Tensor, observed: Observed) -> torch.Tensor:
    """The result of a method on a whole pair."""
    method = models.method(name)
    spec = method.specify(observed)
    sums = None
    if spec.needs_first_pass:
        sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, *hsi.shape[-2:], dtype=torch.bool))
    return method.build(spec, sums)(hsi, msi)


def error(image: torch.Tensor, truth: torch.Tensor, rim: int = 8) -> float:
    """Root mean square difference inside a rim of fine pixels."""
    inner = slice(rim, -rim)
    return float((image - truth)[..., inner, inner].square().mean().sqrt())
