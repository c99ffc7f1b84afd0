"""Fused products in a catalogue: a copy of the product's own STAC item whose links lead to the catalogue's scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.documents import MAX_ITEM, read_document
from hyperfuse.catalogs.stac.items import is_file_name
from hyperfuse.catalogs.stac.trusted import Trust, as_href
from hyperfuse.catalogs.times import parse_time

PRODUCTS = "products"
"""Collection of fused products."""
JOB_KEY = "hrhsi:job_key"
"""Property of a product's item: digest of everything that decided its content."""
DIGEST = "hrhsi:item_sha256"
"""Property of a product's item: SHA-256 of its canonical JSON without this property."""


@dataclass(frozen=True, kw_only=True)
class ProductItem:
    """A fused product as its catalogue describes it."""

    id: str
    """Name, unique among products."""
    folder: Path
    """The product."""
    hsi: str | None
    """Identifier of the HSI in this catalogue; None if it is not in it."""
    msi: str | None
    """Identifier of the MSI in this catalogue; None if it is not in it."""
    job_key: str
    """Digest of everything that decided its content."""
    method: str
    """Method that fused it."""
    created: datetime | None
    """When it was published."""


def is_product(record: Mapping[str, Any]) -> bool:
    """Whether a STAC item describes a fused product of ours."""
    properties = record.get("properties")
    return isinstance(properties, Mapping) and JOB_KEY in properties


def is_product_folder(folder: Path) -> bool:
    """Whether a folder is a fused product: it holds the record of how it came to be."""
    return (folder / "provenance.json").is_file() and (folder / "manifest.json").is_file()


def product_item(record: Mapping[str, Any], base: str, trust: Trust) -> ProductItem:
    """The product of an item in a catalogue.

    Raises
    ------
    InputRejected
        If it is incomplete, or the product lies where nobody allowed.
    """
    label = f"{base}: {str(record.get('id'))[:100]}"
    try:
        properties = record["properties"]
        scenes = [_scene_id(link) for link in record["links"] if link["rel"] == "derived_from"]
        hsi, msi = (*scenes[:2], None, None)[:2]
        return ProductItem(
            id=str(record["id"]),
            folder=Path(trust.follow(str(record["assets"]["manifest"]["href"]), base)).parent,
            hsi=hsi,
            msi=msi,
            job_key=str(properties[JOB_KEY]),
            method=str(properties.get("hrhsi:method", "")),
            created=parse_time(properties.get("created")),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise InputRejected(f"{label}: is no item of a fused product ({error!r}); add the product again") from error


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Where the item of a scene stands."""

    id: str
    """Identifier of the scene."""
    href: str
    """Path or URL of its item."""


def product_record(folder: Path, place: Path, listed: Mapping[str, Listed]) -> dict[str, Any]:
    """The item of a published product for a catalogue.

    Parameters
    ----------
    folder : Path
        The product.
    place : Path
        Folder of the catalogue in which the item will lie.
    listed : mapping
        Items of scenes by the scenes' addresses; inputs of the product among them are linked to.

    Raises
    ------
    InputRejected
        If the folder holds no item of a product.
    """
    own = _own_item(folder)
    record = dict(read_document(own, limit=MAX_ITEM))
    record["collection"] = PRODUCTS
    # The digest vouches for the product's own item, not for this copy of it.
    record["properties"] = {key: value for key, value in record["properties"].items() if key != DIGEST}
    record["assets"] = {
        key: {**asset, "href": as_href(str((folder / unquote(asset["href"])).resolve()), place)}
        for key, asset in record["assets"].items()
    }
    record["links"] = [
        {"rel": "root", "href": "../catalog.json", "type": "application/json"},
        {"rel": "parent", "href": "./collection.json", "type": "application/json"},
        {"rel": "collection", "href": "./collection.json", "type": "application/json"},
        {"rel": "canonical", "href": as_href(str(own), place), "type": "application/geo+json"},
        *(_link(link, folder, place, listed) for link in record["links"]),
    ]
    return record


def _own_item(folder: Path) -> Path:
    for path in sorted(folder.glob("*.json")):
        record = read_document(path)
        if record.get("type") == "Feature" and is_product(record) and is_file_name(str(record.get("id"))):
            return path
    raise InputRejected(f"{folder}: holds no STAC item of a fused product; publish it with the format stac")


def _link(link: Mapping[str, Any], folder: Path, place: Path, listed: Mapping[str, Listed]) -> dict[str, Any]:
    """The same link, seen from the catalogue: inputs lead to their items, files to where they are."""
    href = str(link["href"])
    if link["rel"] == "derived_from" and (scene := listed.get(_plain(href))):
        return {**link, "href": as_href(scene.href, place), "type": "application/geo+json", "hrhsi:scene": scene.id}
    if urlsplit(href).scheme or href.startswith("/"):
        return dict(link)
    return {**link, "href": as_href(str((folder / unquote(href)).resolve()), place)}


def _plain(href: str) -> str:
    """Path of a file URI with links resolved, as items have it; other addresses as they are."""
    if href.startswith("file://"):
        return str(Path(unquote(urlsplit(href).path)).resolve())
    return unquote(href)


def _scene_id(link: Mapping[str, Any]) -> str | None:
    told = link.get("hrhsi:scene")
    return str(told) if told else None
