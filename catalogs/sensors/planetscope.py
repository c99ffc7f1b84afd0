"""PlanetScope surface reflectance with its UDM2 mask: a folder or zip of an order, with or without the scene's STAC item, or its image.

The item beside the images lists scale, no-data value, center and width (micrometers) of each band, four or eight by
instrument; its links are not followed, only the names of the files count. Without one, files go together that begin with
the scene's ID: image, UDM2 and ID_metadata.json, which names the instrument. Scale (1e-4) and no-data value (0) are then those of
the specification, centers and widths those of the operator's table.

Validity: 0 is no data. Of UDM2, cloud, shadow and heavy haze (here: haze) are layers of their own, and pixels whose
last layer (unusable data) is not 0 are defective; cloud, shadow and defective pixels are not valid unless the setting
`mask` chooses otherwise.

References
----------
Planet Labs, Planet Imagery Product Specification (layers of UDM2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import stac_conditions
from hyperfuse.catalogs.formats.documents import parse_document
from hyperfuse.catalogs.formats.layers import Flag, Layer, MaskedSamples, Rule, chosen_flags, refuse_short
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.sensors._planet_order import (
    Order,
    bands_of,
    conditions_of,
    one_order,
    orders_of,
    properties_of,
)
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="PlanetScope surface reflectance", gsd_m=3.0, role="msi")

_SCALE = 1e-4
_UDM2_LAYERS = 8
_LAYERS: dict[Flag, int] = {"snow": 1, "shadow": 2, "haze": 4, "cloud": 5, "defective": 7}
"""Positions in UDM2; a layer is not 0 where it applies."""
_ANY_VALUE = 0xFF


def accepts(uri: str) -> bool:
    """Whether the address is a package with a STAC item of a PlanetScope scene."""
    package = open_package(uri)
    return (package is not None and bool(_items(package))) or bool(orders_of(uri))


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it holds no surface reflectance with its mask, or its parts contradict each other.
    UsageError
        If a setting would replace what the product tells.
    """
    package = open_package(source.uri)
    items = _items(package) if package else []
    if not items and orders_of(source.uri):
        refuse_overrides(source, "mask", "wavelengths")
        return _ordered(one_order(source), source)
    refuse_overrides(source, "mask")
    if package is None or len(items) != 1:
        told = ", ".join(m.name for m in items[:5]) or "none"
        raise InputRejected(
            f"{source.uri}: holds {len(items)} PlanetScope items ({told}), expected one; name its folder"
        )
    item = items[0]
    try:
        return _scene(parse_document(package.read(item), str(item.label)), package, item, source)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRejected(f"{item.label}: is not the STAC item of a delivery ({error!r}); fetch it again") from error


def _scene(record: Mapping[str, Any], package: Package, item: Member, source: Source) -> Scene:
    members = {m.base: m for m in package.members}
    assets = [
        (members.get(PurePosixPath(str(a.get("href", "")).partition("?")[0]).name), a)
        for a in record["assets"].values()
    ]
    cubes = [(m, a) for m, a in assets if m and "_SR" in m.base and m.base.lower().endswith(".tif") and "eo:bands" in a]
    if len(cubes) != 1:
        raise InputRejected(
            f"{item.label}: {len(cubes)} of the surface reflectance images that it lists lie beside it, expected one; "
            "order the surface reflectance (analytic SR), and keep it in one folder with its item"
        )
    member, asset = cubes[0]
    masks = [m for m, _ in assets if m and "udm2" in m.base.lower() and m.base.lower().endswith(".tif")]
    there = package.in_place([member, *masks[:1]])
    image = open_member(there[member.name])
    n_bands, height, width = image.samples.shape
    properties = record["properties"]
    spectral, stored = asset["eo:bands"], asset["raster:bands"]
    if not n_bands == len(spectral) == len(stored):
        raise InputRejected(
            f"{member.label}: has {n_bands} bands, its item lists {len(spectral)} spectral and {len(stored)} stored ones; "
            "fetch the delivery again"
        )
    if image.affine is None or image.crs is None:
        raise InputRejected(f"{member.label}: has no georeference; fetch the delivery again")
    rules, notes = _rules(masks, there, chosen_flags(source.mask), (height, width))
    return scene_of(
        Product(
            sensor="planetscope",
            name=str(record["id"]),
            samples=MaskedSamples(samples=image.samples, rules=rules),
            affine=image.affine,
            crs=image.crs,
            wavelength_nm=1e3 * np.array([float(band["center_wavelength"]) for band in spectral]),
            fwhm_nm=1e3 * np.array([float(band["full_width_half_max"]) for band in spectral]),
            names=tuple(str(band["name"]) for band in spectral),
            scale=[float(band["scale"]) for band in stored],
            offset=[float(band.get("offset", 0.0)) for band in stored],
            nodata=tuple({float(band["nodata"]) for band in stored}),
            quantity="reflectance",
            unit="1",
            time=parse_time(properties.get("datetime")),
            files=tuple(package.files([item, member, *masks[:1]])),
            look_for_dead=False,
            conditions=stac_conditions(properties),
            notes=notes,
        ),
        source,
    )


def _ordered(order: Order, source: Source) -> Scene:
    """The scene of an order without a STAC item."""
    there = order.package.in_place([order.image, *order.masks[:1]])
    image = open_member(there[order.image.name])
    if image.affine is None or image.crs is None:
        raise InputRejected(f"{order.image.label}: has no georeference; fetch the delivery again")
    properties = properties_of(order)
    n_bands, height, width = image.samples.shape
    bands = bands_of(order, properties, n_bands, source)
    rules, notes = _rules(list(order.masks), there, chosen_flags(source.mask), (height, width))
    used = [order.image, *order.masks[:1], *([order.metadata] if order.metadata else [])]
    return scene_of(
        Product(
            sensor="planetscope",
            name=order.id,
            samples=MaskedSamples(samples=image.samples, rules=rules),
            affine=image.affine,
            crs=image.crs,
            wavelength_nm=[band.center_nm for band in bands],
            fwhm_nm=[band.fwhm_nm for band in bands],
            names=tuple(band.name for band in bands),
            scale=_SCALE,
            offset=0.0,
            nodata=(0.0,),
            quantity="reflectance",
            unit="1",
            time=parse_time(properties.get("acquired"), _acquired(order.id)),
            files=tuple(order.package.files(used)),
            look_for_dead=False,
            conditions=conditions_of(properties),
            notes=("no STAC item: scale 1e-4 by the specification of the product", *notes),
        ),
        source,
    )


def _acquired(name: str) -> str:
    """The time that an identifier begins with."""
    day, clock = name.split("_")[:2]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}Z"


def _rules(
    masks: list[Member], there: Mapping[str, Member], flags: tuple[Flag, ...], size: tuple[int, int]
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Rules of the layers that are wanted; without a mask, a note."""
    wanted = [_LAYERS[flag] for flag in flags if flag in _LAYERS]
    if not masks:
        return (), ("no UDM2 in the delivery: clouds are not masked",) if wanted else ()
    samples = open_member(there[masks[0].name]).samples
    if samples.shape[0] != _UDM2_LAYERS:
        raise InputRejected(
            f"{masks[0].label}: has {samples.shape[0]} layers, expected the {_UDM2_LAYERS} of UDM2; order it with UDM2"
        )
    return tuple(
        Rule(layer=refuse_short(Layer(samples=samples, band=band), size, str(masks[0].label)), bits=_ANY_VALUE)
        for band in wanted
    ), ()


def _items(package: Package) -> list[Member]:
    heads = ((m, package.head(m, 1 << 16)) for m in package.find("*.json"))
    return [m for m, head in heads if b'"stac_version"' in head and b'"planetscope"' in head.lower()]
