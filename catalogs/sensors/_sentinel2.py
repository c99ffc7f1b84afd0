"""What the metadata of a Sentinel-2 product tell: the XML of a SAFE product, or the STAC item beside a set of COGs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.conditions import conditions, stac_conditions
from hyperfuse.catalogs.formats.documents import parse_document
from hyperfuse.catalogs.formats.layers import Flag
from hyperfuse.catalogs.formats.markup import number_of, text_of
from hyperfuse.catalogs.formats.packages import Member, Package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.references.responses import SENTINEL_2A
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.times import parse_time

COARSE_M = 60
"""Sampling distance (m) of the bands of the atmosphere."""
FINEST_M = 10
"""Sampling distance of the product's grid."""
SCL_M = 20
SCL: dict[Flag, tuple[int, ...]] = {
    "defective": (1,), "shadow": (3,), "water": (6,), "cloud": (8, 9), "cirrus": (10,), "snow": (11,)
}  # fmt: skip
"""Classes of the scene classification."""
_ROOTS = (b"Level-2A_User_Product", b"Level-1C_User_Product")
_COG_NAME = re.compile(r"(?:^|_)(B\d\d|B8A|SCL)(?:_(\d+)m)?\.(?:tiff?|jp2)$", re.IGNORECASE)
_CONSTELLATION = re.compile(rb'"sentinel[- ]2[a-d]?"', re.IGNORECASE)
_OFFSET_BASELINE = "04.00"
"""First baseline whose counts have an offset of 1000."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band as the metadata describe it."""

    name: str
    """Name with two digits, as in file names: B02, B8A."""
    center_nm: float
    """Central wavelength (nm)."""
    fwhm_nm: float
    """Full width at half maximum (nm)."""
    gsd_m: int
    """Native sampling distance: 10, 20 or 60 m."""
    scale: float
    """Reflectance of one count."""
    offset: float
    """Reflectance of count 0."""
    image: Member
    """Its image at the native sampling distance."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the metadata of a product tell."""

    name: str
    """Name of the product."""
    bands: tuple[Band, ...]
    """Bands whose images are there."""
    nodata: tuple[float, ...]
    """Counts that are no data or saturated."""
    affine: Affine
    """The finest grid."""
    size: tuple[int, int]
    """Its rows and columns."""
    crs: str
    """Its CRS."""
    time: datetime | None
    """Sensing time, UTC."""
    files: tuple[Member, ...]
    """Metadata files."""
    scl: Member | None
    """Scene classification, 20 m."""
    classi: Member | None
    """Cloud layers of L1C, 60 m."""
    conditions: Conditions
    """Cloud, sun and view."""
    notes: tuple[str, ...]
    """What had to be decided."""


def two_digits(name: str) -> str:
    """B02 for B2 and for B02; B8A stays."""
    name = name.upper()
    return f"B0{name[1:]}" if len(name) == 2 and name[1:].isdigit() else name


def metadata_of(package: Package) -> list[Member]:
    """Metadata files of SAFE products."""
    found = package.find("MTD_MSIL2A.xml", "MTD_MSIL1C.xml")
    return [m for m in found if any(root in package.head(m, 2048) for root in _ROOTS)]


def items_of(package: Package) -> list[Member]:
    """STAC items of Sentinel-2 scenes."""
    heads = ((m, package.head(m, 1 << 16)) for m in package.find("*.json"))
    return [m for m, head in heads if b'"stac_version"' in head and _CONSTELLATION.search(head)]


def describe_safe(package: Package, metadata: Member) -> Description:
    """What the XML files of a SAFE product tell.

    Raises
    ------
    InputRejected
        If they contradict each other, or there is not one tile.
    """
    root = package.xml(metadata)
    label = metadata.label
    folder = metadata.name[: -len(metadata.base)]
    granules = [
        m
        for m in package.find("MTD_TL.xml")
        if m.name.startswith(f"{folder}GRANULE/") and m.name.count("/") == folder.count("/") + 2
    ]
    if len(granules) != 1:
        raise InputRejected(
            f"{label}: {len(granules)} tiles (GRANULE/*/MTD_TL.xml) beside it, expected one; fetch the product again, or "
            "split a product of several tiles"
        )
    tile = package.xml(granules[0])
    affine, size, crs = _grid(tile, granules[0].label)
    inside = granules[0].name[: -len(granules[0].base)]
    own = [m for m in package.members if m.name.startswith(inside)]
    level = text_of(root, ".//PROCESSING_LEVEL", label)
    nodata = [
        number_of(value, "SPECIAL_VALUE_INDEX", label)
        for value in root.iterfind(".//Special_Values")
        if text_of(value, "SPECIAL_VALUE_TEXT", label) in ("NODATA", "SATURATED")
    ]
    baseline = text_of(root, ".//PROCESSING_BASELINE", label)
    bands, offsets, missing = _bands(root, own, label)
    told = ", ".join(sorted({f"{offset:g}" for offset in offsets})) or "none"
    return Description(
        name=text_of(
            root, ".//PRODUCT_URI" if root.find(".//PRODUCT_URI") is not None else ".//PRODUCT_URI_2A", label
        ).removesuffix(".SAFE"),
        bands=bands,
        nodata=tuple(nodata),
        affine=affine,
        size=size,
        crs=crs,
        time=parse_time(tile.findtext(".//SENSING_TIME"), root.findtext(".//PRODUCT_START_TIME")),
        files=(metadata, granules[0]),
        scl=_image(own, "SCL", 20),
        classi=next((m for m in own if m.base == "MSK_CLASSI_B00.jp2"), None),
        conditions=_conditions(root, tile),
        notes=(
            f"Sentinel-2 {level}, baseline {baseline}, offset of counts by the metadata: {told}",
            *(
                [f"the metadata list {', '.join(missing)}, no image of it is there: fetch the product again to use it"]
                if missing
                else []
            ),
        ),
    )


def _conditions(root: Element, tile: Element) -> Conditions:
    """Cloud cover of the product, mean angles of the tile; the view is that of B08, in the middle of the detectors."""
    angles = "*/Tile_Angles/Mean_Sun_Angle"
    view = "*/Tile_Angles/Mean_Viewing_Incidence_Angle_List/Mean_Viewing_Incidence_Angle[@bandId='7']"
    return conditions(
        cloud_percent=root.findtext(".//Cloud_Coverage_Assessment"),
        sun_zenith=tile.findtext(f"{angles}/ZENITH_ANGLE"),
        sun_azimuth=tile.findtext(f"{angles}/AZIMUTH_ANGLE"),
        off_nadir=tile.findtext(f"{view}/ZENITH_ANGLE"),
        view_azimuth=tile.findtext(f"{view}/AZIMUTH_ANGLE"),
    )


def _grid(tile: Element, label: Path) -> tuple[Affine, tuple[int, int], str]:
    """The 10 m grid; upper left coordinates are outer corners."""
    place = f"*/Tile_Geocoding/Geoposition[@resolution='{FINEST_M}']"
    size = f"*/Tile_Geocoding/Size[@resolution='{FINEST_M}']"
    left, top, dx, dy = (number_of(tile, f"{place}/{key}", label) for key in ("ULX", "ULY", "XDIM", "YDIM"))
    rows, cols = (round(number_of(tile, f"{size}/{key}", label)) for key in ("NROWS", "NCOLS"))
    if dx <= 0 or dy >= 0:
        raise InputRejected(f"{label}: pixels of {dx:g} x {dy:g} m, expected rows that run south; fetch it again")
    crs = text_of(tile, "*/Tile_Geocoding/HORIZONTAL_CS_CODE", label)
    return Affine(dx, 0.0, left, 0.0, dy, top), (rows, cols), crs


def _bands(root: Element, own: list[Member], label: Path) -> tuple[tuple[Band, ...], list[float], list[str]]:
    """Bands with an image, the offsets (counts) of the product, and the bands of 10 m and 20 m whose image is missing."""
    # The second name is that of L2A products before 2018.
    l2a = next(
        (k for k in ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE") if root.find(f".//{k}") is not None),
        None,
    )
    is_l2a = l2a is not None
    quantity = number_of(root, f".//{l2a or 'QUANTIFICATION_VALUE'}", label)
    offsets = {
        e.get("band_id"): number_of(e, ".", label) for e in root.iter(f"{'BOA' if is_l2a else 'RADIO'}_ADD_OFFSET")
    }
    if quantity <= 0:
        raise InputRejected(
            f"{label}: the quantification value is {quantity:g}, expected 10000; fetch the product again"
        )
    bands, missing = [], []
    for entry in root.iter("Spectral_Information"):
        name = two_digits(entry.get("physicalBand") or "")
        gsd_m = round(number_of(entry, "RESOLUTION", label))
        if (image := _image(own, name, gsd_m)) is None:
            if gsd_m < COARSE_M:
                missing.append(f"{name} ({gsd_m} m)")
            continue
        number = entry.get("bandId")
        if offsets and number not in offsets:
            raise InputRejected(f"{label}: gives offsets, but none for band {name}; fetch the product again")
        scale = 1.0 / quantity
        bands.append(
            Band(
                name=name,
                center_nm=number_of(entry, "Wavelength/CENTRAL", label),
                fwhm_nm=_fwhm(entry, label),
                gsd_m=gsd_m,
                scale=scale,
                offset=offsets.get(number, 0.0) * scale,
                image=image,
            )
        )
    return tuple(bands), list(offsets.values()), missing


def _image(own: list[Member], name: str, gsd_m: int) -> Member | None:
    """Image of a band at its native sampling distance: *_B02_10m.jp2 in L2A, *_B02.jp2 in L1C."""
    ends = (f"_{name}_{gsd_m}m.jp2", f"_{name}.jp2")
    return next((m for m in own if m.base.endswith(ends) and "/IMG_DATA/" in f"/{m.name}"), None)


def _fwhm(entry: Element, label: Path) -> float:
    """Full width at half maximum (nm) of the sampled response; without one, the distance of its limits."""
    low, high = (number_of(entry, f"Wavelength/{key}", label) for key in ("MIN", "MAX"))
    try:
        values = np.array((entry.findtext("Spectral_Response/VALUES") or "").split(), dtype=np.float64)
    except ValueError as error:
        raise InputRejected(f"{label}: {error} in a spectral response; fetch the product again") from error
    if values.size < 3 or not values.max() > 0:
        return high - low
    step = number_of(entry, "Spectral_Response/STEP", label)
    nm: NDArray[np.float64] = low + step * np.arange(values.size, dtype=np.float64)
    above = np.flatnonzero(values >= values.max() / 2)
    first, last = int(above[0]), int(above[-1])
    left = _crossing(nm, values, first - 1, first) if first else nm[0]
    right = _crossing(nm, values, last, last + 1) if last + 1 < values.size else nm[-1]
    return float(right - left)


def _crossing(nm: NDArray[np.floating], values: NDArray[np.floating], i: int, j: int) -> float:
    """Where the line between two samples crosses half of the maximum."""
    half = values.max() / 2
    return float(nm[i] + (half - values[i]) / (values[j] - values[i]) * (nm[j] - nm[i]))


def describe_cogs(package: Package, item: Member, *, offset: float | None) -> Description:
    """What a STAC item tells of the COGs beside it; its links are not followed.

    Centers and widths are those of ESA's table, because items round them to 10 nm. `offset` (reflectance of count 0)
    is the user's word where the item does not tell whether the counts have an offset.

    Raises
    ------
    InputRejected
        If no image is there, or nothing tells whether the counts have an offset.
    """
    try:
        record = parse_document(package.read(item), str(item.label))
        properties = record["properties"]
        found = dict(_cogs(package, record["assets"]))
        offset_told = _cog_offset(properties, found, item.label) if offset is None else offset
        bands = tuple(
            Band(
                name=two_digits(name),
                center_nm=response.center_nm,
                fwhm_nm=response.fwhm_nm,
                gsd_m=round(response.gsd_m),
                scale=float(found[two_digits(name)][1].get("scale", 1e-4)),
                offset=offset_told,
                image=found[two_digits(name)][0],
            )
            for name, response in SENTINEL_2A.items()
            if two_digits(name) in found
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRejected(f"{item.label}: is not a STAC item with its COGs ({error!r}); fetch it again") from error
    if not bands or (finest := min(bands, key=lambda band: band.gsd_m)).gsd_m != FINEST_M:
        raise InputRejected(f"{item.label}: none of its 10 m bands lies beside it; fetch B02, B03, B04 or B08")
    grid = open_member(package.in_place([finest.image])[finest.image.name])
    if grid.affine is None or grid.crs is None:
        raise InputRejected(f"{finest.image.label}: has no georeference; fetch it again")
    return Description(
        name=str(record.get("id") or package.path.stem),
        bands=bands,
        nodata=(0.0,),
        affine=grid.affine,
        size=grid.samples.shape[1:],
        crs=grid.crs,
        time=parse_time(properties.get("datetime")),
        files=(item,),
        scl=found["SCL"][0] if "SCL" in found else None,
        classi=None,
        conditions=stac_conditions(properties),
        notes=(
            f"COGs of {properties.get('s2:product_uri', 'Sentinel-2')}",
            f"reflectance of count 0 is {offset_told:g}, by {'the STAC item' if offset is None else 'the setting offset'}",
            "centers and widths by ESA's table of Sentinel-2A: the STAC item rounds them",
        ),
    )


def _cogs(package: Package, assets: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Member, Mapping[str, Any]]]]:
    """Bands of assets whose file lies in the package, each with its member and its `raster:bands` record."""
    members = {m.base: m for m in package.members}
    seen: set[str] = set()
    for asset in assets.values():
        # Behind the name a signed address has its signature.
        base = PurePosixPath(str(asset.get("href", "")).partition("?")[0]).name
        match = _COG_NAME.search(base)
        if match is None or base not in members:
            continue
        name = match[1].upper()
        # The same band at a coarser sampling than its own, or once more in another format, is left alone.
        if name in seen or (match[2] is not None and int(match[2]) != _native_m(name)):
            continue
        seen.add(name)
        yield name, (members[base], _packing(asset))


def _packing(asset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scale and offset of an asset: of raster 1 in `raster:bands`, of raster 2 in the asset or its `bands`."""
    band = {**(asset.get("bands") or [{}])[0], **(asset.get("raster:bands") or [{}])[0]}
    told = {
        key.removeprefix("raster:"): value
        for one in (asset, band)
        for key, value in one.items()
        if key.startswith("raster:")
    }
    return {**told, **{key: band[key] for key in ("scale", "offset") if key in band}}


def _native_m(name: str) -> int:
    """Native sampling distance of a band or of the scene classification."""
    return next((round(band.gsd_m) for key, band in SENTINEL_2A.items() if two_digits(key) == name), 20)


def _cog_offset(properties: Mapping[str, Any], found: Mapping[str, Any], label: Path) -> float:
    """Reflectance of count 0.

    Some catalogs subtract the offset when they make the COG and still list it with the asset: their own word that it
    was applied comes first. An item of a baseline with offsets that is silent about them is not trusted.
    """
    if properties.get("earthsearch:boa_offset_applied") is True:
        return 0.0
    listed = {float(raster.get("offset", 0.0)) for name, (_, raster) in found.items() if name != "SCL"}
    if len(listed) > 1:
        raise InputRejected(f"{label}: lists different offsets {sorted(listed)}; give msi.offset")
    offset = next(iter(listed), 0.0)
    baseline = str(properties.get("s2:processing_baseline") or properties.get("processing:version") or "99.99")
    if offset == 0 and baseline >= _OFFSET_BASELINE:
        raise InputRejected(
            f"{label}: does not tell whether the counts have the offset of baseline {_OFFSET_BASELINE} and later; "
            "give msi.offset=-0.1, or msi.offset=0 if it was subtracted already"
        )
    return offset
