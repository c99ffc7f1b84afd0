"""Planet Tanager: HDF5 files of surface reflectance or radiance, orthorectified (`ortho_*`) or in the sensor's geometry (`basic_*`).

Wavelengths, widths and the bands that are good come from attributes of the cube. An ortho product lies on the UTM grid of its
HDF-EOS structure (corners) and `epsg_code`. A basic product has the latitude and longitude of each of its pixels and names the grid
that Planet's ortho product would have (`Planet_Ortho_Framing`): each cell of that grid takes the sample of the nearest pixel, as it was
measured. Its place is then off by up to half a pixel, from cell to cell another way, so that an ortho product is the better one
to fuse.

Validity: fill values, `nodata_pixels`, and of the masks that Planet calls beta those of clouds and of cirrus, where the file has them.

The MTF is not in the product: the value typical of the field is used, and the setting `psf_mtf` overrules it.

References
----------
Planet Labs, Tanager Product Specification, November 2025 (layout).
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from scipy.spatial import cKDTree

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import conditions
from hyperfuse.catalogs.formats.hdf import HdfSamples, OrthoSamples, is_hdf, numbers, product, text
from hyperfuse.catalogs.formats.layers import Flag, Layer, MaskedSamples, Rule, chosen_flags
from hyperfuse.catalogs.formats.stored import Samples, refuse_absurd
from hyperfuse.catalogs.scene import Quantity, Scene
from hyperfuse.catalogs.sensors import Sensor, Source

SENSOR = Sensor(title="Planet Tanager, surface reflectance or radiance", gsd_m=30.0, role="hsi")

_GRID, _SWATH = "HDFEOS/GRIDS/HYP", "HDFEOS/SWATHS/HYP"
_CUBES: dict[str, tuple[Quantity, str]] = {
    "surface_reflectance": ("reflectance", "1"),
    "toa_radiance": ("radiance", "W m-2 sr-1 um-1"),
}
_STRUCTURE = "HDFEOS INFORMATION/StructMetadata.0"
_FRAMING = "Planet_Ortho_Framing"
_FLAGS: dict[Flag, str] = {"cloud": "beta_cloud_mask", "cirrus": "beta_cirrus_mask"}
_NO_DATA = "nodata_pixels"
_FAR_PX = 1.0
"""A cell whose nearest pixel lies farther away, in cells, is not seen."""
_BASIC = (
    "a basic product: each cell of the map has the nearest pixel's sample, up to half a pixel off; the ortho product of the scene "
    "is better to fuse"
)
_NAME = re.compile(r"^(\d{8})_(\d{6})_(\d{2})_\w+?_(?:basic|ortho)_", re.IGNORECASE)


def accepts(uri: str) -> bool:
    """Whether the address is an HDF5 file with a Tanager cube."""
    path = Path(uri)
    if not is_hdf(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return _cube(file) is not None
    except (OSError, RuntimeError, KeyError):
        return False


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no Tanager product, damaged, or tells no place.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask")
    path = Path(source.uri)
    with product(path) as file:
        if (found := _cube(file)) is None:
            raise InputRejected(
                f"{path}: holds no {_GRID} or {_SWATH} cube, expected a Tanager product; check the path"
            )
        root, name = found
        fields, cube = file[f"{root}/Data Fields"], file[f"{root}/Data Fields/{name}"]
        if "wavelengths" not in cube.attrs:
            raise InputRejected(f"{path}: {name} has no wavelengths; fetch the product again")
        center = numbers(cube.attrs["wavelengths"])
        stored = HdfSamples.of(path, cube, ("band", "y", "x"))
        samples: Samples = stored
        if len(center) != stored.shape[0]:
            raise InputRejected(f"{path}: has {stored.shape[0]} bands and {len(center)} wavelengths; fetch it again")
        notes: tuple[str, ...] = ()
        table = None
        if root == _GRID:
            affine, crs = _ortho_place(file, stored.shape[1:], path)
        else:
            affine, crs, table = _basic_place(file, stored.shape[1:], path)
            samples = OrthoSamples(samples=stored, row=table[0], col=table[1])
            notes = (_BASIC,)
        rules, missing = _rules(path, fields, chosen_flags(source.mask), table)
        fill = cube.attrs.get("_FillValue")
        quantity, unit = _CUBES[name]
        return scene_of(
            Product(
                sensor="tanager",
                name=path.stem,
                samples=MaskedSamples(samples=samples, rules=rules),
                affine=affine,
                crs=crs,
                wavelength_nm=center,
                fwhm_nm=numbers(cube.attrs["fwhm"]) if "fwhm" in cube.attrs else None,
                scale=1.0,
                offset=0.0,
                nodata=() if fill is None else tuple(numbers(fill).tolist()),
                good=numbers(cube.attrs["good_wavelengths"]) > 0 if "good_wavelengths" in cube.attrs else None,
                quantity=quantity,
                unit=unit,
                time=_time(file, root, path),
                files=(path,),
                conditions=conditions(
                    sun_zenith=_middle(fields, "sun_zenith"),
                    sun_azimuth=_middle(fields, "sun_azimuth"),
                    off_nadir=_middle(fields, "sensor_zenith"),
                    view_azimuth=_middle(fields, "sensor_azimuth"),
                ),
                notes=(*notes, *missing),
            ),
            source,
        )


def _cube(file: h5py.File) -> tuple[str, str] | None:
    """Group and array of the cube, reflectance before radiance."""
    for root in (_GRID, _SWATH):
        for name in _CUBES:
            # Links are looked at, not followed: another file must not be opened before it is refused.
            if isinstance(file.get(f"{root}/Data Fields/{name}", getlink=True), h5py.HardLink):
                return root, name
    return None


def _crs(code: object, path: Path) -> str:
    try:
        epsg = int(numbers(code)[0])
        return f"EPSG:{CRS.from_epsg(epsg).to_epsg() or epsg}"
    except (ValueError, IndexError, TypeError, CRSError, OverflowError) as error:
        raise InputRejected(f"{path}: its epsg_code is none ({error}); fetch the product again") from error


def _ortho_place(file: h5py.File, size: tuple[int, int], path: Path) -> tuple[Affine, str]:
    """Matrix by the corners of the HDF-EOS structure, and CRS."""
    group = file[_GRID]
    told = group.attrs.get("epsg_code")
    structure = text(file[_STRUCTURE][()]) if _STRUCTURE in file else ""
    corners = [
        re.search(rf"{key}=\(([-+.\deE]+),([-+.\deE]+)\)", structure)
        for key in ("UpperLeftPointMtrs", "LowerRightMtrs")
    ]
    if told is None or not all(corners):
        raise InputRejected(f"{path}: tells no corners or no epsg_code, so no place on a map; fetch the product again")
    (left, top), (right, bottom) = ((float(one[1]), float(one[2])) for one in corners if one)
    dx, dy = (right - left) / size[1], (top - bottom) / size[0]
    if not (dx > 0 and dy > 0 and math.isclose(dx, dy, rel_tol=1e-3)):
        raise InputRejected(
            f"{path}: its corners make pixels of {dx:g} x {dy:g}, expected squares; fetch the product again"
        )
    return Affine(dx, 0.0, left, 0.0, -dy, top), _crs(told, path)


def _basic_place(
    file: h5py.File, size: tuple[int, int], path: Path
) -> tuple[Affine, str, tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Matrix and CRS of the grid that the file names, and the pixel (row, column) of each of its cells."""
    geolocation = file.get(f"{_SWATH}/Geolocation Fields")
    try:
        framing: dict[str, Any] = json.loads(text(geolocation.attrs[_FRAMING]))
        affine = Affine.from_gdal(*(float(value) for value in framing["geotransform"]))
        shape = int(framing["rows"]), int(framing["cols"])
        crs = _crs(framing["epsg_code"], path)
        lat, lon = (np.asarray(geolocation[key][()], np.float64) for key in ("Latitude", "Longitude"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRejected(
            f"{path}: a basic product without latitudes, longitudes or {_FRAMING} ({error}); order the ortho product"
        ) from error
    refuse_absurd(path, (1, *shape))
    if lat.shape != size or lon.shape != size or affine.is_degenerate:
        raise InputRejected(f"{path}: its latitudes and longitudes do not have its size; fetch the product again")
    known = np.isfinite(lat) & np.isfinite(lon) & (np.abs(lat) <= 90) & (np.abs(lon) <= 360)
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon[known], lat[known])
    col, row = ~affine @ (np.asarray(x), np.asarray(y))
    near = np.isfinite(col) & np.isfinite(row)
    if not near.any():
        raise InputRejected(f"{path}: none of its pixels has a place; fetch the product again")
    of_row, of_col = (np.nonzero(known)[axis][near].astype(np.int32) for axis in (0, 1))
    tree = cKDTree(np.column_stack([row[near], col[near]]))
    cells = np.indices(shape).reshape(2, -1).T + 0.5
    apart, nearest = tree.query(cells, distance_upper_bound=_FAR_PX)
    seen = np.isfinite(apart)
    table = [np.full(len(cells), -1, np.int32) for _ in range(2)]
    for filled, own in zip(table, (of_row, of_col), strict=True):
        filled[seen] = own[nearest[seen]]
    if not seen.any():
        raise InputRejected(f"{path}: none of its pixels lies on the grid of {_FRAMING}; fetch the product again")
    return affine, crs, (table[0].reshape(shape), table[1].reshape(shape))


def _rules(
    path: Path,
    fields: h5py.Group,
    flags: tuple[Flag, ...],
    table: tuple[NDArray[np.int32], NDArray[np.int32]] | None,
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Rules of the masks that are wanted and there, and notes of those that are not."""
    wanted = {flag: _FLAGS[flag] for flag in flags if flag in _FLAGS}
    names = [name for name in (_NO_DATA, *wanted.values()) if isinstance(fields.get(name), h5py.Dataset)]
    rules = []
    for name in names:
        own = HdfSamples.of(path, fields[name], ("y", "x"))
        samples = own if table is None else OrthoSamples(samples=own, row=table[0], col=table[1])
        rules.append(Rule(layer=Layer(samples=samples), values=(1,)))
    missing = tuple(
        f"no {name} in the product: {flag} is not masked" for flag, name in wanted.items() if name not in names
    )
    return tuple(rules), missing


def _time(file: h5py.File, root: str, path: Path) -> datetime | None:
    """Of the first line, by the file's own clock; else by the file's name."""
    for place in (f"{root}/Geolocation Fields/Time", f"{root}/Data Fields/time", f"{root}/Data Fields/Time"):
        values = file.get(place)
        if isinstance(values, h5py.Dataset) and values.size:
            first = numbers(values[()]).ravel()
            first = first[np.isfinite(first) & (first > 0)]
            if first.size and first.min() < 1e11:
                return datetime.fromtimestamp(float(first.min()), UTC)
    match = _NAME.match(path.name)
    try:
        return datetime.strptime(f"{match[1]}{match[2]}", "%Y%m%d%H%M%S").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def _middle(fields: h5py.Group, name: str) -> float | None:
    """An angle in the middle of the scene, None where the file has none there."""
    array = fields.get(name)
    if not isinstance(array, h5py.Dataset) or array.ndim != 2 or not array.size:
        return None
    value = float(array[array.shape[0] // 2, array.shape[1] // 2])
    return value if math.isfinite(value) and -360.0 <= value <= 360.0 else None
