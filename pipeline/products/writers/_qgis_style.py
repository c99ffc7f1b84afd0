"""How QGIS shows a GeoTIFF when it is opened: three bands and their stretch, in a style file that QGIS finds by its name.

Without it QGIS chooses a stretch of its own each time. The style has the bands and the percentiles of the thumbnail, in the
physical units to which QGIS converts the stored counts. It says nothing of nodata: QGIS takes that from the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.markup import number_of, parse_xml
from hyperfuse.pipeline.composite import picture_bands, stretch_limits
from hyperfuse.pipeline.job.encoding import decoded
from hyperfuse.pipeline.products.draft import Asset, BadProduct, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.thumbnail import thinned_bands

SUFFIX = ".qml"
_COLORS = ("red", "green", "blue")
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
"""QGIS reads a style without it as well, but all that it writes begin so, and so other tools know them."""


def write_style(cube: FinishedCube) -> Asset:
    """Build `<name>.qml`, beside `<name>.tif`."""
    picked = picture_bands(cube.bands)
    planes = decoded(thinned_bands(cube.array, picked), cube.scale)
    opaque = np.isfinite(planes).all(axis=0)
    limits = []
    for plane in planes:
        values = plane[opaque]
        # Of one value: a gray, as in the thumbnail.
        middle = float(values[0]) if values.size else 0.0
        limits.append(stretch_limits(values) or (middle - 0.5, middle + 0.5))
    target = cube.folder / f"{cube.name}{SUFFIX}"
    target.write_text(_DOCTYPE + _style(picked, limits), encoding="utf-8")
    return Asset(
        key="style",
        href=target.name,
        media_type="application/xml",
        title="QGIS style of the GeoTIFF: bands and stretch of the thumbnail",
        roles=("style",),
    )


def check_style(folder: Path, expected: ProductFacts) -> None:
    """Read the style back: its bands are those of the record's spectrum, and each has a range to stretch.

    A product that was published before styles were has none; that one is lost is seen by the manifest.

    Raises
    ------
    BadProduct
        With the entry that is wrong.
    """
    path = folder / f"{expected.name}{SUFFIX}"
    if not path.exists():
        return
    label = Path(path.name)
    try:
        root = parse_xml(path.read_bytes().removeprefix(_DOCTYPE.encode()), label)
        renderer = root.find("pipe/rasterrenderer")
        if root.tag != "qgis" or renderer is None:
            raise BadProduct(f"{label}: it is no QGIS style of an image, pipe/rasterrenderer is missing")
        for color, band in zip(_COLORS, picture_bands(_bands(expected)), strict=True):
            if (found := renderer.get(f"{color}Band")) != str(band + 1):
                raise BadProduct(f"{label}: its {color}Band is {found}, expected {band + 1}")
            low, high = (
                number_of(renderer, f"{color}ContrastEnhancement/{end}", label) for end in ("minValue", "maxValue")
            )
            if not low < high:
                raise BadProduct(f"{label}: it stretches {color} from {low:g} to {high:g}, expected a range")
    except (OSError, InputRejected) as error:
        raise BadProduct(f"{label}: cannot be read ({error})") from error


def _style(picked: Sequence[int], limits: Sequence[tuple[float, float]]) -> str:
    root = ET.Element("qgis", version="3.22", styleCategories="Symbology")
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", type="multibandcolor", opacity="1", alphaBand="-1", nodataColor="")
    for color, band in zip(_COLORS, picked, strict=True):
        renderer.set(f"{color}Band", str(band + 1))
    ET.SubElement(renderer, "rasterTransparency")
    origin = ET.SubElement(renderer, "minMaxOrigin")
    for tag, text in (
        ("limits", "CumulativeCut"),
        ("extent", "WholeRaster"),
        ("statAccuracy", "Estimated"),
        ("cumulativeCutLower", "0.02"),
        ("cumulativeCutUpper", "0.98"),
    ):
        ET.SubElement(origin, tag).text = text
    for color, (low, high) in zip(_COLORS, limits, strict=True):
        stretch = ET.SubElement(renderer, f"{color}ContrastEnhancement")
        for tag, text in (
            ("minValue", f"{low:.6g}"),
            ("maxValue", f"{high:.6g}"),
            ("algorithm", "StretchToMinimumMaximum"),
        ):
            ET.SubElement(stretch, tag).text = text
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode") + "\n"


def _bands(facts: ProductFacts) -> Bands:
    """The spectrum of the record; every band of a product is good."""
    n_bands = len(facts.wavelength_nm)
    return Bands(
        center_nm=np.asarray(facts.wavelength_nm, np.float64),
        fwhm_nm=np.full(n_bands, math.nan),
        good=np.ones(n_bands, bool),
        source_band=np.asarray(facts.source_band, np.int64),
        names=tuple(f"{nm:g} nm" for nm in facts.wavelength_nm),
    )
