"""Sentinel-2 L2A and L1C: SAFE folder or zip, the path of its MTD_MSI*.xml, or a folder of COGs with their STAC item.

Quantification, offsets, band centers, sampled responses, the grid and the time come from the product's own XML; an
offset is never guessed from a date, because reprocessed older scenes have one too. The width of a band is the full
width at half maximum of the sampled response.

All bands lie on the 10 m grid: those of 20 m come as blocks of 2 x 2 equal pixels, which share their origin with the
tile. Opened are the 10 m and 20 m bands; those of 60 m see the atmosphere and are opened only when named in the
setting `bands` (for example B01,B02,B03).

Validity: 0 is no data and 65535 saturated (Special_Values). Of the scene classification (SCL), class 1 is defective,
3 shadow, 8 and 9 cloud, 10 cirrus; these invalidate a pixel. Classes 6 (water) and 11 (snow) do so only if the setting
`mask` names them. L1C products have MSK_CLASSI_B00 (cloud, cirrus, snow at 60 m) since baseline 04.00, and before it
only polygons, which are not read.

References
----------
ESA, S2-PDGS-TAS-DI-PSD, Sentinel-2 Products Specification Document (layout).
Lanaras, Bioucas-Dias, Baltsavias & Schindler (2017), Super-resolution of multispectral multiresolution images from a single
sensor, CVPR Workshops, and the public code of their method (MTF per band at the Nyquist frequency of its own sampling). The mission's requirement for
the 10 m and 20 m bands is 0.15 to 0.30; B10, which is in no table, is taken for 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affine import Affine

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.assembly import Product, check_corners, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.layers import (
    Flag,
    Layer,
    LayeredSamples,
    MaskedSamples,
    Rule,
    chosen_flags,
    refuse_short,
)
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Mtf, Sensor, Source
from hyperfuse.catalogs.sensors._sentinel2 import (
    COARSE_M,
    FINEST_M,
    SCL,
    SCL_M,
    Band,
    Description,
    describe_cogs,
    describe_safe,
    items_of,
    metadata_of,
    two_digits,
)

# Of Sentinel-2A, as the public code of Lanaras et al. (2017) has them; B10 is not among them. For 2B and 2C nothing was found per band: built
# alike, they are taken for 2A.
_MTF = {
    "B01": 0.32, "B02": 0.26, "B03": 0.28, "B04": 0.24, "B05": 0.38, "B06": 0.34, "B07": 0.34, "B08": 0.26, "B8A": 0.33,
    "B09": 0.26, "B11": 0.22, "B12": 0.23,
}  # fmt: skip
SENSOR = Sensor(
    title="Sentinel-2 L2A and L1C",
    gsd_m=10.0,
    role="msi",
    mtf=Mtf(across=0.2),
    band_mtf={name: Mtf(across=mtf) for name, mtf in _MTF.items()},
)

_CLASSI: dict[Flag, int] = {"cloud": 0, "cirrus": 1, "snow": 2}
"""Layers of MSK_CLASSI_B00, each 1 where it applies."""


def accepts(uri: str) -> bool:
    """Whether the address is a package with a SAFE product's XML, or COGs with a Sentinel-2 STAC item."""
    package = open_package(uri)
    return package is not None and bool(metadata_of(package) or items_of(package))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no whole product, holds several tiles, or its parts contradict each other.
    UsageError
        If a band is unknown, or a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask", "bands", "offset")
    package = open_package(source.uri)
    if package is None:
        raise InputRejected(f"{source.uri}: no folder or zip of a Sentinel-2 product; check the path")
    safes, items = metadata_of(package), items_of(package)
    found = safes or items
    if len(found) != 1:
        told = ", ".join(m.name for m in found[:5]) or "none"
        raise InputRejected(
            f"{source.uri}: holds {len(found)} Sentinel-2 products ({told}), expected one; name the folder of one"
        )
    if safes:
        refuse_overrides(source, "mask", "bands")
        return _scene(describe_safe(package, safes[0]), package, source)
    return _scene(describe_cogs(package, items[0], offset=source.offset), package, source)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The grid on which all bands of a scene lie."""

    affine: Affine
    size: tuple[int, int]
    gsd_m: int
    """Nominal sampling distance."""
    there: Mapping[str, Member]
    """Images by name, as they can be read."""

    def layer(self, member: Member, gsd_m: int, band: int = 0) -> Layer:
        """An image of that nominal sampling distance, if its own georeference agrees with the metadata."""
        image = open_member(self.there[member.name])
        step = gsd_m // self.gsd_m
        made = refuse_short(Layer(samples=image.samples, band=band, step=step), self.size, str(member.label))
        if image.affine is not None:
            rows, cols = (n / step for n in self.size)
            corners = [(row, col, *(image.affine @ (col, row))) for row, col in ((0, 0), (rows, cols))]
            check_corners(self.affine @ Affine.scale(step), image.samples.shape[1:], corners, member.label)
        return made


def _scene(description: Description, package: Package, source: Source) -> Scene:
    bands = _chosen(description, source)
    mask = description.scl or description.classi
    used = [*(band.image for band in bands), *([mask] if mask else [])]
    finest = min(band.gsd_m for band in bands)
    # Without a 10 m band the product's grid is that of the finest band asked for.
    zoom = finest // FINEST_M
    grid = _Grid(
        affine=description.affine @ Affine.scale(zoom),
        size=(description.size[0] // zoom, description.size[1] // zoom),
        gsd_m=finest,
        there=package.in_place(used),
    )
    layers = tuple(grid.layer(band.image, band.gsd_m) for band in bands)
    rules, notes = _rules(description, grid, chosen_flags(source.mask))
    return scene_of(
        Product(
            sensor="sentinel2",
            name=description.name,
            samples=MaskedSamples(samples=LayeredSamples(layers=layers, size=grid.size), rules=rules),
            affine=grid.affine,
            crs=description.crs,
            wavelength_nm=[band.center_nm for band in bands],
            fwhm_nm=[band.fwhm_nm for band in bands],
            scale=[band.scale for band in bands],
            offset=[band.offset for band in bands],
            quantity="reflectance",
            unit="1",
            nodata=description.nodata,
            names=tuple(band.name for band in bands),
            # Of the grid as it is: a decimated set of COGs has larger pixels than the bands' names say.
            gsd_m=[abs(grid.affine.a) * band.gsd_m / finest for band in bands],
            time=description.time,
            files=tuple(package.files([*description.files, *used])),
            look_for_dead=False,
            conditions=description.conditions,
            notes=(*description.notes, *notes),
        ),
        source,
    )


def _rules(description: Description, grid: _Grid, flags: tuple[Flag, ...]) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Masks that are used, and a note where a product has none that fit the grid."""
    if description.scl is not None and grid.gsd_m <= SCL_M:
        values = tuple(value for flag in flags for value in SCL.get(flag, ()))
        return (Rule(layer=grid.layer(description.scl, SCL_M), values=values),) if values else (), ()
    if description.classi is not None:
        bands = [_CLASSI[flag] for flag in flags if flag in _CLASSI]
        return tuple(Rule(layer=grid.layer(description.classi, COARSE_M, band), values=(1,)) for band in bands), ()
    return (), ("no scene classification or cloud layers on this grid: clouds are not masked",) if flags else ()


def _chosen(description: Description, source: Source) -> tuple[Band, ...]:
    there = {band.name: band for band in description.bands}
    if source.bands is None:
        bands = tuple(band for band in description.bands if band.gsd_m < COARSE_M)
        if not bands:
            raise InputRejected(f"{source.uri}: holds no image of 10 m or 20 m; fetch the product again")
        return bands
    names = [two_digits(name.strip()) for name in source.bands.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in there]):
        raise UsageError(f"{source.uri}: there is no band {(unknown or [''])[0]!r}; choose some of {', '.join(there)}")
    return tuple(band for name, band in there.items() if name in names)
