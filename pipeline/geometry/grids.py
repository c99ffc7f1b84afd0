"""The nested grids of one fusion: product, fine and coarse.

    product   the pixels that are published: the requested extent on the reference's lattice
    fine      the product plus a rim, so that it holds whole coarse pixels
    coarse    fine, zoomed out by the integer ratio

    fine  +---------------------------+
          |  rim                      |     lead = (rows, columns) of the rim above and left of the product
          |   +-------------------+   |
          |   |      product      |   |
          |   +-------------------+   |
          +---------------------------+

The lead is chosen so that the coarse lattice falls on the HSI's own pixels wherever both images allow it: then the HSI
is copied, not interpolated. MSI bands of a coarser sampling come as blocks of equal pixels; the fine grid begins on whole
blocks of all of them, which may take a lead of more than one coarse pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.catalogs.outline import area_on, on_turn_of
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.pipeline.config import AlignConfig

_ON_LATTICE_PX = 1e-3
"""Two lattices whose pixel corners differ by less than this are one lattice."""


@dataclass(frozen=True, kw_only=True)
class NestedGrids:
    """Product, fine and coarse grid of one fusion.

    Raises
    ------
    ValueError
        If the lead is not inside one period of coarse pixels and blocks.
    """

    product: GeoBox
    """Grid of the published product."""
    ratio: int
    """Fine pixels per coarse pixel along one axis."""
    lead: tuple[int, int]
    """Fine pixels (y, x) between the corner of the fine grid and that of the product, each below `period`."""
    block: int = 1
    """Fine pixels after which the blocks of equal pixels of all MSI bands begin anew; 1 if there are none."""

    def __post_init__(self) -> None:
        if not all(0 <= lead < self.period for lead in self.lead):
            raise ValueError(f"lead {self.lead} must lie in 0..{self.period - 1}")

    @property
    def period(self) -> int:
        """Fine pixels after which coarse pixels and blocks begin anew together."""
        return math.lcm(self.ratio, self.block)

    @property
    def fine(self) -> GeoBox:
        """The product and its rim: `coarse`, zoomed in."""
        rows, cols = (n * self.ratio for n in self.coarse_shape)
        return GeoBox(
            (rows, cols), self.product.affine @ Affine.translation(-self.lead[1], -self.lead[0]), self.product.crs
        )

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """Rows and columns of the coarse grid."""
        height, width = self.product.shape
        return math.ceil((height + self.lead[0]) / self.ratio), math.ceil((width + self.lead[1]) / self.ratio)

    @property
    def coarse(self) -> GeoBox:
        """Grid on which the HSI is staged."""
        return GeoBox(self.coarse_shape, self.fine.affine @ Affine.scale(self.ratio), self.product.crs)


class GridRecord(BaseModel):
    """`NestedGrids` as JSON."""

    model_config = ConfigDict(frozen=True)

    crs: str
    shape: tuple[int, int]
    affine: tuple[float, float, float, float, float, float]
    ratio: int
    lead: tuple[int, int]
    block: int = 1

    @classmethod
    def of(cls, grids: NestedGrids) -> GridRecord:
        """Record of these grids; the CRS is kept as its EPSG code where that says all, else as WKT 2."""
        crs = grids.product.crs
        assert crs is not None  # noqa: S101 (our invariant: scenes have a CRS)
        a, b, c, d, e, f = tuple(grids.product.affine)[:6]
        code = f"EPSG:{crs.epsg}" if crs.epsg else None
        return cls(
            crs=code if code and CRS(code) == crs else crs.to_wkt(),
            shape=tuple(grids.product.shape),
            affine=(a, b, c, d, e, f),
            ratio=grids.ratio,
            lead=grids.lead,
            block=grids.block,
        )

    def grids(self) -> NestedGrids:
        """Inverse of `of`."""
        product = GeoBox(self.shape, Affine(*self.affine), self.crs)
        return NestedGrids(product=product, ratio=self.ratio, lead=self.lead, block=self.block)


def nest(pair: ScenePair, align: AlignConfig, ratio: int | None) -> NestedGrids:
    """Grids of a pair.

    Parameters
    ----------
    pair : ScenePair
    align : AlignConfig
        Reference and, if wanted, the product's bounds; bounds off the reference's lattice are rounded to it.
    ratio : int or None
        None takes the rounded ratio of the ground sampling distances.

    Raises
    ------
    InputRejected
        If the reference's grid is rotated.
    ExpectedSkip
        If the bounds lie outside the overlap, or the overlap holds no whole coarse pixel.
    """
    ratio = ratio or max(2, round(pair.gsd_ratio))
    lattice = pair.msi.geobox if align.reference == "msi" else _finer(pair.hsi.geobox, ratio)
    reference = pair.msi if align.reference == "msi" else pair.hsi
    crs = lattice.crs
    assert crs is not None  # noqa: S101 (our invariant: scenes have a CRS)
    if abs(lattice.affine.b) > 1e-9 * abs(lattice.affine.a) or abs(lattice.affine.d) > 1e-9 * abs(lattice.affine.e):
        raise InputRejected(
            f"{reference.name}: its grid is rotated, and the product keeps the reference's grid; "
            "give a north-up reference or set align.reference to the other image"
        )
    overlap = area_on(pair.overlap(), reference.geobox).boundingbox
    left, bottom, right, top = overlap
    inward = True
    if align.bounds is not None:
        left, bottom, right, top = align.bounds
        inward = False
        if left >= overlap.right or right <= overlap.left or bottom >= overlap.top or top <= overlap.bottom:
            raise ExpectedSkip(f"align.bounds {align.bounds} lie outside the overlap {tuple(overlap)} of the scenes")
    to_px = ~lattice.affine
    (x0, y0), (x1, y1) = to_px @ (left, top), to_px @ (right, bottom)
    first, last = (_ceil, _floor) if inward else (round, round)
    col0, row0, col1, row1 = first(x0), first(y0), last(x1), last(y1)
    if col1 - col0 < ratio or row1 - row0 < ratio:
        raise ExpectedSkip(
            f"{pair.hsi.name} and {pair.msi.name} overlap by {max(col1 - col0, 0)} x {max(row1 - row0, 0)} fine pixels, "
            f"less than one coarse pixel of {ratio}"
        )
    origin = lattice.affine @ Affine.translation(col0, row0)
    product = GeoBox((row1 - row0, col1 - col0), origin, lattice.crs)
    # An MSI that is warped keeps no blocks.
    block = math.lcm(*block_steps(pair.msi.bands, pair.msi.gsd_m)) if align.reference == "msi" else 1
    return NestedGrids(product=product, ratio=ratio, lead=_lead(product, pair, ratio, block), block=block)


def block_steps(bands: Bands, gsd_m: float) -> tuple[int, ...]:
    """Pixels per block of equal pixels of each good band along one axis, on a grid of that sampling distance."""
    if bands.gsd_m is None:
        return (1,) * int(bands.good.sum())
    return tuple(max(1, round(own / gsd_m)) for own in bands.gsd_m[bands.good])


def on_lattice(source: GeoBox, target: GeoBox | None) -> tuple[int, int] | None:
    """Row and column of the target's first pixel in the source, or None if their pixels do not coincide."""
    if target is None or source.crs != target.crs:
        return None
    between = ~source.affine @ on_turn_of(target, source).affine
    # The matrix may be off by a thousandth of a pixel at the far end of the target, not only at its origin.
    height, width = target.shape
    for x, y in ((0, 0), (width, 0), (0, height), (width, height)):
        at = between @ (x, y)
        wanted = (x + round(between.c), y + round(between.f))
        if max(abs(at[0] - wanted[0]), abs(at[1] - wanted[1])) > _ON_LATTICE_PX:
            return None
    return round(between.f), round(between.c)


def _finer(geobox: GeoBox, ratio: int) -> GeoBox:
    height, width = geobox.shape
    return GeoBox((height * ratio, width * ratio), geobox.affine @ Affine.scale(1 / ratio), geobox.crs)


def _lead(product: GeoBox, pair: ScenePair, ratio: int, block: int) -> tuple[int, int]:
    """The least lead that begins on the HSI's pixels and on the MSI's blocks; on blocks alone where both cannot be."""
    on_hsi = on_lattice(_finer(pair.hsi.geobox, ratio), product)
    on_msi = on_lattice(pair.msi.geobox, product) or (0, 0)

    def least(hsi: int | None, msi: int) -> int:
        wanted = [n for n in range(math.lcm(ratio, block)) if n % block == msi % block]
        return next((n for n in wanted if hsi is not None and n % ratio == hsi % ratio), wanted[0])

    hsi_row, hsi_col = on_hsi or (None, None)
    return least(hsi_row, on_msi[0]), least(hsi_col, on_msi[1])


def _ceil(value: float) -> int:
    return math.ceil(value - _ON_LATTICE_PX)


def _floor(value: float) -> int:
    return math.floor(value + _ON_LATTICE_PX)
