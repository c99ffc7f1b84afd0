"""Synthetic land whose truth is known, computed window by window from an address such as `synthetic:hsi?size=512`.

Three roles look at the same place: `hsi` (coarse, blurred, many bands), `msi` (fine, few bands) and `truth` (the bands
of the HSI on the grid of the MSI, free of noise). Every pixel is a linear mixture of a few materials, so the blur and
the spectral responses commute with the mixing, and both images follow from the abundances without approximation.

The land is a function of position alone and goes on beyond the image: nothing is stored, and no tile or edge shows.

Positions are in fine pixels with the corner of the first pixel at 0, as in a GeoBox: pixel i has its center at i + 0.5.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl, urlencode

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.scene import Scene, Window, pixel_size_m
from hyperfuse.catalogs.sensors import Sensor, Source, sigma_from_mtf
from hyperfuse.catalogs.sensors import _land as land
from hyperfuse.catalogs.sensors._optics import blur_gather, blur_separable

Role = Literal["hsi", "msi", "truth"]
_F32 = NDArray[np.float32]

SENSOR = Sensor(title="Synthetic land with known truth (hsi, msi, truth)")
GENERATOR = "hyperfuse-synthetic-1"
"""Part of every digest; to be changed whenever the same address gives other values."""
ORIGIN = (400_000.0, 5_800_000.0)
"""Upper left corner of the fine grid and, in the same CRS, of the HSI's: easting and northing (m)."""
MSI_BANDS = {"B2": (490, 65), "B3": (560, 36), "B4": (665, 31), "B8": (842, 106), "B11": (1610, 91), "B12": (2190, 175)}
"""Center and FWHM (nm) of Gaussian stand-ins for the bands of Sentinel-2 MSI."""

_STRIP_PX = 1 << 17  # pixels computed at once: large enough for numpy, small enough for the cache
_BLOCK_PX = 256  # side of a block, on the fine grid

# --- recipe: what the address says ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines a scene; each field is a key of the address of the same name.

    Raises
    ------
    InputRejected
        If a value is out of its range.
    """

    size: int = 512
    """Rows and columns of the fine grid."""
    height: int | None = None
    """Rows of the fine grid, if not `size`."""
    width: int | None = None
    """Columns of the fine grid, if not `size`."""
    ratio: float = 4.0
    """GSD of the HSI over GSD of the MSI, 1 to 100, whole or not. The HSI has floor(size / ratio) pixels from the same
    upper left corner, so with a remainder the fine image reaches further right and down."""
    bands: int = 60
    """Bands of the HSI and of the truth; centers evenly from `low_nm` to `high_nm`, FWHM 1.1 times their spacing."""
    msi: int = 4
    """Bands of the MSI: 4 (B2 B3 B4 B8 of Sentinel-2) or 6 (and B11 B12)."""
    low_nm: float = 420.0
    """Center of the first HSI band (nm)."""
    high_nm: float = 2450.0
    """Center of the last HSI band (nm)."""
    gsd: float = 10.0
    """Pixel of the fine grid (m)."""
    seed: int = 0
    """Another seed is another place."""
    snr_hsi: float = 40.0
    """Signal-to-noise ratio of each HSI band (dB), over the typical mean square of the land; 0 or inf: no noise."""
    snr_msi: float = 45.0
    """The same of the MSI."""
    mtf: float = SENSOR.mtf.mean
    """Modulation of the HSI's Gaussian PSF at its own Nyquist frequency, 0.05 to 0.9."""
    east_m: float = 0.0
    """Eastward move (m in the fine CRS) that brings the MSI onto the HSI: what the MSI shows at p, the HSI shows at
    p + (east_m, north_m)."""
    north_m: float = 0.0
    """Northward part of the same move."""
    holes_hsi: float = 0.0
    """Share of the HSI's area in round holes without data, 0 to 0.45."""
    holes_msi: float = 0.0
    """The same of the MSI."""
    texture: float = 1.0
    """Contrast of the land, 0 to 1; 0 is a single flat material."""
    dot: tuple[float, float] | None = None
    """Row and column (fine pixels, corner at 0) of a bright Gaussian target; standard deviation 1 fine pixel."""
    crs: str = "EPSG:32633"
    """Projected CRS (m) of the fine grid."""
    hsi_crs: str | None = None
    """CRS of the HSI if another: its grid is then north-up in that CRS and covers the fine image."""

    def __post_init__(self) -> None:
        spacing = (self.high_nm - self.low_nm) / max(self.bands - 1, 1)
        rules = [
            (1 <= self.ratio <= 100, "ratio: 1 to 100"),
            (all(self.ratio <= n <= 10**7 for n in self.shape), "size: one HSI pixel to 10,000,000"),
            (350 <= self.low_nm < self.high_nm <= 2500, "low_nm, high_nm: 350 to 2500, increasing"),
            (self.bands >= 2 and spacing >= land.STEP_NM, f"bands: 2 or more, not closer than {land.STEP_NM} nm"),
            (self.msi in {4, 6}, "msi: 4 or 6"),
            (0 < self.gsd <= 10_000, "gsd: more than 0, up to 10,000 m"),
            (self.snr_hsi >= 0 and self.snr_msi >= 0, "snr_hsi, snr_msi: 0 dB or more"),
            (0.05 <= self.mtf <= 0.9, "mtf: 0.05 to 0.9"),
            (math.isfinite(self.east_m) and math.isfinite(self.north_m), "east_m, north_m: finite"),
            (0 <= self.holes_hsi <= 0.45 and 0 <= self.holes_msi <= 0.45, "holes_hsi, holes_msi: 0 to 0.45"),
            (0 <= self.texture <= 1, "texture: 0 to 1"),
            (all(_metric(crs) for crs in (self.crs, self.hsi_crs) if crs), "crs, hsi_crs: projected and in meters"),
            (self.dot is None or all(map(math.isfinite, self.dot)), "dot: row,column"),
        ]
        for holds, rule in rules:
            if not holds:
                raise InputRejected(f"synthetic scene: expected {rule}, found {self}; correct the address")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the fine grid."""
        return (self.size if self.height is None else self.height, self.size if self.width is None else self.width)

    @property
    def sigma_px(self) -> float:
        """Standard deviation of the HSI's PSF in fine pixels."""
        return sigma_from_mtf(self.mtf, self.ratio)

    @property
    def one_crs(self) -> bool:
        """Whether the grids of HSI and MSI have parallel axes."""
        return self.hsi_crs is None or CRS.from_user_input(self.hsi_crs) == CRS.from_user_input(self.crs)

    @classmethod
    def parse(cls, uri: str) -> tuple[Role, Recipe]:
        """Role and recipe of an address.

        Raises
        ------
        InputRejected
            If the role or a key is unknown, or a value cannot be used; the message lists the known ones.
        """
        role, _, query = uri.removeprefix("synthetic:").partition("?")
        if role not in get_args(Role):
            raise InputRejected(f"{uri}: role {role!r} is unknown; write synthetic:ROLE with one of {get_args(Role)}")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError as error:
            raise InputRejected(f"{uri}: {error}; write key=value pairs with & between them") from error
        known = [field.name for field in fields(cls)]
        keys = [key for key, _ in pairs]
        if wrong := [key for key in keys if key not in known or keys.count(key) > 1]:
            raise InputRejected(f"{uri}: {wrong[0]!r} is unknown or given twice; the keys are {', '.join(known)}")
        values = {}
        for key, text in pairs:
            try:
                values[key] = _PARSERS.get(key, float)(text)
            except ValueError as error:
                raise InputRejected(f"{uri}: {key}={text} cannot be used: {error}; correct its value") from error
        return cast("Role", role), cls(**values)

    def uri(self, role: Role) -> str:
        """Write the address of this place in one role; defaults are left out."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        query = urlencode({k: _text(v) for k, v in given.items() if v != getattr(_DEFAULT, k)}, safe=":,")
        return f"synthetic:{role}?{query}" if query else f"synthetic:{role}"

    def geobox(self, role: Role) -> GeoBox:
        """Grid of a role; InputRejected if `hsi_crs` is out of place there."""
        return _geobox(self, role)

    def spectrum(self, role: Role) -> Bands:
        """Bands of a role."""
        if role == "msi":
            picked = dict(list(MSI_BANDS.items())[: self.msi])
            center, fwhm = np.array(list(picked.values()), dtype=np.float64).T
            return Bands.sort(center, unit="nm", of=self.uri(role), fwhm=fwhm, names=tuple(picked))
        center = np.linspace(self.low_nm, self.high_nm, self.bands)
        fwhm = np.full(self.bands, 1.1 * (self.high_nm - self.low_nm) / (self.bands - 1))
        return Bands.sort(center, unit="nm", of=self.uri(role), fwhm=fwhm)


def accepts(uri: str) -> bool:
    """Whether the address begins with `synthetic:`."""
    return uri.startswith("synthetic:")


def open_scene(source: Source) -> Scene:
    """Open one role of a synthetic place; what else `source` says of the file is ignored and noted.

    Raises
    ------
    InputRejected
        If the address cannot be understood.
    """
    role, recipe = Recipe.parse(source.uri)
    told = ("crs", "wavelengths", "scale", "offset", "nodata", "quantity", "variable")
    ignored = [name for name in told if getattr(source, name) is not None]
    return Scene(
        name=f"synthetic-{role}",
        uri=source.uri,
        sensor="synthetic",
        cube=SyntheticCube(recipe, role),
        bands=recipe.spectrum(role),
        geobox=recipe.geobox(role),
        quantity="reflectance",
        unit="1",
        time=datetime(2026, 6, 1, 10, 30, tzinfo=UTC),
        digest=hashlib.sha256(f"{GENERATOR} {role} {recipe!r}".encode()).hexdigest(),
        notes=(f"ignored {', '.join(ignored)}: the address says all of a synthetic scene",) if ignored else (),
    )


@dataclass(frozen=True)
class SyntheticCube:
    """Samples of one role, computed when read; a `catalogs.scene.Cube`."""

    recipe: Recipe
    """The place."""
    role: Role
    """How it is looked at."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        n_bands = self.recipe.msi if self.role == "msi" else self.recipe.bands
        height, width = self.recipe.geobox(self.role).shape
        return n_bands, height, width

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that span about 256 fine pixels."""
        side = math.ceil(_BLOCK_PX / (self.recipe.ratio if self.role == "hsi" else 1))
        return min(side, self.shape[1]), min(side, self.shape[2])

    def read(self, bands: Sequence[int], window: Window) -> _F32:
        """Reflectance of some bands in a window, shape (band, y, x); NaN in holes.

        Raises
        ------
        ValueError
            If the window is not inside the image.
        """
        rows, cols = (_inside(part, size) for part, size in zip(window, self.shape[1:], strict=True))
        picked = np.asarray(bands, dtype=np.intp)
        signatures = _signatures(self.recipe, self.role)[picked]
        out = np.empty((len(picked), len(rows), len(cols)), dtype=np.float32)
        for y, x in self._parts(len(rows), len(cols)):
            mixed = self._abundance(rows[y], cols[x])
            part = (signatures @ mixed.reshape(mixed.shape[0], -1)).reshape(len(picked), *mixed.shape[1:])
            out[:, y, x] = self._disturb(part, picked, rows[y], cols[x])
        return out

    def _parts(self, height: int, width: int) -> Iterator[Window]:
        """Cut a window so that what is computed at once stays small whatever its size."""
        side = max(1, round(1.5 * _BLOCK_PX / self.recipe.ratio))
        tall, wide = (side, side) if self.role == "hsi" else (max(1, _STRIP_PX // max(min(width, 4096), 1)), 4096)
        for y in range(0, height, tall):
            for x in range(0, width, wide):
                yield slice(y, min(y + tall, height)), slice(x, min(x + wide, width))

    def _abundance(self, rows: range, cols: range) -> _F32:
        if self.role != "hsi":
            return _fine(self.recipe, rows, cols)
        return _seen_parallel(self.recipe, rows, cols) if self.recipe.one_crs else _seen_anyhow(self.recipe, rows, cols)

    def _disturb(self, part: _F32, bands: NDArray[np.intp], rows: range, cols: range) -> _F32:
        if self.role == "truth":
            return part
        at_hsi = self.role == "hsi"
        snr = self.recipe.snr_hsi if at_hsi else self.recipe.snr_msi
        holes = self.recipe.holes_hsi if at_hsi else self.recipe.holes_msi
        y, x = np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop)
        if 0 < snr < math.inf:
            # Against the land's typical mean square, not the window's: noise must not depend on what is read with it.
            typical = np.sqrt(_signatures(self.recipe, self.role) ** 2 @ land.TYPICAL_COVER)
            for i, band in enumerate(bands):
                key = land.key(self.recipe.seed, 100 + at_hsi, int(band))
                part[i] += np.float32(typical[band] * 10 ** (-snr / 20)) * land.normal(land.hash_at(key, y, x))
        if holes > 0:
            period = 20 if at_hsi else 60
            part[:, land.holes(land.key(self.recipe.seed, 110 + at_hsi), y, x, period=period, share=holes)] = np.nan
        return part


# --- light: from the land to pixels --------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _signatures(recipe: Recipe, role: Role) -> _F32:
    signatures = land.signatures(recipe.spectrum(role))
    signatures.setflags(write=False)  # shared by all readers
    return signatures


def _fine(recipe: Recipe, rows: range, cols: range) -> _F32:
    """Abundances at fine pixels, shape (material, y, x)."""
    return land.abundance(recipe.seed, rows, cols, texture=recipe.texture, dot=recipe.dot)


def _seen_parallel(recipe: Recipe, rows: range, cols: range) -> _F32:
    """Abundances under the PSF of HSI pixels, shape (material, y, x), if both grids share a CRS."""
    row_px = (np.array(rows) + 0.5) * recipe.ratio + recipe.north_m / recipe.gsd
    col_px = (np.array(cols) + 0.5) * recipe.ratio - recipe.east_m / recipe.gsd
    return blur_separable(partial(_fine, recipe), row_px, col_px, recipe.sigma_px)


def _seen_anyhow(recipe: Recipe, rows: range, cols: range) -> _F32:
    """Compute the same for any two CRSs; the PSF stays round in the fine one."""
    to_crs = recipe.geobox("hsi").affine
    x, y = np.meshgrid(to_crs.c + (np.array(cols) + 0.5) * to_crs.a, to_crs.f + (np.array(rows) + 0.5) * to_crs.e)
    east, north = _transformer(recipe.hsi_crs or recipe.crs, recipe.crs).transform(x.ravel(), y.ravel())
    row_px = (ORIGIN[1] - north + recipe.north_m) / recipe.gsd
    col_px = (east - recipe.east_m - ORIGIN[0]) / recipe.gsd
    seen = blur_gather(partial(_fine, recipe), row_px, col_px, recipe.sigma_px)
    return seen.reshape(-1, len(rows), len(cols))


# --- grids and text ------------------------------------------------------------------------------------------------


def _north_up(corner: tuple[float, float], pixel: float, shape: tuple[int, int], crs: str) -> GeoBox:
    return GeoBox(shape, Affine(pixel, 0.0, corner[0], 0.0, -pixel, corner[1]), crs)


@lru_cache(maxsize=64)
def _geobox(recipe: Recipe, role: Role) -> GeoBox:
    fine = _north_up(ORIGIN, recipe.gsd, recipe.shape, recipe.crs)
    if role != "hsi":
        return fine
    gsd = recipe.gsd * recipe.ratio
    # The small number keeps a quotient such as 333.2 / 8.33 from losing a pixel to rounding.
    height, width = (int(n / recipe.ratio + 1e-9) for n in recipe.shape)
    if recipe.one_crs or recipe.hsi_crs is None:
        return _north_up(ORIGIN, gsd, (height, width), recipe.crs)
    left, bottom, right, top = _transformer(recipe.crs, recipe.hsi_crs).transform_bounds(*fine.boundingbox.bbox)
    if math.isfinite(left + bottom + right + top):
        col, row = math.floor(left / gsd), math.ceil(top / gsd)
        shape = (row - math.floor(bottom / gsd), math.ceil(right / gsd) - col)
        coarse = _north_up((col * gsd, row * gsd), gsd, shape, recipe.hsi_crs)
        # Far from where a CRS belongs its meter is no meter, and the ratio of the pixels not the one asked for.
        if max(abs(length / gsd - 1.0) for length in pixel_size_m(coarse)) < 0.02:
            return coarse
    raise InputRejected(f"synthetic scene: hsi_crs {recipe.hsi_crs} distorts land in {recipe.crs}; use a zone nearby")


@lru_cache(maxsize=16)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _inside(part: slice, size: int) -> range:
    if part.step in {None, 1} and 0 <= part.start <= part.stop <= size:
        return range(part.start, part.stop)
    raise ValueError(f"window {part} is not inside 0 to {size}")


def _metric(text: str) -> bool:
    try:
        crs = CRS.from_user_input(text)
    except CRSError:
        return False
    return crs.is_projected and all(axis.unit_conversion_factor == 1.0 for axis in crs.axis_info)


def _point(text: str) -> tuple[float, float]:
    row, col = (float(part) for part in text.split(","))
    return row, col


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return f"{value!r}".removesuffix(".0") if isinstance(value, float) else str(value)


_PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("size", "height", "width", "bands", "msi", "seed"), int),
    **dict.fromkeys(("crs", "hsi_crs"), str),
    "dot": _point,
}
_DEFAULT = Recipe()
