"""Items of fused products in a catalogue: links lead to the scenes, files to the product, and nothing out of the roots."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.stac.catalog import Catalog
from tests.archives import scene_item


@pytest.fixture
def product(tmp_path) -> Path:
    """A folder as `publish` leaves it, as far as a catalogue looks."""
    data, folder = tmp_path / "data", tmp_path / "out" / "fused one"
    data.mkdir()
    folder.mkdir(parents=True)
    (data / "h é.tif").touch()
    (data / "m").mkdir()
    for name in ("manifest.json", "provenance.json"):
        (folder / name).write_text("{}")
    links = [
        {"rel": "derived_from", "href": (data / "h é.tif").as_uri(), "title": "h, hyperspectral input"},
        {"rel": "derived_from", "href": (data / "m").as_uri(), "title": "m, multispectral input"},
        {"rel": "derived_from", "href": (data / "w.safetensors").as_uri(), "title": "weights"},
        {"rel": "cite-as", "href": "https://doi.org/10.1109/X"},
        {"rel": "store", "href": "./fused.zarr"},
    ]
    item = {
        "type": "Feature", "stac_version": "1.1.0", "id": "fused", "bbox": [10, 47, 11, 48], "links": links,
        "geometry": {"type": "Polygon", "coordinates": [[[10, 47], [11, 47], [11, 48], [10, 47]]]},
        "properties": {"datetime": "2024-05-01T10:00:00Z", "created": "2024-06-01T00:00:00Z", "hrhsi:job_key": "ab",
                       "hrhsi:method": "gsa", "hrhsi:item_sha256": "cd"},
        "assets": {"fused": {"href": "./fused.tif", "roles": ["data"]}, "manifest": {"href": "./manifest.json"}},
    }  # fmt: skip
    (folder / "fused.json").write_text(json.dumps(item))
    return folder


def linked(catalog: Catalog, record: dict[str, Any], rel: str) -> list[str]:
    return [link["href"] for link in record["links"] if link["rel"] == rel]


def test_a_product_joins(product, tmp_path):
    catalog = Catalog.open(tmp_path / "cat", roots=[tmp_path])
    catalog.add(
        [
            scene_item("h", "hsi", uri=str(tmp_path / "data" / "h é.tif")),
            scene_item("m", "msi", uri=str(tmp_path / "data" / "m")),
        ]
    )
    before = (product / "fused.json").read_bytes()
    path = catalog.add_product(product)
    assert path == catalog.folder / "products" / "fused.json"
    assert (product / "fused.json").read_bytes() == before
    record = json.loads(path.read_text())
    assert linked(catalog, record, "derived_from") == [
        "../enmap/h.json", "../sentinel2/m.json", (tmp_path / "data" / "w.safetensors").as_uri()
    ]  # fmt: skip
    assert linked(catalog, record, "canonical") == ["../../out/fused%20one/fused.json"]
    assert linked(catalog, record, "store") == ["../../out/fused%20one/fused.zarr"]
    assert linked(catalog, record, "cite-as") == ["https://doi.org/10.1109/X"]
    assert record["assets"]["fused"]["href"] == "../../out/fused%20one/fused.tif"
    # The digest is of the product's own item.
    assert "hrhsi:item_sha256" not in record["properties"]
    (found,) = catalog.products
    assert (found.id, found.folder, found.hsi, found.msi, found.job_key, found.method) == (
        "fused",
        product,
        "h",
        "m",
        "ab",
        "gsa",
    )
    assert [scene.id for scene in catalog.items()] == ["h", "m"]
    # Again, it stays one.
    catalog.add_product(product)
    assert len(catalog.products) == 1


def test_inputs_that_the_catalogue_does_not_know(product, tmp_path):
    catalog = Catalog.open(tmp_path / "cat", roots=[tmp_path])
    record = json.loads(catalog.add_product(product).read_text())
    assert linked(catalog, record, "derived_from")[0] == (tmp_path / "data" / "h é.tif").as_uri()
    (found,) = catalog.products
    assert (found.hsi, found.msi) == (None, None)
    # The MSI alone: it is not taken for the HSI.
    catalog.add([scene_item("m", "msi", uri=str(tmp_path / "data" / "m"))])
    catalog.add_product(product)
    (found,) = catalog.products
    assert (found.hsi, found.msi) == (None, "m")


def test_two_products_of_one_name(product, tmp_path):
    catalog = Catalog.open(tmp_path / "cat", roots=[tmp_path])
    catalog.add_product(product)
    other = shutil.copytree(product, tmp_path / "other")
    assert catalog.add_product(other).name == "fused-ab.json"
    assert {found.id: found.folder for found in catalog.products} == {"fused": product, "fused-ab": other}
    # One that was moved keeps its name.
    shutil.rmtree(other)
    moved = product.rename(tmp_path / "moved")
    assert catalog.add_product(moved).name == "fused.json"


def test_what_is_no_product(product, tmp_path):
    catalog = Catalog.open(tmp_path / "cat")
    (product / "fused.json").unlink()
    with pytest.raises(InputRejected, match="holds no STAC item of a fused product"):
        catalog.add_product(product)


def test_a_product_elsewhere_needs_a_root(product, tmp_path):
    Catalog.open(tmp_path / "cat").add_product(product)
    contents = Catalog.open(tmp_path / "cat").read()
    assert contents.products == ()
    assert "outside of the allowed folders" in contents.refused[0].reason


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"assets": {"manifest": {"href": "/etc/passwd"}}}, "outside of the allowed folders"),
        ({"assets": {}}, "no item of a fused product"),
        ({"links": 5}, "no item of a fused product"),
    ],
)
def test_bad_items_of_products(product, tmp_path, changes, why):
    catalog = Catalog.open(tmp_path / "cat", roots=[tmp_path / "out"])
    path = catalog.add_product(product)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    contents = catalog.read()
    assert contents.products == ()
    assert why in contents.refused[0].reason
