"""AVIRIS reflectance, orthocorrected: ENVI files of AVIRIS-Classic, -NG and -3, and NetCDF files of AVIRIS-3, -5 and -NG.

Flight lines are delivered along their own heading, so the map info of an ENVI header carries a rotation: the scene keeps
the rotated grid, and whoever needs another one resamples it once. NetCDF files lie on north-up grids. Wavelengths,
widths and bad bands are the file's; they differ between flights.

A file is told by its first bytes, by wavelengths in its header, and by the flight line that description or name give
(`ang` or `AV3` and date, `t` and time; `f` and date for AVIRIS-Classic), which also is its time. Reflectance as 16-bit
integers is reflectance x 10000 unless the header says otherwise; -9999 is no data in all of them.

The MTF is not in the products: the value typical of the field is used, and the setting `psf_mtf` overrules it. Written from
the documents below and from headers; no whole product was at hand.

References
----------
JPL, AVIRIS-NG and AVIRIS-3 Distribution Documents (files, names); JPL, AVIRIS L2 reflectance README (scale).
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from affine import Affine

from hyperfuse.catalogs.bands import nm_per
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.hdf import HdfSamples, has_objects, is_hdf, numbers, product, text
from hyperfuse.catalogs.formats.packages import is_debris
from hyperfuse.catalogs.formats.raster import envi_header, open_raster, raster_driver
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="AVIRIS orthocorrected reflectance")

_NODATA = -9999.0
_INTEGER_SCALE = 1e-4
_FLIGHT = re.compile(
    r"(?<![a-z0-9])(?:(?:ang|av3|av5)(?P<day>\d{8})t(?P<time>\d{6})|f\d{6}t\d{2}p\d{2}r\d{2})", re.IGNORECASE
)
_REFLECTANCE = re.compile(r"(?<![a-z])(rfl|refl|corr|reflectance)(?![a-z])", re.IGNORECASE)
_HEADER_BYTES = 1 << 20
_GRID, _CUBE, _CENTERS, _WIDTHS = (
    "transverse_mercator",
    "reflectance/reflectance",
    "reflectance/wavelength",
    "reflectance/fwhm",
)
_ON_SENSOR_GRID = "geolocation_lookup_table"


def accepts(uri: str) -> bool:
    """Whether the address is an AVIRIS image with wavelengths, or a folder with one."""
    path = Path(uri)
    return _is_image(path) or (path.is_dir() and bool(_inside(path)))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no orthocorrected reflectance, or damaged.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source)
    path = _file(Path(source.uri))
    return scene_of(_netcdf(path) if is_hdf(path) else _envi(path), source)


def _netcdf(path: Path) -> Product:
    with product(path) as file:
        if _CUBE not in file:
            raise InputRejected(
                f"{path}: holds radiance, expected reflectance; take the L2A file (RFL_ORT) of the flight line"
            )
        if _ON_SENSOR_GRID in file:
            raise InputRejected(
                f"{path}: lies on the sensor's own grid, expected an orthocorrected file; take the RFL_ORT file of the flight line"
            )
        samples = HdfSamples.of(path, file[_CUBE], ("band", "y", "x"))
        grid = file[_GRID].attrs
        affine = Affine.from_gdal(*(float(part) for part in text(grid["GeoTransform"]).split()))
        fill = file[_CUBE].attrs.get("_FillValue", _NODATA)
        return Product(
            sensor="aviris",
            name=path.stem,
            samples=samples,
            affine=affine,
            crs=text(grid["crs_wkt"] if "crs_wkt" in grid else grid["spatial_ref"]),
            wavelength_nm=numbers(file[_CENTERS]),
            fwhm_nm=numbers(file[_WIDTHS]) if _WIDTHS in file else None,
            scale=1.0,
            offset=0.0,
            nodata=tuple({*numbers(fill).tolist(), _NODATA}),
            quantity="reflectance",
            unit="1",
            time=parse_time(text(file.attrs.get("time_coverage_start", [""]))) or _time(path.stem),
            files=(path,),
            notes=("no cloud mask is read",),
        )


def _envi(path: Path) -> Product:
    image = open_raster(path, "ENVI")
    header = _header(image.path)
    told = f"{image.path.stem} {_description(header)}"
    if _REFLECTANCE.search(told.replace("_", " ")) is None:
        raise InputRejected(
            f"{image.path}: neither name nor description says reflectance (rfl, refl or corr), expected a reflectance image; take "
            "that of the flight line, or name the file with sensor=generic"
        )
    if image.affine is None or image.crs is None:
        raise InputRejected(
            f"{image.path}: its header has no map info, expected an orthocorrected image; take the file that was rendered with the "
            "geometric lookup table (_img, _ORT)"
        )
    if image.table is None or len(image.table.wavelength) != image.samples.shape[0]:
        raise InputRejected(f"{image.path}: its header does not give one wavelength per band; fetch the header again")
    table, notes = image.table, ["no cloud mask is read"]
    to_nm = nm_per(table.unit) or (1e3 if max(table.wavelength) < 100 else 1.0)
    scale = np.ones(1) if image.scale is None else image.scale
    if image.scale is None and image.samples.dtype.kind in "ui":
        scale = np.full(1, _INTEGER_SCALE)
        notes.append("integers are reflectance x 10000, as AVIRIS documents them; the header does not tell")
    if image.affine.b or image.affine.d:
        angle = math.degrees(math.atan2(image.affine.d, image.affine.a))
        notes.append(f"the grid is rotated by {angle:.2f} degrees counterclockwise, as the flight line")
    return Product(
        sensor="aviris",
        name=image.path.stem,
        samples=image.samples,
        affine=image.affine,
        crs=image.crs,
        wavelength_nm=np.array(table.wavelength) * to_nm,
        fwhm_nm=None if table.fwhm is None else np.array(table.fwhm) * to_nm,
        scale=scale,
        offset=0.0 if image.offset is None else image.offset,
        nodata=tuple({*image.nodata, _NODATA}),
        good=None if table.good is None else np.array(table.good),
        quantity="reflectance",
        unit="1",
        time=image.time or _time(told),
        files=image.files,
        notes=tuple(notes),
    )


def _is_image(path: Path) -> bool:
    if not path.is_file():
        return False
    if is_hdf(path):
        return has_objects(path, _GRID, _CUBE, _CENTERS) or has_objects(path, _GRID, "radiance/radiance")
    if raster_driver(path) != "ENVI":
        return False
    header = _header(path)
    return (
        "wavelength" in header and _FLIGHT.search(f"{path.stem} {_description(header)}".replace("_", " ")) is not None
    )


def _header(path: Path) -> str:
    """Text of the ENVI header of a data file, or of the file if it is the header."""
    header = envi_header(path) or path
    with header.open("rb") as file:
        return file.read(_HEADER_BYTES).decode("utf-8", "replace").lower()


def _description(header: str) -> str:
    found = re.search(r"description\s*=\s*\{([^}]*)\}", header)
    return found[1] if found else ""


def _time(name: str) -> datetime | None:
    """Begin of a flight line by its name; that of AVIRIS-Classic has only the day."""
    found = _FLIGHT.search(name.replace("_", " "))
    if found is None or found["day"] is None:
        return None
    try:
        return datetime.strptime(found["day"] + found["time"], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _inside(folder: Path) -> list[Path]:
    """Reflectance images of a folder, data files only."""
    files = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() != ".hdr" and not is_debris(path.name) and _is_image(path)
    ]
    return [path for path in files if is_hdf(path) or _REFLECTANCE.search(path.stem.replace("_", " "))]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = _inside(path)
    if len(found) != 1:
        told = ", ".join(p.name for p in found[:5]) or "none"
        raise InputRejected(
            f"{path}: holds {len(found)} AVIRIS reflectance images ({told}), expected one; name the file"
        )
    return found[0]
