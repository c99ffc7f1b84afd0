"""From what a product reader found to a `Scene`: the checks and the constants that all products share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.layers import FilledSamples
from hyperfuse.catalogs.formats.signal import Fill, undeclared_fill, without_signal
from hyperfuse.catalogs.formats.stored import Samples, StoredCube, digest, refuse_absurd, sample, sample_lines
from hyperfuse.catalogs.scene import Conditions, Quantity, Scene
from hyperfuse.catalogs.sensors import Source

CORNER_TOLERANCE_PX = 0.1
"""A grid that lies farther off the corners in the product's metadata is refused: half a pixel is the usual mistake."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """What a reader understood of a product; bands in file order."""

    sensor: str
    """Name of the reader."""
    name: str
    """Name of the product."""
    samples: Samples
    """Stored values."""
    affine: Affine
    """Pixel-to-world matrix, rows from north to south, pixel is area."""
    crs: str
    """CRS as an authority code or WKT."""
    wavelength_nm: ArrayLike
    """Band centers (nm), shape (band,)."""
    fwhm_nm: ArrayLike | None
    """Band widths (nm), shape (band,); None if unknown."""
    scale: ArrayLike
    """Factor from stored to physical values, one or one per band."""
    offset: ArrayLike
    """Physical value of stored 0, one or one per band."""
    quantity: Quantity
    """What the samples measure."""
    unit: str
    """Unit of the physical values."""
    time: datetime | None
    """Acquisition, UTC."""
    files: tuple[Path, ...]
    """Files that were looked at, for the digest."""
    names: tuple[str, ...] | None = None
    """Band names."""
    gsd_m: ArrayLike | None = None
    """Native sampling distance (m) of each band where they differ; a coarser band comes as blocks of equal pixels."""
    nodata: tuple[float, ...] = ()
    """Stored values that mean no data."""
    good: NDArray[np.bool_] | None = None
    """Bands that the product itself calls good, shape (band,)."""
    look_for_dead: bool = True
    """Whether samples are looked at for bands without signal: a broad band of a multispectral sensor is never dead."""
    conditions: Conditions = field(default=Conditions())
    """Cloud, sun and view by the metadata."""
    notes: tuple[str, ...] = ()
    """What had to be decided."""


def scene_of(product: Product, source: Source) -> Scene:
    """The scene of a product.

    Raises
    ------
    InputRejected
        If its CRS is unknown, its size absurd, or it holds nothing but fill.
    """
    n_bands, height, width = product.samples.shape
    refuse_absurd(Path(source.uri), product.samples.shape)
    bands = Bands.sort(
        product.wavelength_nm,
        unit="nm",
        of=product.name,
        fwhm=product.fwhm_nm,
        good=product.good,
        names=product.names,
        gsd_m=product.gsd_m,
    )
    try:
        crs = CRS.from_user_input(product.crs)
    except CRSError as error:
        raise InputRejected(f"{source.uri}: {product.crs[:60]!r} is not a CRS that PROJ knows") from error
    cube = StoredCube(
        samples=product.samples,
        order=tuple(int(band) for band in bands.source_band),
        scale=np.broadcast_to(np.asarray(product.scale, np.float64), n_bands),
        offset=np.broadcast_to(np.asarray(product.offset, np.float64), n_bands),
        nodata=product.nodata,
        flip=False,
    )
    notes = product.notes
    if product.good is not None and not product.good.all():
        notes = (*notes, f"{int((~product.good).sum())} of {n_bands} bands carry no signal, by the product's metadata")
    if product.look_for_dead:
        if (fill := _fill(cube, bands, source)) is not None:
            probes = tuple(cube.order[band] for band in fill.probes)
            cube = replace(cube, samples=FilledSamples(samples=cube.samples, fills=tuple(fill.shares), probes=probes))
            notes = (*notes, *fill.notes)
        values, whole = sample(cube)
        dead, told = without_signal(values, bands, whole=whole, of=source.uri)
        bands, notes = bands.mark_bad(dead), (*notes, *told)
    return Scene(
        name=product.name,
        uri=source.uri,
        sensor=product.sensor,
        cube=cube,
        bands=bands,
        geobox=GeoBox((height, width), product.affine, f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else crs.to_wkt()),
        quantity=product.quantity,
        unit=product.unit,
        time=product.time,
        digest=digest(product.files),
        conditions=product.conditions,
        notes=notes,
    )


def _fill(cube: StoredCube, bands: Bands, source: Source) -> Fill | None:
    """Undeclared fill, looked for among the samples as they are stored."""
    if source.fill == "keep":
        return None
    plain = replace(cube, scale=np.ones_like(cube.scale), offset=np.zeros_like(cube.offset))
    raw, whole = sample(plain)
    return undeclared_fill(
        raw, bands, cube.samples.dtype, lambda picked: raw[:, :0] if whole else sample_lines(plain, picked)
    )


def refuse_overrides(source: Source, *allowed: str) -> None:
    """Refuse settings that would replace what a product tells of itself.

    Raises
    ------
    UsageError
        If one is given that the reader does not take.
    """
    own = ("crs", "wavelengths", "scale", "offset", "nodata", "quantity", "variable", "mask", "bands")
    if given := [name for name in own if name not in allowed and getattr(source, name) is not None]:
        raise UsageError(
            f"{source.uri}: its reader takes {given[0]} from the product, so it cannot be set; drop the setting, or "
            "name the image file itself with sensor=generic"
        )


def check_corners(
    affine: Affine, shape: tuple[int, int], corners: Iterable[tuple[float, float, float, float]], label: Path
) -> None:
    """Compare a grid with corners that the metadata give.

    Parameters
    ----------
    affine : Affine
        Pixel-to-world matrix; pixel is area.
    shape : (int, int)
        Rows and columns.
    corners : iterable of (row, col, x, y)
        Place on the grid, in pixels from its upper left corner, and where the metadata say that it lies.
    label : Path
        The product, for messages.

    Raises
    ------
    InputRejected
        If one lies more than `CORNER_TOLERANCE_PX` off.
    """
    for row, col, x, y in corners:
        at_col, at_row = ~affine @ (x, y)
        off = max(abs(at_col - col), abs(at_row - row))
        if not off <= CORNER_TOLERANCE_PX:
            raise InputRejected(
                f"{label}: its grid of {shape[0]} x {shape[1]} px lies {off:.2f} px off the corner "
                f"({x:.10g}, {y:.10g}) in its metadata, expected at most {CORNER_TOLERANCE_PX}; fetch the product again"
            )


def refuse_outside(
    affine: Affine, shape: tuple[int, int], crs: str, lonlat: Iterable[tuple[float, float]], label: Path
) -> None:
    """Refuse a grid that does not hold the geographic places that the metadata name; within one pixel.

    Raises
    ------
    InputRejected
        If one lies outside, or the CRS is unknown.
    """
    try:
        to_crs = Transformer.from_crs(4326, crs, always_xy=True)
    except CRSError as error:
        raise InputRejected(f"{label}: {crs[:60]!r} is not a CRS that PROJ knows; fetch the product again") from error
    for lon, lat in lonlat:
        col, row = ~affine @ to_crs.transform(lon, lat)
        if not (-1 <= row <= shape[0] + 1 and -1 <= col <= shape[1] + 1):
            raise InputRejected(
                f"{label}: {lon:.5f} E, {lat:.5f} N of its metadata lies at row {row:.1f}, column {col:.1f} of a grid of "
                f"{shape[0]} x {shape[1]} px, expected inside; fetch the product again"
            )
