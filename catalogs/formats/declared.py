"""What a raster declares: in its tags, in its ENVI header, and in the files that GDAL keeps beside it.

Beside it lie `IMAGE.aux.xml` (metadata), `IMAGE.msk` (validity) and world files. GDAL would open them itself, and with
them whatever file they name. So they are read here, the XML without entities. What they declare overrules the image, as
in GDAL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import BandTable, nm_per
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.markup import parse_xml

MAX_BYTES = 50 << 20
"""Size of an `.aux.xml`, at most."""
_WAVELENGTH_IN_NAME = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s*(nm|um|µm|μm|microns?|nanomet(?:er|re)s?|micromet(?:er|re)s?)(?![a-z])", re.IGNORECASE
)
_NUMBER_IN_NAME = re.compile(r"\((\d+(?:\.\d+)?)\)\s*$")
_OPTICAL = {"nm": (300.0, 15_000.0), "um": (0.3, 15.0)}
"""Wavelengths of optical sensors."""
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


def lower(tags: Mapping[str, str]) -> dict[str, str]:
    """ENVI and GDAL know no difference between capital and small letters in a key."""
    return {key.lower(): value for key, value in tags.items()}


def ignored(envi: Mapping[str, str]) -> tuple[float, ...]:
    """The nodata value of an ENVI header also where rasterio keeps silent, because the type cannot hold it."""
    value = number(envi.get("data_ignore_value", "").strip("{} "))
    return () if value is None else (value,)


@dataclass(frozen=True, kw_only=True)
class Physical:
    """Declared scale, and what the physical values then are."""

    scale: NDArray[np.float64] | None
    offset: NDArray[np.float64] | None
    measures: str
    notes: tuple[str, ...]


def physical_scale(dataset: Any, envi: Mapping[str, str], aux: Aux, n_bands: int, path: Path) -> Physical:
    """Scale and offset by the first that is declared: `.aux.xml`, reflectance gains, reflectance factor, gains.

    All are applied to the stored samples; "data reflectance gain values" and "reflectance scale factor" of an ENVI
    header give reflectance.
    """
    ones, zeros = np.ones(n_bands), np.zeros(n_bands)
    found: list[tuple[str, NDArray[np.float64], NDArray[np.float64], str]] = []
    bands = [aux.band(i) for i in range(n_bands)]
    if any(band.scale is not None or band.offset is not None for band in bands):
        scale = np.array([1.0 if band.scale is None else band.scale for band in bands])
        offset = np.array([0.0 if band.offset is None else band.offset for band in bands])
        found.append((f"{path.name}.aux.xml", scale, offset, ""))
    gains = _listed(envi, "data_reflectance_gain_values", n_bands, path)
    offsets = _listed(envi, "data_reflectance_offset_values", n_bands, path)
    if gains is not None or offsets is not None:
        scale, offset = ones if gains is None else gains, zeros if offsets is None else offsets
        found.append(("data reflectance gain values", scale, offset, "reflectance"))
    factor = number(envi.get("reflectance_scale_factor"))
    if factor:
        found.append((f"reflectance scale factor {factor:g}", ones / factor, zeros, "reflectance"))
    scale = np.array(dataset.scales[:n_bands], dtype=np.float64)
    offset = np.array(dataset.offsets[:n_bands], dtype=np.float64)
    if np.any(scale != 1) or np.any(offset != 0):
        # Some writers put reflectance gains into "data gain values": what they measure, the size of the samples tells.
        found.append(("data gain values" if dataset.driver == "ENVI" else "the scale in the file", scale, offset, ""))
    if not found:
        return Physical(scale=None, offset=None, measures="", notes=())
    name, scale, offset, measures = found[0]
    notes = [
        f"{path.name}: {other[0]} is declared beside {name} and not applied"
        for other in found[1:]
        if not (np.allclose(other[1], scale, rtol=1e-6, atol=0) and np.allclose(other[2], offset, rtol=1e-6))
    ]
    return Physical(scale=scale, offset=offset, measures=measures, notes=tuple(notes))


def _listed(envi: Mapping[str, str], key: str, n_bands: int, path: Path) -> NDArray[np.float64] | None:
    """A list of the header with one number per band, None if it is not there."""
    if not (text := envi.get(key, "").strip("{} \n").rstrip(",").strip()):
        return None
    try:
        values = np.array([float(v) for v in text.split(",")])
    except ValueError as error:
        raise InputRejected(f"{path}: {error} among {key.replace('_', ' ')}; correct the header") from error
    if values.size not in (1, n_bands):
        raise InputRejected(
            f"{path}: {values.size} {key.replace('_', ' ')} for {n_bands} bands, expected one per band; correct the header"
        )
    return np.broadcast_to(values, n_bands).copy()


def band_table(dataset: Any, n_bands: int, path: Path, aux: Aux) -> BandTable | None:
    """Wavelengths of the best source; widths and flags of the best source that has them, in the same unit."""
    bands = [
        _own_entry({**lower(dataset.tags(i + 1)), **aux.band(i).tags.get("", {})}, i, n_bands) for i in range(n_bands)
    ]
    common = {**lower(dataset.tags()), **aux.tags.get("", {})}
    envi = {
        k: [v.strip() for v in text.strip("{} \n").rstrip(",").split(",")]
        for k, text in {**lower(dataset.tags(ns="ENVI")), **aux.tags.get("ENVI", {})}.items()
    }
    unit = bands[0].get("wavelength_units") or common.get("wavelength_units")
    tables = [
        _candidate(path, [[b.get(key) for b in bands] for key in ("wavelength", "fwhm", "bbl")], unit),
        _candidate(
            path, [envi.get(key) for key in ("wavelength", "fwhm", "bbl")], envi.get("wavelength_units", [""])[0]
        ),
    ]
    if all(table is None or not table.wavelength for table in tables):
        # Last, because GDAL rounds its own IMAGERY domain to 1 nm.
        imagery = [
            {**lower(dataset.tags(i + 1, ns="IMAGERY")), **aux.band(i).tags.get("IMAGERY", {})} for i in range(n_bands)
        ]
        keys = ("central_wavelength_um", "fwhm_um", "")
        tables.append(_candidate(path, [[b.get(key) for b in imagery] for key in keys], "um"))
    if all(table is None or not table.wavelength for table in tables):
        tables.append(wavelengths_of_names([aux.band(i).name or dataset.descriptions[i] for i in range(n_bands)]))
    found = [table for table in tables if table is not None]
    best = next((table for table in found if table.wavelength), None)
    if best is None:
        return None
    for other in found:
        if best.fwhm is None and other.fwhm is not None:
            ours, theirs = nm_per(best.unit), nm_per(other.unit)
            if (best.unit or None) == (other.unit or None) or (ours and theirs):
                ratio = theirs / ours if ours and theirs else 1.0
                best = replace(best, fwhm=tuple(v * ratio for v in other.fwhm))
        if best.good is None:
            best = replace(best, good=other.good)
    return best


def _own_entry(tags: dict[str, str], band: int, n_bands: int) -> dict[str, str]:
    """The tags of a band; of a list with an entry for each band, which some writers give to all of them, its own."""
    told = dict(tags)
    for key in ("wavelength", "fwhm", "bbl"):
        listed = told.get(key, "").strip()
        if listed.startswith("{") and len(entries := listed.strip("{} ").split(",")) == n_bands:
            told[key] = entries[band].strip()
    return told


def wavelengths_of_names(names: Sequence[str | None]) -> BandTable | None:
    """Wavelengths that every band's name carries, such as `Band 3 (0.56 um)`, `665 nm`, and as ENVI writes it `Band 3 (560.00)`."""
    matches = [_WAVELENGTH_IN_NAME.findall(name or "") for name in names]
    if not all(len(found) == 1 for found in matches):
        return _in_parentheses(names)
    center_nm = [float(value) * (nm_per(unit) or np.nan) for ((value, unit),) in matches]
    return BandTable(wavelength=tuple(center_nm), fwhm=None, good=None, unit="nm")


def _in_parentheses(names: Sequence[str | None]) -> BandTable | None:
    """Numbers in parentheses at the end of every name, if they can be nothing but wavelengths."""
    matches = [_NUMBER_IN_NAME.search(name or "") for name in names]
    values = [float(found[1]) for found in matches if found is not None]
    if len(values) < len(names) or len(set(values)) < len(values) or len(values) < 2:
        return None
    for unit, (low, high) in _OPTICAL.items():
        # Whole numbers below 20 count the bands.
        if all(low <= value <= high for value in values) and (unit == "nm" or any(value % 1 for value in values)):
            return BandTable(wavelength=tuple(values), fwhm=None, good=None, unit=unit)
    return None


def _candidate(path: Path, columns: Sequence[Sequence[str | None] | None], unit: str | None) -> BandTable | None:
    """A table of what one source has; missing columns are empty or None."""
    try:
        center, width, flag = (
            None if column is None or not any(column) else tuple(_value(v) for v in column) for column in columns
        )
    except ValueError as error:
        raise InputRejected(
            f"{path}: {error} among wavelength, fwhm or bbl; correct the header or give a table"
        ) from error
    if center is None and width is None and flag is None:
        return None
    good = None if flag is None else tuple(v != 0 for v in flag)
    told = None if (unit or "").strip().lower() in {"", "unknown"} else unit
    return BandTable(wavelength=center or (), fwhm=width, good=good, unit=told)


def _value(text: str | None) -> float:
    """A number of a list; some writers flag bad bands by words."""
    words = {"true": 1.0, "false": 0.0}
    return np.nan if not text else words[text.lower()] if text.lower() in words else float(text)


def number(text: str | None) -> float | None:
    """The number that a text is, None if it is none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None
