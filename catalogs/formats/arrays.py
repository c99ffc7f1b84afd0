"""NetCDF files and Zarr folders through xarray, one array with a band axis each."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import netCDF4
import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from hyperfuse.catalogs.bands import BandTable, nm_per
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.stored import MAX_PIXELS, Image, refuse_absurd, refuse_type, unreadable
from hyperfuse.catalogs.scene import Window
from hyperfuse.catalogs.times import parse_time

Kind = Literal["netcdf", "hdf5", "zarr"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NETCDF3_MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata", ".zarray")
_Y_NAMES = ("y", "lat", "latitude", "northing", "row", "rows", "line", "lines")
_X_NAMES = ("x", "lon", "longitude", "easting", "col", "cols", "column", "columns", "sample", "samples")
_CENTERS = ("wavelength", "wavelengths", "wavelength_nm", "wavelength_um", "center_wavelength", "central_wavelength",
            "center_nm", "center_um")  # fmt: skip
_WIDTHS = ("fwhm", "fwhm_nm", "fwhm_um", "bandwidth", "bandwidths")
_DATE_NAMES = ("time", "times", "t", "date", "dates", "datetime", "epoch")
_NODATA = ("_FillValue", "missing_value", "fill_value", "nodata", "no_data", "nodatavals")
"""Attributes that hold the stored value of no data: CF, rasterio, rioxarray and the Open Data Cube."""
_FLAGS = ("good_wavelengths", "good_wavelength", "good_bands", "good_band", "good", "bbl")
_ATTRIBUTES_OF_AXES = {
    "NAME": (h5py.h5t.STRING,), "CLASS": (h5py.h5t.STRING,), "DIMENSION_LIST": (h5py.h5t.VLEN,),
    "REFERENCE_LIST": (h5py.h5t.COMPOUND,), "_Netcdf4Dimid": (h5py.h5t.INTEGER,), "_Netcdf4Coordinates": (h5py.h5t.INTEGER,),
}  # fmt: skip
"""Attributes by which HDF5 files mark arrays as axes, and their classes of types."""
# What xarray, netCDF4, HDF5, zarr and its codecs raise over a file that is not what it says.
_DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, AttributeError, ArithmeticError, MemoryError, SystemError,
    struct.error,
)  # fmt: skip


def array_kind(path: Path) -> Kind | None:
    """NetCDF 3, HDF5 (with it NetCDF 4) or Zarr, by first bytes or by the metadata in the folder; None for others."""
    if path.is_dir():
        return "zarr" if any((path / name).is_file() for name in _ZARR_METADATA) else None
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return None
    return "hdf5" if start == _HDF5_MAGIC else "netcdf" if start[:4] in _NETCDF3_MAGIC else None


def open_array(path: Path, kind: Kind, variable: str | None) -> Image:
    """A NetCDF file or a Zarr folder; `variable` names the array if there are several.

    Raises
    ------
    InputRejected
        If the file refers to other files, is damaged, or no array in it has rows, columns and at most a band axis.
    """
    files = tuple(sorted(p for p in path.rglob("*") if p.is_file())) if kind == "zarr" else (path,)
    try:
        if kind == "hdf5":
            refuse_hdf5_surprises(path)
        if kind == "zarr":
            _refuse_absurd_metadata(files)
        else:
            with netCDF4.Dataset(path) as raw:
                for name, dimension in raw.dimensions.items():
                    _refuse_length(path, name, len(dimension))
        dataset = _dataset(str(path), kind, _stamp(path))
        # Coordinates are read with it.
        return _describe(dataset, path, kind, files, variable)
    except _DAMAGE as error:
        raise InputRejected(
            f"{path}: cannot be opened ({_one_line(error)}); the file is damaged, fetch it again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ArraySamples:
    """Samples through xarray, undecoded; the open dataset is shared within a process, and xarray locks where needed."""

    path: Path
    """File or folder."""
    kind: Kind
    """Format."""
    variable: str
    """Array."""
    dims: tuple[str | None, str, str]
    """Names of the band (None: there is none), y and x axes."""
    shape: tuple[int, int, int]
    """Size as (band, y, x)."""
    block: tuple[int, int]
    """Rows and columns of a chunk."""
    dtype: np.dtype[Any]
    """Stored type, unsigned where the NetCDF convention says so."""
    steps: tuple[tuple[str, int], ...] = ()
    """Position on the axes that are neither bands nor place, such as the date; the first where it does not tell."""

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values."""
        band_dim, y_dim, x_dim = self.dims
        try:
            array = _dataset(str(self.path), self.kind, _stamp(self.path))[self.variable]
            extra = {dim: dict(self.steps).get(str(dim), 0) for dim in array.dims if dim not in self.dims}
            array = array.isel({**extra, y_dim: window[0], x_dim: window[1]})
            if band_dim is None:
                raw = array.transpose(y_dim, x_dim).to_numpy()[None]
            else:
                array = array.transpose(band_dim, y_dim, x_dim)
                # Runs of neighbors, because netCDF4 reads a list of indexes one by one.
                raw = np.concatenate([array[run].to_numpy() for run in _runs(bands)])
        except _DAMAGE as error:
            raise unreadable(self.path, window, error) from error
        return (raw if band_dim is not None else raw[np.zeros(len(bands), np.intp)]).view(self.dtype), None


@lru_cache(maxsize=16)
def _dataset(path: str, kind: Kind, _modified_ns: int) -> xr.Dataset:
    options: dict[str, Any] = {"chunks": None, "mask_and_scale": False, "decode_times": False, "cache": False}
    if kind != "zarr":
        return xr.open_dataset(path, engine="netcdf4", decode_coords="all", **options)
    del options["cache"]
    metadata = Path(path) / "zarr.json"
    whole = "consolidated_metadata" in json.loads(metadata.read_text()) if metadata.is_file() else False
    whole = whole or (Path(path) / ".zmetadata").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what else lies in the folder
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=whole, decode_coords="all", **options)
    return dataset


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def _describe(dataset: xr.Dataset, path: Path, kind: Kind, files: tuple[Path, ...], variable: str | None) -> Image:
    name, dims, date = _choose(dataset, path, variable)
    array = dataset[name]
    steps = tuple((dim, _date(dataset, array, dim, date, path)) for dim in _dates_of(dataset, array))
    shape = (array.sizes[dims[0]] if dims[0] else 1, array.sizes[dims[1]], array.sizes[dims[2]])
    refuse_absurd(path, shape)
    dtype = array.dtype
    if str(array.attrs.get("_Unsigned", "")).lower() == "true" and dtype.kind == "i":
        dtype = np.dtype(f"u{dtype.itemsize}")
    refuse_type(path, dtype)
    chunks = dict(zip(array.dims, array.encoding.get("chunksizes") or array.encoding.get("chunks") or (), strict=False))
    block = (int(chunks.get(dims[1], 1)), int(chunks.get(dims[2], shape[2])))
    scale, offset = array.attrs.get("scale_factor"), array.attrs.get("add_offset")
    declared = scale is not None or offset is not None
    affine, crs, notes = _grid(dataset, array, path, dims)
    return Image(
        path=path,
        files=files,
        samples=ArraySamples(
            path=path, kind=kind, variable=name, dims=dims, shape=shape, block=block, dtype=dtype, steps=steps
        ),
        affine=affine,
        crs=crs,
        table=_table(dataset, array, path, dims[0]),
        names=None,
        nodata=tuple(dict.fromkeys(v for key in _NODATA for v in _numbers(array.attrs, key, array.dtype, dtype))),
        valid_range=_valid_range(array, dtype, path),
        scale=np.full(shape[0], 1.0 if scale is None else float(scale)) if declared else None,
        offset=np.full(shape[0], 0.0 if offset is None else float(offset)) if declared else None,
        measures=" ".join(str(array.attrs.get(key, "")) for key in ("quantity", "standard_name", "long_name"))
        + f" {name}",
        unit=str(array.attrs.get("units", "")),
        time=_time(dataset.isel({dim: [at] for dim, at in steps if dim in dataset.dims}), array),
        notes=notes,
    )


def _numbers(attrs: Mapping[Any, Any], key: str, read: np.dtype[Any], meant: np.dtype[Any]) -> tuple[float, ...]:
    """The numbers of an attribute in the type of the samples; words and empty values are none."""
    found = []
    for value in np.ravel(attrs.get(key, ())).tolist():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        # A signed type that is read as unsigned has its fill value in signed numbers, too.
        wrapped = read != meant and number < 0
        found.append(number + 2.0 ** (8 * meant.itemsize) if wrapped else number)
    return tuple(found)


def _valid_range(array: xr.DataArray, dtype: np.dtype[Any], path: Path) -> tuple[float, float]:
    """Smallest and largest valid stored value, by the attributes of the NetCDF users' guide."""
    both = _numbers(array.attrs, "valid_range", array.dtype, dtype)
    low = _numbers(array.attrs, "valid_min", array.dtype, dtype) or both[:1] or (-math.inf,)
    high = _numbers(array.attrs, "valid_max", array.dtype, dtype) or both[1:2] or (math.inf,)
    if not low[0] < high[0]:
        raise InputRejected(
            f"{path}: {array.name} declares valid samples from {low[0]:g} to {high[0]:g}, expected an increasing range; "
            "correct valid_range, valid_min and valid_max"
        )
    return low[0], high[0]


def flat_variables(path: Path, kind: Kind) -> list[str]:
    """Arrays without a band axis, in file order, where there are several and none with one; nothing where the file is damaged."""
    try:
        if kind == "hdf5":
            refuse_hdf5_surprises(path)
        if kind == "zarr":
            _refuse_absurd_metadata(tuple(sorted(p for p in path.rglob("*") if p.is_file())))
        dataset = _dataset(str(path), kind, _stamp(path))
    except (InputRejected, *_DAMAGE):
        return []  # `open_array` says what is wrong
    axes = {str(n): _axes(dataset, a) for n, a in dataset.data_vars.items() if a.dtype.kind in "uif"}
    found = {name: dims for name, dims in axes.items() if dims is not None}
    about = {n for a in dataset.data_vars.values() for n in str(a.attrs.get("ancillary_variables", "")).split()}
    flat = [name for name, dims in found.items() if dims[0] is None and name not in about]
    return flat if len(flat) > 1 and all(dims[0] is None for dims in found.values()) else []


def _choose(
    dataset: xr.Dataset, path: Path, variable: str | None
) -> tuple[str, tuple[str | None, str, str], str | None]:
    """The image among the arrays, with its axes and the date that is wanted of it: `variable` is NAME, NAME@DATE or @DATE."""
    found = {
        str(n): dims for n, a in dataset.data_vars.items() if (dims := _axes(dataset, a)) and a.dtype.kind in "uif"
    }
    listed = ", ".join(sorted(found)) or "none"
    date = None
    if variable is not None and variable not in found and "@" in variable:
        before, _, date = variable.rpartition("@")
        variable = before or None
    if variable is not None:
        if variable not in found:
            raise InputRejected(f"{path}: no image {variable!r} in it; arrays with rows and columns: {listed}")
        return variable, found[variable], date
    # What only says something of another array, such as its standard error, is no image (CF conventions, 3.4).
    about = {
        name for array in dataset.data_vars.values() for name in str(array.attrs.get("ancillary_variables", "")).split()
    }
    images = [name for name in found if name not in about] or list(found)
    cubes = [name for name in images if found[name][0] is not None] or images
    if not cubes:
        raise InputRejected(
            f"{path}: no array in it has a row and a column axis (y and x, or lat and lon) and at most one more; "
            "name the axes so, or convert the file to GeoTIFF"
        )
    if len(cubes) > 1:
        raise InputRejected(
            f"{path}: holds {len(cubes)} images ({listed}), expected one; "
            "choose one with --set hsi.variable=NAME or --set msi.variable=NAME"
        )
    return cubes[0], found[cubes[0]], date


def _axes(dataset: xr.Dataset, array: xr.DataArray) -> tuple[str | None, str, str] | None:
    dims = [str(d) for d in array.dims]
    y = next((d for d in dims if _is_axis(dataset, d, _Y_NAMES, ("projection_y_coordinate", "latitude"))), None)
    x = next((d for d in dims if _is_axis(dataset, d, _X_NAMES, ("projection_x_coordinate", "longitude"))), None)
    if y is None or x is None:
        return None
    rest = [d for d in dims if d not in (y, x) and not _is_date(dataset, d)]
    long = [d for d in rest if array.sizes[d] > 1]
    if len(long) > 1:
        return None
    spectral = [d for d in rest if d.lower().startswith(("band", "wavelength", "bands", "spectral"))]
    return (next(iter(long or spectral), None), y, x)


def _is_date(dataset: xr.Dataset, dim: str) -> bool:
    """Whether an axis counts dates: they are no bands."""
    units = str(dataset[dim].attrs.get("units", "")) if dim in dataset.coords else ""
    return (
        dim.lower() in _DATE_NAMES or " since " in units or (dim in dataset.coords and dataset[dim].dtype.kind in "mM")
    )


def _dates_of(dataset: xr.Dataset, array: xr.DataArray) -> list[str]:
    """The axes of an array that count dates."""
    return [str(d) for d in array.dims if _is_date(dataset, str(d))]


def _date(dataset: xr.Dataset, array: xr.DataArray, dim: str, wanted: str | None, path: Path) -> int:
    """Position of the date that is wanted, given by the beginning of its ISO form or of its number."""
    n_dates = array.sizes[dim]
    told = [str(i) for i in range(n_dates)]
    if dim in dataset.coords:
        try:
            decoded = xr.decode_cf(dataset[[dim]])[dim].to_numpy()
        except _DAMAGE:
            decoded = dataset[dim].to_numpy()  # a time that cannot be decoded is a number
        told = [str(v).removesuffix(".000000000") for v in decoded]
    if wanted is None and n_dates == 1:
        return 0
    found = [i for i, text in enumerate(told) if wanted is not None and text.startswith(wanted)]
    if len(found) != 1:
        listed = ", ".join(told[:10]) + " ..." * (n_dates > 10)
        asked = "" if wanted is None else f" and {len(found)} of them begin with {wanted!r}"
        raise InputRejected(
            f"{path}: {array.name} holds {n_dates} dates ({listed}){asked}, expected one; choose it with "
            f"--set hsi.variable=@{told[0][:10]} or --set msi.variable=@{told[0][:10]}"
        )
    return found[0]


def _is_axis(dataset: xr.Dataset, dim: str, names: tuple[str, ...], standard: tuple[str, ...]) -> bool:
    return dim.lower() in names or (dim in dataset.coords and dataset[dim].attrs.get("standard_name") in standard)


def _grid(
    dataset: xr.Dataset, array: xr.DataArray, path: Path, dims: tuple[str | None, str, str]
) -> tuple[Affine | None, str | None, tuple[str, ...]]:
    """Pixel-to-world matrix and CRS from coordinates and the CF grid mapping."""
    mapping = str(array.encoding.get("grid_mapping") or array.attrs.get("grid_mapping") or "").split(":")[0].strip()
    mapping = mapping or next((n for n in ("spatial_ref", "crs") if n in dataset.variables), "")
    attrs = dataset[mapping].attrs if mapping in dataset.variables else {}
    crs = _crs(attrs, array.attrs, dataset.attrs)
    notes: tuple[str, ...] = ()
    y, x = (dataset[d] if d in dataset.coords else None for d in dims[1:])
    if crs is None and y is not None and x is not None and str(y.attrs.get("units", "")).startswith("degree"):
        crs, notes = "EPSG:4326", ("coordinates in degrees without a CRS taken for EPSG:4326",)
    if y is not None and x is not None and min(y.size, x.size) > 1:
        y0, dy = _regular(y, path)
        x0, dx = _regular(x, path)
        return Affine(dx, 0.0, x0 - dx / 2, 0.0, dy, y0 - dy / 2), crs, notes
    if "GeoTransform" in attrs:
        return Affine.from_gdal(*(float(v) for v in str(attrs["GeoTransform"]).split())), crs, notes
    return None, crs, notes


def _regular(coordinate: xr.DataArray, path: Path) -> tuple[float, float]:
    """First center and step of a coordinate."""
    values = coordinate.to_numpy().astype(np.float64)
    if str(coordinate.attrs.get("units", "")).startswith("degree") and np.abs(np.diff(values)).max() > 180:
        values = np.unwrap(values, period=360.0)  # longitudes that begin anew at the antimeridian, or at 0
    step = float(values[-1] - values[0]) / (values.size - 1)
    coarse = 2 * np.finfo(coordinate.dtype).eps if coordinate.dtype.kind == "f" else 0.0
    worst = float(np.abs(values - (values[0] + step * np.arange(values.size))).max())
    if not worst <= max(0.01 * abs(step), coarse * float(np.abs(values).max())) or step == 0:
        raise InputRejected(
            f"{path}: coordinate {coordinate.name} is not regular (off by up to {worst:g} at a step of {step:g}); "
            "resample the image to a regular grid first"
        )
    return float(values[0]), step


def _crs(*places: dict[Any, Any]) -> str | None:
    """The CRS of the first attributes that hold one, as WKT."""
    for attrs in places:
        for key in ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:epsg", "epsg_code", "epsg", "crs"):
            if attrs.get(key):
                try:
                    return CRS.from_user_input(int(attrs[key]) if str(attrs[key]).isdigit() else attrs[key]).to_wkt()
                except CRSError:
                    continue
        if "grid_mapping_name" in attrs:
            try:
                return CRS.from_cf(attrs).to_wkt()
            except (CRSError, KeyError):
                continue
    return None


def _table(dataset: xr.Dataset, array: xr.DataArray, path: Path, band_dim: str | None) -> BandTable | None:
    def column(names: tuple[str, ...]) -> tuple[tuple[float, ...] | None, str | None]:
        for key, values in dataset.variables.items():
            if str(key).lower() in names and values.dims == (band_dim,) and values.dtype.kind in "uifb":
                suffix = str(key).rpartition("_")[2]
                unit = values.attrs.get("units") or (suffix if suffix in ("nm", "um") else None)
                return tuple(float(v) for v in values.to_numpy()), None if unit is None else str(unit)
        for name in names:
            if np.size(listed := array.attrs.get(name, ())) == array.sizes.get(band_dim, 1) and not isinstance(
                listed, str
            ):
                return tuple(float(v) for v in np.ravel(listed)), array.attrs.get("wavelength_units")
        return None, None

    center, unit = column(_CENTERS)
    if center is None and nm_per(str(dataset[band_dim].attrs.get("units")) if band_dim in dataset.coords else None):
        center, unit = column((str(band_dim).lower(),))  # an axis named band whose values are wavelengths
    if center is None:
        return None
    width, width_unit = column(_WIDTHS)
    flag, _ = column(_FLAGS)
    ours, theirs = nm_per(unit), nm_per(width_unit)
    if width is not None and ours and theirs:
        width = tuple(v * theirs / ours for v in width)
    elif width is not None and width_unit is not None and not theirs:
        raise InputRejected(f"{path}: FWHM unit {width_unit!r} is unknown; expected nanometers or micrometers")
    return BandTable(
        wavelength=center, fwhm=width, good=None if flag is None else tuple(v != 0 for v in flag), unit=unit
    )


def _time(dataset: xr.Dataset, array: xr.DataArray) -> datetime | None:
    texts = [attrs.get(key) for attrs in (array.attrs, dataset.attrs)
             for key in ("time_coverage_start", "start_time", "datetime", "acquisition_time")]  # fmt: skip
    if "time" in dataset.variables and dataset["time"].size == 1:
        try:
            decoded = xr.decode_cf(dataset[["time"]])["time"]
            if decoded.dtype.kind == "M":
                texts.insert(0, str(decoded.to_numpy().ravel()[0]))
        except _DAMAGE:
            pass  # a time that cannot be decoded is as good as none
    return parse_time(*texts)


def refuse_hdf5_surprises(path: Path) -> None:
    """Refuse what would make the HDF5 library read other files, and sizes that no image has.

    Raises
    ------
    InputRejected
        If there is any such thing in it.
    """

    # The visitors return their finding, because an exception must not cross the HDF5 library.
    def check_link(name: str, link: object) -> str | None:
        if isinstance(link, h5py.ExternalLink):
            return f"{name} is a link to another file ({link.filename}); copy the data into this one"
        return None

    def check_object(name: str, item: object) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        if item.external:
            return f"{name} keeps its samples in another file ({item.external[0][0]}); copy the data into this one"
        if item.is_virtual:
            return f"{name} is a virtual dataset over other files; copy the data into this one"
        for key, kinds in _ATTRIBUTES_OF_AXES.items():
            # The NetCDF library takes them for what they should be without looking, and crashes.
            if key in item.attrs and item.attrs.get_id(key).get_type().get_class() not in kinds:
                return (
                    f"{name} has an attribute {key} of another type than axes have; the file is damaged, fetch it again"
                )
        return _absurd_length(name, max(item.shape or (0,), default=0))

    with h5py.File(path, "r") as file:
        finding = file.visititems_links(check_link) or file.visititems(check_object)
    if finding:
        raise InputRejected(f"{path}: {finding}")


def _refuse_absurd_metadata(files: tuple[Path, ...]) -> None:
    """Refuse Zarr shapes that no image has; xarray loads coordinates as soon as it opens a folder."""

    def shapes(node: object) -> Iterator[int]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from (int(v) for v in value) if key == "shape" and isinstance(value, list) else shapes(value)

    for path in files:
        if path.name in {"zarr.json", ".zarray", ".zmetadata"}:
            for size in shapes(json.loads(path.read_text())):
                _refuse_length(path, "an array", size)


def _refuse_length(path: Path, name: str, size: int) -> None:
    if finding := _absurd_length(name, size):
        raise InputRejected(f"{path}: {finding}")


def _absurd_length(name: str, size: int) -> str | None:
    if size <= MAX_PIXELS:
        return None
    return f"{name} declares a length of {size}, expected at most {MAX_PIXELS}; the file is damaged or not an image"


def _runs(bands: Sequence[int]) -> Iterator[slice]:
    """Bands as slices, in order."""
    start = 0
    for i in range(1, len(bands) + 1):
        if i == len(bands) or bands[i] != bands[i - 1] + 1:
            yield slice(bands[start], bands[i - 1] + 1)
            start = i


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
