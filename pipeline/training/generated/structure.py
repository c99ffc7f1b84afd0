"""What a fine image tells of the land's spatial structure: which materials lie where, in which shares, in which light.

A few pixels of the image, drawn far apart in its colors and textures, stand for materials. Every pixel belongs to them in
shares that fall with its distance from each, so edges, textures and transitions are those of real land. Where the image is
large enough it is finer than the result, whose pixels are means: what lies along an edge is then a mixture of both sides, not
a third material of the color in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

_F32 = NDArray[np.float32]

_FADED = 1e-3  # of the brightest: below it a quotient of two dark pixels says nothing
_LIGHT = (0.25, 2.5)
"""Brightness beyond these, against what the materials explain, is a cloud, a hole or a fault of the image."""
_ROUNDS = 2  # of k-means after seeding: enough to leave outliers, too few to lose what is rare


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """The land of one scene, before it has spectra."""

    shares: _F32
    """Share of each material, shape (material, y, x); they sum to 1."""
    light: _F32
    """Brightness against what the shares explain, about 1, shape (y, x)."""
    color: _F32
    """Mean color of each material in the image, shape (material, band of the image)."""


def structure_of(image: _F32, *, n_materials: int, softness: float, step: int, rng: np.random.Generator) -> Structure:
    """Materials, shares and light of an image.

    Parameters
    ----------
    image : ndarray, shape (band, y, x), float32
        Free of holes, in a unit in which 0 is dark; y and x are multiples of `step`.
    n_materials : int
        At least 2.
    softness : float
        Distance, in units of the median distance of a pixel from its nearest material, over which a share falls to 0.6:
        small is a mosaic of fields, large is a mixture everywhere.
    step : int
        Pixels of the image per pixel of the result along one axis.
    rng : Generator

    Returns
    -------
    Structure
        Of y / step times x / step pixels.
    """
    bright = np.maximum(image, 0.0) / np.maximum(np.percentile(image, 99, axis=(1, 2), keepdims=True), 1e-9)
    features = _features(bright, rng)
    centers = _apart(features, n_materials, rng)
    distance = _distances(features, centers)
    width = max(float(np.median(distance.min(axis=0))), 1e-9) * softness**2
    shares = np.exp(-0.5 * (distance - distance.min(axis=0)) / width)
    shares /= shares.sum(axis=0)
    shares = shares.reshape(n_materials, *image.shape[1:])
    weights = shares.reshape(n_materials, -1)
    color = (weights @ image.reshape(len(image), -1).T) / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    seen, explained = image.mean(axis=0), np.tensordot(color.mean(axis=1), shares, axes=1)
    light = np.clip(seen / np.maximum(explained, _FADED * float(explained.max())), *_LIGHT)
    return Structure(
        shares=_means(shares, step).astype(np.float32),
        light=_means(light[None], step)[0].astype(np.float32),
        color=color.astype(np.float32),
    )


def rough_field(shape: tuple[int, int], *, slope: float, rng: np.random.Generator) -> _F32:
    """A random field whose amplitudes fall with frequency as f ** -slope, mean 0 and standard deviation 1, shape (y, x).

    Notes
    -----
    Brightness and composition of natural land have no scale of their own: their amplitudes fall about as 1 / f.
    """
    height, width = shape
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(down, right)
    frequency[0, 0] = 1.0
    # The field is periodic, so opposite edges match; no patch holds both.
    field = irfft2(rfft2(rng.standard_normal(shape)) * frequency**-slope, s=shape)
    field -= field.mean()
    return np.asarray(field / max(float(field.std()), 1e-12), np.float32)


def turned(image: _F32, turn: int) -> _F32:
    """One of the eight symmetries of a square, of an image (band, y, x)."""
    rotated: _F32 = np.rot90(image, turn % 4, axes=(1, 2))
    return rotated[:, :, ::-1] if turn >= 4 else rotated


def _features(bright: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float64]:
    """Colors, and color and roughness of the surroundings at a random scale, shape (feature, pixel), each of its weight."""
    root = np.sqrt(bright)  # photon noise, and the eye of whoever maps land: equal steps in the dark as in the light
    colors = (root - root.mean(axis=(1, 2), keepdims=True)).reshape(len(root), -1).astype(np.float64)
    scale, turned = np.linalg.eigh(colors @ colors.T / colors.shape[1])
    # Halfway to equal variances: fine differences of color count, the noise of the last component does not.
    principal = (turned.T @ colors) / np.maximum(scale, 1e-3 * scale.max())[:, None] ** 0.25
    first = principal[-1].reshape(root.shape[1:])
    sigma_px = float(2.0 ** rng.uniform(0.5, 3.0))
    around = gaussian_filter(first, sigma_px, mode="reflect")
    rough = np.log(gaussian_filter((first - around) ** 2, sigma_px, mode="reflect") + 1e-4 * first.var() + 1e-12)
    context = np.stack([around, rough - rough.mean()]).reshape(2, -1)
    context *= rng.uniform(0.1, 0.6, (2, 1)) * principal.std() / np.maximum(context.std(axis=1, keepdims=True), 1e-12)
    return np.concatenate([principal, context])


def _apart(features: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centers far from each other, shape (n, feature), so that what is rare gets one too; see the references.

    References
    ----------
    Arthur & Vassilvitskii (2007), k-means++: the advantages of careful seeding, Proc. 18th ACM-SIAM SODA, 1027-1035.
    """
    some = features[:, rng.choice(features.shape[1], min(features.shape[1], 4000), replace=False)]
    centers = some[:, [int(rng.integers(some.shape[1]))]].T
    for _ in range(n - 1):
        chance = _distances(some, centers).min(axis=0)
        total = chance.sum()
        where = int(rng.choice(len(chance), p=chance / total)) if total > 0 else int(rng.integers(len(chance)))
        centers = np.concatenate([centers, some[:, [where]].T])
    for _ in range(_ROUNDS):
        nearest = _distances(some, centers).argmin(axis=0)
        centers = np.stack(
            [some[:, nearest == k].mean(axis=1) if np.any(nearest == k) else centers[k] for k in range(n)]
        )
    return centers


def _distances(features: NDArray[np.float64], centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances, shape (center, pixel)."""
    squares = (centers**2).sum(axis=1)[:, None] - 2 * centers @ features + (features**2).sum(axis=0)
    return np.asarray(np.maximum(squares, 0.0))


def _means(planes: NDArray[np.floating], step: int) -> NDArray[np.floating]:
    """Means over blocks, shape (plane, y / step, x / step)."""
    n, height, width = planes.shape
    return np.asarray(planes.reshape(n, height // step, step, width // step, step).mean(axis=(2, 4)))
