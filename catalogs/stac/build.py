"""STAC items as all parts of HyperFuse write them: one version, one table of extensions, links to papers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pystac
from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.outline import bbox_of, to_geojson
from hyperfuse.catalogs.times import parse_time

STAC_VERSION = "1.1.0"
"""Of every document; a later pystac may write a later one by itself."""
EXTENSIONS = {
    prefix: f"https://stac-extensions.github.io/{name}/schema.json"
    for prefix, name in {
        "proj": "projection/v2.0.0",
        "eo": "eo/v2.0.0",
        "view": "view/v1.1.0",
        "raster": "raster/v2.0.0",
        "file": "file/v2.1.0",
        "processing": "processing/v1.2.0",
        "mlm": "mlm/v1.5.2",
        "sci": "scientific/v1.0.0",
    }.items()
}
"""Schemas by the prefix of their fields."""
_DOI = re.compile(r"doi:(10\.[^\s;,]+?)[.,;)]*(?:[\s;]|$)")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def item_record(
    name: str,
    outline: BaseGeometry | None,
    properties: Mapping[str, Any],
    *,
    assets: Mapping[str, Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]] = (),
    collection: str | None = None,
) -> dict[str, Any]:
    """A STAC item as plain JSON.

    Parameters
    ----------
    name : str
        Identifier.
    outline : shapely geometry or None
        Longitude and latitude (degrees); None of what belongs to no place.
    properties : mapping
        With its times as text; `datetime` may be None where `start_datetime` and `end_datetime` are given.
    assets : mapping
        STAC fields by key.
    links : sequence of mapping
        STAC fields of each.
    collection : str, optional
        Identifier of the collection.

    Raises
    ------
    pystac.STACError
        If there is no time in the properties.
    """
    item = pystac.Item(
        id=name,
        geometry=None if outline is None else to_geojson(outline),
        bbox=None if outline is None else bbox_of(outline),
        datetime=parse_time(properties["datetime"]),
        properties=dict(properties),
        stac_extensions=_used([properties, *assets.values()]),
        collection=collection,
        assets={key: pystac.Asset.from_dict(dict(asset)) for key, asset in assets.items()},
    )
    item.add_links([pystac.Link.from_dict(dict(link)) for link in links])
    record: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    return record | {"stac_version": STAC_VERSION}


def doi_of(paper: str) -> str | None:
    """The first DOI of a reference; a preprint's is made of its number."""
    if found := _DOI.search(paper):
        return found[1]
    found = _ARXIV.search(paper)
    return f"10.48550/arXiv.{found[1]}" if found else None


def cite_as(paper: str) -> list[dict[str, str]]:
    """The link to a paper, if its reference has a DOI."""
    doi = doi_of(paper)
    return (
        [] if doi is None else [{"rel": "cite-as", "href": f"https://doi.org/{quote(doi, safe='/')}", "title": paper}]
    )


def _used(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Schemas of the fields that stand in an item: those that it names must be used in it."""
    bands = [bands[0] for part in parts if (bands := part.get("bands"))]
    prefixes = {key.partition(":")[0] for part in (*parts, *bands) for key in part if ":" in key}
    return [schema for prefix, schema in EXTENSIONS.items() if prefix in prefixes]
