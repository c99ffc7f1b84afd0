"""Any georeferenced image cube: GeoTIFF and COG, JPEG 2000, ENVI, NetCDF, Zarr.

It may be a glob of tiles on one lattice, or have its bands apart: in variables, or in files of one band each that a pattern
names (`scene_{band}.tif`).

Files are told apart by their first bytes, never by their names. What a file does not declare is assumed where that is
safe, and every assumption is a note of the scene; the rest is asked of the user.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import CRSError

from hyperfuse.catalogs.addresses import as_glob, is_pattern
from hyperfuse.catalogs.bands import Bands, BandTable, read_table, widths_in_unit, without_wavelength
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.arrays import array_kind
from hyperfuse.catalogs.formats.files import kind_of
from hyperfuse.catalogs.formats.layers import FilledSamples
from hyperfuse.catalogs.formats.packages import is_debris, open_package
from hyperfuse.catalogs.formats.raster import envi_header, marked_header, open_raster, raster_driver
from hyperfuse.catalogs.formats.signal import Fill, undeclared_fill, without_signal
from hyperfuse.catalogs.formats.stored import (
    Image,
    MosaicCube,
    StoredCube,
    as_stored,
    digest,
    refuse_absurd,
    sample,
    sample_lines,
)
from hyperfuse.catalogs.scene import Quantity, Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.sensors._band_stack import open_files, open_variables
from hyperfuse.catalogs.sensors._lacking import refuse_lacking
from hyperfuse.catalogs.sensors._resembled import resembled

SENSOR = Sensor(title="Any GeoTIFF, ENVI, NetCDF or Zarr with wavelengths and a CRS")

LATTICE_TOLERANCE_PX = 0.01
"""Tiles whose corners are farther off a common lattice are not mosaicked, because nothing here resamples."""
_SIDECARS = {
    ".hdr",
    ".xml",
    ".properties",
    ".ovr",
    ".msk",
    ".txt",
    ".json",
    ".enp",
    ".prj",
    ".tfw",
    ".md",
    ".csv",
    ".png",
}
_SENTINELS = (-9999.0, -32768.0, -32767.0, -999.0, -99.0, 65535.0)


def accepts(uri: str) -> bool:
    """Whether the address is a file, folder or glob that this module opens; looks at first bytes only."""
    path = Path(uri)
    if path.exists():
        return array_kind(path) is not None or (path.is_file() and raster_driver(path) is not None)
    return any(raster_driver(p) is not None for p in _matches(as_glob(uri)))


def open_scene(source: Source) -> Scene:
    """Open an image, or the mosaic of the tiles that match a glob.

    Raises
    ------
    InputRejected
        If the file is not one of the formats or is damaged, has no CRS, georeference or wavelengths and the user gives
        none, or the tiles do not fit together.
    UsageError
        If masks or bands are chosen, which only products have.
    """
    for setting in ("mask", "bands"):
        if getattr(source, setting) is not None:
            raise UsageError(f"{source.uri}: an image without a product has no {setting} to choose; drop the setting")
    images = _images(source)
    name = _name(source.uri, images)
    for image in images:
        refuse_lacking(image, source)
    bands, band_notes = _bands(images, source, name)
    geobox, corners, flip = _place(images, source, name)
    sparse_notes = _refuse_unwritten(images, source)
    fill = _fill(images, bands, source, geobox, corners, flip=flip)
    if fill is not None:
        probes = tuple(int(bands.source_band[band]) for band in fill.probes)
        images = [
            replace(image, samples=FilledSamples(samples=image.samples, fills=tuple(fill.shares), probes=probes))
            for image in images
        ]
    values, whole = sample(_cube(images, bands, source, geobox, corners, flip=flip, guess=1.0))
    meaning = _meaning(images, source, values[bands.good])
    dead, dead_notes = without_signal(values, bands, whole=whole, of=source.uri)
    times = [image.time for image in images if image.time is not None]
    return Scene(
        name=name,
        uri=source.uri,
        sensor="generic",
        cube=_cube(images, bands, source, geobox, corners, flip=flip, guess=meaning.scale),
        bands=bands.mark_bad(dead),
        geobox=geobox,
        quantity=meaning.quantity,
        unit=meaning.unit,
        time=min(times, default=None),
        digest=digest(path for image in images for path in image.files),
        notes=(
            *dict.fromkeys(note for image in images for note in image.notes),
            *band_notes,
            *sparse_notes,
            *_unreachable_notes(images),
            *(() if fill is None else fill.notes),
            *meaning.notes,
            *dead_notes,
            *_sentinel_notes(images, source, values),
        ),
    )


def _images(source: Source) -> list[Image]:
    path = Path(source.uri)
    if path.exists():
        if (kind := array_kind(path)) is not None:
            return [open_variables(path, kind, source.variable)]
        return [_raster(path, _told_bands(source))]
    if "://" in source.uri:
        raise InputRejected(f"{source.uri}: lies on a server, expected a path on this machine; fetch the product first")
    if is_pattern(source.uri):
        return [open_files(source.uri, source.variable)]
    matches = _matches(source.uri)
    # Headers and other companions match a glob as well; anything else that is no image is a damaged tile.
    headers = {envi_header(p) for p in matches if raster_driver(p) == "ENVI"}
    tiles = [p for p in matches if p not in headers and (raster_driver(p) or p.suffix.lower() not in _SIDECARS)]
    if not tiles:
        raise InputRejected(f"{source.uri}: no such file, and no image matches it; check the path")
    return [_raster(p, _told_bands(source)) for p in tiles]


def _told_bands(source: Source) -> int | None:
    return None if source.wavelengths is None else len(read_table(source.wavelengths).wavelength)


def _raster(path: Path, n_bands: int | None) -> Image:
    if path.is_dir():
        raise InputRejected(f"{path}: {resembled(path)}")
    if (driver := raster_driver(path)) is not None:
        return open_raster(path, driver, n_bands=n_bands)
    if (package := open_package(str(path))) is not None and package.kind != "folder":
        held = ", ".join(m.name for m in package.members[:5]) + " ..." * (len(package.members) > 5)
        raise InputRejected(
            f"{path}: an archive with no product that a reader knows (it holds {held or 'nothing'}); unpack it and name "
            "its image, or unpack an archive inside it first"
        )
    if (header := marked_header(path)) is not None:
        raise InputRejected(f"{header}: begins with a byte order mark, expected ENVI; save it as UTF-8 without one")
    with path.open("rb") as file:
        start = file.read(32)
    raise InputRejected(
        f"{path}: is {kind_of(start)}, expected GeoTIFF, JPEG 2000, ENVI with its .hdr beside it, NetCDF or Zarr; convert or fetch it again"
    )


def _matches(uri: str) -> list[Path]:
    if not glob.has_magic(uri):
        return []
    return sorted(p for p in map(Path, glob.glob(uri)) if p.is_file() and not is_debris(p.name))  # noqa: PTH207


def _name(uri: str, images: Sequence[Image]) -> str:
    if len(images) == 1:
        return images[0].path.stem or images[0].path.name
    first, last = images[0].path.stem, images[-1].path.stem  # sorted, so what these two share all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    common = first[:same].rstrip("_-. 0123456789")
    return common or Path(uri).parent.name or "mosaic"


def _bands(images: Sequence[Image], source: Source, name: str) -> tuple[Bands, tuple[str, ...]]:
    """Bands of the user's table or of the files, which must agree, and what had to be decided on them."""
    if source.wavelengths is not None:
        tables = [read_table(source.wavelengths)] * len(images)
    else:
        # `refuse_lacking` has seen that there are some.
        tables = [image.table for image in images if image.table is not None]
    found: list[Bands] = []
    notes: list[str] = []
    for image, told in zip(images, tables, strict=True):
        table, mended = widths_in_unit(told, image.path.name)
        notes += mended
        n_bands = image.samples.shape[0]
        if len(table.wavelength) != n_bands:
            raise InputRejected(
                f"{image.path}: has {n_bands} bands, but {source.wavelengths or 'its header'} gives "
                f"{len(table.wavelength)} wavelengths; one per band is expected, in file order"
            )
        empty = without_wavelength(table)
        if empty.any():
            listed = ", ".join(str(band + 1) for band in np.flatnonzero(empty)[:20]) + " ..." * bool(empty.sum() > 20)
            notes.append(f"{image.path.name}: {int(empty.sum())} bands have no wavelength and are left out: {listed}")
        found.append(_sorted(table, np.flatnonzero(~empty), image, name))
    first = found[0]
    for image, other in zip(images, found, strict=True):
        if len(other) != len(first) or not np.allclose(other.center_nm, first.center_nm, rtol=0, atol=0.01):
            raise InputRejected(
                f"{image.path}: its {len(other)} bands differ from the {len(first)} of {images[0].path}; "
                "tiles of one mosaic must have the same wavelengths"
            )
        if not np.array_equal(other.source_band, first.source_band):
            raise InputRejected(f"{image.path}: its bands are in another order than those of {images[0].path}")
        first = first.mark_bad(~other.good)
    return first, tuple(dict.fromkeys(notes))


def _sorted(table: BandTable, kept: NDArray[np.intp], image: Image, name: str) -> Bands:
    """Some bands of a table, by wavelength; `source_band` counts those of the file."""

    def picked(column: Sequence[Any] | None) -> list[Any] | None:
        # A column of another length is refused by `Bands.sort`.
        return None if column is None else [column[i] for i in kept] if len(column) == n_bands else list(column)

    n_bands = len(table.wavelength)
    bands = Bands.sort(
        picked(table.wavelength) or [],
        unit=table.unit,
        of=name,
        fwhm=picked(table.fwhm),
        good=picked(table.good),
        names=picked(image.names),
    )
    return replace(bands, source_band=kept[bands.source_band].astype(np.int64))


def _place(images: Sequence[Image], source: Source, name: str) -> tuple[GeoBox, list[tuple[int, int]], bool]:
    """The common grid, the corner (row, column) of each image on it, and whether stored rows run north."""
    crs = _crs(images[0], source)
    first, flip = _north_up(images[0])
    if crs.is_geographic:
        first = _turned(first, images[0], 0.0)
    middle = _middle(first, images[0])
    places = []
    for image in images:
        affine, flipped = _north_up(image)
        if crs.is_geographic:
            affine = _turned(affine, image, middle)
        if _crs(image, source) != crs:
            raise InputRejected(
                f"{image.path}: CRS differs from that of {images[0].path}; reproject the tiles to one CRS"
            )
        col, row = ~first @ (affine.c, affine.f)
        _, height, width = image.samples.shape
        far = ~first @ (affine @ (width, height))
        # Compared at the far corner, so that pixel sizes that differ a little do not add up unseen.
        off = max(
            abs(col - round(col)),
            abs(row - round(row)),
            abs(far[0] - round(col) - width),
            abs(far[1] - round(row) - height),
        )
        if off > LATTICE_TOLERANCE_PX or flipped != flip:
            raise InputRejected(
                f"{image.path}: lies {off:.3f} px off the lattice of {images[0].path}, or its rows run the other way; "
                "tiles of one mosaic must share pixel size and lattice, resample them first"
            )
        places.append((round(row), round(col), height, width))
    top, left = min(p[0] for p in places), min(p[1] for p in places)
    shape = (max(p[0] + p[2] for p in places) - top, max(p[1] + p[3] for p in places) - left)
    refuse_absurd(Path(name), (1, *shape))
    geobox = GeoBox(
        shape, first @ Affine.translation(left, top), crs.to_wkt() if crs.to_epsg() is None else f"EPSG:{crs.to_epsg()}"
    )
    return geobox, [(p[0] - top, p[1] - left) for p in places], flip


def _middle(affine: Affine, image: Image) -> float:
    """X coordinate of the center of an image."""
    _, height, width = image.samples.shape
    return float((affine @ (width / 2, height / 2))[0])


def _turned(affine: Affine, image: Image, near: float) -> Affine:
    """A grid in degrees with its center within half a turn of a longitude: files also count from 0 to 360."""
    turns = round((_middle(affine, image) - near) / 360.0)
    return affine if turns == 0 else Affine.translation(-360.0 * turns, 0) @ affine


def _crs(image: Image, source: Source) -> CRS:
    text = source.crs or image.crs or ""
    advice = "give one with --set hsi.crs=EPSG:... or --set msi.crs=EPSG:..."
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise InputRejected(f"{image.path}: {text[:60]!r} is not a CRS that PROJ knows; {advice}") from error
    if not (crs.is_projected or crs.is_geographic):
        raise InputRejected(f"{image.path}: CRS {crs.name!r} is neither projected nor geographic; {advice}")
    return crs


def _north_up(image: Image) -> tuple[Affine, bool]:
    """The matrix with rows from north to south, and whether the stored rows have to be flipped for it."""
    affine = image.affine
    if affine is None or affine.determinant == 0 or not np.all(np.isfinite(affine[:6])):
        raise InputRejected(
            f"{image.path}: its georeference has no pixel size or corner; georeference it first, for example with gdalwarp"
        )
    if affine.b == 0 and affine.d == 0 and affine.e > 0:
        return affine @ Affine(1, 0, 0, 0, -1, image.samples.shape[1]), True
    return affine, False


def _refuse_unwritten(images: Sequence[Image], source: Source) -> tuple[str, ...]:
    """Blocks that were never written are no data if the file has a value for that; else they would be read as zeros."""
    notes = []
    for image in images:
        if image.unwritten and not image.nodata and source.nodata is None:
            raise InputRejected(
                f"{image.path}: {100 * image.unwritten:.1f} % of its blocks were never written and no nodata value is "
                "declared; fetch the file again, or give hsi.nodata or msi.nodata if it is meant so"
            )
        if image.unwritten:
            notes.append(f"{image.path.name}: {100 * image.unwritten:.1f} % of the blocks were never written: no data")
    return tuple(notes)


def _fill(
    images: Sequence[Image],
    bands: Bands,
    source: Source,
    geobox: GeoBox,
    corners: list[tuple[int, int]],
    *,
    flip: bool,
) -> Fill | None:
    """Undeclared fill, looked for among the samples as they are stored."""
    if source.fill == "keep":
        return None
    plain = [replace(image, scale=None, offset=None) for image in images]
    cube = _cube(plain, bands, replace(source, scale=None, offset=None), geobox, corners, flip=flip, guess=1.0)
    raw, whole = sample(cube)
    return undeclared_fill(
        raw, bands, images[0].samples.dtype, lambda picked: raw[:, :0] if whole else sample_lines(cube, picked)
    )


def _unreachable_notes(images: Sequence[Image]) -> tuple[str, ...]:
    """A warning where the declared nodata value is one that no sample of that type can have."""
    return tuple(
        dict.fromkeys(
            f"{image.path.name}: declares nodata {value:g}, which {image.samples.dtype} samples cannot be; "
            "give hsi.nodata or msi.nodata"
            for image in images
            for value in image.nodata
            if math.isfinite(value) and as_stored(value, image.samples.dtype) is None
        )
    )


def _cube(
    images: Sequence[Image],
    bands: Bands,
    source: Source,
    geobox: GeoBox,
    corners: list[tuple[int, int]],
    *,
    flip: bool,
    guess: float,
) -> StoredCube | MosaicCube:
    """The lazy cube; `guess` is the scale where neither the user nor the file tells."""
    cubes = []
    for image in images:
        n_bands = image.samples.shape[0]
        scale = np.full(n_bands, guess) if image.scale is None else image.scale
        offset = np.zeros(n_bands) if image.offset is None else image.offset
        cubes.append(
            StoredCube(
                samples=image.samples,
                order=tuple(int(b) for b in bands.source_band),
                scale=scale if source.scale is None else np.full(n_bands, source.scale),
                offset=offset if source.offset is None else np.full(n_bands, source.offset),
                nodata=image.nodata if source.nodata is None else (source.nodata,),
                valid_range=image.valid_range,
                flip=flip,
            )
        )
    if len(cubes) == 1:
        return cubes[0]
    tiles = tuple((cube, row, col) for cube, (row, col) in zip(cubes, corners, strict=True))
    return MosaicCube(tiles=tiles, shape=(len(bands), *geobox.shape))


@dataclass(frozen=True, kw_only=True)
class _Meaning:
    """What the samples measure, and how it was found out."""

    quantity: Quantity
    unit: str
    scale: float = 1.0
    notes: tuple[str, ...] = ()


def _meaning(images: Sequence[Image], source: Source, values: NDArray[np.float32]) -> _Meaning:
    """Quantity, unit and undeclared scale, from what is declared first and from the size of the values last."""
    image = images[0]
    if any((i.scale is None) != (image.scale is None) for i in images) and source.scale is None:
        raise InputRejected(
            f"{source.uri}: some tiles declare a scale and others do not; give one for all with hsi.scale or msi.scale"
        )
    finite = values[np.isfinite(values)]
    high = float(np.percentile(finite[:: max(1, finite.size // 1_000_000)], 99)) if finite.size else 0.0
    words = f"{image.measures} {image.unit}".lower()
    told: Quantity | None = source.quantity or next((q for q in ("reflectance", "radiance") if q in words), None)
    declared = image.scale is not None or source.scale is not None
    counts = image.samples.dtype.kind in "ui" and not declared
    overrule = "give hsi.scale or msi.scale to overrule"
    if counts and told in (None, "reflectance") and image.samples.dtype.itemsize >= 2 and 50 <= high <= 30000:
        note = f"scale not declared: integer samples up to {high:.0f} taken for reflectance x 10000; {overrule}"
        return _Meaning(quantity="reflectance", unit="1", scale=1e-4, notes=(note,))
    if told is not None:
        unit = {"reflectance": "1", "digital_number": "DN"}.get(told, image.unit or "unknown")
        wild = told == "reflectance" and high > 2
        note = f"samples up to {high:.4g} are large for reflectance; give hsi.scale or msi.scale if they are scaled"
        return _Meaning(quantity=told, unit=unit, notes=(note,) if wild else ())
    if counts:
        note = f"scale not declared: {image.samples.dtype} samples up to {high:.0f} kept as digital numbers; {overrule}"
        return _Meaning(quantity="digital_number", unit="DN", notes=(note,))
    if high <= 2:
        note = (
            f"quantity not declared: samples up to {high:.3g} taken for reflectance; give hsi.quantity or msi.quantity"
        )
        return _Meaning(quantity="reflectance", unit="1", notes=(note,))
    note = f"quantity not declared: samples up to {high:.4g} taken for radiance; give hsi.scale or hsi.quantity (msi.)"
    return _Meaning(quantity="radiance", unit=image.unit or "unknown", notes=(note,))


def _sentinel_notes(images: Sequence[Image], source: Source, values: NDArray[np.float32]) -> tuple[str, ...]:
    """A warning where no nodata value is declared and one of the usual ones fills part of the image."""
    if (
        source.nodata is not None
        or any(image.nodata for image in images)
        or images[0].scale is not None
        or source.scale is not None
    ):
        return ()
    shares = {value: float(np.mean(values == value)) for value in _SENTINELS}
    return tuple(
        f"{100 * share:.1f} % of the samples are {value:g}, no nodata value is declared; give hsi.nodata or msi.nodata"
        for value, share in shares.items()
        if share > 0.001
    )
