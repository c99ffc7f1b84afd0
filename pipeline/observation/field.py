"""What real pairs suffer from, planted into simulated ones: the field protocol.

A method is told the undisturbed PSF and responses; what it gets is displaced, blurred otherwise, seen through other
responses, brightened, striped or changed between the dates. Each disturbance is a row of the benchmark, alone or in the
mix. Displacements are in coarse pixels: a sample of the HSI that is displaced by (rows, columns) is centered there
beside its block. The noise has the protocol's seed, every other draw has `SEED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.models.operators import blur_reach

Cube = NDArray[np.float32]

SEED = 77
"""Of all that is planted but the noise."""
DIRECTION = (0.6, 0.8)
"""Rows and columns of a displacement of one coarse pixel."""
SWIR_NM = 1000.0
"""Bands beyond it belong to the second detector."""
SQUARE_PX = 10
"""Edge of a changed square, fine pixels."""
GROWN_PX = 4
"""Fine pixels around a changed square that count as changed."""
_STEP_NM = 5.0  # least distance of the bands between which the spectral derivative is taken


@dataclass(frozen=True, kw_only=True)
class Planting:
    """What a pair is disturbed by; the defaults plant nothing."""

    name: str = "nothing"
    """Row of the benchmark."""
    vnir_px: float = 0.0
    """Displacement of the bands up to `SWIR_NM` along `DIRECTION`."""
    swir_px: float = 0.0
    """Displacement of the bands beyond it."""
    keystone_px: float = 0.0
    """Displacement along columns, linear over the band number, from minus half to plus half of this."""
    psf_factor: float = 1.0
    """Width of the true PSF over that which is told."""
    swir_noise_db: float = 0.0
    """By how much the bands beyond `SWIR_NM` are noisier."""
    stripes: float = 0.0
    """Standard deviation of the gains of the HSI's columns."""
    stripes_per: Literal["band", "detector"] = "band"
    """Whether each band has gains of its own, or all of a detector the same."""
    smile_nm: float = 0.0
    """Move of the band centers at the first and the last column, falling to 0 with the square of the distance."""
    srf_nm: float = 0.0
    """By how much the MSI's true band centers are longer than told."""
    srf_factor: float = 1.0
    """Width of the MSI's true responses over that which is told."""
    gain: float = 0.0
    """Amplitude of the ramps that the MSI's bands are multiplied by."""
    ramp: Literal["own", "raw", "common"] = "own"
    """`own`: a random direction for each band, scaled to -1..1; `raw`: the same, not scaled; `common`: one for all."""
    n_changed: int = 0
    """Squares of the MSI that show another part of it."""
    lattice_px: float = 0.0
    """Fine pixels, along rows and columns, by which the HSI's lattice lies beside the blocks, as its georeference says."""
    georeference_px: float = 0.0
    """Displacement along `DIRECTION` that the HSI's georeference claims and that is not there."""
    zone: bool = False
    """Whether the HSI comes on the grid of the neighboring UTM zone."""

    @property
    def moves(self) -> bool:
        """Whether samples of the HSI lie beside their blocks."""
        return bool(self.vnir_px or self.swir_px or self.keystone_px or self.lattice_px)

    @property
    def needs_files(self) -> bool:
        """Whether only a georeference can show it: it means nothing for a pair without files."""
        return bool(self.lattice_px or self.georeference_px or self.zone)

    def to_json(self) -> dict[str, Any]:
        """Name and all that is planted."""
        plain = asdict(Planting())
        return {"name": self.name} | {key: value for key, value in asdict(self).items() if value != plain[key]}


_MIX = Planting(
    name="mix",
    vnir_px=0.10,
    swir_px=0.22,
    keystone_px=0.1,
    psf_factor=1.15,
    swir_noise_db=5.0,
    stripes=0.005,
    srf_nm=4.0,
    srf_factor=1.1,
    gain=0.02,
    ramp="raw",
)
_KINDS: dict[str, Callable[[str, float], Planting]] = {
    "shift": lambda name, v: Planting(name=name, vnir_px=v, swir_px=v),
    "psf": lambda name, v: Planting(name=name, psf_factor=v),
    "srf": lambda name, v: Planting(name=name, srf_nm=v),
    "gain": lambda name, v: Planting(name=name, gain=v),
    "cgain": lambda name, v: Planting(name=name, gain=v, ramp="common"),
    "date": lambda name, v: Planting(name=name, n_changed=round(v)),
    "vswir": lambda name, v: Planting(name=name, swir_px=v),
    "keystone": lambda name, v: Planting(name=name, keystone_px=v),
    "stripe": lambda name, v: Planting(name=name, stripes=v),
    "cstripe": lambda name, v: Planting(name=name, stripes=v, stripes_per="detector"),
    "lattice": lambda name, v: Planting(name=name, lattice_px=v),
    "georeference": lambda name, v: Planting(name=name, georeference_px=v),
    "smile": lambda name, v: Planting(name=name, smile_nm=v),
    "swirnoise": lambda name, v: Planting(name=name, swir_noise_db=v),
}
_FIXED = {
    "nothing": Planting(),
    "swirnoise": Planting(name="swirnoise", swir_noise_db=10.0),
    "zone": Planting(name="zone", zone=True),
    "mix": _MIX,
}
ROWS = (
    "nothing", "shift-0.1", "shift-0.25", "shift-0.5", "psf-1.3", "psf-0.77", "srf-10", "gain-0.05", "cgain-0.05",
    "date-10", "vswir-0.3", "keystone-0.3", "stripe-0.01", "cstripe-0.01", "smile-2", "swirnoise", "mix",
)  # fmt: skip
"""Rows of the benchmark; other sizes of a row are made by `planting` as well."""
FILE_ROWS = (*ROWS, "georeference-0.25", "lattice-0.5", "zone")
"""Rows of the benchmark of whole pipelines."""


def planting(name: str) -> Planting:
    """The disturbance of a row, such as `mix`, `shift-0.25` or `psf-1.15`.

    Raises
    ------
    UsageError
        If there is no such row, or its size is no positive number.
    """
    if name in _FIXED:
        return _FIXED[name]
    kind, _, size = name.partition("-")
    try:
        value = float(size)
    except ValueError:
        value = math.nan
    if kind not in _KINDS or not 0 < value < math.inf:
        raise UsageError(
            f"there is no row {name!r}; choose from {', '.join(FILE_ROWS)}, or another size of one, such as shift-0.15"
        )
    return _KINDS[kind](name, value)


def detectors(center_nm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the detector of each band, shape (band,): 0 up to `SWIR_NM`, 1 beyond."""
    return (center_nm > SWIR_NM).astype(np.int64)


def band_shifts(center_nm: NDArray[np.float64], planted: Planting, ratio: int) -> NDArray[np.float64]:
    """Where the samples of each band lie beside their blocks, shape (band, 2): rows and columns, coarse pixels."""
    along = np.where(detectors(center_nm) == 1, planted.swir_px, planted.vnir_px)
    shifts: NDArray[np.float64] = along[:, None] * np.array(DIRECTION) + planted.lattice_px / ratio
    shifts[:, 1] += planted.keystone_px * (np.linspace(0.0, 1.0, len(center_nm)) - 0.5)
    return shifts


def sampled(fine: Cube, ratio: int, sigma_px: float, shifts: NDArray[np.float64]) -> Cube:
    """A cube through a Gaussian PSF whose samples lie beside the centers of the blocks; mirrored rim.

    Parameters
    ----------
    fine : ndarray, shape (band, y, x), float32
        y and x are multiples of `ratio`.
    ratio : int
        Fine pixels per coarse pixel along one axis.
    sigma_px : float
        Standard deviation of the PSF, fine pixels.
    shifts : ndarray, shape (band, 2)
        Of each band, rows and columns, coarse pixels.

    Returns
    -------
    ndarray, shape (band, y / ratio, x / ratio), float32
    """
    height, width = fine.shape[1:]
    coarse = np.empty((len(fine), height // ratio, width // ratio), np.float32)
    for band, (row, column) in enumerate(shifts):
        rows, columns = (_taps(n, ratio, sigma_px, v * ratio) for n, v in ((height, row), (width, column)))
        coarse[band] = rows @ fine[band] @ columns.T
    return coarse


def sampled_at(fine: Cube, sigma_px: float, y: NDArray[np.float64], x: NDArray[np.float64]) -> Cube:
    """A cube through a Gaussian PSF at any places; mirrored rim.

    Parameters
    ----------
    fine : ndarray, shape (band, y, x), float32
    sigma_px : float
        Standard deviation of the PSF, fine pixels.
    y, x : ndarray, shape (n,)
        Centers of the samples, in fine pixels from the center of the first.

    Returns
    -------
    ndarray, shape (band, n), float32
    """
    rows, columns = (_weights_at(size, sigma_px, at) for size, at in zip(fine.shape[1:], (y, x), strict=True))
    samples = [((rows @ plane) * columns).sum(axis=1) for plane in fine]
    return np.stack(samples).astype(np.float32)


def _weights_at(n_fine: int, sigma_px: float, center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the fine pixels in each sample along one axis, shape (n, n_fine)."""
    reach = blur_reach(1, sigma_px)
    at = np.floor(center).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    weight = np.exp(-0.5 * ((at - center[:, None]) / sigma_px) ** 2)
    weight /= weight.sum(axis=1, keepdims=True)
    at %= 2 * n_fine
    at = np.minimum(at, 2 * n_fine - 1 - at)
    matrix = np.zeros((len(center), n_fine))
    np.add.at(matrix, (np.arange(len(center))[:, None], at), weight)
    return matrix


def _taps(n_fine: int, ratio: int, sigma_px: float, shift_px: float) -> NDArray[np.float64]:
    """Weights of the fine pixels in each sample along one axis, shape (n_fine / ratio, n_fine)."""
    reach = blur_reach(ratio, sigma_px) + math.ceil(abs(shift_px))
    offset = np.arange(-reach, ratio + reach)
    weight = np.exp(-0.5 * ((offset - (ratio - 1) / 2 - shift_px) / sigma_px) ** 2)
    weight /= weight.sum()
    # Mirroring repeats after twice the length, so that reaches beyond a small image are folded as often as needed.
    at = (np.arange(n_fine // ratio)[:, None] * ratio + offset) % (2 * n_fine)
    at = np.minimum(at, 2 * n_fine - 1 - at)
    matrix = np.zeros((n_fine // ratio, n_fine))
    np.add.at(matrix, (np.arange(len(matrix))[:, None], at), weight)
    return matrix


def smiled(coarse: Cube, center_nm: NDArray[np.float64], size_nm: float) -> Cube:
    """The HSI whose band centers move over the columns by `size_nm` t^2, t from -1 to 1, to first order.

    Parameters
    ----------
    coarse : ndarray, shape (band, y, x), float32
    center_nm : ndarray, shape (band,), ascending
    size_nm : float

    Notes
    -----
    The derivative is that between the nearest bands at least 5 nm to both sides, because centers of two detectors that
    overlap lie closer than their noise allows.
    """
    if not size_nm:
        return coarse
    low = np.maximum(np.searchsorted(center_nm, center_nm - _STEP_NM, side="right") - 1, 0)
    high = np.minimum(np.searchsorted(center_nm, center_nm + _STEP_NM), len(center_nm) - 1)
    slope = (coarse[high] - coarse[low]) / (center_nm[high] - center_nm[low])[:, None, None]
    moved: Cube = (coarse + slope * (size_nm * np.linspace(-1.0, 1.0, coarse.shape[2]) ** 2)).astype(np.float32)
    return moved


def stripe_gains(center_nm: NDArray[np.float64], n_columns: int, planted: Planting) -> NDArray[np.float64]:
    """Gain of each column of each HSI band, shape (band, column)."""
    rng = np.random.default_rng(SEED)
    if planted.stripes_per == "band":
        return 1.0 + planted.stripes * rng.standard_normal((len(center_nm), n_columns))
    gains: NDArray[np.float64] = 1.0 + planted.stripes * rng.standard_normal((2, n_columns))
    return gains[detectors(center_nm)]


def ramp_gains(n_bands: int, shape: tuple[int, int], planted: Planting) -> NDArray[np.float64]:
    """Gain of each pixel of each MSI band, shape (band, y, x)."""
    rows, columns = (np.linspace(-1.0, 1.0, size) for size in shape)
    angles = np.random.default_rng(SEED).uniform(0.0, 2.0 * np.pi, n_bands)
    down, right = np.sin(angles), np.cos(angles)
    scale = np.abs(down) + np.abs(right)  # largest value of the ramp, at a corner
    if planted.ramp == "raw":
        scale = np.ones(n_bands)
    elif planted.ramp == "common":
        down, right, scale = np.full(n_bands, 0.8), np.full(n_bands, 0.6), np.full(n_bands, 1.4)
    ramps = (down[:, None, None] * rows[:, None] + right[:, None, None] * columns) / scale[:, None, None]
    gains: NDArray[np.float64] = 1.0 + planted.gain * ramps
    return gains


def changed_squares(fine: Cube, n_squares: int) -> tuple[Cube, NDArray[np.bool_]]:
    """Squares of an image replaced by other squares of it.

    Parameters
    ----------
    fine : ndarray, shape (band, y, x), float32
    n_squares : int

    Returns
    -------
    changed : ndarray, shape (band, y, x), float32
    where : ndarray, shape (y, x), bool
        True in the squares.
    """
    rng = np.random.default_rng(SEED)
    height, width = fine.shape[1:]
    changed, where = fine.copy(), np.zeros((height, width), bool)
    edge = min(SQUARE_PX, height // 2, width // 2)
    for _ in range(n_squares):
        target = source = (0, 0)
        while max(abs(target[0] - source[0]), abs(target[1] - source[1])) < edge:  # not of itself
            target, source = (
                (int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))) for _ in range(2)
            )
        to, of = (tuple(slice(at, at + edge) for at in corner) for corner in (target, source))
        changed[:, *to], where[to] = fine[:, *of], True
    return changed, where


def grown(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Squares with the pixels around them that count as changed."""
    wide: NDArray[np.bool_] = binary_dilation(where, np.ones((3, 3), bool), iterations=GROWN_PX)
    return wide
