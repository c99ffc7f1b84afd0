"""Fields of the STAC extensions that an item declares.

The core schema is checked by pystac, which ships it. No package ships the extensions' schemas, so the rules below
are written from their tables of fields (projection 2.0, eo 2.0, raster 2.0, file 2.1, processing 1.2, and the bands of
STAC 1.1): types, ranges, and that no field is used whose extension is not declared, and none declared that is not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from pyproj import Transformer

from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish
from tests.pipeline.conftest import ORIGINS, build_job

NUMBER, TEXT, TIME = {"type": "number"}, {"type": "string", "minLength": 1}, {"type": "string", "format": "date-time"}
COMMON_NAMES = [
    "pan",
    "coastal",
    "blue",
    "green",
    "green05",
    "yellow",
    "red",
    "rededge",
    "rededge071",
    "rededge075",
    "rededge078",
    "nir",
    "nir08",
    "nir09",
    "cirrus",
    "swir16",
    "swir22",
    "lwir",
    "lwir11",
    "lwir12",
]
DATA_TYPES = [
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "cint16",
    "cint32",
    "cfloat32",
    "cfloat64",
    "other",
]
FIELDS = {
    "proj:code": {"type": ["string", "null"], "pattern": "^[A-Z]+:[0-9]+$"},
    "proj:wkt2": {"type": ["string", "null"]},
    "proj:shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    "proj:transform": {"type": "array", "items": NUMBER, "minItems": 6, "maxItems": 6},
    "proj:bbox": {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4},
    "eo:center_wavelength": {"type": "number", "exclusiveMinimum": 0.2, "exclusiveMaximum": 20},  # micrometers
    "eo:full_width_half_max": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "eo:common_name": {"enum": COMMON_NAMES},
    "raster:scale": {"type": "number", "not": {"const": 0}},
    "raster:offset": NUMBER,
    "file:size": {"type": "integer", "minimum": 0},
    "file:checksum": {"type": "string", "pattern": "^1220[0-9a-f]{64}$"},  # multihash: SHA-256, 32 bytes
    "processing:level": {"type": "string", "pattern": "^L[0-9]"},
    "processing:lineage": TEXT,
    "processing:facility": TEXT,
    "processing:version": TEXT,
    "processing:datetime": TIME,
    "processing:software": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    "processing:expression": {
        "type": "object", "required": ["format", "expression"], "properties": {"format": TEXT},
    },
}  # fmt: skip
BAND = {
    "type": "object",
    "required": ["name", "data_type"],
    "properties": {
        "name": TEXT,
        "description": TEXT,
        "data_type": {"enum": DATA_TYPES},
        "nodata": {"oneOf": [NUMBER, {"enum": ["nan", "inf", "-inf"]}]},
        "unit": TEXT,
        "statistics": {
            "type": "object",
            "minProperties": 1,
            "properties": {
                **dict.fromkeys(("minimum", "maximum", "mean", "stddev"), NUMBER),
                "valid_percent": {"type": "number", "minimum": 0, "maximum": 100},
            },
            "additionalProperties": False,
        },
    },
}
CASES = {
    "utm": {},
    "float32 without times": {"dtype": "float32", "hsi_time": None, "msi_time": None},
    "geographic": {"crs": "EPSG:4326", "n_bands": 40},
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def item(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("item")
    product: Product = publish(build_job(folder, formats=available(), overviews=True, **request.param))
    assert product.item is not None
    return dict(json.loads(product.item.read_text()))


def places(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Wherever fields of extensions may stand."""
    yield item["properties"]
    yield from item["links"]
    for asset in item["assets"].values():
        yield asset
        yield from asset.get("bands", ())


def test_fields_follow_their_extensions(item: dict[str, Any]) -> None:
    checked = 0
    for place in places(item):
        for key, value in place.items():
            if ":" in key and not key.startswith("hrhsi:"):
                jsonschema.validate(value, FIELDS[key], format_checker=jsonschema.FormatChecker())
                checked += 1
    assert checked > 50


def test_extensions_are_declared_and_used(item: dict[str, Any]) -> None:
    names = {"projection": "proj"}
    declared = {uri.split("/")[3] for uri in item["stac_extensions"]}
    used = {key.partition(":")[0] for place in places(item) for key in place if ":" in key} - {"hrhsi"}
    assert {names.get(name, name) for name in declared} == used


def test_bands_follow_the_common_metadata(item: dict[str, Any]) -> None:
    data = [asset for asset in item["assets"].values() if "data" in asset["roles"]]
    assert len(data) == 4
    for asset in data:
        for band in asset["bands"]:
            jsonschema.validate(band, BAND)
        assert len({band["name"] for band in asset["bands"]}) == len(asset["bands"])


def test_files_have_checksums_and_folders_have_none(item: dict[str, Any]) -> None:
    for key, asset in item["assets"].items():
        is_folder = asset["type"].startswith("application/vnd.zarr")
        assert ("file:checksum" in asset) == (not is_folder), key


def test_boxes_go_from_the_lower_left_to_the_upper_right(item: dict[str, Any]) -> None:
    """A box is west, south, east, north: of a grid of 70 rows and 90 columns from its upper left corner."""
    data = [asset for asset in item["assets"].values() if {"data", "uncertainty"} & set(asset["roles"])]
    assert data
    for asset in data:
        crs = asset["proj:code"]
        left, top, gsd = ORIGINS[crs]
        right, bottom = left + 90 * gsd, top - 70 * gsd
        assert asset["proj:bbox"] == pytest.approx([left, bottom, right, top], rel=0, abs=1e-9)
        assert asset["proj:shape"] == [70, 90]
        x, y = np.meshgrid(np.linspace(left, right, 91), np.linspace(bottom, top, 71))
        lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
        assert item["bbox"] == pytest.approx([lon.min(), lat.min(), lon.max(), lat.max()], rel=0, abs=1e-6)


def test_times_are_whole(item: dict[str, Any]) -> None:
    properties = item["properties"]
    if properties["datetime"] is None:
        assert properties["start_datetime"] <= properties["end_datetime"]
    for key in ("created", "updated", "datetime", "start_datetime", "end_datetime"):
        assert properties.get(key) is None or properties[key].endswith("Z")
