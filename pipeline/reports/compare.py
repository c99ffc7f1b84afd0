"""Comparison of two or more products of one scene: their scores, and the differences of their samples.

The products must lie on one grid. Each product is subtracted from the first one. Every sample is read once, block by
block, so that memory does not grow with the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job.encoding import VARIABLE
from hyperfuse.pipeline.job.store import chunk_boxes
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.progress import Progress, Steps, silent
from hyperfuse.pipeline.quality.accumulators import F32
from hyperfuse.pipeline.reports.color_maps import composite_bands, picture_step
from hyperfuse.pipeline.reports.difference import Difference, Sampled
from hyperfuse.pipeline.reports.scores import read_scores
from hyperfuse.pipeline.reports.spectra import lattice_size

SCHEMA = "hyperfuse-comparison/1"
MOST = 8
"""Products on one page: more cannot be told apart by color."""
_BLOCK = 256
"""Edge (px) of the blocks that are read, the usual edge of a chunk."""
_SAME_NM = 0.01
"""Largest distance (nm) of band centers that count as the same band."""
_SAME_PX = 1e-3
"""Largest distance (px) of corners of grids that count as the same grid: formats round coordinates."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the products."""

    label: str
    """Short unique name: its method where methods differ, else its name or folder."""
    product: Product
    scores: dict[str, Any] | None
    """Its `qa.json`; None if it was published without."""
    bands: NDArray[np.int64]
    """Positions in this product of the bands that all products have."""
    picture: Sampled
    """Bands of the pictures, thinned over the whole product."""
    lattice: Sampled
    """Spectra at a lattice of points."""

    @property
    def method(self) -> str:
        """Name of the method that made it."""
        return self.product.method


@dataclass(frozen=True, kw_only=True, eq=False)
class ProductComparison:
    """Products of one scene and their differences."""

    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]
    """Of every product but the first, to the first."""
    bands: Bands
    """Bands that all products have."""
    titles: dict[str, tuple[int, ...]]
    """Pictures by name, with their bands (red, green, blue) among `bands`."""
    notes: tuple[str, ...]
    """Differences between the products other than their method, which limit the comparison."""

    def to_json(self) -> dict[str, Any]:
        """The record that `hyperfuse compare --json` prints."""
        first = self.sides[0].label
        facts = self.sides[0].product.provenance["product"]
        return {
            "schema": SCHEMA,
            "grid": {key: facts[key] for key in ("crs", "shape", "transform")},
            "wavelength_nm": [float(nm) for nm in self.bands.center_nm],
            "notes": list(self.notes),
            "products": [
                {
                    "label": side.label,
                    "product": str(side.product.path),
                    "method": side.method,
                    "job_key": side.product.job_key,
                    "scores": read_scores(side.scores, side.method),
                }
                for side in self.sides
            ],
            "differences": [
                {"first": first, "second": side.label, **difference.to_json()}
                for side, difference in zip(self.sides[1:], self.differences, strict=True)
            ],
        }


def compare(paths: Sequence[Path], *, progress: Progress = silent) -> ProductComparison:
    """Read products and compare them.

    Parameters
    ----------
    paths : sequence of Path
        Product folders, two to `MOST`; the others are compared with the first.
    progress : callable, optional

    Raises
    ------
    UsageError
        If there are too few or too many products.
    BadProduct
        If a folder holds no product.
    InputRejected
        If the products do not lie on one grid, measure different quantities, or share no band.
    """
    if not 2 <= len(paths) <= MOST:
        raise UsageError(f"{len(paths)} products given, expected 2 to {MOST} of one scene; name others")
    products = [Product.load(path) for path in paths]
    _require_comparable(products)
    positions = _common_bands(products)
    bands = _bands(products[0], positions[0])
    titles = composite_bands(bands)
    sides = tuple(
        _side(product, label, at, bands=bands, titles=titles)
        for label, product, at in zip(_labels(products), products, positions, strict=True)
    )
    height, width = products[0].provenance["product"]["shape"]
    differences = tuple(
        Difference(shape=(len(bands), height, width), step=picture_step(height, width)) for _ in sides[1:]
    )
    boxes = list(chunk_boxes((height, width), (_BLOCK, _BLOCK)))
    done = Steps(progress, "compare", len(boxes))
    with ExitStack() as opened:
        cubes = [opened.enter_context(side.product.open())[VARIABLE] for side in sides]
        for box in boxes:
            first = _read(cubes[0], sides[0], box)
            for cube, side, difference in zip(cubes[1:], sides[1:], differences, strict=True):
                difference.add(box, first, _read(cube, side, box))
            done()
    return ProductComparison(sides=sides, differences=differences, bands=bands, titles=titles, notes=_notes(products))


def _require_comparable(products: Sequence[Product]) -> None:
    first = products[0]
    wanted, facts = first.facts.geobox, first.provenance["product"]
    for product in products[1:]:
        other = product.provenance["product"]
        found = product.facts.geobox
        away = (
            max(max(map(abs, np.subtract(~wanted.affine @ (found.affine @ at), at))) for at in _corners(*wanted.shape))
            if found.shape == wanted.shape and found.crs == wanted.crs
            else np.inf
        )
        if not away <= _SAME_PX:
            raise InputRejected(
                f"{product.path}: its grid ({_grid(other)}) is not that of {first.path} ({_grid(facts)}); compare products of "
                "one scene, fused onto the same grid"
            )
        if (other["quantity"], other["unit"]) != (facts["quantity"], facts["unit"]):
            raise InputRejected(
                f"{product.path}: its samples are {other['quantity']} ({other['unit']}), those of {first.path} are "
                f"{facts['quantity']} ({facts['unit']}); compare products of one quantity"
            )


def _corners(height: int, width: int) -> list[tuple[int, int]]:
    return [(0, 0), (width, 0), (0, height), (width, height)]


def _grid(facts: dict[str, Any]) -> str:
    (height, width), transform = facts["shape"], facts["transform"]
    return (
        f"{height} x {width} px of {abs(transform[0]):.6g}, corner {transform[2]:.10g}, {transform[5]:.10g}, "
        f"{facts['crs'][:40]}"
    )


def _common_bands(products: Sequence[Product]) -> list[NDArray[np.int64]]:
    """Positions in each product of the bands that all have."""
    centers = [np.array(product.provenance["product"]["wavelength_nm"]) for product in products]
    here = np.array(
        [k for k, nm in enumerate(centers[0]) if all(np.abs(other - nm).min() < _SAME_NM for other in centers[1:])],
        np.int64,
    )
    if not here.size:
        raise InputRejected(
            f"{products[1].path}: has no band in common with {products[0].path} ({centers[1].size} and {centers[0].size} "
            "bands); compare products of one hyperspectral scene"
        )
    return [here, *(np.array([np.abs(other - centers[0][k]).argmin() for k in here]) for other in centers[1:])]


def _bands(product: Product, positions: NDArray[np.int64]) -> Bands:
    facts = product.provenance["product"]
    width = np.array([np.nan if nm is None else nm for nm in facts["fwhm_nm"]])
    return Bands.sort(
        np.array(facts["wavelength_nm"])[positions], unit="nm", of=str(product.path), fwhm=width[positions]
    )


def _side(
    product: Product, label: str, positions: NDArray[np.int64], *, bands: Bands, titles: dict[str, tuple[int, ...]]
) -> Side:
    height, width = product.provenance["product"]["shape"]
    step = picture_step(height, width)
    shown = np.unique([band for chosen in titles.values() for band in chosen])
    edge = lattice_size(len(bands))
    rows, cols = (np.unique(((np.arange(edge) + 0.5) * size / edge).astype(np.int64)) for size in (height, width))
    return Side(
        label=label,
        product=product,
        scores=product.scores(),
        bands=positions,
        picture=Sampled(bands=shown, rows=np.arange(0, height, step), cols=np.arange(0, width, step)),
        lattice=Sampled(bands=np.arange(len(bands)), rows=rows, cols=cols),
    )


def _read(cube: xr.DataArray, side: Side, box: Box) -> F32:
    """Common bands of a block; also stores its part of the picture and of the lattice."""
    whole = np.asarray(cube[:, *box.slices].values, np.float32)
    block = whole if side.bands.size == whole.shape[0] else whole[side.bands]
    side.picture.add(box, block)
    side.lattice.add(box, block)
    return block


def _labels(products: Sequence[Product]) -> list[str]:
    """Methods where they differ, else the products' names, else their folders."""
    for names in ([p.method for p in products], [p.name for p in products], [str(p.path) for p in products]):
        if all(names) and len(set(names)) == len(names):
            return names
    return [f"{k + 1}: {product.path}" for k, product in enumerate(products)]


def _notes(products: Sequence[Product]) -> tuple[str, ...]:
    """Differences between the products other than their method, as sentences."""
    first, notes = products[0], []
    for product in products[1:]:
        if bool(product.method) != bool(first.method):
            mosaic = first if product.method else product
            notes.append(f"{mosaic.path.name} is a mosaic of fused products.")
            continue
        ours, theirs = _digests(first), _digests(product)
        if ours != theirs:
            roles = ", ".join(sorted(role for role in ours | theirs if ours.get(role) != theirs.get(role)))
            notes.append(f"{product.path.name} and {first.path.name} were made from different inputs ({roles}).")
        if _displacement(first) != _displacement(product):
            notes.append(f"{product.path.name} and {first.path.name} were registered differently.")
    return tuple(notes)


def _digests(product: Product) -> dict[str, str]:
    """SHA-256 of the inputs by role; the inputs of a mosaic are products, which have no roles and are numbered."""
    inputs = product.provenance["inputs"]
    named = inputs.items() if isinstance(inputs, dict) else ((f"input {k + 1}", one) for k, one in enumerate(inputs))
    return {role: str(one.get("sha256") or one["manifest_sha256"]) for role, one in named}


def _displacement(product: Product) -> tuple[float, ...]:
    """Displacement of the registration (m), rounded to a centimeter."""
    registration = product.provenance.get("registration", {})
    return tuple(round(float(registration.get(key) or 0.0), 2) for key in ("east_m", "north_m"))
