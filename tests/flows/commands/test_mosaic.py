"""`hyperfuse mosaic` and the flow: products in, an area out; sentences where that cannot be."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import yaml

from hyperfuse.flows.cli import main
from hyperfuse.pipeline.products.publish import verify
from tests import ROOT
from tests.pipeline.mosaic.products import TIMES, grid, ground, product


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, cube = tmp_path_factory.mktemp("halves"), ground(40, 60)
    return [
        str(product(folder, name, cube[:, :, cols], grid(0, cols.start, 40, 40), hsi_time=time))
        for name, cols, time in (("west", slice(0, 40), TIMES[0]), ("east", slice(20, 60), TIMES[1]))
    ]


def test_the_command_blends_and_tells(halves, tmp_path, capsys):
    place = str(tmp_path / "area")
    assert main(["mosaic", *halves, "--output", place, "--feather", "10"]) == 0
    told = capsys.readouterr().out
    assert "west: copied from EPSG:32633" in told
    assert "west and east: 800 px, bands differ by up to 0 in the mean" in told
    assert main(["verify", place]) == 0
    assert "(verified)" in capsys.readouterr().out
    assert main(["mosaic", *halves, "--output", place, "--feather", "10"]) == 4
    capsys.readouterr()
    assert main(["mosaic", *halves, "--output", str(tmp_path / "other"), "--gsd", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grid"]["shape"] == [20, 30]
    netcdf = str(tmp_path / "netcdf")
    assert main(["mosaic", *halves, "--output", netcdf, "--formats", "netcdf,stac,zarr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == {
        "zarr": f"{netcdf}/netcdf.zarr", "netcdf": f"{netcdf}/netcdf.nc", "item": f"{netcdf}/netcdf.json",
    }  # fmt: skip


def test_what_cannot_be_is_told_in_a_sentence(halves, tmp_path, capsys):
    assert main(["mosaic", *halves, "--output", str(tmp_path / "area"), "--feather", "0"]) == 2
    assert "setting feather_px" in capsys.readouterr().err
    assert main(["mosaic", *halves, "--output", str(tmp_path / "area"), "--formats", "zarr,stac,shapefile"]) == 2
    assert "there is no format 'shapefile'" in capsys.readouterr().err
    assert main(["mosaic", halves[0], str(tmp_path), "--output", str(tmp_path / "area")]) == 3
    assert "provenance.json is missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")
def test_the_flow_publishes_and_skips(halves, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prefect.client.orchestration import get_client
        from prefect.testing.utilities import prefect_test_harness

        from hyperfuse.flows.prefect.mosaic_scenes import mosaic_scenes
        from hyperfuse.pipeline.mosaic import AreaConfig

        config = AreaConfig(products=tuple(map(Path, halves)), output=tmp_path / "area")
        with prefect_test_harness(server_startup_timeout=120):
            assert mosaic_scenes(config) == str(tmp_path / "area")
            assert verify(tmp_path / "area").name == "area"
            assert mosaic_scenes(config) == str(tmp_path / "area")
            with get_client(sync_client=True) as client:
                artifacts = {artifact.key for artifact in client.read_artifacts()}
    assert {"mosaic-scenes-area-product", "mosaic-scenes-area-quicklook"} <= artifacts


def test_the_deployment_is_declared():
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    entry = {d["name"]: d["entrypoint"] for d in declared["deployments"]}
    assert entry["mosaic-scenes"] == "hyperfuse.flows.prefect.mosaic_scenes.mosaic_scenes"
