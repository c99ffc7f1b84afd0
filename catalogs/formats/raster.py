"""GeoTIFF, ENVI and JPEG 2000 files through GDAL, one explicit driver each; whole files, or parts of an archive."""

from __future__ import annotations

import gzip
import os
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
from rasterio._err import CPLE_BaseError  # no RasterioError, and raised all the same
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.declared import (
    Aux,
    band_table,
    ignored,
    lower,
    mask_file,
    number,
    physical_scale,
    read_aux,
    world_file,
)
from hyperfuse.catalogs.formats.files import kind_of
from hyperfuse.catalogs.formats.layers import Layer, MaskedSamples, Rule
from hyperfuse.catalogs.formats.packages import Member
from hyperfuse.catalogs.formats.stored import Image, Samples, refuse_absurd, refuse_type, unreadable
from hyperfuse.catalogs.formats.tiff import unwritten_blocks
from hyperfuse.catalogs.scene import Window
from hyperfuse.catalogs.times import parse_time

Driver = Literal["GTiff", "ENVI", "JP2OpenJPEG"]

GZIP_IN_MEMORY = 256 << 20
"""Compressed ENVI files up to this many bytes, uncompressed, are held in memory; larger ones go through GDAL."""

_MOST_OPEN = 24
"""Files that a thread keeps open: the bands of one product and its masks."""
_OPENED = threading.local()

# Masks and images with a world file have no georeference of their own, and rasterio warns at each read of them; an image
# that has none at all is refused when it is opened.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

_ALPHA_LOOK_PX = 128
"""Edge of the nine windows in which a band that is tagged as alpha is looked at."""
_ALPHA_BETWEEN = 0.02
"""Share of samples between 0 and the largest that a mask may have: blurred edges of a footprint."""
_START = 32
"""Bytes by which an image, or what lies in its place, is told."""
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JP2_MAGIC = (b"\0\0\0\x0c", b"\xff\x4f\xff\x51")
_ENVI_SUFFIXES = ("", ".bsq", ".bil", ".bip", ".img", ".dat", ".raw", ".bin", ".envi")
# No listing of the folder: GDAL opens no neighbor, because a neighbor may name any other file; `sidecars` reads those
# that count. ENVI is found by its .hdr neighbor, which GDAL 3.10 misses under EMPTY_DIR.
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
    """The ENVI header of a data file, None if there is none; of several the one that GDAL reads."""
    names = [path.with_name(path.name + s) for s in (".hdr", ".HDR")] + [path.with_suffix(s) for s in (".hdr", ".HDR")]
    return next((p for p in names if p != path and _start(p) == b"ENVI"), None)


def marked_header(path: Path) -> Path | None:
    """A header beside a data file that begins with a byte order mark, behind which GDAL finds no ENVI."""
    names = [path.with_name(path.name + s) for s in (".hdr", ".HDR")] + [path.with_suffix(s) for s in (".hdr", ".HDR")]
    return next((p for p in names if p != path and _start(p) == b"\xef\xbb\xbfE"), None)


def open_member(member: Member) -> Image:
    """An image of a product, told by its first bytes; the product's metadata count, not what lies beside its images.

    Raises
    ------
    InputRejected
        If it is neither GeoTIFF nor JPEG 2000, nor, in a folder, ENVI; or as `open_raster`.
    """
    with member.holder.open("rb") as file:
        file.seek(member.offset)
        start = file.read(min(_START, member.size))
    whole = member.offset == 0 and member.size == member.holder.stat().st_size
    if start[:4] in _TIFF_MAGIC or start[:4] in _JP2_MAGIC:
        driver: Driver = "GTiff" if start[:4] in _TIFF_MAGIC else "JP2OpenJPEG"
        return open_raster(member.holder, driver, inside=None if whole else (member.offset, member.size), beside=False)
    if whole and envi_header(member.holder):
        return open_raster(member.holder, "ENVI", beside=False)
    raise InputRejected(
        f"{member.label}: is {kind_of(start)}, expected GeoTIFF or JPEG 2000, or ENVI in a folder; "
        "fetch the product again, and unpack it if its images are ENVI files"
    )


def open_raster(
    path: Path,
    driver: Driver,
    *,
    inside: tuple[int, int] | None = None,
    n_bands: int | None = None,
    beside: bool = True,
) -> Image:
    """A raster file with what lies `beside` it; of an ENVI file the data or the header may be named.

    `inside` is the first byte and the size of a file that an archive stores as it is. `n_bands` is the number of bands
    that the user describes: it tells whether a last band that is tagged as alpha is one of them.

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
                aux = read_aux(path) if beside and inside is None else Aux()
                image = _describe(dataset, path, header, inside, aux=aux, told_bands=n_bands)
                return replace(_beside(image) if beside and inside is None else image, unwritten=unwritten)
    except (RasterioError, CPLE_BaseError, OSError) as error:
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
        except (RasterioError, CPLE_BaseError, OSError) as error:
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


def _describe(
    dataset: Any, path: Path, header: Path | None, inside: tuple[int, int] | None, *, aux: Aux, told_bands: int | None
) -> Image:
    envi = {**lower(dataset.tags(ns="ENVI")), **aux.tags.get("ENVI", {})}
    tagged = dataset.count > 1 and dataset.colorinterp[-1] == ColorInterp.alpha
    alpha = tagged and _is_mask(dataset, told_bands)
    shape = (dataset.count - int(alpha), dataset.height, dataset.width)
    refuse_absurd(path, shape)
    dtype = np.dtype(dataset.dtypes[0])
    refuse_type(path, dtype)
    # A band of samples that is tagged as alpha is no mask of the others, though GDAL takes it for one.
    masked = alpha or (MaskFlags.per_dataset in dataset.mask_flag_enums[0] and not tagged)
    block = (int(dataset.block_shapes[0][0]), int(dataset.block_shapes[0][1]))
    n_bands = shape[0]
    plain = RasterSamples(
        path=path, driver=dataset.driver, shape=shape, block=block, dtype=dtype, masked=masked, inside=inside
    )
    samples = plain if header is None else _envi_samples(plain, envi)
    physical = physical_scale(dataset, envi, aux, n_bands, path)
    tags = {**lower(dataset.tags()), **aux.tags.get("", {})}
    names = [aux.band(i).name or name for i, name in enumerate(dataset.descriptions[:n_bands])]
    own_affine = None if dataset.transform.is_identity else dataset.transform
    # GDAL reads the coordinate system string of an ENVI header only beside a map info that says where it is.
    own_crs = dataset.crs.to_wkt() if dataset.crs else envi.get("coordinate_system_string", "").strip("{} \n") or None
    # GDAL: what lies beside a GeoTIFF overrules it, an ENVI header overrules what lies beside it.
    envi_first = header is not None
    affine = own_affine or aux.affine if envi_first else aux.affine or own_affine
    notes = list(physical.notes)
    if tagged and not alpha:
        notes.append(f"band {dataset.count} is tagged as alpha but holds samples: taken for a band, not for a mask")
    nodata = [
        own if (own := aux.band(i).nodata) is not None else value
        for i, value in enumerate(dataset.nodatavals[:n_bands])
    ]
    return Image(
        path=path,
        files=(path, *((header,) if header else ()), *aux.files),
        samples=samples,
        affine=affine,
        crs=own_crs or aux.crs if envi_first else aux.crs or own_crs,
        table=band_table(dataset, n_bands, path, aux),
        names=tuple(str(name) for name in names) if all(names) else None,
        nodata=tuple(dict.fromkeys(float(v) for v in nodata if v is not None)) or ignored(envi),
        scale=physical.scale,
        offset=physical.offset,
        measures=physical.measures or " ".join(tags.get(k, "") for k in ("quantity", "long_name")),
        unit=aux.band(0).unit or dataset.units[0] or tags.get("units", "") or envi.get("data_units", ""),
        time=parse_time(
            tags.get("start_time"), tags.get("acquisition_time"), envi.get("acquisition_time", "").strip("{} "),
            dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"), tags.get("tifftag_datetime"),
        ),
        notes=tuple(notes),
    )  # fmt: skip


def _is_mask(dataset: Any, told_bands: int | None) -> bool:
    """Whether the last band, tagged as alpha, is one: GDAL tags the fourth band of an 8-bit image so by default.

    What has a wavelength is a band. Without one its samples tell: a mask has 0 and its largest value, or next to
    nothing else; the reflectance of the ground has all values between.
    """
    if told_bands in (dataset.count, dataset.count - 1):
        return bool(told_bands != dataset.count)
    last = dataset.count
    own = {**lower(dataset.tags(last)), **lower(dataset.tags(last, ns="IMAGERY"))}
    if own.get("wavelength") or own.get("central_wavelength_um"):
        return False
    size = _ALPHA_LOOK_PX
    parts = [
        dataset.read(last, window=RasterWindow.from_slices((row, row + size), (col, col + size), boundless=False))
        for row in {0, max(0, (dataset.height - size) // 2), max(0, dataset.height - size)}
        for col in {0, max(0, (dataset.width - size) // 2), max(0, dataset.width - size)}
    ]
    values = np.concatenate([part.ravel() for part in parts])
    between = (values > 0) & (values < values.max())
    return bool(between.mean() < _ALPHA_BETWEEN)


def _beside(image: Image) -> Image:
    """The image with the world file and the mask `IMAGE.msk` that GDAL's tools write beside it; 0 is no data there."""
    if image.affine is None and (world := world_file(image.path)) is not None:
        image = replace(image, affine=world[0], files=(*image.files, world[1]))
    path = mask_file(image.path)
    if path is None:
        return image
    if _start(path) not in _TIFF_MAGIC:
        raise InputRejected(f"{path}: is no GeoTIFF, expected the mask of {image.path.name}; correct or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with _dataset(path, "GTiff", None) as dataset:
                shape = (dataset.count, dataset.height, dataset.width)
                dtype = np.dtype(dataset.dtypes[0])
                block = (int(dataset.block_shapes[0][0]), int(dataset.block_shapes[0][1]))
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise InputRejected(f"{path}: GDAL cannot open it as GTiff ({error}); correct or remove it") from error
    n_bands, *size = image.samples.shape
    if shape[1:] != tuple(size) or shape[0] not in (1, n_bands) or dtype != np.uint8:
        raise InputRejected(
            f"{path}: has {shape[0]} x {shape[1]} x {shape[2]} samples of {dtype}, expected the mask of 1 or {n_bands} x "
            f"{size[0]} x {size[1]} bytes; correct or remove it"
        )
    mask = RasterSamples(path=path, driver="GTiff", shape=shape, block=block, dtype=dtype, masked=False)
    samples: Samples = (
        MaskedSamples(samples=image.samples, rules=(Rule(layer=Layer(samples=mask), values=(0,)),))
        if shape[0] == 1
        else MaskedSamples(samples=image.samples, band_masks=mask, good_codes=tuple(range(1, 256)))
    )
    return replace(
        image, samples=samples, files=(*image.files, path), notes=(*image.notes, f"{path.name}: 0 is no data")
    )


def _envi_samples(samples: RasterSamples, envi: dict[str, str]) -> RasterSamples | GzipSamples:
    """How an ENVI file is read, once its size is known to agree with its header."""
    offset = int(number(envi.get("header_offset")) or 0)
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
        stored=samples.dtype.newbyteorder(">" if envi.get("byte_order", "").strip() == "1" else "<").str,
        interleave=envi.get("interleave", "bsq").strip().lower(),
        header_offset=offset,
    )


def _envi_pair(path: Path) -> tuple[Path, Path]:
    """Data file and the header that GDAL reads for it."""
    if _start(path) != b"ENVI":
        header = envi_header(path)
        if header is None:
            raise InputRejected(f"{path}: no ENVI header {path.with_suffix('.hdr').name} beside it; put it there")
        return path, header
    stem = path.with_suffix("")
    found = [p for s in _ENVI_SUFFIXES if (p := stem.with_name(stem.name + s)).is_file() and p != path]
    if not found:
        raise InputRejected(
            f"{path}: this is an ENVI header without its data file; expected {stem} or {stem}.bsq beside it"
        )
    if len(found) > 1:
        told = ", ".join(p.name for p in found)
        raise InputRejected(f"{path}: this header may belong to any of {told}; name the data file")
    if (used := envi_header(found[0])) != path:
        raise InputRejected(
            f"{path}: {found[0].name} is read with {used and used.name}; name the data file, or remove one"
        )
    return found[0], path


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""
