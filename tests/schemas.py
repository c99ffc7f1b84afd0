"""JSON schemas of the records that products hold; `python -m tests.schemas` (`make schemas`) writes them to `docs/schemas`."""

from __future__ import annotations

import json
from pathlib import Path

from hyperfuse.pipeline.job.json_record import JsonRecord
from hyperfuse.pipeline.mosaic.record import SCHEMA as AREA
from hyperfuse.pipeline.mosaic.record import AreaProvenance
from hyperfuse.pipeline.products.records import SCHEMA as PROVENANCE
from hyperfuse.pipeline.products.records import Provenance
from hyperfuse.pipeline.quality.records import SCHEMA as QA
from hyperfuse.pipeline.quality.records import QualityRecord
from tests import ROOT

FOLDER = ROOT / "docs" / "schemas"
RECORDS: dict[str, type[JsonRecord]] = {PROVENANCE: Provenance, QA: QualityRecord, AREA: AreaProvenance}
"""Records by the name that stands in them as `schema`."""


def path_of(name: str) -> Path:
    """File of a schema: `hyperfuse-qa/1` is `hyperfuse-qa-1.json`."""
    return FOLDER / f"{name.replace('/', '-')}.json"


def text_of(name: str) -> str:
    """A schema as it stands in its file."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:hyperfuse:schema:{name}"}
    return json.dumps(head | RECORDS[name].model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    for record in RECORDS:
        path_of(record).write_text(text_of(record), encoding="utf-8")
