"""Published products as scenes, the bands that they share, and the grid that holds them all.

Order: products are taken by acquisition time, name and digest, whatever the order in which they are given, so that sums
in floating point, and the numbers in the source layer, do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.files import file_sha256
from hyperfuse.catalogs.scene import Scene, Window
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import VARIABLE
from hyperfuse.pipeline.job.product_files import MANIFEST
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.products.product import Product

_ON_LATTICE_PX = 1e-3
_EDGE_POINTS = 21
"""Points per edge of a product whose place in another CRS is looked at: straight edges bend."""
_MAX_EDGE_PX = 1_000_000
"""An area of more rows or columns is taken for products that do not belong together."""
_MIN_SHARED = 0.5


@dataclass(frozen=True, kw_only=True)
class ProductCube:
    """Samples of a published Zarr cube in physical units; see `catalogs.scene.Cube`."""

    path: Path
    """The array."""
    shape: tuple[int, int, int]
    """Size as (band, y, x)."""
    block: tuple[int, int]
    """Rows and columns of a chunk."""
    scale: float
    """Physical value of one count."""
    offset: float
    """Physical value of a count of 0."""
    nodata: int | None
    """Stored value that is no data; None: NaN."""

    def read(self, bands: Sequence[int], window: Window) -> NDArray[np.float32]:
        """Physical values, NaN where there is no data."""
        rows, cols = window
        box = Box(y0=rows.start, y1=rows.stop, x0=cols.start, x1=cols.stop)
        try:
            stored = store.thin(store.open_array(self.path), box, bands, 1)
        except (RuntimeError, ValueError, OSError) as error:
            raise InputRejected(
                f"{self.path}: pixels {box} do not decode ({error}); run `hyperfuse verify` on the product, publish it again"
            ) from error
        values: NDArray[np.float32] = (stored * np.float64(self.scale) + self.offset).astype(np.float32)
        if self.nodata is not None:
            values[stored == self.nodata] = np.nan
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class AreaInputs:
    """Products that go into one area, in an order that does not depend on how they were given."""

    scenes: tuple[Scene, ...]
    """By acquisition time, name and digest."""
    products: tuple[Product, ...]
    """The same products."""
    bands: Bands
    """Bands that all products share."""
    picked: tuple[tuple[int, ...], ...]
    """Their positions in each product."""
    left_out: tuple[tuple[float, ...], ...]
    """Centers (nm) of the bands of each product that another one does not have."""
    target: GeoBox
    """Grid of the area."""

    @property
    def names(self) -> tuple[str, ...]:
        """Identifiers, with the beginning of the job key where two products have one name."""
        plain = [product.name for product in self.products]
        return tuple(
            name if plain.count(name) == 1 else f"{name}.{product.job_key[:12]}"
            for name, product in zip(plain, self.products, strict=True)
        )


def open_inputs(config: AreaConfig) -> AreaInputs:
    """Open all products, match their bands and lay out the area; reads records only.

    Raises
    ------
    BadProduct
        If a folder is no product.
    InputRejected
        If a product has no Zarr cube or is given twice, or quantities or most bands differ.
    UsageError
        If the CRS is unknown, or needs a pixel size that is not given.
    """
    given = [_opened(path) for path in config.products]
    target = area_grid([scene for scene, _ in given], config)
    far = datetime.max.replace(tzinfo=UTC)
    ordered = sorted(given, key=lambda pair: (pair[0].time or far, pair[0].name, pair[0].digest))
    scenes, products = tuple(s for s, _ in ordered), tuple(p for _, p in ordered)
    for first, second in pairwise(scenes):
        if first.digest == second.digest:
            raise InputRejected(f"{second.uri}: is the same product as {first.uri}; give each product once")
        if (first.quantity, first.unit) != (second.quantity, second.unit):
            raise InputRejected(
                f"{second.uri}: holds {second.quantity} ({second.unit}), {first.uri} holds {first.quantity} ({first.unit}); "
                "mosaic products of one quantity"
            )
    bands, picked = shared_bands(scenes, config.tolerance_nm)
    left_out = tuple(
        tuple(float(nm) for nm in np.delete(scene.bands.center_nm, taken))
        for scene, taken in zip(scenes, picked, strict=True)
    )
    return AreaInputs(scenes=scenes, products=products, bands=bands, picked=picked, left_out=left_out, target=target)


def shared_bands(scenes: Sequence[Scene], tolerance_nm: float) -> tuple[Bands, tuple[tuple[int, ...], ...]]:
    """Bands that all scenes have within a tolerance, and their positions in each.

    A band of the first scene and one of another are one band if each is the other's nearest. The centers and widths
    are the means over the scenes.

    Raises
    ------
    InputRejected
        If fewer than half of the bands of a scene are shared.
    """
    first = scenes[0].bands
    partners = np.empty((len(scenes), len(first)), np.int64)
    for row, scene in enumerate(scenes):
        distance = np.abs(first.center_nm[:, None] - scene.bands.center_nm[None, :])
        nearest, back = distance.argmin(axis=1), distance.argmin(axis=0)
        mutual = back[nearest] == np.arange(len(first))
        partners[row] = np.where(mutual & (distance.min(axis=1) <= tolerance_nm), nearest, -1)
    shared = (partners >= 0).all(axis=0)
    for scene, own in zip(scenes, partners, strict=True):
        n_own, most = int((own >= 0).sum()), max(len(first), len(scene.bands))
        if n_own < _MIN_SHARED * most or shared.sum() < _MIN_SHARED * most:
            n_found = n_own if n_own < _MIN_SHARED * most else int(shared.sum())
            raise InputRejected(
                f"{scene.uri}: {n_found} of its {len(scene.bands)} bands ({_span(scene.bands)}) lie within {tolerance_nm:g} nm of a "
                f"band of every other product ({scenes[0].name}: {len(first)}, {_span(first)}), expected at least half; mosaic "
                "products of one sensor, or raise tolerance_nm"
            )
    picked = partners[:, shared]
    centers = np.stack([scene.bands.center_nm[taken] for scene, taken in zip(scenes, picked, strict=True)])
    widths = np.stack([scene.bands.fwhm_nm[taken] for scene, taken in zip(scenes, picked, strict=True)])
    # The mean of equal numbers must be that number.
    center = centers[0] + (centers - centers[0]).mean(axis=0)
    bands = Bands(
        center_nm=center,
        fwhm_nm=widths[0] + (widths - widths[0]).mean(axis=0),
        good=np.ones(center.shape, bool),
        source_band=first.source_band[shared],
        names=tuple(f"{nm:.1f} nm" for nm in center),
    )
    return bands, tuple(tuple(int(band) for band in row) for row in picked)


def area_grid(scenes: Sequence[Scene], config: AreaConfig) -> GeoBox:
    """The grid of the area: a lattice, and the extent of all scenes on it, or of the bounds.

    The lattice is that of the first scene which has the CRS; a lattice through the CRS's origin where `gsd` is given, or
    no scene has the CRS.

    Raises
    ------
    InputRejected
        If the area would be absurdly large.
    UsageError
        If the CRS is unknown, or needs a pixel size that is not given.
    """
    crs = str(scenes[0].geobox.crs) if config.crs is None else config.crs
    try:
        target = CRS.from_user_input(crs)
    except CRSError as error:
        raise UsageError(
            f"setting crs: {crs[:60]!r} is not a CRS that PROJ knows; give one such as EPSG:32633"
        ) from error
    lattice = _lattice(scenes, target, config)
    if config.bounds is None:
        boxes = [_bounds(scene.geobox, target) for scene in scenes]
        left, bottom = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, top = max(box[2] for box in boxes), max(box[3] for box in boxes)
    else:
        left, bottom, right, top = config.bounds
    (x0, y0), (x1, y1) = ~lattice @ (left, top), ~lattice @ (right, bottom)
    col0, row0 = math.floor(x0 + _ON_LATTICE_PX), math.floor(y0 + _ON_LATTICE_PX)
    col1, row1 = math.ceil(x1 - _ON_LATTICE_PX), math.ceil(y1 - _ON_LATTICE_PX)
    if not (np.isfinite([x0, y0, x1, y1]).all() and max(row1 - row0, col1 - col0) <= _MAX_EDGE_PX):
        raise InputRejected(
            f"the area of {len(scenes)} products has {row1 - row0} x {col1 - col0} px in {target.name}, expected at most {_MAX_EDGE_PX} "
            "along an edge; the products lie too far apart for one area, or crs or gsd are wrong"
        )
    text = f"EPSG:{target.to_epsg()}" if target.to_epsg() else target.to_wkt()
    return GeoBox((row1 - row0, col1 - col0), lattice @ Affine.translation(col0, row0), text)


def extents(inputs: AreaInputs) -> tuple[Box, ...]:
    """Pixels of the area that each product may reach, a pixel more on each side."""
    found = []
    crs = CRS(inputs.target.crs.proj)  # type: ignore[union-attr]
    for scene in inputs.scenes:
        left, bottom, right, top = _bounds(scene.geobox, crs)
        (x0, y0), (x1, y1) = ~inputs.target.affine @ (left, top), ~inputs.target.affine @ (right, bottom)
        box = Box(y0=math.floor(y0), y1=math.ceil(y1), x0=math.floor(x0), x1=math.ceil(x1))
        found.append(box.grown(1))
    return tuple(found)


def _opened(path: Path) -> tuple[Scene, Product]:
    product = Product.load(path)
    if product.zarr is None or not product.zarr.is_dir():
        raise InputRejected(
            f"{path}: published as {', '.join(product.formats)}, expected a cube in Zarr; publish it "
            "again with zarr among publish.formats"
        )
    array_path = product.zarr / VARIABLE
    try:
        facts = product.facts
        array = store.open_array(array_path)
        found, wanted = store.n_chunk_files(array_path, array)
        if found != wanted:
            raise InputRejected(
                f"{path}: {found} of {wanted} chunks of its cube are there; run `hyperfuse verify` on it, publish it again"
            )
        bands = Bands(
            center_nm=np.array(facts.wavelength_nm, np.float64),
            fwhm_nm=np.array([np.nan if v is None else v for v in facts.fwhm_nm], np.float64),
            good=np.ones(len(facts.wavelength_nm), bool),
            source_band=np.array(facts.source_band, np.int64),
            names=tuple(f"{nm:.1f} nm" for nm in facts.wavelength_nm),
        )
        cube = ProductCube(
            path=array_path,
            shape=(array.shape[0], array.shape[1], array.shape[2]),
            block=(array.chunks[1], array.chunks[2]),
            scale=float(facts.scale),
            offset=float(facts.offset),
            nodata=facts.nodata,
        )
        scene = Scene(
            name=product.name,
            uri=str(path),
            sensor="generic",
            cube=cube,
            bands=bands,
            geobox=GeoBox(facts.shape, Affine(*facts.transform), facts.crs),
            quantity=facts.quantity,
            unit=facts.unit,
            time=_time(product.provenance["inputs"]),
            digest=file_sha256(path / MANIFEST),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputRejected(
            f"{path}: its record and its cube do not fit together ({error}); run `hyperfuse verify` on it"
        ) from error
    return scene, product


def _time(inputs: Any) -> datetime | None:
    """When the HSI was taken; of an area, when the first of its products was."""
    entries = [inputs["hsi"]] if isinstance(inputs, dict) else inputs
    times = [datetime.fromisoformat(entry["time"]) for entry in entries if entry.get("time")]
    return min(times, default=None)


def _lattice(scenes: Sequence[Scene], crs: CRS, config: AreaConfig) -> Affine:
    own = next((scene.geobox.affine for scene in scenes if CRS(scene.geobox.crs.proj) == crs), None)  # type: ignore[union-attr]
    if own is not None and config.gsd is None:
        return own
    gsd = config.gsd
    if gsd is None:
        first = scenes[0].geobox
        if CRS(first.crs.proj).is_geographic != crs.is_geographic:  # type: ignore[union-attr]
            raise UsageError(
                f"setting gsd is missing: {crs.name} has other units than {first.crs}; give the pixel size"
            )
        gsd = abs(first.affine.a)
    return Affine(gsd, 0, 0, 0, -gsd, 0)


def _bounds(box: GeoBox, crs: CRS) -> tuple[float, float, float, float]:
    own = CRS(box.crs.proj)  # type: ignore[union-attr]
    edges = box.boundingbox.bbox
    if own == crs:
        return edges[0], edges[1], edges[2], edges[3]
    moved = Transformer.from_crs(own, crs, always_xy=True).transform_bounds(*edges, densify_pts=_EDGE_POINTS)
    return float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3])


def _span(bands: Bands) -> str:
    return f"{bands.center_nm[0]:.4g}-{bands.center_nm[-1]:.4g} nm"
