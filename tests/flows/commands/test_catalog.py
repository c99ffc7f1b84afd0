"""`hyperfuse catalog`: add, list and pairs, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from hyperfuse.flows.cli import main
from tests.products import enmap, landsat

RECIPE = "size=150&ratio=4&bands=40&seed=3"
PAIR = [f"synthetic:{role}?{RECIPE}" for role in ("hsi", "msi")]


def record(capsys, *arguments: str, code: int = 0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tmp_path, capsys):
    made = str(tmp_path / "cat")
    assert main(["catalog", "add", *PAIR, "--catalog", made]) == 0
    capsys.readouterr()
    return made


def test_add_list_and_pairs(folder, capsys):
    added = record(capsys, "catalog", "add", *PAIR, "--catalog", folder)
    assert [one["state"] for one in added["gathered"]] == ["unchanged", "unchanged"]
    listed = record(capsys, "catalog", "list", folder)
    assert [(scene["id"], scene["role"]) for scene in listed["scenes"]] == [
        ("synthetic-hsi", "hsi"),
        ("synthetic-msi", "msi"),
    ]
    assert (listed["products"], listed["refused"]) == ([], [])
    assert len(record(capsys, "catalog", "list", folder, "--role", "msi")["scenes"]) == 1
    (one,) = record(capsys, "catalog", "pairs", folder)["pairs"]
    assert one["msi"] == "synthetic-msi"
    assert one["candidates"][0]["overlap"] == pytest.approx(1, abs=1e-3)
    (one,) = record(capsys, "catalog", "pairs", folder, "--choose", "synthetic-hsi=")["pairs"]
    assert one == {"hsi": "synthetic-hsi", "msi": None, "reason": "no partner: the user wants none", "candidates": []}


def test_text(folder, capsys):
    assert main(["catalog", "list", folder]) == 0
    assert "synthetic-hsi (synthetic; " in capsys.readouterr().out
    assert main(["catalog", "pairs", folder, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pair          synthetic-hsi: synthetic-msi is the best of 1 that fit, score ")
    assert "overlap 100%, 0 min apart" in lines[1]


def test_products_elsewhere_need_a_root(tmp_path, capsys):
    enmap.enmap(tmp_path / "data" / "enmap")
    landsat.landsat(tmp_path / "data" / "landsat")
    (tmp_path / "data" / "bad.tif").write_text("nothing")
    folder, data = str(tmp_path / "cat"), tmp_path / "data"
    assert main(["catalog", "add", *map(str, sorted(data.iterdir())), "--catalog", folder]) == 0
    told = capsys.readouterr().out
    assert f"refused       {data}/bad.tif: is plain text" in told
    assert f"read it with --root {data}" in told
    listed = record(capsys, "catalog", "list", folder)
    assert listed["scenes"] == []
    assert "outside of the allowed folders" in listed["refused"][0]["reason"]
    assert len(record(capsys, "catalog", "list", folder, "--root", str(data))["scenes"]) == 2
    assert main(["catalog", "list", folder]) == 0
    assert capsys.readouterr().out.count("not used") == 2
    assert (
        record(capsys, "catalog", "add", str(data / "bad.tif"), "--catalog", folder, code=3)["gathered"][0]["id"]
        is None
    )


def test_errors(folder, tmp_path, capsys):
    assert main(["catalog", "list", str(tmp_path)]) == 3
    assert main(["catalog", "pairs", folder, "--hsi", "absent"]) == 2
    assert main(["catalog", "pairs", folder, "--choose", "absent"]) == 2
    assert main(["catalog", "pairs", folder, "--choose", "absent=synthetic-msi"]) == 2
    assert main(["catalog", "pairs", folder, "--min-overlap", "2"]) == 2
    assert main(["catalog", "pairs", folder, "--max-gap-days", "1e300"]) == 2
    assert main(["catalog", "add", "x", "--set", "fog=1", "--catalog", folder]) == 2
    assert main(["catalog", "add", "x", "--set", "mask", "--catalog", folder]) == 2
    assert main(["catalog", "add", "x", "--catalog", "https://stac.example.org"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 9
    assert all(line.startswith("hyperfuse: ") for line in told)
    with pytest.raises(SystemExit):
        main(["catalog"])
