"""DESIS L2A surface reflectance: folder, zip, tar, or the path of its METADATA.xml.

Band centers, widths, gains, offsets and the time come from METADATA.xml; only the bands under `bandCharacterisation`
are meant, another element of that name lists other things. On-board binning leaves 235, 118, 79 or 60 bands, all
below 1000 nm: the short-wave infrared bands of a multispectral image find no partner.

Validity: -32768 is no data. Of the layers of QL_QUALITY-2, cloud over land and over water and shadow invalidate a
pixel, haze, snow and water do not; the setting `mask` chooses otherwise.

The MTF is neither in the product nor, as far as was found, published per band: the value typical of the field is used for
all bands, and the setting `psf_mtf` overrules it.

References
----------
DLR, PAV-DLR-ICD-003, DESIS Products Specification (layout).
"""

from __future__ import annotations

import glob
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_outside, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import conditions
from hyperfuse.catalogs.formats.layers import Flag, Layer, MaskedSamples, Rule, chosen_flags, refuse_short
from hyperfuse.catalogs.formats.markup import lonlat, number_of, text_of
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="DESIS L2A", gsd_m=30.0, role="hsi")

_NODATA = -32768.0
_LAYERS: dict[Flag, tuple[int, ...]] = {
    "shadow": (0,), "snow": (2,), "haze": (3, 4), "cloud": (5, 6), "water": (7,)
}  # fmt: skip
"""Positions in QL_QUALITY-2; a layer is not 0 where it applies."""
_ANY_VALUE = 0xFF


def accepts(uri: str) -> bool:
    """Whether the address is a package with DESIS metadata."""
    package = open_package(uri)
    return package is not None and bool(_metadata(package))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no whole L2A product, or its parts contradict each other.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask")
    package = open_package(source.uri)
    found = _metadata(package) if package else []
    if package is None or len(found) != 1:
        told = ", ".join(m.name for m in found[:5]) or "none"
        raise InputRejected(f"{source.uri}: holds {len(found)} DESIS products ({told}), expected one; name its folder")
    metadata = found[0]
    root, label = package.xml(metadata), metadata.label
    if (level := text_of(root, "base/level", label)) != "L2A":
        raise InputRejected(f"{label}: is DESIS {level}, expected L2A; order the scene as L2A")
    begin = glob.escape(metadata.base[: -len("METADATA.xml")])
    image_member = package.one(f"{begin}SPECTRAL_IMAGE.tif", f"{begin}SPECTRAL_IMAGE.tiff")
    masks = package.find(f"{begin}QL_QUALITY-2.tif", f"{begin}QL_QUALITY-2.tiff")
    used = [image_member, *masks[:1]]
    there = package.in_place(used)
    image = open_member(there[image_member.name])
    n_bands, height, width = image.samples.shape
    table = _bands(root, label)
    if len(table) != n_bands:
        raise InputRejected(
            f"{image.path}: has {n_bands} bands, METADATA.xml describes {len(table)}; fetch the product again"
        )
    if image.affine is None or image.crs is None:
        raise InputRejected(f"{image.path}: has no georeference, expected a GeoTIFF on a map; fetch the product again")
    corners = [lonlat(point, label) for point in root.iterfind("base/spatialCoverage/boundingPolygon/point")]
    refuse_outside(image.affine, (height, width), image.crs, corners, label)
    mask = there[masks[0].name] if masks else None
    rules, notes = _rules(mask, chosen_flags(source.mask), (height, width))
    return scene_of(
        Product(
            sensor="desis",
            name=metadata.base[: -len("METADATA.xml")].rstrip("-_") or package.path.stem,
            samples=MaskedSamples(samples=image.samples, rules=rules),
            affine=image.affine,
            crs=image.crs,
            wavelength_nm=table[:, 0],
            fwhm_nm=table[:, 1],
            scale=table[:, 2],
            offset=table[:, 3],
            nodata=image.nodata or (_NODATA,),
            quantity="reflectance",
            unit="1",
            time=parse_time(root.findtext("base/temporalCoverage/startTime")),
            files=tuple(package.files([metadata, *used])),
            conditions=conditions(
                sun_zenith=root.findtext("specific/sunZenithAngle"),
                sun_azimuth=root.findtext("specific/sunAzimuthAngle"),
                off_nadir=root.findtext("specific/sceneIncidenceAngle"),
            ),
            notes=notes,
        ),
        source,
    )


def _rules(
    mask: Member | None, flags: tuple[Flag, ...], size: tuple[int, int]
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Rules of the layers that are wanted; without a mask, a note."""
    wanted = [band for flag in flags for band in _LAYERS.get(flag, ())]
    if mask is None:
        return (), ("no QL_QUALITY-2 in the product: clouds are not masked",) if wanted else ()
    samples = open_member(mask).samples
    layers = [refuse_short(Layer(samples=samples, band=band), size, str(mask.label)) for band in wanted]
    return tuple(Rule(layer=layer, bits=_ANY_VALUE) for layer in layers), ()


def _metadata(package: Package) -> list[Member]:
    return [m for m in package.find("*metadata.xml") if b"DESIS" in package.head(m, 4096)]


def _bands(root: Element, label: Path) -> NDArray[np.float64]:
    """Center, width (nm), gain and offset, shape (band, 4)."""
    names = ("wavelengthCenterOfBand", "wavelengthWidthOfBand", "gainOfBand", "offsetOfBand")
    rows = root.findall(".//bandCharacterisation/band")
    return np.array([[number_of(row, name, label) for name in names] for row in rows]).reshape(-1, 4)
