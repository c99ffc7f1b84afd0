"""EnMAP L2A (surface reflectance) and L1C (radiance): folder, zip, tar, tar.gz, or the path of METADATA.XML.

Everything but the layout comes from METADATA.XML: band centers, widths, gains and offsets, the bands without signal and
the time. VNIR and SWIR overlap from 902 to 993 nm; bands of both detectors are kept and sorted by wavelength.

Validity: background (class 3 of QL_QUALITY_CLASSES, and the background value) is never valid. Of the quality layers,
clouds, cloud shadow and cirrus of any strength invalidate a pixel, haze, snow and water do not; the setting `mask`
chooses otherwise. QL_PIXELMASK and QL_QUALITY_TESTFLAGS are not used: what they mark was interpolated by the processor.

References
----------
DLR, EN-PCV-ICD-2009-2, HSI Product Specification Level 1/Level 2 (layout).
DLR, EnMAP HSI Instrument Specification: MTF at a period of 60 m above 0.25 across and above 0.16 along track. That is the
requirement for both detectors; what VNIR and SWIR reach is not published per detector.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_outside, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import conditions, tilt_deg
from hyperfuse.catalogs.formats.layers import Flag, Layer, MaskedSamples, Rule, chosen_flags, refuse_short
from hyperfuse.catalogs.formats.markup import lonlat, number_of, text_of
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.formats.stored import Image
from hyperfuse.catalogs.scene import Conditions, Quantity, Scene
from hyperfuse.catalogs.sensors import Mtf, Sensor, Source
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="EnMAP L2A and L1C", gsd_m=30.0, role="hsi", mtf=Mtf(across=0.25, along=0.16))

_IMAGES = ("tif", "tiff", "jp2", "bsq", "bil", "bip")
_BACKGROUND_CLASS, _WATER_CLASS = 3, 2
_NO_STATISTICS = -1e5
"""Band means below this are the processor's mark of a band without signal (-1000000), not radiometry."""
_LAYERS: dict[Flag, str] = {
    "cloud": "CLOUD",
    "shadow": "CLOUDSHADOW",
    "cirrus": "CIRRUS",
    "haze": "HAZE",
    "snow": "SNOW",
}
_ANY_VALUE = 0xFF
_ENVI = {".bsq", ".bil", ".bip"}
_PROJECTION = re.compile(r"UTM_Zone_?(\d+)_(North|South)", re.IGNORECASE)


def accepts(uri: str) -> bool:
    """Whether the address is a package with EnMAP metadata."""
    package = open_package(uri)
    return package is not None and bool(_metadata(package))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no whole L1C or L2A product, or its parts contradict each other.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask")
    found = _parts(source)
    root, label = found.root, found.metadata.label
    level, quantity, unit = _level(root, label)
    bands = _bands(root, label)
    image = found.image
    n_bands, *size = image.samples.shape
    if n_bands != len(bands.center_nm):
        raise InputRejected(
            f"{image.path}: has {n_bands} bands, METADATA.XML describes {len(bands.center_nm)}; fetch the product again"
        )
    height, width = size
    affine, crs = _grid(image, root)
    corners = root.iterfind("base/spatialCoverage/boundingPolygon/point")
    try:
        refuse_outside(affine, (height, width), crs, [lonlat(point, label) for point in corners], label)
    except InputRejected as error:
        if image.path.suffix.lower() not in _ENVI:
            raise
        why = str(error).rpartition(";")[0]
        raise InputRejected(
            f"{why}; EnPT keeps the corners of L1B: if it made the product, name {image.path.name} itself with sensor=generic"
        ) from error
    rules, missing = _rules(found, chosen_flags(source.mask), (height, width))
    has_background = root.find("specific/backgroundValue") is not None
    background = number_of(root, "specific/backgroundValue", label) if has_background else 0.0
    return scene_of(
        Product(
            sensor="enmap",
            name=found.prefix.rstrip("-_") or found.package.path.stem,
            samples=MaskedSamples(samples=image.samples, rules=rules),
            affine=affine,
            crs=crs,
            wavelength_nm=bands.center_nm,
            fwhm_nm=bands.fwhm_nm,
            scale=bands.gain,
            offset=bands.offset,
            quantity=quantity,
            unit=unit,
            # A background of 0 is also a dark pixel: there the class layer alone tells.
            nodata=tuple({*image.nodata, *((background,) if background else ())}),
            good=bands.good,
            time=parse_time(root.findtext("base/temporalCoverage/startTime")),
            files=tuple(found.package.files([found.metadata, *found.used])),
            conditions=_conditions(root),
            notes=(f"EnMAP {level}", *missing),
        ),
        source,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    package: Package
    metadata: Member
    root: Element
    prefix: str
    """What the names of all files of the product begin with."""
    image: Image
    layers: dict[str, Image]
    """Quality layers by the last word of their names."""
    used: list[Member]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """Bands in file order."""

    center_nm: NDArray[np.float64]
    fwhm_nm: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    good: NDArray[np.bool_]


def _metadata(package: Package) -> list[Member]:
    return [m for m in package.find("*metadata.xml") if b"EnMAP" in package.head(m, 4096)]


def _parts(source: Source) -> _Parts:
    package = open_package(source.uri)
    if package is None:
        raise InputRejected(f"{source.uri}: no folder, zip or tar archive of an EnMAP product; check the path")
    candidates = _metadata(package)
    if not Path(source.uri).is_dir() and package.kind == "folder":
        candidates = [m for m in candidates if m.holder == Path(source.uri)]
    if len(candidates) != 1:
        told = ", ".join(m.name for m in candidates[:5]) or "none"
        todo = (
            "name the METADATA.XML of one"
            if package.kind == "folder"
            else "unpack it, and name the METADATA.XML of one"
        )
        raise InputRejected(f"{source.uri}: holds {len(candidates)} EnMAP products ({told}), expected one; {todo}")
    metadata = candidates[0]
    prefix = metadata.base[: -len("METADATA.XML")]
    root = package.xml(metadata)
    _level(root, metadata.label)  # before the images: an L1B product has others
    begin = glob.escape(prefix)
    image = package.one(*(f"{begin}SPECTRAL_IMAGE{cog}.{suffix}" for cog in ("", "_COG") for suffix in _IMAGES))
    layers = {}
    for word in ("CLASSES", *_LAYERS.values()):
        patterns = [f"{begin}QL_QUALITY_{word}{cog}.{suffix}" for cog in ("", "_COG") for suffix in _IMAGES]
        if package.find(*patterns):
            layers[word] = package.one(*patterns)
    used = [image, *layers.values()]
    there = package.in_place(used)
    return _Parts(
        package=package,
        metadata=metadata,
        root=root,
        prefix=prefix,
        image=open_member(there[image.name]),
        layers={word: open_member(there[member.name]) for word, member in layers.items()},
        used=used,
    )


def _level(root: Element, label: Path) -> tuple[str, Quantity, str]:
    level = text_of(root, "base/level", label)
    if level == "L2A":
        return level, "reflectance", "1"
    if level == "L1C":
        return level, "radiance", "W m-2 sr-1 nm-1"
    raise InputRejected(f"{label}: EnMAP {level} has no map grid, expected L2A or L1C; order the scene as L2A")


def _bands(root: Element, label: Path) -> _Table:
    rows = root.findall("specific/bandCharacterisation/bandID")
    names = ("wavelengthCenterOfBand", "FWHMOfBand", "GainOfBand", "OffsetOfBand")
    table = np.array([[number_of(row, name, label) for name in names] for row in rows]).reshape(-1, 4)
    statistics = [
        (number_of(row, "mean", label), number_of(row, "stdDeviation", label))
        for row in root.findall(".//bandStatistics/bandID")
    ]
    good = np.ones(len(table), bool)
    if len(statistics) == len(table):
        good = np.array([mean > _NO_STATISTICS and deviation > 0 for mean, deviation in statistics])
    return _Table(
        center_nm=table[:, 0], fwhm_nm=table[:, 1], gain=table[:, 2], offset=table[:, 3], good=good
    )  # fmt: skip


def _conditions(root: Element) -> Conditions:
    """Of the scene's center. `sceneAzimuthAngle` is the heading of the track, not a direction of sight."""

    def center(name: str) -> str | None:
        return root.findtext(f"specific/{name}/center")

    return conditions(
        cloud_percent=root.findtext("specific/qualityFlag/cloudCover"),
        sun_elevation=center("sunElevationAngle"),
        sun_azimuth=center("sunAzimuthAngle"),
        off_nadir=tilt_deg(center("acrossOffNadirAngle"), center("alongOffNadirAngle")),
    )


def _grid(image: Image, root: Element) -> tuple[Affine, str]:
    """Matrix and CRS of the image; the CRS must be the one that the metadata name."""
    declared = _PROJECTION.search(root.findtext(".//ortho/projection") or "")
    utm = f"EPSG:{326 if declared[2].lower() == 'north' else 327}{int(declared[1]):02d}" if declared else None
    crs = image.crs or utm
    if image.affine is None or crs is None:
        raise InputRejected(f"{image.path}: has no georeference, expected a GeoTIFF on a map; fetch the product again")
    if utm and image.crs and (own := CRS.from_user_input(image.crs)).to_epsg() not in (None, int(utm[5:])):
        raise InputRejected(f"{image.path}: lies in {own.name}, METADATA.XML says {utm}; fetch the product again")
    return image.affine, crs


def _rules(found: _Parts, flags: tuple[Flag, ...], size: tuple[int, int]) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Masks that are used, and a sentence for each that is wanted and missing."""
    rules, missing = [], []

    def layer(word: str) -> Layer:
        image = found.layers[word]
        return refuse_short(Layer(samples=image.samples), size, str(image.path))

    if "CLASSES" in found.layers:
        values = (_BACKGROUND_CLASS, _WATER_CLASS) if "water" in flags else (_BACKGROUND_CLASS,)
        rules.append(Rule(layer=layer("CLASSES"), values=values))
    for flag in flags:
        word = _LAYERS.get(flag)
        if word in found.layers:
            rules.append(Rule(layer=layer(word), bits=_ANY_VALUE))
        elif word is not None:
            missing.append(f"no QL_QUALITY_{word} in the product: {flag} is not masked")
    return tuple(rules), tuple(missing)
