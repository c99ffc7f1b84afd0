"""Landsat 8 and 9, Collection 2 Level 2 surface reflectance: folder, tar, or the path of one of its MTL files.

Factors, offsets, file names, corners and time come from the MTL file (JSON, XML or text). Wavelengths are not in the
product: centers and widths are those of the OLI (`catalogs.references.responses`). No MTF per band was found in
the operator's documents: the value typical of the field is used for all bands.

Validity: 0 is fill, and a pixel that QA_RADSAT calls saturated in any band is not valid. Of QA_PIXEL, cloud, cloud
shadow and cirrus invalidate a pixel, dilated cloud, snow and water do not; the setting `mask` chooses otherwise.

References
----------
USGS, LSDS-1619, Landsat 8-9 Collection 2 Level 2 Science Product Guide (layout and bits of the QA bands).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from affine import Affine

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, check_corners, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import conditions
from hyperfuse.catalogs.formats.documents import parse_document
from hyperfuse.catalogs.formats.layers import (
    Flag,
    Layer,
    LayeredSamples,
    MaskedSamples,
    Rule,
    chosen_flags,
    refuse_short,
)
from hyperfuse.catalogs.formats.markup import parse_xml
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.references.responses import LANDSAT_8
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="Landsat 8 and 9 Collection 2 Level 2", gsd_m=30.0, role="msi")

_ROOT = "LANDSAT_METADATA_FILE"
_SPACECRAFT = ("LANDSAT_8", "LANDSAT_9")
_NAMES = ("CA", "Blue", "Green", "Red", "NIR", "SWIR1", "SWIR2")
"""Bands 1 to 7 in `catalogs.references.responses`."""
_BITS: dict[Flag, int] = {"dilated_cloud": 1, "cirrus": 2, "cloud": 3, "shadow": 4, "snow": 5, "water": 7}
_FILL_BIT = 0
_SATURATED = 0b111_1111
"""Bits of bands 1 to 7 in QA_RADSAT."""


def accepts(uri: str) -> bool:
    """Whether the address is a package with Landsat metadata."""
    package = open_package(uri)
    return package is not None and bool(_metadata(package))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is not of Landsat 8 or 9, Collection 2, Level 2, or its parts contradict each other.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask")
    package = open_package(source.uri)
    found = _metadata(package) if package else []
    if package is None or not found:
        raise InputRejected(f"{source.uri}: no folder or tar archive with a Landsat MTL file; check the path")
    if len(products := {m.base.rpartition("_MTL")[0] for m in found}) != 1:
        raise InputRejected(
            f"{source.uri}: holds {len(products)} Landsat products ({', '.join(sorted(products))}), expected one; "
            "name the MTL file of one in a folder of its own"
        )
    metadata = found[0]
    mtl = _parsed(package.read(metadata), metadata)
    try:
        return _scene(mtl, package, metadata, source)
    except (KeyError, ValueError, TypeError) as error:
        raise InputRejected(f"{metadata.label}: {error} is missing or no number; fetch the product again") from error


def _scene(mtl: Mapping[str, Any], package: Package, metadata: Member, source: Source) -> Scene:
    _refuse_other(mtl, metadata)
    contents, image = mtl["PRODUCT_CONTENTS"], mtl["IMAGE_ATTRIBUTES"]
    factors = mtl["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]
    numbers = range(1, len(_NAMES) + 1)
    members = [package.one(contents[f"FILE_NAME_BAND_{n}"]) for n in numbers]
    qa = [package.one(contents[f"FILE_NAME_QUALITY_L1_{key}"]) for key in ("PIXEL", "RADIOMETRIC_SATURATION")]
    there = package.in_place([*members, *qa])
    first = open_member(there[members[0].name])
    affine, size, crs = first.affine, first.samples.shape[1:], first.crs
    if affine is None or crs is None:
        raise InputRejected(f"{members[0].label}: has no georeference; fetch the product again")
    resampled = _check_grid(mtl["PROJECTION_ATTRIBUTES"], affine, size, metadata)

    def layer(member: Member) -> Layer:
        return refuse_short(Layer(samples=open_member(there[member.name]).samples), size, str(member.label))

    bits = sum(1 << _BITS[flag] for flag in chosen_flags(source.mask) if flag in _BITS) | 1 << _FILL_BIT
    rules = tuple(Rule(layer=layer(m), bits=own) for m, own in zip(qa, (bits, _SATURATED), strict=True))
    table = [LANDSAT_8[name] for name in _NAMES]
    return scene_of(
        Product(
            sensor="landsat",
            name=contents["LANDSAT_PRODUCT_ID"],
            samples=MaskedSamples(
                samples=LayeredSamples(layers=tuple(layer(m) for m in members), size=size), rules=rules
            ),
            affine=affine,
            crs=crs,
            wavelength_nm=[band.center_nm for band in table],
            fwhm_nm=[band.fwhm_nm for band in table],
            names=tuple(f"B{n}" for n in numbers),
            scale=[float(factors[f"REFLECTANCE_MULT_BAND_{n}"]) for n in numbers],
            offset=[float(factors[f"REFLECTANCE_ADD_BAND_{n}"]) for n in numbers],
            nodata=(0.0,),
            quantity="reflectance",
            unit="1",
            time=parse_time(f"{image['DATE_ACQUIRED']}T{image['SCENE_CENTER_TIME'].rstrip('Z')[:15]}"),
            files=tuple(package.files([metadata, *members, *qa])),
            look_for_dead=False,
            conditions=conditions(
                cloud_percent=image.get("CLOUD_COVER"),
                sun_elevation=image.get("SUN_ELEVATION"),
                sun_azimuth=image.get("SUN_AZIMUTH"),
                off_nadir=image.get("ROLL_ANGLE"),
            ),
            notes=(*resampled, "centers and widths of the OLI are not in the product: those of Barsi et al. (2014)"),
        ),
        source,
    )


def _refuse_other(mtl: Mapping[str, Any], metadata: Member) -> None:
    """Refuse what is not surface reflectance of Landsat 8 or 9 in Collection 2."""
    contents, craft = mtl["PRODUCT_CONTENTS"], mtl["IMAGE_ATTRIBUTES"]["SPACECRAFT_ID"]
    level, collection = contents["PROCESSING_LEVEL"], contents["COLLECTION_NUMBER"]
    if craft not in _SPACECRAFT or int(collection) != 2 or not level.startswith("L2S"):
        raise InputRejected(
            f"{metadata.label}: is {craft} Collection {collection} {level}, expected Landsat 8 or 9, Collection 2, L2SP or "
            "L2SR; order the surface reflectance"
        )


def _check_grid(grid: Mapping[str, Any], affine: Affine, size: tuple[int, int], metadata: Member) -> tuple[str, ...]:
    """Compare the images' grid with the corners in the metadata, which are centers of pixels; a note if resampled."""
    half = float(grid["GRID_CELL_SIZE_REFLECTIVE"]) / 2
    corners = [
        (
            row,
            col,
            float(grid[f"CORNER_{corner}_PROJECTION_X_PRODUCT"]) + side * half,
            float(grid[f"CORNER_{corner}_PROJECTION_Y_PRODUCT"]) - side * half,
        )
        for corner, row, col, side in (("UL", 0, 0, -1), ("LR", *size, 1))
    ]
    check_corners(affine, size, corners, metadata.label)
    declared = (int(grid["REFLECTIVE_LINES"]), int(grid["REFLECTIVE_SAMPLES"]))
    return () if size == declared else (f"{size[0]} x {size[1]} px: resampled from {declared[0]} x {declared[1]}",)


def _metadata(package: Package) -> list[Member]:
    """MTL files; of one product's three forms the JSON comes first."""
    order = {"json": 0, "xml": 1, "txt": 2}
    found = package.find("*_MTL.json", "*_MTL.xml", "*_MTL.txt")
    with_root = [m for m in found if _ROOT.encode() in package.head(m, 512)]
    return sorted(with_root, key=lambda m: order[m.base.lower().rpartition(".")[2]])


def _parsed(content: bytes, metadata: Member) -> Mapping[str, Any]:
    """Groups of an MTL file, each with its keys."""
    suffix = metadata.base.lower().rpartition(".")[2]
    try:
        if suffix == "json":
            record: Mapping[str, Any] = parse_document(content, str(metadata.label))[_ROOT]
            return record
        if suffix == "xml":
            return {
                group.tag: {e.tag: (e.text or "").strip() for e in group}
                for group in parse_xml(content, metadata.label)
            }
        return _odl(content.decode("ascii"))
    except (ValueError, KeyError) as error:
        raise InputRejected(f"{metadata.label}: is no MTL file ({error}); fetch it again") from error


def _odl(content: str) -> dict[str, dict[str, str]]:
    """Groups of the text form: lines of KEY = VALUE between GROUP and END_GROUP."""
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for line in content.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            group = value
        elif equals and key != "END_GROUP":
            groups.setdefault(group, {})[key] = value.strip('"')
    return groups
