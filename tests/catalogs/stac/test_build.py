"""STAC documents as other programs must find them."""

from __future__ import annotations

import pystac
import pytest
from shapely import box

from hyperfuse.catalogs.stac.build import STAC_VERSION, cite_as, doi_of, item_record
from hyperfuse.models import available, method


@pytest.mark.parametrize(
    ("paper", "doi"),
    [
        ("Keys (1981), Cubic convolution, doi:10.1109/TASSP.1981.1163711", "10.1109/TASSP.1981.1163711"),
        (
            "Two (2004), doi:10.1109/TIP.2004.829779; Three (2004), doi:10.1111/j.1538-4632.2004.tb01135.x",
            "10.1109/TIP.2004.829779",
        ),
        ("Four (2025), doi:10.1109/IGARSS55030.2025.11243541, arXiv:2501.07953.", "10.1109/IGARSS55030.2025.11243541"),
        ("Five (2011) (doi:10.1109/TGRS.2011.2161320).", "10.1109/TGRS.2011.2161320"),
        ("Six (2024), a preprint, arXiv:2406.19666", "10.48550/arXiv.2406.19666"),
        ("Seven (1999), a report without a number", None),
    ],
)
def test_the_first_doi_of_a_reference(paper: str, doi: str | None) -> None:
    assert doi_of(paper) == doi
    hrefs = [link["href"] for link in cite_as(paper)]
    assert hrefs == ([] if doi is None else [f"https://doi.org/{doi}"])


def test_every_method_can_be_cited() -> None:
    assert [name for name in available() if not cite_as(method(name).card.paper)] == []


def test_an_item_is_read_as_it_was_written() -> None:
    links = [
        {"rel": "root", "href": "../catalog.json", "type": "application/json"},
        {"rel": "derived_from", "href": "file:///data/a%20b.tif", "title": "a b, input", "hrhsi:scene": "a"},
    ]
    asset = {
        "href": "./x.tif", "type": "image/tiff", "title": "x", "roles": ["data"], "file:size": 3,
        "bands": [{"name": "1", "eo:center_wavelength": 0.5}],
    }  # fmt: skip
    properties = {"datetime": "2026-06-01T10:30:05.250000Z", "title": "x", "proj:code": "EPSG:32633"}
    record = item_record("x", box(10, 47, 11, 48), properties, assets={"x": asset}, links=links, collection="enmap")
    assert record["links"] == links
    assert record["assets"] == {"x": asset}
    assert record["properties"] == properties
    assert record["stac_version"] == STAC_VERSION
    assert record["bbox"] == [10, 47, 11, 48]
    # The schemas of the prefixes proj, eo and file, which are used, and of no other.
    assert [uri.split("/")[3] for uri in record["stac_extensions"]] == ["projection", "eo", "file"]
    item = pystac.Item.from_dict(record)
    assert item.datetime is not None
    assert (item.id, item.collection_id, item.datetime.microsecond) == ("x", "enmap", 250_000)


def test_what_belongs_to_no_place_and_no_moment() -> None:
    span = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
    record = item_record("w", None, span, assets={})
    assert record["geometry"] is None
    assert "bbox" not in record
    assert record["properties"] == span
