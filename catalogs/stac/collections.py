"""Documents that lead to the items of a static STAC catalogue.

Plain records, not objects of pystac: whether a catalogue is ours, and may be written again, is asked by comparing it with what
these functions write, and that must not change with the library's version. Tests hold them to the schemas through pystac.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hyperfuse.catalogs.sensors import available, sensor_module
from hyperfuse.catalogs.stac.build import STAC_VERSION


def catalog_record(name: str, collections: Sequence[str]) -> dict[str, Any]:
    """The root of a catalogue with links to its collections."""
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": name or "catalog",
        "description": "Hyperspectral and multispectral scenes, and the products fused from them.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            *(
                {"rel": "child", "href": f"./{child}/collection.json", "type": "application/json", "title": child}
                for child in collections
            ),
        ],
    }


def collection_record(
    name: str, before: Mapping[str, Any] | None, new: Sequence[Mapping[str, Any]], files: Sequence[str]
) -> dict[str, Any]:
    """A collection of the items in a folder.

    Its extent holds that of the collection before and of the new items: it may be larger than needed where an item was
    replaced, and never has to be found by reading all items again.

    Parameters
    ----------
    name : str
        Sensor, or `products`.
    before : mapping or None
        The collection as it was.
    new : sequence of mapping
        Items that were added.
    files : sequence of str
        Names of all items.
    """
    boxes, spans = [], []
    if before is not None:
        boxes += list(before["extent"]["spatial"]["bbox"][:1])
        spans += list(before["extent"]["temporal"]["interval"][:1])
    boxes += [item["bbox"] for item in new]
    for properties in (item["properties"] for item in new):
        moment = properties["datetime"]
        spans.append([properties.get("start_datetime", moment), properties.get("end_datetime", moment)])
    title = sensor_module(name).SENSOR.title if name in available() else name
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "id": name,
        "title": title,
        "description": f"Items of {title}.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [_box(boxes)]},
            # Texts of one form in UTC: they sort as their times do.
            "temporal": {"interval": [[min(start for start, _ in spans), max(end for _, end in spans)]]},
        },
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *({"rel": "item", "href": f"./{file}", "type": "application/geo+json"} for file in files),
        ],
    }


def is_own_catalog(record: Mapping[str, Any]) -> bool:
    """Whether a catalogue holds nothing but what `catalog_record` writes, so that writing it again loses nothing."""
    children = [name for name in map(_child_name, _links(record)) if name]
    return record == catalog_record(str(record.get("id")), children)


def is_own_collection(name: str, record: Mapping[str, Any]) -> bool:
    """The same of a collection and `collection_record`."""
    hrefs = [str(link["href"]) for link in _links(record) if link.get("rel") == "item" and "href" in link]
    try:
        return record == collection_record(name, record, [], [href.removeprefix("./") for href in hrefs])
    except (LookupError, TypeError, ValueError):
        return False


def _links(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    links = record.get("links")
    return [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []


def _child_name(link: Mapping[str, Any]) -> str | None:
    """Name of the collection that a link of ours leads to."""
    title = link.get("title")
    return title if link.get("rel") == "child" and isinstance(title, str) else None


def _box(boxes: Sequence[Sequence[float]]) -> list[float]:
    """The box of some boxes; one across the date line makes it go around the globe."""
    across = any(west > east for west, _, east, _ in boxes)
    return [
        -180.0 if across else min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        180.0 if across else max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    ]
