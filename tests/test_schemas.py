"""The published JSON schemas are those of the code, and what products hold is valid by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hyperfuse.pipeline.job.product_files import PROVENANCE, QA
from hyperfuse.pipeline.mosaic.run import mosaic_products
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.run import run
from tests.schemas import RECORDS, path_of, text_of
from tests.synthetic import config


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fused product with all that it can have, and an area mosaic of it."""
    folder = tmp_path_factory.mktemp("schemas")
    fused = run(
        config(
            folder / "fused",
            "size=160&ratio=4&bands=12&seed=3",
            tiles__core=64,
            tiles__chunk=32,
            publish__uncertainty=True,
        )
    ).path
    area = mosaic_products(AreaConfig(products=(fused,), output=folder / "area", chunk=64)).path
    return fused, area


def schema_of(name: str) -> dict[str, Any]:
    return dict(json.loads(path_of(name).read_text(encoding="utf-8")))


def validate(record: dict[str, Any]) -> None:
    schema = schema_of(record["schema"])
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(record)


@pytest.mark.parametrize("name", RECORDS)
def test_the_file_is_that_of_the_code(name: str) -> None:
    assert path_of(name).read_text(encoding="utf-8") == text_of(name), "run `make schemas`"


@pytest.mark.parametrize("name", [PROVENANCE, QA])
def test_records_of_a_fused_product_are_valid(products: tuple[Path, Path], name: str) -> None:
    record = json.loads((products[0] / name).read_bytes())
    validate(record)
    # The record read back is the record: nothing is lost, renamed or added.
    assert RECORDS[record["schema"]].model_validate(record).model_dump(mode="json") == record


def test_the_record_of_an_area_is_valid(products: tuple[Path, Path]) -> None:
    record = json.loads((products[1] / PROVENANCE).read_bytes())
    validate(record)
    assert RECORDS[record["schema"]].model_validate(record).model_dump(mode="json") == record


@pytest.mark.parametrize(
    ("name", "where", "value"),
    [
        (PROVENANCE, ("product", "shape"), [1, 2, 3]),
        (PROVENANCE, ("product", "dtype"), "uint8"),
        (PROVENANCE, ("method", "parameters"), "many"),
        (QA, ("state",), "perfect"),
        (QA, ("validity", "valid"), None),
        (QA, ("consistency", "hsi", "sam_deg"), "1 deg"),
    ],
)
def test_a_wrong_value_is_not_valid(
    products: tuple[Path, Path], name: str, where: tuple[str, ...], value: object
) -> None:
    record = json.loads((products[0] / name).read_bytes())
    inner = record
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(record)


@pytest.mark.parametrize(("name", "key"), [(PROVENANCE, "product"), (QA, "gates")])
def test_a_missing_part_is_not_valid(products: tuple[Path, Path], name: str, key: str) -> None:
    record = json.loads((products[0] / name).read_bytes())
    del record[key]
    with pytest.raises(jsonschema.ValidationError):
        validate(record)
