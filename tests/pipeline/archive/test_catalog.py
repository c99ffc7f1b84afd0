"""From a catalogue to a product and back: gathered, paired, fused, and joined with its inputs and its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pystac
import pytest
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from hyperfuse.catalogs.pairing.ranking import PairingRules, pair
from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.gather import gather
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.products.writers.stac import item
from hyperfuse.pipeline.run import run
from tests.pipeline.fusion.test_weights import RECIPE, weight_file


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog.open(tmp_path)
    for role in ("hsi", "msi"):
        gather(made, [Source(uri=f"synthetic:{role}?{RECIPE}")], role=role)  # type: ignore[arg-type]
    return made


def test_a_product_is_derived_from_its_scenes_and_its_weights(catalog, tmp_path):
    (pairing,) = pair(catalog.items(), PairingRules())
    assert pairing.chosen is not None
    weights = weight_file(tmp_path / "w.safetensors", "csakd-student")
    scenes = {
        f"{item.role}.{key}": value
        for item in (pairing.hsi, pairing.chosen.msi)
        for key, value in {"uri": item.uri, "sensor": item.sensor, **item.settings}.items()
    }
    settings = {
        "output": str(tmp_path / "fused"),
        "method": "csakd-student",
        "weights": str(weights),
        "quality.gate": "off",
    }
    product = run(load_config(None, {**scenes, **settings, "publish.formats": ["cog", "stac"]}))
    assert product.item is not None
    own = json.loads(product.item.read_text())
    assert [link["rel"] for link in own["links"]] == [*["derived_from"] * 3, "cite-as"]
    assert own["links"][2]["href"] == weights.as_uri()
    assert own["links"][2]["title"].endswith(read_card(weights).sha256)
    (told,) = gather(catalog, [Source(uri=str(product.path))])
    assert (told.state, told.id) == ("added", "fused")
    (joined,) = catalog.products
    assert (joined.hsi, joined.msi, joined.folder) == ("synthetic-hsi", "synthetic-msi", product.path)
    assert joined.job_key == product.job_key
    item = pystac.Item.from_file(str(catalog.folder / "products" / "fused.json"))
    JsonSchemaSTACValidator().validate_core(
        json.loads(Path(item.self_href).read_text()), item.STAC_OBJECT_TYPE, "1.1.0"
    )
    hrefs = [link.get_absolute_href() for link in item.links if link.rel == "derived_from"]
    assert [pystac.Item.from_file(href).id for href in hrefs[:2]] == ["synthetic-hsi", "synthetic-msi"]
    for asset in item.assets.values():
        assert Path(asset.get_absolute_href()).exists()


def test_a_method_without_weights_is_cited(finished_job):
    links = {link["rel"]: link["href"] for link in item(finished_job(), [], "0" * 64)["links"]}
    assert links == {"derived_from": "file:///data/msi.tif", "cite-as": "https://doi.org/10.1109/TASSP.1981.1163711"}
