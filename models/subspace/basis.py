"""The spectral subspace of a noisy scene: how strong each band's noise is, and how many components stand out of it.

References: factor analysis by principal axes (Lawley & Maxwell 1971, Factor analysis as a statistical method); which
eigenvalues are signal: Marchenko & Pastur (1967), Distribution of eigenvalues for some sets of random matrices,
Mathematics of the USSR-Sbornik 1(4), 457-483.
Code: written from the references for HyperFuse, Apache-2.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST = 32
"""Components beyond this bring nothing that the rest of the estimate does not."""
_ROUNDS = 12
_CLEAR = 1.02
"""Factor by which an eigenvalue must exceed the largest one that noise alone would give."""
_FLOOR = 1e-10
"""Least noise variance, as a share of the strongest band's variance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subspace:
    """spectrum = mean + noise * (basis @ components) + what lies outside; components have white noise of variance 1."""

    mean: torch.Tensor
    """Shape (C,), float64."""
    noise: torch.Tensor
    """Standard deviation of each band's noise, shape (C,), float64."""
    basis: torch.Tensor
    """Orthonormal columns, shape (C, K), float64."""

    @classmethod
    def of(cls, spectra: torch.Tensor) -> Subspace:
        """The subspace of a sample.

        Parameters
        ----------
        spectra : Tensor, shape (C, n), float64
        """
        n_bands, n_pixels = spectra.shape
        mean = spectra.mean(dim=1)
        covariance = torch.cov(spectra, correction=0).view(n_bands, n_bands)
        variance = covariance.diagonal()
        floor = float(variance.max().clamp_min(1e-30)) * _FLOOR
        # From above: a band that begins with too little noise takes a component for itself, and never gives it back.
        noise = (0.5 * variance).clamp_min(floor)
        edge = _CLEAR * (1.0 + (n_bands / n_pixels) ** 0.5) ** 2
        most = max(1, min(MOST, min(n_bands, n_pixels) // 3))
        basis = covariance[:, :1]
        for _ in range(_ROUNDS):
            scale = noise.rsqrt()
            values, vectors = torch.linalg.eigh(covariance * scale[:, None] * scale)
            values, vectors = values.flip(0), vectors.flip(1)
            n_kept = min(max(int((values > edge).sum()), 1), most)
            basis = vectors[:, :n_kept]
            # What is left is noise less the freedom that the components took from it.
            left = (variance / noise - basis.square() @ values[:n_kept]).clamp_min(0.0)
            freedom = (1.0 - basis.square().sum(dim=1)) * (1.0 - n_kept / n_pixels)
            noise = (noise * left / freedom.clamp_min(0.05)).clamp_min(floor)
        scale = noise.sqrt()
        return cls(mean=mean, noise=scale, basis=basis)

    @property
    def analysis(self) -> torch.Tensor:
        """Components of a spectrum less its mean, shape (K, C)."""
        return (self.basis / self.noise[:, None]).T

    @property
    def synthesis(self) -> torch.Tensor:
        """Spectra of the components, shape (C, K)."""
        return self.basis * self.noise[:, None]
