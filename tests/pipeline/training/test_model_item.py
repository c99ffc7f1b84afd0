"""Weight files as STAC items: the core schema, and the rules of the MLM extension 1.5 written from its document.

The extension's own schema is on the network alone. Its rules: five fields are required, no others of the prefix exist, those
of the whole model stand in the properties alone, one asset at least has the role of the model and says how it was saved,
axes and shape go together, an axis `bands` has its bands named, and what is named is described.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pystac
import pytest
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.flows.cli import main
from hyperfuse.models import Observed, method
from hyperfuse.pipeline.fusion.weights import save_weights
from hyperfuse.pipeline.training.model_item import model_item

TEXT = {"type": "string", "minLength": 1}
TASKS = [
    "regression", "classification", "scene-classification", "detection", "object-detection", "segmentation",
    "semantic-segmentation", "instance-segmentation", "panoptic-segmentation", "similarity-search", "generative",
    "image-captioning", "super-resolution", "downscaling",
]  # fmt: skip
ARRAY = {
    "type": "object",
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}},
        "dim_order": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"pattern": "^[a-z-_]+$"}},
        "data_type": {"enum": ["uint8", "int16", "uint16", "float16", "float32", "float64"]},
    },
}
TASK_LIST = {"type": "array", "uniqueItems": True, "minItems": 1, "items": {"enum": TASKS}}
EXPRESSION = {"type": ["object", "null"], "required": ["format", "expression"]}
FIELDS: dict[str, dict[str, Any]] = {
    "mlm:name": {"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
    "mlm:architecture": TEXT,
    "mlm:tasks": TASK_LIST,
    "mlm:framework": {"enum": ["PyTorch"]},
    "mlm:framework_version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"},
    "mlm:total_parameters": {"type": "integer", "minimum": 0},
    "mlm:pretrained": {"type": "boolean"},
    "mlm:pretrained_source": {"type": ["string", "null"]},
    "mlm:accelerator": {"enum": ["amd64", "cuda", "xla", "amd-rocm", "intel-ipex-cpu", "intel-ipex-gpu", "macos-arm", None]},
    "mlm:input": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["name", "bands", "input"],
            "properties": {
                "name": TEXT,
                "description": TEXT,
                "bands": {"type": "array", "items": TEXT},
                "input": ARRAY,
                "value_scaling": {
                    "type": ["array", "null"],
                    "minItems": 1,
                    "items": {"required": ["type", "format", "expression"], "properties": {"type": {"const": "processing"}}},
                },
                "resize_type": {"type": ["string", "null"]},
                "pre_processing_function": EXPRESSION,
            },
            "additionalProperties": False,
        },
    },
    "mlm:output": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["name", "tasks", "result"],
            "properties": {
                "name": TEXT,
                "description": TEXT,
                "tasks": TASK_LIST,
                "bands": {"type": "array", "items": TEXT},
                "result": ARRAY,
                "post_processing_function": EXPRESSION,
            },
            "additionalProperties": False,
        },
    },
    "mlm:hyperparameters": {
        "type": "object", "minProperties": 1, "propertyNames": {"pattern": "^[0-9a-zA-Z_.-]+$"},
    },
    "eo:center_wavelength": {"type": "number", "exclusiveMinimum": 0.2, "exclusiveMaximum": 20},  # micrometers
    "eo:full_width_half_max": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "sci:citation": TEXT,
    "sci:doi": {"type": "string", "pattern": r"^10\.[0-9a-zA-Z]{4,}/[^\s]+$"},
}  # fmt: skip
ASSET_FIELDS = {
    "mlm:artifact_type": TEXT,
    "file:size": {"type": "integer", "minimum": 0},
    "file:checksum": {"type": "string", "pattern": "^1220[0-9a-f]{64}$"},
}
REQUIRED = {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"}
TRAINING = {
    "simulation": {"ratio": 4, "msi": "s2-4", "mtf_nyquist": 0.3},
    "samples": {"patch": 8, "turns": True},
    "scaling": "both images to [-1, 1]",
    "losses": {"pixel": 1.0, "sam": 0.1},
    "teacher": None,
    "distill": {},
    "steps": 12,
    "rate": 1e-3,
    "seed": 0,
    "best_step": 6,
    "data": [{"part": "learnt", "name": "here", "license": "CC0-1.0"}],
    "scores": {"psnr_db": 33.456, "sam_deg": 2.5, "ssim": None},
}
CASES: dict[str, dict[str, Any]] = {
    "trained here": {"training": TRAINING, "center_nm": [450.0, 550.5, 650.0, 800.0, 1000.0], "license": "CC-BY-4.0"},
    "imported": {"network": "csakd-teacher", "source": "converted from released.pth"},
    "universal": {
        "hsi_bands": 0, "msi_bands": 0, "ratio": 0, "space": "universal", "components": 16, "ratios": [3, 4, 6],
        "training": TRAINING,
    },
}  # fmt: skip


def saved(path, **settings: Any):
    """A weight file of a small network, with what its card says."""
    card = WeightCard(**({"network": "csakd-student", "hsi_bands": 5, "msi_bands": 4, "ratio": 4} | settings))
    chosen = method(card.network)
    spec = chosen.specify(Observed(hsi_bands=5, msi_bands=4, ratio=4, psf_sigma_px=2.0))
    save_weights(path, chosen.build(spec).state_dict(), card)
    return path


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, tmp_path):
    return model_item(saved(tmp_path / "weights.safetensors", **request.param)), request.param


def test_the_core_is_valid(case):
    item, _ = case
    JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")
    assert pystac.Item.from_dict(item).to_dict(include_self_link=False)["properties"] == item["properties"]
    json.dumps(item, allow_nan=False)


def test_fields_follow_the_extension(case):
    item, _ = case
    properties = item["properties"]
    assert set(properties) >= REQUIRED
    places = [(properties, FIELDS), *((band, FIELDS) for band in properties.get("bands", []))]
    places += [(asset, ASSET_FIELDS) for asset in item["assets"].values()]
    for place, fields in places:
        for key, value in place.items():
            if ":" in key and not key.startswith("hrhsi:"):
                jsonschema.validate(value, fields[key])
    if properties.get("mlm:pretrained") is False:
        assert properties["mlm:pretrained_source"] is None
    used = {key.partition(":")[0] for place, _ in places for key in place if ":" in key} - {"hrhsi"}
    names = {"scientific": "sci"}
    assert {names.get(n, n) for n in (uri.split("/")[3] for uri in item["stac_extensions"])} == used


def test_one_asset_is_the_model(case):
    item, _ = case
    for asset in item["assets"].values():
        assert ("mlm:model" in asset["roles"]) == ("mlm:artifact_type" in asset)
    assert any("mlm:model" in asset["roles"] for asset in item["assets"].values())


def test_axes_shapes_and_bands_go_together(case):
    item, given = case
    properties = item["properties"]
    described = {band["name"] for band in properties.get("bands", [])}
    assert described == {band["name"] for band in item["assets"]["weights"].get("bands", [])}
    arrays = [(part["input"], part["bands"]) for part in properties["mlm:input"]]
    arrays += [(part["result"], part["bands"]) for part in properties["mlm:output"]]
    for array, bands in arrays:
        assert len(array["shape"]) == len(array["dim_order"])
        assert ("bands" in array["dim_order"]) == bool(bands)
        assert set(bands) <= described
        if bands:
            assert array["shape"][array["dim_order"].index("bands")] == len(bands)
    sizes = [array["shape"][1] for array, _ in arrays]
    assert sizes == ([-1, -1, -1] if given.get("space") == "universal" else [5, 4, 5])


def test_what_it_says_is_true(tmp_path):
    path = saved(tmp_path / "w.safetensors", **CASES["trained here"])
    card, item = read_card(path), model_item(path, href="./w.safetensors")
    properties, asset = item["properties"], item["assets"]["weights"]
    assert asset["href"] == "./w.safetensors"
    assert asset["file:checksum"] == f"1220{card.sha256}"
    assert asset["file:size"] == path.stat().st_size
    assert properties["license"] == "CC-BY-4.0"
    assert properties["bands"][1] == {"name": "550.5 nm", "eo:center_wavelength": 0.5505}
    assert properties["mlm:input"][1]["bands"] == ["B2", "B3", "B4", "B8"]
    assert properties["mlm:hyperparameters"]["losses.sam"] == 0.1
    assert properties["mlm:hyperparameters"]["ratio"] == 4
    assert "PSNR 33.46 dB, SAM 2.500 degrees" in properties["description"]
    assert properties["sci:doi"] == "10.48550/arXiv.2406.19666"
    assert item["links"][0]["href"] == "https://doi.org/10.48550/arXiv.2406.19666"
    spec = method("csakd-student").specify(Observed(hsi_bands=5, msi_bands=4, ratio=4, psf_sigma_px=2.0))
    assert properties["mlm:total_parameters"] >= spec.parameters  # the student stores a branch that it skips


def test_the_command(tmp_path, capsys):
    path = saved(tmp_path / "w.safetensors", **CASES["trained here"])
    assert main(["card", str(path)]) == 0
    told = capsys.readouterr().out
    for part in (
        "csakd-student",
        "5 HSI and 4 MSI bands, ratio 4",
        "SAM 2.500 deg",
        "best at step 6 of 12",
        "here (CC0-1.0)",
    ):
        assert part in told
    for place, href in ((tmp_path, "./w.safetensors"), (tmp_path.parent, path.as_uri())):
        assert main(["card", str(path), "--stac", str(place / "w.json"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stac"] == str(place / "w.json")
        assert json.loads((place / "w.json").read_text()) == model_item(path, href=href)
    assert main(["card", str(path), "--stac", str(tmp_path / "absent" / "w.json")]) == 3
    assert "create it first" in capsys.readouterr().err


def test_what_has_no_card_is_refused(tmp_path, capsys):
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputRejected, match="not a safetensors weight file"):
        model_item(tmp_path / "w.safetensors")
    assert main(["card", str(tmp_path / "w.safetensors")]) == 3
    capsys.readouterr()
    path = saved(tmp_path / "u.safetensors")
    save_weights(path, {}, WeightCard(network="unet", hsi_bands=1, msi_bands=1, ratio=2))
    assert main(["card", str(path), "--stac", str(tmp_path / "u.json")]) == 3
    assert "unet" in capsys.readouterr().err
