"""Planet's orders without a STAC item: images, UDM2 and `ID_metadata.json` are told by the scene's ID that they share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfuse.catalogs.bands import read_table
from hyperfuse.catalogs.errors import InputRejected, MetadataMissing
from hyperfuse.catalogs.formats.conditions import conditions
from hyperfuse.catalogs.formats.documents import parse_document
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.formats.raster import raster_driver
from hyperfuse.catalogs.references.responses import PLANETSCOPE_4, SUPERDOVE, Response
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.sensors import Source

_IMAGE = re.compile(r"(\d{8}_\d{6}(?:_\d+)?_[0-9a-f]{4})_.*_SR(?:_.*)?\.tif", re.IGNORECASE)
"""ID_3B_AnalyticMS_SR_8b_clip.tif and its kin."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The files of one scene of an order."""

    package: Package
    id: str
    """Identifier of the scene."""
    image: Member
    """Surface reflectance."""
    masks: tuple[Member, ...]
    """UDM2, if it was ordered."""
    metadata: Member | None
    """GeoJSON of the scene, if it is there."""


def orders_of(uri: str) -> list[Order]:
    """Scenes with surface reflectance at an address: a folder, an archive, or the image itself; with UDM2 or metadata beside it."""
    path = Path(uri)
    named = path.is_file() and raster_driver(path) == "GTiff" and _IMAGE.fullmatch(path.name) is not None
    package = open_package(str(path.parent) if named else uri)
    if package is None:
        return []
    found = []
    for member in package.find("*_SR*.tif"):
        match = _IMAGE.fullmatch(member.base)
        if match is None or (named and member.holder != path):
            continue
        masks = tuple(m for m in package.find(f"{match[1]}_*udm2*.tif"))
        metadata = next((m for m in package.find(f"{match[1]}_metadata.json") if _is_scene(package, m)), None)
        if masks or metadata is not None:
            found.append(Order(package=package, id=match[1], image=member, masks=masks, metadata=metadata))
    return found


def one_order(source: Source) -> Order:
    """The scene of an order, if it is one.

    Raises
    ------
    InputRejected
        If there are several.
    """
    found = orders_of(source.uri)
    if len(found) != 1:
        told = ", ".join(order.image.name for order in found[:5]) or "none"
        raise InputRejected(
            f"{source.uri}: holds {len(found)} images of surface reflectance with UDM2 or metadata ({told}), expected one; name its image"
        )
    return found[0]


def properties_of(order: Order) -> Mapping[str, Any]:
    """What the scene's GeoJSON tells; nothing without it."""
    if order.metadata is None:
        return {}
    found = parse_document(order.package.read(order.metadata), str(order.metadata.label)).get("properties")
    return found if isinstance(found, dict) else {}


def conditions_of(properties: Mapping[str, Any]) -> Conditions:
    """Cloud, sun and view in the operator's words."""
    share = properties.get("cloud_cover")
    percent = properties.get("cloud_percent")
    view = properties.get("view_angle")
    return conditions(
        cloud_percent=100 * share if percent is None and isinstance(share, int | float) else percent,
        sun_elevation=properties.get("sun_elevation"),
        sun_azimuth=properties.get("sun_azimuth"),
        off_nadir=abs(view) if isinstance(view, int | float) else None,
    )


def bands_of(order: Order, properties: Mapping[str, Any], n_bands: int, source: Source) -> tuple[Response, ...]:
    """Bands in the order of the image.

    Raises
    ------
    InputRejected
        If neither the instrument nor the user tells them.
    """
    label = str(order.image.label)
    if source.wavelengths is not None:
        table = read_table(source.wavelengths)
        if len(table.wavelength) != n_bands:
            raise InputRejected(
                f"{label}: has {n_bands} bands, {source.wavelengths} gives {len(table.wavelength)} wavelengths; one per band is expected"
            )
        factor = 1e3 if max(table.wavelength) < 100 else 1.0
        width = table.fwhm or (np.nan,) * n_bands
        return tuple(
            Response(name=f"band {i + 1}", center_nm=factor * center, fwhm_nm=factor * fwhm, gsd_m=3.0)
            for i, (center, fwhm) in enumerate(zip(table.wavelength, width, strict=True))
        )
    if n_bands == len(SUPERDOVE):
        return tuple(SUPERDOVE.values())  # no other instrument has eight
    instrument = str(properties.get("instrument", ""))
    if n_bands == 4 and instrument in PLANETSCOPE_4:
        return tuple(PLANETSCOPE_4[instrument].values())
    lacks = f"{label}: has {n_bands} bands of the instrument {instrument or 'unknown'}, whose wavelengths are not known"
    settings = (f"wavelengths={','.join(['NM'] * n_bands)}",)
    beside = f"or put {order.id}_metadata.json beside it, which tells the instrument"
    raise MetadataMissing(
        f"{lacks}; add --set {settings[0]} to the command, {beside}", lacks=lacks, settings=settings, todo=beside
    )


def _is_scene(package: Package, member: Member) -> bool:
    head = package.head(member, 1 << 16)
    return b'"properties"' in head and b"PSScene" in head
