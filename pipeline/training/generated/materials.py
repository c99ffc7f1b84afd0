"""Which spectra the materials of a generated scene have: families of unlike covers, and in each material a bundle alike.

References
----------
Somers, Asner, Tits & Coppin (2011), Endmember variability in spectral mixture analysis: a review, Remote Sensing of
Environment 115(7), 1603-1616, doi:10.1016/j.rse.2011.03.003.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.references.libraries import SpectralLibrary

_F32 = NDArray[np.float32]

KIN = 3
"""Spectra that a material is a blend of."""
_NEAREST = 30
"""Of so many at the smallest angles from a material's own the others are drawn."""
_FEWEST_FAMILIES, _MOST_FAMILIES, _MEMBERS = 3, 8, 40
"""Kinds of cover in a scene, and spectra of each."""
_DARK = 1e-3  # of the brightest color: darker ones are alike to the logarithm


@dataclass(frozen=True, kw_only=True, eq=False)
class Palette:
    """All spectra of some libraries as one sensor sees them."""

    spectra: _F32
    """Shape (spectrum, band)."""
    unit: _F32
    """The same, each of length 1."""
    share: NDArray[np.float64]
    """Chance of each spectrum to be drawn: all libraries alike, whatever their size; sums to 1."""

    @classmethod
    def of(cls, libraries: Sequence[SpectralLibrary], bands: Bands) -> Self:
        """The palette of these bands."""
        spectra = np.concatenate([library.seen_by(bands) for library in libraries])
        sizes = [len(library) for library in libraries]
        return cls(
            spectra=spectra,
            unit=spectra / np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-9),
            share=np.repeat(1.0 / (len(sizes) * np.array(sizes)), sizes),
        )

    def drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Spectra for one scene: some families, each of a spectrum and those at the smallest angles from it.

        Notes
        -----
        Land is made of a few kinds of cover with many members. Kinds are unlike, so each is drawn by its squared distance
        from those before.
        """
        heads = [int(rng.choice(len(self.unit), p=self.share))]
        for _ in range(int(rng.integers(_FEWEST_FAMILIES, _MOST_FAMILIES + 1)) - 1):
            apart = np.maximum(1.0 - (self.unit @ self.unit[heads].T).max(axis=1), 1e-9) * self.share
            heads.append(int(rng.choice(len(self.unit), p=apart / apart.sum())))
        return np.unique(np.argsort(-(self.unit[heads] @ self.unit.T), axis=1)[:, :_MEMBERS])

    def bundles(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> _F32:
        """Each of these spectra and others at a small angle from it, shape (material, KIN, band)."""
        near = np.argsort(-(self.unit[chosen] @ self.unit.T), axis=1)[:, 1 : _NEAREST + 1]
        if near.shape[1] == 0:  # a library of one spectrum
            near = chosen[:, None]
        others = [rng.choice(row, KIN - 1, replace=len(row) < KIN - 1) for row in near]
        return np.asarray(self.spectra[np.column_stack([chosen, np.stack(others)])], np.float32)


def matched(candidates: _F32, wanted: _F32) -> NDArray[np.int64]:
    """The candidate for each material of an image that fits its color best, none twice while there are enough.

    Parameters
    ----------
    candidates : ndarray, shape (candidate, color)
        Colors of spectra.
    wanted : ndarray, shape (material, color)
        Colors in the image, in a unit of its own: what counts is hue and order of brightness.

    Returns
    -------
    ndarray, shape (material,)
    """
    mine, theirs = (np.log(np.maximum(c, _DARK * c.max())).astype(np.float64) for c in (wanted, candidates))
    mine, theirs = ((c - c.mean(axis=0)) / max(float(c.std()), 1e-9) for c in (mine, theirs))
    cost = ((mine[:, None] - theirs[None]) ** 2).sum(axis=2)
    if len(candidates) < len(wanted):
        return np.asarray(cost.argmin(axis=1))
    return np.asarray(linear_sum_assignment(cost)[1])
