"""The list of methods: in 100 columns, with what a user must know of weights."""

from __future__ import annotations

import json

import pytest

from hyperfuse.flows.cli import main
from hyperfuse.models import available
from tests import ROOT


def test_it_fits_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert {line.split(" ")[0] for line in lines} >= set(available())


def test_it_tells_which_weights_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    told = {line.split()[0]: line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()}
    shipped = {path.stem for path in (ROOT / "models" / "weights").glob("*.safetensors")}
    assert shipped
    assert {name for name in available() if told[name].endswith("  shipped")} == shipped
    assert told["map_subspace"].endswith("none needed")
    assert told["csakd-student"].endswith("published")
    assert told["hyfusion-s"].endswith("your own")
    main(["methods", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert {name for name, row in rows.items() if row["weights_shipped"]} == shipped
    assert {rows[name]["weights_license"] for name in shipped} == {"CC-BY-SA-4.0"}


def test_long_tells_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--long"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("arXiv:2406.19666", "shipped (CC-BY-SA-4.0)", "GMAC", "halo", "approximate"))
    assert out.count("\nmethod ") == len(available())
