"""GeoTIFF, ENVI and JPEG 2000 files through GDAL, one explicit driver each; whole files, or parts of an archive."""

from __future__ import annotations

import gzip
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from hyperfuse.catalogs.bands import BandTable, nm_per
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.packages import Member
from hyperfuse.catalogs.formats.stored import Image, refuse_absurd, refuse_type, unreadable
from hyperfuse.catalogs.formats.tiff import unwritten_blocks
from hyperfuse.catalogs.scene import Window
from hyperfuse.catalogs.times import parse_time

Driver = Literal["GTiff", "ENVI", "JP2OpenJPEG"]

GZIP_IN_MEMORY = 256 << 20
"""Compressed ENVI files up to this many bytes, uncompressed, are held in memory; larger ones go through GDAL."""

_MOST_OPEN = 24
"""Files that a thread keeps open: the bands of one product and its masks."""
_OPENED = threading.local()

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JP2_MAGIC = (b"\0\0\0\x0c", b"\xff\x4f\xff\x51")
_WAVELENGTH_IN_NAME = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s*(nm|um|µm|μm|microns?|nanomet(?:er|re)s?|micromet(?:er|re)s?)(?![a-z])", re.IGNORECASE
)
_ENVI_SUFFIXES = ("", ".bsq", ".bil", ".bip", ".img", ".dat", ".raw", ".bin", ".envi")
# No listing of the folder: a TIFF needs no neighbors, and a neighbor must not change what it means. ENVI is found by
# its .hdr neighbor, which GDAL 3.10 misses under EMPTY_DIR. Sidecars (.aux.xml) are not in our digest: ignored.
_READDIR = {"GTiff": "EMPTY_DIR", "ENVI": "FALSE", "JP2OpenJPEG": "EMPTY_DIR"}


def raster_driver(path: Path) -> Driver | None:
    """The driver for a file by its first bytes, or by the ENVI header beside it; None for other files."""
    start = _start(path)
    if start in _TIFF_MAGIC:
        return "GTiff"
    if start in _JP2_MAGIC:
        return "JP2OpenJPEG"
    return "ENVI" if start == b"ENVI" or (start and envi_header(path)) else None


def envi_header(path: Path) -> Path | None:
    """The ENVI header of a data file, None if there is none."""
    names = [path.with_suffix(s) for s in (".hdr", ".HDR")] + [path.with_name(path.name + s) for s in (".hdr", ".HDR")]
    return next((p for p in names if p != path and _start(p) == b"ENVI"), None)


def open_member(member: Member) -> Image:
    """An image of a product, told by its first bytes.

    Raises
    ------
    InputRejected
        If it is neither GeoTIFF nor JPEG 2000, nor, in a folder, ENVI; or as `open_raster`.
    """
    with member.holder.open("rb") as file:
        file.seek(member.offset)
        start = file.read(min(4, member.size))
    whole = member.offset == 0 and member.size == member.holder.stat().st_size
    if start in _TIFF_MAGIC or start in _JP2_MAGIC:
        driver: Driver = "GTiff" if start in _TIFF_MAGIC else "JP2OpenJPEG"
        return open_raster(member.holder, driver, inside=None if whole else (member.offset, member.size))
    if whole and envi_header(member.holder):
        return open_raster(member.holder, "ENVI")
    raise InputRejected(
        f"{member.label}: begins with {start!r}, expected GeoTIFF or JPEG 2000, or ENVI in a folder; "
        "fetch the product again, and unpack it if its images are ENVI files"
    )


def open_raster(path: Path, driver: Driver, *, inside: tuple[int, int] | None = None) -> Image:
    """A raster file; of an ENVI file the data or the header may be named.

    `inside` is the first byte and the size of a file that an archive stores as it is.

    Raises
    ------
    InputRejected
        If GDAL does not open it with that driver, or its declarations contradict each other.
    """
    header, unwritten = None, 0.0
    if driver == "ENVI":
        path, header = _envi_pair(path)
    elif driver == "GTiff":
        unwritten = unwritten_blocks(path, inside)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # told as an error later, with the remedy
            with _dataset(path, driver, inside) as dataset:
                return replace(_describe(dataset, path, header, inside), unwritten=unwritten)
    except (RasterioError, OSError) as error:
        raise InputRejected(f"{path}: GDAL cannot open it as {driver} ({error}); fetch or convert it again") from error


@dataclass(frozen=True, kw_only=True)
class RasterSamples:
    """Samples through GDAL, whose datasets must not be shared by threads.

    So every read opens the file anew, except that each thread keeps the last JPEG 2000 files open: their blocks are
    large and slow to decode (1024 x 1024 pixels of Sentinel-2 take 0.1 s), and an open dataset remembers them. Windows
    of 560 pixels over nine such blocks took 9.9 s without, and 1.7 s with it.
    """

    path: Path
    """Data file."""
    driver: Driver
    """GDAL driver."""
    shape: tuple[int, int, int]
    """Size as (band, y, x)."""
    block: tuple[int, int]
    """Rows and columns of a block."""
    dtype: np.dtype[Any]
    """Stored type."""
    masked: bool
    """The file has a mask or an alpha band."""
    inside: tuple[int, int] | None = None
    """First byte and size inside an archive; None for a file of its own."""

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values, and where the mask is set."""
        indexes = [band + 1 for band in bands]
        try:
            with _kept(self.path, self.driver, self.inside) as dataset:
                part = RasterWindow.from_slices(*window)
                raw = dataset.read(indexes, window=part)
                return raw, dataset.read_masks(indexes, window=part) > 0 if self.masked else None
        except (RasterioError, OSError) as error:
            raise unreadable(self.path, window, error) from error


@dataclass(frozen=True, kw_only=True)
class GzipSamples:
    """Samples of a small compressed ENVI file, unpacked once per process.

    Through GDAL a window of a BSQ file unpacks all of it, every time: 16 ms for 2.3 MB, so seconds per tile for 500 MB.
    """

    path: Path
    """Data file."""
    shape: tuple[int, int, int]
    """Size as (band, y, x)."""
    block: tuple[int, int]
    """Rows and columns of a block."""
    dtype: np.dtype[Any]
    """Stored type, native byte order."""
    stored: str
    """Stored type with byte order."""
    interleave: str
    """bsq, bil or bip."""
    header_offset: int
    """Bytes before the samples."""

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values."""
        try:
            cube = _unpacked(self, self.path.stat().st_mtime_ns)
        except (OSError, EOFError, ValueError) as error:
            raise unreadable(self.path, window, error) from error
        return cube[np.asarray(bands, dtype=np.intp)][:, *window].astype(self.dtype), None


@lru_cache(maxsize=2)
def _unpacked(samples: GzipSamples, _modified_ns: int) -> NDArray[Any]:
    n_bands, height, width = samples.shape
    size = n_bands * height * width * samples.dtype.itemsize
    with gzip.open(samples.path) as file:
        content = file.read(samples.header_offset + size)  # no more than declared, whatever the file unpacks to
    flat = np.frombuffer(content, samples.stored, offset=samples.header_offset)
    if samples.interleave == "bil":
        return flat.reshape(height, n_bands, width).transpose(1, 0, 2)
    if samples.interleave == "bip":
        return flat.reshape(height, width, n_bands).transpose(2, 0, 1)
    return flat.reshape(n_bands, height, width)


@contextmanager
def _dataset(path: Path, driver: Driver, inside: tuple[int, int] | None) -> Iterator[Any]:
    with rasterio.Env(**_options(driver)), rasterio.open(_address(path, inside), driver=driver) as dataset:
        yield dataset


@contextmanager
def _kept(path: Path, driver: Driver, inside: tuple[int, int] | None) -> Iterator[Any]:
    """The same dataset, left open for this thread's next read where that pays."""
    if driver != "JP2OpenJPEG":
        with _dataset(path, driver, inside) as dataset:
            yield dataset
        return
    opened: OrderedDict[Any, Any] = _OPENED.__dict__.setdefault("datasets", OrderedDict())
    key = (os.getpid(), path, inside, path.stat().st_mtime_ns)
    if key not in opened:
        with rasterio.Env(**_options(driver)):
            opened[key] = rasterio.open(_address(path, inside), driver=driver)
        while len(opened) > _MOST_OPEN:
            opened.popitem(last=False)[1].close()
    opened.move_to_end(key)
    yield opened[key]


def _options(driver: Driver) -> dict[str, str]:
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": _READDIR[driver],
        "GDAL_PAM_ENABLED": "NO",
        "GDAL_VRT_ENABLE_PYTHON": "NO",
    }


def _address(path: Path, inside: tuple[int, int] | None) -> str:
    """What GDAL opens; an absolute path is never taken for one of GDAL's or rasterio's address schemes."""
    absolute = os.path.abspath(path)  # noqa: PTH100
    return absolute if inside is None else f"/vsisubfile/{inside[0]}_{inside[1]},{absolute}"


def _describe(dataset: Any, path: Path, header: Path | None, inside: tuple[int, int] | None) -> Image:
    envi = dataset.tags(ns="ENVI")
    alpha = dataset.count > 1 and dataset.colorinterp[-1] == ColorInterp.alpha
    shape = (dataset.count - int(alpha), dataset.height, dataset.width)
    refuse_absurd(path, shape)
    dtype = np.dtype(dataset.dtypes[0])
    refuse_type(path, dtype)
    masked = alpha or MaskFlags.per_dataset in dataset.mask_flag_enums[0]
    block = (int(dataset.block_shapes[0][0]), int(dataset.block_shapes[0][1]))
    n_bands = shape[0]
    plain = RasterSamples(
        path=path, driver=dataset.driver, shape=shape, block=block, dtype=dtype, masked=masked, inside=inside
    )
    samples = plain if header is None else _envi_samples(plain, envi)
    scale = np.array(dataset.scales[:n_bands], dtype=np.float64)
    offset = np.array(dataset.offsets[:n_bands], dtype=np.float64)
    if (factor := _number(envi.get("reflectance_scale_factor"))) and np.all(scale == 1) and np.all(offset == 0):
        scale = scale / factor
    declared = bool(np.any(scale != 1) or np.any(offset != 0) or factor)
    tags = {key.lower(): value for key, value in dataset.tags().items()}
    names = dataset.descriptions[:n_bands]
    wkt = dataset.crs.to_wkt() if dataset.crs else None
    return Image(
        path=path,
        files=(path,) if header is None else (path, header),
        samples=samples,
        affine=None if dataset.transform.is_identity else dataset.transform,
        crs=wkt,
        table=_table(dataset, n_bands, path),
        names=tuple(names) if all(names) else None,
        nodata=tuple({float(v) for v in dataset.nodatavals[:n_bands] if v is not None}),
        scale=scale if declared else None,
        offset=offset if declared else None,
        measures="reflectance" if factor else " ".join(tags.get(k, "") for k in ("quantity", "long_name")),
        unit=dataset.units[0] or tags.get("units", "") or envi.get("data_units", ""),
        time=parse_time(
            tags.get("start_time"), tags.get("acquisition_time"), envi.get("acquisition_time", "").strip("{} "),
            dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"), tags.get("tifftag_datetime"),
        ),
    )  # fmt: skip


def _envi_samples(samples: RasterSamples, envi: dict[str, str]) -> RasterSamples | GzipSamples:
    """How an ENVI file is read, once its size is known to agree with its header."""
    offset = int(_number(envi.get("header_offset")) or 0)
    size = int(np.prod(samples.shape, dtype=np.int64)) * samples.dtype.itemsize
    packed = _start(samples.path)[:2] == b"\x1f\x8b"
    if not packed and (found := samples.path.stat().st_size) < offset + size:
        raise InputRejected(
            f"{samples.path}: has {found} bytes, its header declares {offset + size}; "
            "the file is truncated, fetch it again"
        )
    if not packed or size > GZIP_IN_MEMORY:
        return samples
    return GzipSamples(
        path=samples.path,
        shape=samples.shape,
        block=samples.block,
        dtype=samples.dtype,
        stored=samples.dtype.newbyteorder(">" if envi.get("byte_order") == "1" else "<").str,
        interleave=envi.get("interleave", "bsq").strip().lower(),
        header_offset=offset,
    )


def _envi_pair(path: Path) -> tuple[Path, Path]:
    if _start(path) != b"ENVI":
        header = envi_header(path)
        if header is None:
            raise InputRejected(f"{path}: no ENVI header {path.with_suffix('.hdr').name} beside it; put it there")
        return path, header
    stem = path.with_suffix("")
    data = next((p for s in _ENVI_SUFFIXES if (p := stem.with_name(stem.name + s)).is_file() and p != path), None)
    if data is None:
        raise InputRejected(
            f"{path}: this is an ENVI header without its data file; expected {stem} or {stem}.bsq beside it"
        )
    return data, path


def _table(dataset: Any, n_bands: int, path: Path) -> BandTable | None:
    """Wavelengths of the best source; widths and flags of the best source that has them, in the same unit."""
    bands = [{k.lower(): v for k, v in dataset.tags(i + 1).items()} for i in range(n_bands)]
    common = {k.lower(): v for k, v in dataset.tags().items()}
    envi = {
        k: [v.strip() for v in text.strip("{} \n").rstrip(",").split(",")]
        for k, text in dataset.tags(ns="ENVI").items()
    }
    unit = bands[0].get("wavelength_units") or common.get("wavelength_units")
    tables = [
        _candidate(path, [[b.get(key) for b in bands] for key in ("wavelength", "fwhm", "bbl")], unit),
        _candidate(
            path, [envi.get(key) for key in ("wavelength", "fwhm", "bbl")], envi.get("wavelength_units", [""])[0]
        ),
    ]
    if all(table is None or not table.wavelength for table in tables):
        # Last, because GDAL rounds its own IMAGERY domain to 1 nm.
        imagery = [dataset.tags(i + 1, ns="IMAGERY") for i in range(n_bands)]
        keys = ("CENTRAL_WAVELENGTH_UM", "FWHM_UM", "")
        tables.append(_candidate(path, [[b.get(key) for b in imagery] for key in keys], "um"))
    if all(table is None or not table.wavelength for table in tables):
        tables.append(_of_names(dataset.descriptions[:n_bands]))
    found = [table for table in tables if table is not None]
    best = next((table for table in found if table.wavelength), None)
    if best is None:
        return None
    for other in found:
        if best.fwhm is None and other.fwhm is not None:
            ours, theirs = nm_per(best.unit), nm_per(other.unit)
            if (best.unit or None) == (other.unit or None) or (ours and theirs):
                ratio = theirs / ours if ours and theirs else 1.0
                best = replace(best, fwhm=tuple(v * ratio for v in other.fwhm))
        if best.good is None:
            best = replace(best, good=other.good)
    return best


def _of_names(names: Sequence[str | None]) -> BandTable | None:
    """Wavelengths that every band's name carries with their unit, such as `Band 3 (0.56 um)` and `665 nm`."""
    matches = [_WAVELENGTH_IN_NAME.findall(name or "") for name in names]
    if not all(len(found) == 1 for found in matches):
        return None
    center_nm = [float(value) * (nm_per(unit) or np.nan) for ((value, unit),) in matches]
    return BandTable(wavelength=tuple(center_nm), fwhm=None, good=None, unit="nm")


def _candidate(path: Path, columns: Sequence[Sequence[str | None] | None], unit: str | None) -> BandTable | None:
    """A table of what one source has; missing columns are empty or None."""
    try:
        center, width, flag = (
            None if column is None or not any(column) else tuple(float(v) if v else np.nan for v in column)
            for column in columns
        )
    except ValueError as error:
        raise InputRejected(
            f"{path}: {error} among wavelength, fwhm or bbl; correct the header or give a table"
        ) from error
    if center is None and width is None and flag is None:
        return None
    good = None if flag is None else tuple(v != 0 for v in flag)
    return BandTable(wavelength=center or (), fwhm=width, good=good, unit=unit or None)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""
