"""SceneItem: what a catalogue knows of a scene without opening it, and the STAC item in which it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.addresses import carries_user, is_remote
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.conditions import stac_conditions
from hyperfuse.catalogs.outline import from_geojson
from hyperfuse.catalogs.scene import Conditions, Role
from hyperfuse.catalogs.sensors import Source, available, sensor_module
from hyperfuse.catalogs.stac.build import item_record
from hyperfuse.catalogs.stac.clear_map import is_clear_map
from hyperfuse.catalogs.stac.trusted import Trust, as_href
from hyperfuse.catalogs.times import parse_time, rfc3339

HSI_BANDS = 32
"""Where neither item nor sensor tells, a scene with at least so many bands is hyperspectral."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._-]{0,199}")
TABLES = ("wavelengths", "responses")
"""Settings that may name a file: the place must be allowed."""
_PLAIN = ("crs", "scale", "offset", "nodata", "fill", "quantity", "variable", "mask", "bands")
"""Settings that name no file. One that is in neither list is refused in an item until somebody has decided."""
_CRS = re.compile(r"[A-Za-z]+:[A-Za-z0-9.:_-]+|[0-9]+|[A-Z_]+\[.*\]|\+proj=.*", re.DOTALL)
"""A code, WKT or parameters of PROJ, which is all that a CRS of an item may be ..."""
_GRIDS = ("grids=", "init=", "file=", "catalog=", "@", "..")
"""... unless it makes PROJ open a file."""
_NAMED_ROLES: dict[str, Role] = {
    "hsi": "hsi", "prisma": "hsi", "emit": "hsi", "desis": "hsi", "enmap": "hsi", "hyperion": "hsi", "aviris": "hsi",
    "msi": "msi", "oli": "msi", "sentinel-2": "msi", "landsat-8": "msi", "landsat-9": "msi", "planetscope": "msi",
}  # fmt: skip
"""Instruments, platforms and constellations as other catalogues name them."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells whether a product on disk is still the one that was catalogued."""

    sha256: str
    """Digest of the scene's bytes, as `Scene.digest`."""
    size: int
    """Bytes of all files."""
    mtime_ns: int
    """Last change of the latest file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneItem:
    """A scene as its catalogue describes it; nothing of it is open."""

    id: str
    """Name, unique in the catalogue."""
    role: Role
    """Which part of a pair it can be."""
    sensor: str | None
    """Module in `catalogs.sensors` that opens it; None lets the modules choose."""
    uri: str
    """Path, glob, `synthetic:` or https address; checked against the allowed roots and hosts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its files do not tell, by field names of `catalogs.sensors.Source`."""
    footprint: BaseGeometry
    """Outline of its valid data, longitude and latitude (degrees); cut at the date line."""
    clear: tuple[str, ...] | None = None
    """Where its pixels are valid: see `catalogs.stac.clear_map`; None if nobody looked."""
    gsd_m: float
    """Ground sampling distance (m)."""
    n_bands: int
    """Number of bands; 0 if the item does not list them."""
    time: datetime | None
    """Acquisition, UTC."""
    conditions: Conditions = field(default=Conditions())
    """Cloud, sun and view."""
    fingerprint: Fingerprint | None = None
    """Of the files; None for items that others made."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """`bands` and `properties` of the STAC item that pairing does not need; only of a scene that was just surveyed."""

    def source(self) -> Source:
        """Where a reader finds it, with what the user said of it when it was added."""
        return Source(uri=self.uri, sensor=self.sensor, **self.settings)

    @property
    def collection(self) -> str:
        """Collection of the catalogue to which it belongs."""
        return self.sensor or "other"


def is_file_name(name: str) -> bool:
    """Whether an identifier can name the file of its item."""
    return _FILE_NAME.fullmatch(name) is not None and name != "collection"


def to_record(item: SceneItem, folder: Path, *, now: datetime) -> dict[str, Any]:
    """The STAC item of a scene, to lie in the folder of its collection."""
    asset: dict[str, Any] = {
        "href": as_href(item.uri, folder),
        "title": f"{item.sensor or 'image'}, {'hyperspectral' if item.role == 'hsi' else 'multispectral'}",
        "roles": ["data"],
    }
    if bands := list(item.details.get("bands", ())):
        asset["bands"] = bands
    if item.fingerprint is not None:
        asset["file:size"] = item.fingerprint.size
    return item_record(
        item.id,
        item.footprint,
        _properties(item, now),
        assets={"product": asset},
        links=[
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "./collection.json", "type": "application/json"},
            {"rel": "collection", "href": "./collection.json", "type": "application/json"},
        ],
        collection=item.collection,
    )


def from_record(record: Mapping[str, Any], base: str, trust: Trust) -> SceneItem:
    """The scene of a STAC item, ours or another's.

    Parameters
    ----------
    record : mapping
        The item as parsed.
    base : str
        Folder or URL of the item.
    trust : Trust
        Addresses that may be followed.

    Raises
    ------
    InputRejected
        If it is no STAC item, does not tell which part of a pair it is, or leads where nobody allowed.
    """
    label = f"{base}: {str(record.get('id'))[:100]}"
    try:
        return _scene_item(record, base, trust, label)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputRejected(
            f"{label}: is no STAC item of a scene ({str(error)[:100]}); write the item again"
        ) from error


def _properties(item: SceneItem, now: datetime) -> dict[str, Any]:
    told = item.conditions
    optional: dict[str, Any] = {
        "eo:cloud_cover": None if told.cloud_cover is None else 100 * told.cloud_cover,
        "view:sun_elevation": told.sun_elevation_deg,
        "view:sun_azimuth": told.sun_azimuth_deg,
        "view:off_nadir": told.off_nadir_deg,
        "view:azimuth": told.view_azimuth_deg,
        "hrhsi:clear": None if item.clear is None else list(item.clear),
        "hrhsi:settings": dict(item.settings) or None,
    }
    if item.fingerprint is not None:
        # As text: a count of nanoseconds is more than a number of JSON holds elsewhere.
        optional |= {"hrhsi:sha256": item.fingerprint.sha256, "hrhsi:mtime_ns": str(item.fingerprint.mtime_ns)}
    return {
        **_times(item.time, now),
        "updated": rfc3339(now),
        "title": item.id,
        "instruments": [item.collection],
        "gsd": float(f"{item.gsd_m:.6g}"),
        **item.details.get("properties", {}),
        "hrhsi:role": item.role,
        "hrhsi:sensor": item.sensor,
        "hrhsi:n_bands": item.n_bands,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _times(time: datetime | None, now: datetime) -> dict[str, Any]:
    """STAC wants some time even where the product tells none."""
    if time is not None:
        return {"datetime": rfc3339(time)}
    return {
        "datetime": None,
        "start_datetime": rfc3339(now),
        "end_datetime": rfc3339(now),
        "hrhsi:time_unknown": True,
    }


def _scene_item(record: Mapping[str, Any], base: str, trust: Trust, label: str) -> SceneItem:
    if record.get("type") != "Feature" or not str(record["stac_version"]).startswith("1."):
        raise InputRejected(
            f"{label}: is a {record.get('type')}, expected an item of STAC 1; leave it out of the catalogue"
        )
    properties, name = record["properties"], str(record["id"])
    if not 0 < len(name) <= 256 or not name.isprintable():
        raise InputRejected(f"{label}: its identifier has {len(name)} characters, expected 1 to 256 printable ones")
    key, asset = _data_asset(record["assets"], label)
    bands = asset.get("bands") or asset.get("eo:bands") or properties.get("bands") or properties.get("eo:bands") or ()
    n_bands = int(properties.get("hrhsi:n_bands", len(bands)))
    sensor = properties.get("hrhsi:sensor")
    if sensor is not None and sensor not in available():
        raise InputRejected(f"{label}: there is no sensor {str(sensor)[:40]!r}; choose one of {', '.join(available())}")
    clear = properties.get("hrhsi:clear")
    return SceneItem(
        id=name,
        role=_role(properties, sensor, n_bands, label),
        sensor=sensor,
        # Products of several files are opened by their folder; the item lies in it.
        uri=_product_place(str(asset["href"]) if key else None, record, base, trust),
        settings=_settings(properties.get("hrhsi:settings") or {}, base, trust, label),
        footprint=from_geojson(record["geometry"], label),
        clear=tuple(cast("list[str]", clear)) if is_clear_map(clear) else None,
        gsd_m=_gsd_m(properties, asset, sensor, label),
        n_bands=n_bands,
        time=None
        if properties.get("hrhsi:time_unknown")
        else parse_time(*map(properties.get, ("datetime", "start_datetime"))),
        conditions=stac_conditions(properties),
        fingerprint=_fingerprint(properties, asset),
    )


def _data_asset(assets: Mapping[str, Any], label: str) -> tuple[str, Mapping[str, Any]]:
    """Key and record of the asset that a reader opens; an empty key where several files make the product."""
    if "product" in assets:
        return "product", assets["product"]
    found = [(key, asset) for key, asset in assets.items() if "data" in asset.get("roles", ())]
    if not found:
        raise InputRejected(f"{label}: has no asset of the role data; leave it out of the catalogue")
    return found[0] if len(found) == 1 else ("", found[0][1])


def _product_place(href: str | None, record: Mapping[str, Any], base: str, trust: Trust) -> str:
    """Where a reader finds the product: its one file, or the folder of several.

    On a server there are no folders, and a signed address is good for a day: there the item itself is the place.
    """
    links = record.get("links") or ()
    own = next((str(link["href"]) for link in links if link.get("rel") == "self"), None)
    if is_remote(base) and own is not None and (href is None or carries_user(href)):
        return trust.follow(own, base)
    return trust.follow(href or ".", base)


def _role(properties: Mapping[str, Any], sensor: str | None, n_bands: int, label: str) -> Role:
    if (told := properties.get("hrhsi:role")) in ("hsi", "msi"):
        return cast("Role", told)
    if sensor is not None and (role := sensor_module(sensor).SENSOR.role):
        return role
    names = [*properties.get("instruments", ()), properties.get("constellation"), properties.get("platform")]
    for name in (str(n).lower() for n in names if n):
        if name in _NAMED_ROLES:
            return _NAMED_ROLES[name]
    if n_bands:
        return "hsi" if n_bands >= HSI_BANDS else "msi"
    raise InputRejected(
        f"{label}: tells neither instrument nor bands, so its part in a pair is unknown; set hrhsi:role in it"
    )


def _gsd_m(properties: Mapping[str, Any], asset: Mapping[str, Any], sensor: str | None, label: str) -> float:
    nominal = sensor_module(sensor).SENSOR.gsd_m if sensor else None
    told = float(properties.get("gsd") or asset.get("gsd") or nominal or 0)
    if not 0 < told < 1e5:
        raise InputRejected(f"{label}: its ground sampling distance is {told:g}, expected meters; set gsd in it")
    return told


def _settings(told: Mapping[str, Any], base: str, trust: Trust, label: str) -> dict[str, Any]:
    """Settings of a reader; the place of every file among them must be allowed."""
    settings = dict(told)
    for key, value in settings.items():
        if key not in (*TABLES, *_PLAIN) or not isinstance(value, str | int | float):
            raise InputRejected(
                f"{label}: there is no setting {key[:40]}={str(value)[:40]}; see `hyperfuse info --help`"
            )
        if key in TABLES and not _is_numbers(str(value)):
            settings[key] = trust.follow(str(value), base)
        if key == "crs" and (not _CRS.fullmatch(str(value)) or any(sign in str(value).lower() for sign in _GRIDS)):
            raise InputRejected(f"{label}: {str(value)[:60]!r} is no CRS that an item may name; set EPSG:... in it")
    return settings


def _is_numbers(value: str) -> bool:
    """Whether a reader takes a setting for numbers separated by commas, and so never for a file."""
    try:
        return all(isinstance(float(part), float) for part in value.split(","))
    except ValueError:
        return False


def _fingerprint(properties: Mapping[str, Any], asset: Mapping[str, Any]) -> Fingerprint | None:
    if "hrhsi:sha256" not in properties:
        return None
    return Fingerprint(
        sha256=str(properties["hrhsi:sha256"]),
        size=int(asset["file:size"]),
        mtime_ns=int(properties["hrhsi:mtime_ns"]),
    )
