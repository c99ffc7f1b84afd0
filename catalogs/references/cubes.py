"""Reference cubes: whole images with known bands, the truth of a benchmark; they need no georeference.

A cube comes from any address that `catalogs.sensors.open_scene` understands, or from a MATLAB file. A band is good if
neither the file nor the user calls it bad, it carries signal (not empty, constant, or clipped in most pixels), and its
center lies in 400-2410 nm outside the two water vapor bands, 1350-1450 and 1805-1960 nm.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands, BandTable, read_table
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.matlab import MatlabFile, matlab_level, open_matlab
from hyperfuse.catalogs.formats.signal import absorbed, without_signal
from hyperfuse.catalogs.formats.stored import refuse_absurd
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene

log = logging.getLogger(__name__)

MAX_VALUES = 1 << 31
"""A cube is held whole, so one of more samples is refused."""
_CENTERS = ("wavelengths", "wavelength", "center_nm", "centers", "lambda", "wl", "wave")
_CUBE_AXES = ("yxb", "ybx", "xyb", "xby", "byx", "bxy")
_MATRIX_AXES = ("b(xy)", "b(yx)", "(xy)b", "(yx)b")


@dataclass(frozen=True, kw_only=True)
class CubeSource:
    """Where a cube is and what the user says of it; None leaves it to the file."""

    uri: str
    """Address of a scene, or MATLAB file."""
    variable: str | None = None
    """Array of a file that holds several."""
    wavelengths: str | None = None
    """CSV table or numbers separated by commas, in file order."""
    table_rows: str | None = None
    """Rows of `wavelengths` that the file's bands are, 1-based, such as `4-107,113-153`; None: all."""
    bad: str | None = None
    """Bands of the file that are bad, 1-based, such as `1-6,33-35`."""
    axes: str | None = None
    """Axes of a MATLAB array, slowest first as MATLAB shows them: `yxb` (default), `byx` ..., or for a matrix of spectra
    `b(xy)`, where (xy) are the pixels column by column and (yx) row by row."""
    rows: int | None = None
    """Rows of the image in a matrix of spectra; None takes a square image."""
    crs: str | None = None
    """CRS of a scene whose file has none."""
    absorption: bool = True
    """Whether bands in absorption ranges are bad."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceCube:
    """An image held whole.

    Raises
    ------
    ValueError
        If bands and values differ in number.
    """

    name: str
    """Short name for tables and messages."""
    values: NDArray[np.float32]
    """Samples, shape (band, y, x), in the file's unit; NaN where there is none."""
    bands: Bands
    """Bands in the order of `values`, sorted by wavelength."""
    notes: tuple[str, ...] = field(default=())
    """What had to be assumed."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[0] != len(self.bands):
            raise ValueError(f"{self.name}: values of shape {self.values.shape} for {len(self.bands)} bands")


def open_cube(source: CubeSource) -> ReferenceCube:
    """Read a cube.

    Raises
    ------
    InputRejected
        If it cannot be read, is too large to be held, has no wavelengths, or no good band.
    """
    path = Path(source.uri)
    level = matlab_level(path) if path.is_file() else None
    cube = _from_scene(source) if level is None else _from_matlab(open_matlab(path, level), source)
    bands = cube.bands
    if source.bad is not None:
        listed = band_numbers(source.bad, len(bands), of=f"{source.uri}: bad bands")
        bands = bands.mark_bad(np.isin(bands.source_band, listed))
    if source.absorption:
        bands = bands.mark_bad(absorbed(bands))
    if not bands.good.any():
        raise InputRejected(
            f"{source.uri}: none of its {len(bands)} bands is good ({bands.center_nm[0]:g}-{bands.center_nm[-1]:g} nm); "
            "check the wavelengths"
        )
    for note in cube.notes:
        log.info("%s: %s", cube.name, note)
    return replace(cube, bands=bands)


def without_absorption(scene: Scene) -> Scene:
    """The same scene whose bands in absorption ranges are not good."""
    return replace(scene, bands=scene.bands.mark_bad(absorbed(scene.bands)))


def band_numbers(text: str, size: int, *, of: str) -> list[int]:
    """0-based numbers of a 1-based list such as `1-6,33`.

    Raises
    ------
    InputRejected
        If it is no such list, or a number is above `size`; `of` says whose list it is.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= size):
            raise InputRejected(
                f"{of} {part.strip()!r}: expected numbers or ranges between 1 and {size}, such as 1-6,33"
            )
        found += range(int(first) - 1, int(last))
    return found


def _from_scene(source: CubeSource) -> ReferenceCube:
    scene = open_scene(Source(uri=source.uri, variable=source.variable, wavelengths=source.wavelengths, crs=source.crs))
    _refuse_large(source.uri, scene.cube.shape)
    height, width = scene.geobox.shape
    values = scene.read((slice(0, height), slice(0, width)))
    return ReferenceCube(name=scene.name, values=values, bands=scene.bands, notes=scene.notes)


def _from_matlab(file: MatlabFile, source: CubeSource) -> ReferenceCube:
    name = _chosen(file, source)
    # The shape is refused before the samples are read.
    _refuse_large(source.uri, file.shapes[name])
    values, notes = _oriented(file.read(name), source)
    refuse_absurd(file.path, values.shape)
    table = _table(file, values.shape[0], source)
    bands = Bands.sort(table.wavelength, unit=table.unit, of=source.uri, fwhm=table.fwhm, good=table.good)
    with np.errstate(over="ignore"):
        cube = values[bands.source_band].astype(np.float32)
    cube[~np.isfinite(cube)] = np.nan
    dead, dead_notes = without_signal(cube.reshape(len(bands), -1), bands, whole=True, of=source.uri)
    return ReferenceCube(name=file.path.stem, values=cube, bands=bands.mark_bad(dead), notes=(*notes, *dead_notes))


def _chosen(file: MatlabFile, source: CubeSource) -> str:
    there = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(file.shapes.items())) or "none"
    if source.variable is not None:
        if source.variable not in file.shapes:
            raise InputRejected(f"{file.path}: no array {source.variable!r} in it; numeric arrays: {there}")
        return source.variable
    cubes = [name for name, shape in file.shapes.items() if len(shape) == 3]
    if len(cubes) != 1:
        raise InputRejected(
            f"{file.path}: holds {len(cubes)} arrays of three axes, expected one; choose an array with --variable, "
            f"there are: {there}"
        )
    return cubes[0]


def _oriented(array: NDArray[Any], source: CubeSource) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The array as (band, y, x), and what was assumed."""
    if array.ndim == 3:
        axes = source.axes or "yxb"
        if axes not in _CUBE_AXES:
            raise InputRejected(f"{source.uri}: axes {axes!r} for an array of 3; choose one of {', '.join(_CUBE_AXES)}")
        assumed = () if source.axes else (f"axes not given: {array.shape} taken for rows, columns, bands",)
        return array.transpose([axes.index(axis) for axis in "byx"]), assumed
    if array.ndim != 2 or source.axes not in _MATRIX_AXES:
        raise InputRejected(
            f"{source.uri}: an array of shape {array.shape} with axes {source.axes!r}; expected three axes, or a matrix of "
            f"spectra whose axes are given as one of {', '.join(_MATRIX_AXES)}"
        )
    spectra = array if source.axes.startswith("b") else array.T
    n_pixels = spectra.shape[1]
    rows = source.rows or math.isqrt(n_pixels)
    if rows < 1 or n_pixels % rows or (source.rows is None and rows * rows != n_pixels):
        raise InputRejected(f"{source.uri}: {n_pixels} pixels are no image of {rows} rows; give the number of its rows")
    columns = n_pixels // rows
    image = (
        spectra.reshape(-1, rows, columns)
        if "(yx)" in source.axes
        else spectra.reshape(-1, columns, rows).swapaxes(1, 2)
    )
    return image, () if source.rows else (f"rows not given: {n_pixels} pixels taken for a square image",)


def _table(file: MatlabFile, n_bands: int, source: CubeSource) -> BandTable:
    """Wavelengths that the user gives, or else the vector of the file that holds them."""
    if source.wavelengths is None:
        name = next((n for n in sorted(file.shapes) if n.lower() in _CENTERS), None)
        if name is None:
            raise InputRejected(
                f"{file.path}: no wavelengths in the file; give a table with --wavelengths FILE.csv (columns: center_nm, "
                "optionally fwhm_nm and good), or the numbers separated by commas"
            )
        table = BandTable(
            wavelength=tuple(float(v) for v in np.ravel(file.read(name))), fwhm=None, good=None, unit=None
        )
    else:
        table = read_table(source.wavelengths)
    if source.table_rows is not None:
        rows = band_numbers(source.table_rows, len(table.wavelength), of=f"{source.wavelengths}: rows")
        table = BandTable(
            wavelength=tuple(table.wavelength[row] for row in rows),
            fwhm=None if table.fwhm is None else tuple(table.fwhm[row] for row in rows),
            good=None if table.good is None else tuple(table.good[row] for row in rows),
            unit=table.unit,
        )
    if len(table.wavelength) != n_bands:
        raise InputRejected(
            f"{file.path}: has {n_bands} bands, but {source.wavelengths or 'its wavelength vector'} gives "
            f"{len(table.wavelength)} wavelengths; one per band is expected, in file order (or the axes are others)"
        )
    return table


def _refuse_large(uri: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise InputRejected(
            f"{uri}: {' x '.join(map(str, shape))} samples, expected at most {MAX_VALUES}, because a reference is held whole; "
            "cut a part of it"
        )
