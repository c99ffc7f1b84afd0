"""What GDAL keeps beside a raster: `IMAGE.aux.xml` (metadata), `IMAGE.msk` (validity) and world files.

GDAL would open them itself, and with them whatever file they name. So they are read here: the XML without entities,
the mask as a plain GeoTIFF. What they declare overrules the image, as in GDAL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from affine import Affine

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.markup import parse_xml

MAX_BYTES = 50 << 20
"""Size of an `.aux.xml`, at most."""
_WORLD = {
    ".tif": (".tfw", ".tifw", ".wld"),
    ".tiff": (".tfw", ".tiffw", ".wld"),
    ".jp2": (".j2w", ".jp2w", ".wld"),
    ".bsq": (".bqw", ".wld"),
    ".bil": (".blw", ".wld"),
    ".bip": (".bpw", ".wld"),
}


@dataclass(frozen=True, kw_only=True)
class BandAux:
    """What an `.aux.xml` declares of one band; None where it does not."""

    nodata: float | None = None
    """Stored value that means no data."""
    scale: float | None = None
    """Factor from stored to physical values."""
    offset: float | None = None
    """Physical value of stored 0."""
    name: str | None = None
    """Description of the band."""
    unit: str | None = None
    """Unit of the physical values."""
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Metadata by domain ("" is the default one), keys in lower case."""


@dataclass(frozen=True, kw_only=True)
class Aux:
    """What an `.aux.xml` declares of an image."""

    files: tuple[Path, ...] = ()
    """The file, if there is one."""
    crs: str | None = None
    """CRS as it is written there."""
    affine: Affine | None = None
    """Pixel-to-world matrix."""
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Metadata by domain ("" is the default one), keys in lower case."""
    bands: Mapping[int, BandAux] = field(default_factory=dict)
    """Bands by their 0-based position."""

    def band(self, index: int) -> BandAux:
        """What is declared of one band."""
        return self.bands.get(index, BandAux())


def read_aux(image: Path) -> Aux:
    """The `.aux.xml` beside an image; nothing is declared where there is none.

    Raises
    ------
    InputRejected
        If it is there and damaged.
    """
    path = image.with_name(f"{image.name}.aux.xml")
    if not path.is_file():
        return Aux()
    if path.stat().st_size > MAX_BYTES:
        raise InputRejected(f"{path}: has {path.stat().st_size} bytes, expected at most {MAX_BYTES}; remove it")
    root = parse_xml(path.read_bytes(), path)
    if root.tag != "PAMDataset":
        return Aux()  # other software writes files of this name
    try:
        return Aux(
            files=(path,),
            crs=(root.findtext("SRS") or "").strip() or None,
            affine=_geotransform(root.findtext("GeoTransform")),
            tags=_domains(root),
            bands={int(band.get("band", "0")) - 1: _band(band) for band in root.findall("PAMRasterBand")},
        )
    except ValueError as error:
        raise InputRejected(f"{path}: {error}, expected a number; correct the file or remove it") from error


def mask_file(image: Path) -> Path | None:
    """The external mask beside an image, None if there is none."""
    path = image.with_name(f"{image.name}.msk")
    return path if path.is_file() else None


def world_file(image: Path) -> tuple[Affine, Path] | None:
    """Pixel-to-world matrix of the world file beside an image, None if there is none.

    Raises
    ------
    InputRejected
        If it does not hold six numbers.
    """
    for suffix in _WORLD.get(image.suffix.lower(), (".wld",)):
        path = next((p for s in (suffix, suffix.upper()) if (p := image.with_suffix(s)).is_file()), None)
        if path is not None:
            try:
                a, d, b, e, x, y = (float(v) for v in path.read_text(encoding="utf-8")[:4096].split())
            except ValueError as error:
                raise InputRejected(f"{path}: {error}, expected the six numbers of a world file; remove it") from error
            # A world file places the center of the first pixel, the matrix its corner.
            return Affine(a, b, x - a / 2 - b / 2, d, e, y - d / 2 - e / 2), path
    return None


def _band(band: Element) -> BandAux:
    return BandAux(
        nodata=_number(band, "NoDataValue"),
        scale=_number(band, "Scale"),
        offset=_number(band, "Offset"),
        name=(band.findtext("Description") or "").strip() or None,
        unit=(band.findtext("UnitType") or "").strip() or None,
        tags=_domains(band),
    )


def _domains(node: Element) -> dict[str, dict[str, str]]:
    return {
        (domain.get("domain") or "").upper(): {
            str(item.get("key", "")).lower(): (item.text or "").strip() for item in domain.findall("MDI")
        }
        for domain in node.findall("Metadata")
        if domain.get("format") != "xml"
    }


def _number(node: Element, name: str) -> float | None:
    text = (node.findtext(name) or "").strip()
    return float(text) if text else None


def _geotransform(text: str | None) -> Affine | None:
    if not (text or "").strip():
        return None
    values = [float(v) for v in str(text).split(",")]
    if len(values) != 6 or not all(math.isfinite(v) for v in values):
        raise ValueError(f"GeoTransform {str(text).strip()[:60]!r}")
    return Affine.from_gdal(*values)
