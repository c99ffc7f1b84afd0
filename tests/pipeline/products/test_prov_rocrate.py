"""PROV and RO-Crate as the packages of these standards read them, against the record that they repeat."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.prov_rocrate import address, prov_document
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.products.records import Provenance
from tests.pipeline.conftest import build_job


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return publish(build_job(tmp_path_factory.mktemp("lineage"), overviews=True))


def test_prov_reads_the_document(product: Product) -> None:
    model = pytest.importorskip("prov.model", reason="prov is not installed")
    document = model.ProvDocument.deserialize(product.path / "prov.json", format="json")
    record = product.provenance
    kinds = [type(one).__name__ for one in document.get_records()]
    assert {kind: kinds.count(kind) for kind in ("ProvEntity", "ProvActivity", "ProvAgent")} == {
        # Both inputs have the same digest in this job: they are one entity, beside plan and product.
        "ProvEntity": 3, "ProvActivity": 2, "ProvAgent": 2,
    }  # fmt: skip
    (fusion,) = document.get_record(f"hf:fusion/{record['job_key']}")
    assert fusion.get_startTime().isoformat() == "2026-11-21T11:00:00+00:00"
    assert fusion.get_endTime().isoformat() == "2026-11-21T12:00:00+00:00"
    (plan,) = document.get_record(f"hf:plan/{record['job_key']}")
    assert json.loads(next(iter(plan.value))) == record["config"]
    derived = document.get_records(model.ProvDerivation)
    assert [str(one.args[1]) for one in derived] == [f"sha256:{record['inputs']['hsi']['sha256']}"]
    # What one writer of PROV-JSON makes of it, another must still understand.
    again = model.ProvDocument.deserialize(content=document.serialize(format="json"), format="json")
    assert again == document


def test_prov_names_weights_and_state(product: Product) -> None:
    record = json.loads(json.dumps(product.provenance))
    record["method"]["weights_sha256"] = "c" * 64
    record["inputs"]["msi"]["sha256"] = "d" * 64
    document = prov_document(Provenance.model_validate(record | {"quality": {"state": "published with warnings"}}))
    assert f"sha256:{'c' * 64}" in document["entity"]
    assert {relation["prov:role"] for relation in document["used"].values()} == {"hsi", "msi", "weights"}
    assert len(document["wasDerivedFrom"]) == 2
    assert document["entity"][f"hf:product/{record['job_key']}"]["hf:state"] == "published with warnings"
    names = {*document["entity"], *document["activity"], *document["agent"]}
    for relation in (
        "used",
        "wasGeneratedBy",
        "wasDerivedFrom",
        "wasAssociatedWith",
        "actedOnBehalfOf",
        "wasInformedBy",
    ):
        for one in document[relation].values():
            assert {value for key, value in one.items() if key not in {"prov:role", "prov:time"}} <= names


def test_rocrate_reads_the_folder(product: Product) -> None:
    rocrate = pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed")
    crate = rocrate.ROCrate(product.path)
    assert crate.name == product.name
    (action,) = crate.get_by_type("CreateAction")
    assert action["instrument"]["softwareVersion"] == product.provenance["software"]["code_version"]
    assert action["startTime"] == product.provenance["started"]
    # Both inputs have the same digest in this job.
    assert {one["name"] for one in action["object"]} == {"msi", "settings of the run"}
    assert {one.id for one in action["result"]} == {"fused.zarr/", "fused.tif"}
    for entity in crate.data_entities:
        assert (product.path / unquote(entity.id)).exists(), entity.id
    assert {"manifest.json", "prov.json", "fused_overviews.zarr/"} <= {entity.id for entity in crate.data_entities}


def test_crate_says_what_the_profile_asks_for(product: Product) -> None:
    record = json.loads((product.path / "ro-crate-metadata.json").read_text())
    entities = {entity["@id"]: entity for entity in record["@graph"]}
    root = entities["./"]
    assert {"name", "description", "datePublished", "license"} <= set(root)
    assert entities[root["conformsTo"]["@id"]]["version"] == "0.5"
    for entity in record["@graph"]:
        for value in entity.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict) and not one["@id"].startswith(
                    ("http://schema.org", "https://w3id.org/ro/crate")
                ):
                    assert one["@id"] in entities


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/my scene.tif", "file:///data/my%20scene.tif"),
        ("s3://bucket/a b.tif", "s3://bucket/a%20b.tif"),
        ("synthetic:hsi?size=3&seed=1", "synthetic:hsi?size=3&seed=1"),
    ],
)
def test_addresses_are_uris(uri: str, expected: str) -> None:
    assert address(uri) == expected


def test_relative_paths_become_absolute() -> None:
    assert address("scene.tif") == (Path.cwd() / "scene.tif").as_uri()
