"""What changed between the dates of the two images: where the MSI is not what the HSI says it should be.

Every MSI band is close to a linear function of the HSI's components, whatever a pixel shows, for the one's response lies
within the other's bands. So each band, as the coarse sensor sees it, is regressed on the components, robustly. Rare
materials and mixtures keep to that relation; what is new, moved, clouded or flooded does not. A pixel counts as changed
where it misses the relation by far and its neighbors do so as well: single ones are edges and noise.

References: iteratively reweighted least squares, Holland & Welsch (1977), Robust regression using iteratively reweighted
least-squares, Communications in Statistics 6(9), 813-827; scale by the median absolute deviation, Hampel (1974), The
influence curve and its role in robust estimation, JASA 69(346), 383-393.
Code: written from the references for HyperFuse, Apache-2.0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import avg_pool2d, max_pool2d, pad

REACH = 1
"""Samples from one that misses the relation to the farthest whose judgment it changes."""
_FAR = 20.0
"""Misfit of a pixel, in units of the scene's median, from which on it may have changed."""
_COMPACT = 80.0
"""Mean misfit of a pixel and its neighbors from which on it has. On seven real cubes that show no change, none reaches it."""
_FEWEST = 4
"""Such pixels among nine."""
_OWN = 0.1
"""Misfit of a sample over the largest of its neighbors from which on the change is its own, not seen through its PSF alone."""
_CLOSE = 0.1
"""Largest scale of a band's misfit, as a share of its standard deviation, up to which the relation says anything."""
_MOST_SIGNAL = 0.5
"""Share of the guides' power about their median in what changed, from which on it is no change."""
_ROUNDS = 8
_TAIL = 3.0
"""Misfit, in units of the median, from which on a pixel loses its weight."""
_FLOOR = 5e-3
"""Least scale of a band's misfit, as a share of its standard deviation: without noise, rounding is no change."""
_MAD = 0.6745  # median absolute deviation of a standard normal


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """The relation of a scene's MSI to its components, and what misses it."""

    weights: torch.Tensor
    """Of the constant and the components in each MSI band, shape (c, 1 + K), float32."""
    scale: torch.Tensor
    """Robust standard deviation of each band's misfit, shape (c,), float32; infinite for bands that are not close to it."""
    n_bands: int
    """Bands that are."""
    median: float
    """Of the pixels' misfits."""

    @classmethod
    def of(cls, components: torch.Tensor, guides: torch.Tensor, valid: torch.Tensor) -> Change:
        """The relation of a sample.

        Parameters
        ----------
        components : Tensor, shape (M, K, h, w)
        guides : Tensor, shape (M, c, h, w)
            As the coarse sensor sees them.
        valid : Tensor, shape (M, h, w), bool
        """
        x, y = (image.movedim(1, -1)[valid].double() for image in (components, guides))
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        floor = _FLOOR * y.std(dim=0, correction=0).clamp_min(1e-12)
        root = torch.ones_like(x[:, :1])
        for _ in range(_ROUNDS):
            solution = torch.linalg.lstsq(root * x, root * y, driver="gelsd").solution
            left = y - x @ solution
            scale = (left.abs().median(dim=0).values / _MAD).maximum(floor)
            misfit = (left / scale).square().mean(dim=1)
            median = misfit.median().clamp_min(1e-12)
            root = 1.0 / (1.0 + misfit[:, None] / (_TAIL * median))
        # Bands that the HSI does not see, or not well, are no witnesses, and a few of many are not enough.
        close = scale <= _CLOSE * y.std(dim=0, correction=0).clamp_min(1e-12)
        close &= 2 * close.sum() > len(close)
        misfit = (left[:, close] / scale[close]).square().mean(dim=1) if close.any() else misfit
        return cls(
            weights=solution.T.float(),
            scale=torch.where(close, scale, torch.inf).float(),
            n_bands=int(close.sum()),
            median=max(float(misfit.median()), 0.3),
        )

    def if_minor(self, components: torch.Tensor, guides: torch.Tensor, valid: torch.Tensor) -> Change:
        """The same, or a relation that nothing misses, if what misses it holds most of the scene's signal.

        A lone bright object that the two images show each in its own way is the scene, not a change of it. Parameters as
        those of `of`.
        """
        touched, _ = self(components.to(guides), guides, valid[:, None])
        centered = torch.where(
            valid[:, None], guides - guides.movedim(1, -1)[valid].median(dim=0).values[:, None, None], 0.0
        )
        power = centered.double().square().sum(dim=(0, 2, 3))
        share = (centered.double().square() * touched).sum(dim=(0, 2, 3)) / power.clamp_min(1e-30)
        if float(share.mean()) <= _MOST_SIGNAL:
            return self
        return replace(self, scale=torch.full_like(self.scale, torch.inf))

    def __call__(
        self, components: torch.Tensor, guides: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples that see what changed, and those that changed themselves.

        Parameters
        ----------
        components : Tensor, shape (N, K, h, w)
        guides : Tensor, shape (N, c, h, w)
        known : Tensor, shape (N, 1, h, w), bool
            Samples that are valid in both; the others have no part in it.

        Returns
        -------
        touched, changed : Tensor, shape (N, 1, h, w), bool
            The second are among the first.
        """
        weights = self.weights.to(components)
        left = guides - weights[:, 0, None, None] - torch.einsum("ck,nkhw->nchw", weights[:, 1:], components)
        misfit = (left / self.scale.to(left)[:, None, None]).square().sum(dim=1, keepdim=True)
        misfit = misfit / (max(self.n_bands, 1) * self.median)
        misfit = torch.where(known, misfit, 0.0)
        far = (misfit > _FAR).to(misfit)
        # What lies beyond the rim of a window is not known to have changed.
        around = [avg_pool2d(pad(image, (1,) * 4), 3, stride=1) for image in (misfit, far)]
        compact = (around[0] > _COMPACT) & (around[1] > (_FEWEST - 0.5) / 9)
        touched = (misfit > _FAR) & compact
        return touched, touched & (misfit > _OWN * max_pool2d(misfit, 3, stride=1, padding=1))
