"""EMIT L2A surface reflectance: the RFL file, or a folder with it; orthorectified through its own lookup table (GLT).

The GLT names, for each cell of the map, the one sensor pixel that it shows, counted from 1, with 0 for none. Nothing is
interpolated: a window of the map gathers its pixels from the file. Some software versions wrote a mirrored `glt_x`, so
the latitudes and longitudes of the pixels named must be those of their cells, within a cell; a mirrored table is
mirrored back, and said so, any other disagreement is refused.

Validity: the MASK file of the same scene, looked for beside the RFL file, gives cloud, cirrus, dilated cloud, water and
spacecraft (here: defective) by the names in `mask_bands`; cloud, cirrus and spacecraft invalidate a pixel unless the
setting `mask` chooses otherwise. Bands without signal are those that `good_wavelengths` calls so.

Angles of sun and view are those of the middle of the granule in the OBS file of L1B, if it lies beside the RFL file.

The MTF is neither in the product nor, as far as was found, published per band: the value typical of the field is used for
all bands, and the setting `psf_mtf` overrules it.

References
----------
NASA LP DAAC, EMIT L2A Algorithm and User Guide (layout); nasa/EMIT-Data-Resources issue 28 (mirrored tables).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import conditions
from hyperfuse.catalogs.formats.hdf import HdfSamples, OrthoSamples, has_objects, is_hdf, numbers, product, text
from hyperfuse.catalogs.formats.layers import Flag, Layer, MaskedSamples, Rule, chosen_flags
from hyperfuse.catalogs.scene import Conditions, Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="EMIT L2A", gsd_m=60.0, role="hsi")

_TABLE = ("location/glt_x", "location/glt_y", "location/lat", "location/lon")
_FLAGS: dict[Flag, str] = {
    "cloud": "cloud flag",
    "cirrus": "cirrus flag",
    "dilated_cloud": "dilated cloud flag",
    "water": "water flag",
    "defective": "spacecraft flag",
}
_ANGLES = ("to-sun zenith", "to-sun azimuth", "to-sensor zenith", "to-sensor azimuth")
"""What the names of the bands of the OBS file begin with."""
_CHECKED_CELLS = 4096
"""Cells whose place is compared with that of their pixel."""


def accepts(uri: str) -> bool:
    """Whether the address is a NetCDF 4 file with reflectance and a GLT, or a folder with one."""
    path = Path(uri)
    return _is_reflectance(path) or (path.is_dir() and bool(_inside(path)))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no EMIT reflectance, damaged, or its lookup table does not fit its own coordinates.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask")
    path = _file(Path(source.uri))
    with product(path) as file:
        samples = HdfSamples.of(path, file["reflectance"], ("y", "x", "band"))
        table = _lookup(file, samples.shape[1:], path)
        parameters = file["sensor_band_parameters"]
        good = numbers(parameters["good_wavelengths"]) != 0
        rules, files, notes = _masks(file, path, table, chosen_flags(source.mask))
        fill = file["reflectance"].attrs.get("_FillValue")
        return scene_of(
            Product(
                sensor="emit",
                name=path.stem,
                samples=MaskedSamples(samples=OrthoSamples(samples=samples, row=table.row, col=table.col), rules=rules),
                affine=table.affine,
                crs=text(file.attrs["spatial_ref"]),
                wavelength_nm=numbers(parameters["wavelengths"]),
                fwhm_nm=numbers(parameters["fwhm"]),
                scale=1.0,
                offset=0.0,
                nodata=() if fill is None else tuple(numbers(fill).tolist()),
                good=good,
                quantity="reflectance",
                unit="1",
                time=parse_time(text(file.attrs.get("time_coverage_start", [""]))),
                files=(path, *files),
                conditions=_conditions(path),
                notes=(*table.notes, *notes),
            ),
            source,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LookupTable:
    """Which sensor pixel each cell of the map shows."""

    row: NDArray[np.int32]
    """Sensor row, shape (y, x), from 0; -1 for none."""
    col: NDArray[np.int32]
    """Sensor column of the same."""
    affine: Affine
    """Cell-to-degree matrix; the origin is the outer corner of the first cell."""
    notes: tuple[str, ...] = ()
    """What had to be mended."""


def _lookup(file: h5py.File, size: tuple[int, int], path: Path) -> LookupTable:
    """The table of an open file, compared with the file's own coordinates."""
    affine = Affine.from_gdal(*numbers(file.attrs["geotransform"]))
    col, row = (file[name][()].astype(np.int32) - 1 for name in _TABLE[:2])
    lat, lon = (file[name][()] for name in _TABLE[2:])
    if row.shape != col.shape or lat.shape != size or lon.shape != size:
        raise InputRejected(f"{path}: its lookup table or coordinates do not have its size; fetch it again")
    outside = (row < 0) | (col < 0) | (row >= size[0]) | (col >= size[1])
    row[outside] = col[outside] = -1
    if outside.all():
        raise InputRejected(f"{path}: its lookup table names no pixel of it; fetch it again")
    straight = _misfit_cells(row, col, lat, lon, affine)
    if straight <= 1.0:
        return LookupTable(row=row, col=col, affine=affine)
    mirrored = np.where(outside, -1, size[1] - 1 - col).astype(np.int32)
    if _misfit_cells(row, mirrored, lat, lon, affine) <= 1.0:
        note = "glt_x of this file is mirrored, by its own longitudes: it was mirrored back"
        return LookupTable(row=row, col=mirrored, affine=affine, notes=(note,))
    raise InputRejected(
        f"{path}: its lookup table lies {straight:.1f} cells off its own latitudes and longitudes, expected at most 1; "
        "fetch it again"
    )


def _misfit_cells(
    row: NDArray[np.int32], col: NDArray[np.int32], lat: NDArray[np.float64], lon: NDArray[np.float64], affine: Affine
) -> float:
    """Median distance, in cells, between the centers of cells and the pixels that they name."""
    ys, xs = np.nonzero(row >= 0)
    step = max(1, ys.size // _CHECKED_CELLS)
    ys, xs = ys[::step], xs[::step]
    pixel = row[ys, xs], col[ys, xs]
    at_x, at_y = ~affine @ (lon[pixel], lat[pixel])
    return float(np.median(np.hypot(at_x - xs - 0.5, at_y - ys - 0.5)))


def _masks(
    file: h5py.File, path: Path, table: LookupTable, flags: tuple[Flag, ...]
) -> tuple[tuple[Rule, ...], tuple[Path, ...], tuple[str, ...]]:
    """Rules of the MASK file of the same scene, that file, and a note where there is none."""
    wanted = {flag: _FLAGS[flag] for flag in flags if flag in _FLAGS}
    beside = path.with_name(path.name.replace("_RFL_", "_MASK_"))
    if not wanted:
        return (), (), ()
    if beside == path or not has_objects(beside, "mask", "sensor_band_parameters/mask_bands"):
        return (), (), (f"no {beside.name if beside != path else 'MASK file'} beside it: clouds are not masked",)
    with product(beside) as other:
        line = (text(f.attrs.get("flight_line", [""])) for f in (file, other))
        ours, theirs = line
        samples = HdfSamples.of(beside, other["mask"], ("y", "x", "band"))
        if ours != theirs or samples.shape[1:] != file["reflectance"].shape[:2]:
            raise InputRejected(
                f"{beside}: is of {theirs} and {samples.shape[1:]} px, the reflectance of {ours} and "
                f"{file['reflectance'].shape[:2]}; fetch the mask of the same granule"
            )
        names = [text(name).lower() for name in other["sensor_band_parameters/mask_bands"][()]]
    missing = tuple(
        f"no {name!r} in {beside.name}: {flag} is not masked" for flag, name in wanted.items() if name not in names
    )
    ortho = OrthoSamples(samples=samples, row=table.row, col=table.col)
    rules = tuple(
        Rule(layer=Layer(samples=ortho, band=names.index(name)), values=(1,))
        for name in wanted.values()
        if name in names
    )
    return rules, (beside,), missing


def _conditions(path: Path) -> Conditions:
    """Angles of sun and view from the OBS file beside it; nothing where there is none."""
    beside = path.with_name(path.name.replace("_L2A_RFL_", "_L1B_OBS_"))
    if beside == path or not has_objects(beside, "obs", "sensor_band_parameters/observation_bands"):
        return Conditions()
    with product(beside) as file:
        names = [text(name).lower() for name in file["sensor_band_parameters/observation_bands"][()]]
        row, col = (n // 2 for n in file["obs"].shape[:2])
        told = dict(zip(names, file["obs"][row, col].tolist(), strict=True))
    angle = {key: next((v for name, v in told.items() if name.startswith(key)), None) for key in _ANGLES}
    return conditions(
        sun_zenith=angle["to-sun zenith"],
        sun_azimuth=angle["to-sun azimuth"],
        off_nadir=angle["to-sensor zenith"],
        view_azimuth=angle["to-sensor azimuth"],
    )


def _is_reflectance(path: Path) -> bool:
    return path.is_file() and has_objects(path, "reflectance", "sensor_band_parameters", *_TABLE)


def _inside(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*")) if path.is_file() and is_hdf(path) and _is_reflectance(path)]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = _inside(path)
    if len(found) != 1:
        told = ", ".join(p.name for p in found[:5]) or "none"
        raise InputRejected(f"{path}: holds {len(found)} EMIT reflectance files ({told}), expected one; name the file")
    return found[0]
