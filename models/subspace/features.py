"""Functions of a pixel's color in which spectra are regressed: linear ones, products, and radial functions."""

from __future__ import annotations

import torch

CENTERS = 64
"""Radial functions: colors of the scene around which the regression may differ."""
_WIDTH = 2.0
"""Of a radial function, in standard deviations of the guides."""
_SEED = 1029


class Features:
    """Constant, guides, their products, and radial functions; functions of one fine pixel."""

    def __init__(self, colors: torch.Tensor) -> None:
        """From sampled colors, shape (c, n), float64."""
        self._mean = colors.mean(dim=1)
        self._scale = float((colors - self._mean[:, None]).square().mean().sqrt().clamp_min(1e-12))
        n_bands, n_colors = colors.shape
        self._first, self._second = torch.triu_indices(n_bands, n_bands)
        chosen = torch.randperm(n_colors, generator=torch.Generator().manual_seed(_SEED))[:CENTERS]
        self._centers = ((colors[:, chosen] - self._mean[:, None]) / self._scale).T  # (q, c)
        n_products = len(self._first)
        self.n_free = 1 + n_bands
        """Constant and guides, which come first."""
        self.n_features = self.n_free + n_products + len(self._centers)
        free = torch.arange(self.n_free)
        self.families = (
            free,
            torch.cat([free, self.n_free + torch.arange(n_products)]),
            torch.cat([free, self.n_free + n_products + torch.arange(len(self._centers))]),
        )
        """Columns of each regression: linear, with products, with radial functions."""
        # Centered on what the scene shows, so that columns are not all but parallel to the constant.
        self._offset = torch.zeros(n_products + len(self._centers), dtype=torch.float64)
        self._offset = self(colors[None, :, :, None])[0, self.n_free :, :, 0].mean(dim=-1)

    def __call__(self, guides: torch.Tensor) -> torch.Tensor:
        """(N, c, H, W) -> (N, Q, H, W)."""
        color = self.linear(guides)
        distance = torch.cdist(color.movedim(1, -1).flatten(1, 2), self._centers.to(guides))  # (N, H * W, q)
        radial = torch.exp(-0.5 * (distance / _WIDTH).square()).movedim(-1, 1).unflatten(2, guides.shape[-2:])
        bent = torch.cat([color[:, self._first] * color[:, self._second], radial], dim=1)
        bent -= self._offset.to(guides)[:, None, None]
        return torch.cat([torch.ones_like(color[:, :1]), color, bent], dim=1)

    @staticmethod
    def most(n_bands: int) -> int:
        """Features of that many guides."""
        return 1 + n_bands + n_bands * (n_bands + 1) // 2 + CENTERS

    def linear(self, guides: torch.Tensor) -> torch.Tensor:
        """The guides, centered and in one scale: (N, c, H, W) -> the same."""
        return (guides - self._mean.to(guides)[:, None, None]) / self._scale
