"""Pairs simulated from one high-resolution image under a known displacement, exact to a fraction of a pixel.

    ground  --------------------- mean over 2 x 2 px ------------------------>  MSI
    ground  -- PSF of the HSI, then sampled at (HSI pixel center) - move ----->  HSI

The ground is twice as fine as the MSI, so neither image is an interpolation of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene
from tests import DATA

MSI_NM = (490.0, 560.0, 665.0, 842.0)
MSI_FWHM = (65.0, 36.0, 31.0, 106.0)
SENTINEL2 = DATA / "s2_l1c_dsen2"
MTF_SIGMA = 0.494
"""Standard deviation (coarse px) of a Gaussian PSF whose MTF at the Nyquist frequency is 0.3."""

Move = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Move (coarse px east, north) at positions (coarse px from the upper left corner: x east, y south)."""


@dataclass(frozen=True)
class HeldCube:
    """Samples in memory."""

    data: NDArray[np.float32]

    @property
    def shape(self):
        return self.data.shape

    @property
    def block(self):
        return self.data.shape[1:]

    def read(self, bands, window):
        return self.data[:, *window][np.asarray(list(bands), dtype=np.intp)]


def held_scene(name: str, data: NDArray[np.float32], *, gsd: float, nm, fwhm, crs: str = "EPSG:32633") -> Scene:
    """A scene of an array (band, y, x) with its upper left corner at a fixed place."""
    return Scene(
        name=name, uri=name, sensor="generic", cube=HeldCube(np.asarray(data, np.float32)),
        bands=Bands.sort(np.asarray(nm), unit="nm", of=name, fwhm=np.asarray(fwhm)),
        geobox=GeoBox(data.shape[1:], Affine(gsd, 0, 400_000, 0, -gsd, 5_800_000), crs),
        quantity="reflectance", unit="1", time=None, digest="0" * 64,
    )  # fmt: skip


def sentinel2_ground(top: int = 0, left: int = 0, size: int = 600) -> NDArray[np.float64]:
    """Four bands of real land, blue to near infrared, reflectance; shape (4, size, size)."""
    (path,) = SENTINEL2.glob("*.mat")
    with h5py.File(path) as file:
        cube = np.asarray(next(v for v in file.values() if getattr(v, "ndim", 0) == 3 and 600 in v.shape))
    cube = cube if cube.shape[0] == 4 else np.moveaxis(cube, -1, 0)
    return cube[[2, 1, 0, 3]].transpose(0, 2, 1)[:, top : top + size, left : left + size] / 1e4


def synthetic_ground(size: int, seed: int = 5) -> NDArray[np.float64]:
    """The same of synthetic land, shape (4, size, size)."""
    truth = open_scene(Source(uri=f"synthetic:truth?size={size}&bands=60&seed={seed}&snr_hsi=0&snr_msi=0"))
    bands = [truth.bands.nearest(nm, within_nm=30.0) for nm in MSI_NM]
    return truth.read((slice(0, size), slice(0, size)), bands).astype(np.float64)


def constant(east: float, north: float) -> Move:
    """The same move everywhere."""
    return lambda x, y: (np.full_like(x, east), np.full_like(y, north))


def simulate(
    ground: NDArray[np.float64],
    *,
    ratio: int,
    move: Move,
    snr_db: float | None = 40.0,
    seed: int = 0,
    n_bands: int = 12,
    later: NDArray[np.float64] | None = None,
    msi_bands=(0, 1, 2, 3),
) -> ScenePair:
    """A pair of the same ground; the MSI has half its resolution, the HSI `ratio` times less.

    Parameters
    ----------
    ground : ndarray, shape (4, y, x)
    ratio : int
        1 to 20.
    move : callable
        Brings the MSI onto the HSI.
    snr_db : float or None
        Of the HSI, and 5 dB better of the MSI.
    later : ndarray, optional
        What the HSI sees instead, of the same shape.
    """
    rng = np.random.default_rng(seed)
    _, height, width = ground.shape
    rows, cols = height // (2 * ratio), width // (2 * ratio)
    msi = (
        ground[:, : rows * 2 * ratio, : cols * 2 * ratio].reshape(4, rows * ratio, 2, cols * ratio, 2).mean(axis=(2, 4))
    )
    x, y = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    east, north = move(x, y)
    at = np.stack([(y + north) * 2 * ratio - 0.5, (x - east) * 2 * ratio - 0.5])
    seen = [
        map_coordinates(
            spline_filter(gaussian_filter(band, MTF_SIGMA * 2 * ratio, mode="reflect")),
            at,
            order=3,
            prefilter=False,
            mode="reflect",
        )
        for band in (ground if later is None else later)
    ]
    nm = np.linspace(450.0, 880.0, n_bands)
    mixing = np.stack([np.interp(nm, MSI_NM, row) for row in np.eye(4)])  # (4, band)
    hsi = np.einsum("kyx,kc->cyx", np.asarray(seen), mixing)
    msi = msi[list(msi_bands)]
    if snr_db is not None:
        hsi = hsi + rng.standard_normal(hsi.shape) * np.sqrt((hsi**2).mean()) * 10 ** (-snr_db / 20)
        msi = msi + rng.standard_normal(msi.shape) * np.sqrt((msi**2).mean()) * 10 ** (-(snr_db + 5) / 20)
    return ScenePair(
        ratios=(1, 20),
        hsi=held_scene("hsi", hsi, gsd=10.0 * ratio, nm=nm, fwhm=np.full(n_bands, 40.0)),
        msi=held_scene(
            "msi", msi, gsd=10.0, nm=np.array(MSI_NM)[list(msi_bands)], fwhm=np.array(MSI_FWHM)[list(msi_bands)]
        ),
    )


SWIR_NM = (1610.0, 2190.0)
"""Two bands more that an MSI may have; FWHM 91 and 175 nm."""


def simulate_detectors(
    truth: NDArray[np.float64],
    nm: NDArray[np.float64],
    *,
    ratio: int,
    move_of: Callable[[float], tuple[float, float]],
    swir_bands: bool,
    seed: int = 0,
) -> ScenePair:
    """A pair of a spectrally complete image (band, y, x), every band of whose HSI has a move of its own.

    `move_of` gives the move (coarse px east, north) of a wavelength (nm); the HSI has 35 dB per band, the MSI 40 dB.
    """
    rng = np.random.default_rng(seed)
    centers = [*MSI_NM, *(SWIR_NM if swir_bands else ())]
    widths = [*MSI_FWHM, 91.0, 175.0][: len(centers)]
    msi = []
    for center, width in zip(centers, widths, strict=True):
        response = np.exp(-0.5 * ((nm - center) / (width / 2.355)) ** 2)
        msi.append(np.tensordot(response / response.sum(), truth, axes=1))
    rows, cols = (size // ratio for size in truth.shape[1:])
    x, y = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    hsi = []
    for band, center in zip(truth, nm, strict=True):
        east, north = move_of(float(center))
        at = np.stack([(y + north) * ratio - 0.5, (x - east) * ratio - 0.5])
        spline = spline_filter(gaussian_filter(band, MTF_SIGMA * ratio, mode="reflect"))
        hsi.append(map_coordinates(spline, at, order=3, prefilter=False, mode="reflect"))

    def noisy(cube: NDArray[np.float64], snr_db: float) -> NDArray[np.float64]:
        power = np.sqrt((cube**2).mean(axis=(1, 2), keepdims=True))
        return cube + rng.standard_normal(cube.shape) * power * 10 ** (-snr_db / 20)

    return ScenePair(
        ratios=(1, 20),
        hsi=held_scene("hsi", noisy(np.asarray(hsi), 35.0), gsd=10.0 * ratio, nm=nm, fwhm=np.full(len(nm), 12.0)),
        msi=held_scene("msi", noisy(np.asarray(msi), 40.0), gsd=10.0, nm=centers, fwhm=widths),
    )
