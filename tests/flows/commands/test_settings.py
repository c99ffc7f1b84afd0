"""What can be set: every setting with its default, and a file that means nothing until it is edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hyperfuse.flows.cli import main
from hyperfuse.flows.commands.settings import described
from hyperfuse.pipeline.config import RunConfig, load_config


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code = main(["settings", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_setting_is_listed_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, record = told(capsys)
    given = RunConfig.model_validate({"hsi": {"uri": "a"}, "msi": {"uri": "b"}, "output": "c"}).model_dump(mode="json")
    for row in record["settings"]:
        value = given
        for part in row["name"].split("."):
            value = value[part]
        assert row["about"]
        assert row["required"] or row["default"] == value, row["name"]
    assert (code, {row["name"] for row in record["settings"] if row["required"]}) == (
        0,
        {"hsi.uri", "msi.uri", "output"},
    )


def test_one_setting_and_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["name"] for row in told(capsys, "harmonize.stripes")[1]["settings"]] == ["harmonize.stripes"]
    assert all(row["name"].startswith("tiles.") for row in told(capsys, "tiles")[1]["settings"])
    assert main(["settings", "tiels"]) == 2
    assert main(["settings", "method"]) == 0
    assert "map_subspace" in capsys.readouterr().out


def test_the_written_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    assert main(["settings", "--write", str(path)]) == 0
    required = {"hsi.uri": "a", "msi.uri": "b", "output": "c"}
    record = yaml.safe_load(path.read_text())
    assert {key for key, value in record.items() if value is not None} == {"hsi", "msi"}
    whole = "".join(
        line.replace("# ", "", 1) + "\n" if line.strip().startswith("# ") and ": " in line else line + "\n"
        for line in path.read_text().splitlines()
        if not line.strip().startswith("# ")
        or any(f"# {one.name.rpartition('.')[2]}: " in line for one in described(RunConfig))
    )
    assert load_config(None, _without_none(yaml.safe_load(whole)) | required) == load_config(None, required)
    assert main(["settings", "--write", str(path)]) == 2


def test_init_fills_in_what_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    assert main(["init", "a: b.tif", "--file", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": str(path), "missing": ["msi.uri", "output"]}
    record = yaml.safe_load(path.read_text())
    assert (record["hsi"], record["msi"]) == ({"uri": "a: b.tif"}, {"uri": None})
    assert main(["init", "--file", str(path)]) == 2
    assert "exists" in capsys.readouterr().err
    whole = tmp_path / "whole.yaml"
    assert main(["init", "a", "b", "--output", "c", "--file", str(whole)]) == 0
    given = {"hsi.uri": "a", "msi.uri": "b", "output": "c"}
    assert load_config(whole, {}) == load_config(None, given)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ratio", "int | None, >= 2, <= 20"),
        ("align.most", "shift | affine | field"),
        ("align.bounds", "[float, float, float, float] | None"),
        ("publish.formats", "[str, ...]"),
        ("hsi.quantity", "reflectance | radiance | digital_number | None"),
        ("psf_mtf", "float | None, > 0, < 1"),
    ],
)
def test_values_are_told_as_people_write_them(capsys: pytest.CaptureFixture[str], name: str, values: str) -> None:
    assert [row["values"] for row in told(capsys, name)[1]["settings"]] == [values]


def _without_none(record: dict, group: str = "") -> dict:
    found = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= _without_none(value, f"{group}{key}.")
        elif value is not None:
            found[f"{group}{key}"] = value
    return found
