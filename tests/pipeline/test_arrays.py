"""Fusion of what is on disk or in memory, from Python: the samples of the command line, when they are asked for."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import hyperfuse
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.flows.cli import main
from hyperfuse.pipeline import arrays
from hyperfuse.pipeline.arrays import open_scene
from hyperfuse.pipeline.run import run
from tests.synthetic import config, scene

RECIPE = "size=120&ratio=4&bands=12&seed=3&holes_hsi=0.01"
HSI, MSI = (f"synthetic:{role}?{RECIPE}" for role in ("hsi", "msi"))
SETTINGS = {"tiles.core": 64, "tiles.chunk": 32, "align.estimate": False}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def in_memory(role: str) -> xr.DataArray:
    return scene(role, RECIPE).to_xarray(chunk=16).load()


def test_the_lazy_array_holds_what_is_published(tmp_path: Path, scratch: Path) -> None:
    dotted = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
    product = run(config(tmp_path / "p", RECIPE, **dotted, publish__dtype="float32", publish__formats=["zarr"]))
    fused = hyperfuse.fuse(HSI, MSI, settings=SETTINGS, scratch=scratch)
    with product.open() as cube:
        np.testing.assert_array_equal(fused.to_numpy(), cube["reflectance"].to_numpy())
        for name in ("wavelength", "x", "y"):
            np.testing.assert_array_equal(fused[name], cube[name])
        assert fused.rio.crs == cube.rio.crs
        assert fused.rio.transform() == cube.rio.transform()
    assert (fused.dtype, fused.name, fused.attrs["units"]) == (np.float32, "reflectance", "1")


def test_a_window_costs_the_tiles_that_it_meets_and_only_once(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = hyperfuse.fuse(HSI, MSI, method="gsa", settings=SETTINGS, scratch=scratch)
    assert fused.chunks is not None
    assert fused.chunks[1:] == ((64, 56), (64, 56))
    (tiles,) = scratch.glob("*/.fused.*.staging")
    assert not list((tiles / "tiles").glob("*.json"))
    window = fused.isel(x=slice(70, 90), y=slice(10, 40))
    first = window.to_numpy()
    assert [path.stem for path in (tiles / "tiles").glob("*.json")] == ["0.1"]
    monkeypatch.setattr(arrays, "fuse_each", lambda *_: pytest.fail("it was fused again"))
    np.testing.assert_array_equal(window.to_numpy(), first)


def test_nothing_is_left_when_the_array_is_forgotten(scratch: Path) -> None:
    fused = hyperfuse.fuse(HSI, MSI, method="bicubic", settings=SETTINGS, scratch=scratch)
    part = fused.isel(x=slice(5))
    del fused
    gc.collect()
    assert part.to_numpy().shape == (12, 120, 5)  # what is left of it needs the folder
    assert list(scratch.iterdir())
    del part
    gc.collect()
    assert not list(scratch.iterdir())


def test_nothing_is_left_of_a_pair_that_is_refused(scratch: Path) -> None:
    with pytest.raises(InputRejected):
        hyperfuse.fuse(MSI, HSI, scratch=scratch)
    assert not list(scratch.iterdir())


def test_arrays_are_fused_as_files_of_them_are(tmp_path: Path, scratch: Path) -> None:
    """Against the command line on NetCDF files that xarray wrote."""
    pair = [in_memory(role).drop_vars("good") for role in ("hsi", "msi")]
    paths = []
    for role, array in zip(("hsi", "msi"), pair, strict=True):
        paths.append(str(tmp_path / f"{role}.nc"))
        array.drop_vars("band").to_dataset(name="reflectance").to_netcdf(paths[-1])
    given = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    asked = [
        "fuse",
        *paths,
        "--output",
        str(tmp_path / "p"),
        "--method",
        "gsa",
        "--set",
        "publish.dtype=float32",
        *given,
    ]
    assert main(asked) == 0
    fused = hyperfuse.fuse(*pair, method="gsa", settings=SETTINGS, scratch=scratch)
    with hyperfuse.open(tmp_path / "p").open() as cube:
        np.testing.assert_array_equal(fused.to_numpy(), cube["reflectance"].to_numpy())


def test_an_integer_array_with_a_nodata_value_and_other_names(scratch: Path) -> None:
    pair = [in_memory(role) for role in ("hsi", "msi")]
    plain = hyperfuse.fuse(*pair, method="gsa", settings=SETTINGS, scratch=scratch)
    counts = [
        (array / 1e-4).round().fillna(-9999).astype(np.int16).rename(band="channel").drop_vars("channel")
        for array in pair
    ]
    named = [array.rio.write_nodata(-9999).rio.write_crs(pair[0].rio.crs) for array in counts]
    scaled = {
        f"{role}.{key}": value
        for role in ("hsi", "msi")
        for key, value in (("scale", 1e-4), ("quantity", "reflectance"))
    }
    other = hyperfuse.fuse(*named, method="gsa", settings=SETTINGS | scaled, scratch=scratch).to_numpy()
    expected = plain.to_numpy()
    np.testing.assert_array_equal(np.isnan(other), np.isnan(expected))
    np.testing.assert_allclose(other, expected, atol=5e-4)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda a: a.drop_vars("spatial_ref"), r"has no CRS; give it one with array.rio.write_crs"),
        (lambda a: a.drop_vars("wavelength"), r"tells no wavelengths; assign them along the bands"),
        (
            lambda a: a.drop_vars(["x", "y", "spatial_ref"]).rename(x="a", y="b"),
            r"expected regular coordinates y and x",
        ),
    ],
)
def test_what_an_array_lacks_is_said(scratch: Path, harm, told: str) -> None:
    hsi = harm(in_memory("hsi"))
    for told_crs in (hsi, *(hsi[name] for name in ("x", "y") if name in hsi.coords)):
        told_crs.attrs.pop("crs", None)
        told_crs.attrs.pop("grid_mapping", None)
    with pytest.raises(InputRejected, match=told):
        hyperfuse.fuse(hsi, MSI, scratch=scratch)
    assert not list(scratch.iterdir())


def test_scenes_and_a_product(tmp_path: Path, scratch: Path) -> None:
    pair = [hyperfuse.open_scene(address) for address in (HSI, MSI)]
    quick = SETTINGS | {"publish.formats": ["zarr"], "quality.gate": "off"}
    product = hyperfuse.fuse(*pair, method="gsa", output=tmp_path / "p", settings=quick, scratch=scratch)
    assert hyperfuse.open(tmp_path / "p").job_key == product.job_key
    assert product.method == "gsa"
    assert not list(scratch.iterdir())
    with pytest.raises(InputRejected, match="was not opened from anything"):
        hyperfuse.fuse(replace(pair[0], source=None), pair[1])


def test_a_scene_as_an_array_is_its_samples() -> None:
    hsi = scene("hsi", RECIPE)
    array = hsi.to_xarray(chunk=7)
    height, width = hsi.geobox.shape
    np.testing.assert_array_equal(array.to_numpy(), hsi.read((slice(0, height), slice(0, width))))
    np.testing.assert_array_equal(array["wavelength"], hsi.bands.center_nm)
    assert array.odc.geobox == hsi.geobox
    part = array.isel(x=slice(3, 11), y=[2, 9]).to_numpy()
    np.testing.assert_array_equal(part, array.to_numpy()[:, [2, 9], 3:11])


def test_registration_from_python() -> None:
    moved = "size=200&ratio=4&bands=20&seed=2&east_m=13&north_m=-9"
    found = hyperfuse.register(f"synthetic:hsi?{moved}", f"synthetic:msi?{moved}")
    assert found.decision == "accept"
    assert (found.east_m, found.north_m) == pytest.approx((13, -9), abs=1.0)


def test_a_second_run_gives_the_product_back_and_everything_shows_itself(tmp_path: Path, scratch: Path) -> None:
    quick = SETTINGS | {"publish.formats": ["zarr"], "quality.gate": "off"}
    asked = {"method": "gsa", "output": tmp_path / "<b>p", "settings": quick, "scratch": scratch}
    first, again = (hyperfuse.fuse(HSI, MSI, **asked) for _ in range(2))
    assert again.job_key == first.job_key
    told = first._repr_html_()
    assert "<b>p" not in told
    for part in ("&lt;b&gt;p", "gsa", "120 x 120 px, 12 bands", "valid", "data:image/png;base64,"):
        assert part in told
    shown = hyperfuse.open_scene(HSI)._repr_html_()
    assert "30 x 30 px of " in shown
    moved = "size=200&ratio=4&bands=20&seed=2&east_m=13"
    found = hyperfuse.register(f"synthetic:hsi?{moved}", f"synthetic:msi?{moved}")
    assert f"registration: {found.decision}" in found._repr_html_()


@pytest.mark.filterwarnings("default")
def test_tiles_are_fused_by_whatever_dask_client_there_is(scratch: Path) -> None:
    """Two worker processes, which own nothing of the folder: the samples of this process."""
    fused = hyperfuse.fuse(HSI, MSI, method="gsa", settings=SETTINGS, scratch=scratch)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        there = fused.to_numpy()
    assert [path.name for path in scratch.glob("*/.fused.*.staging/job.json")] == ["job.json"]
    again = hyperfuse.fuse(HSI, MSI, method="gsa", settings=SETTINGS, scratch=scratch)
    np.testing.assert_array_equal(again.to_numpy(), there)


def test_records_of_a_product_of_arrays_name_the_arrays_and_no_scratch(tmp_path: Path, scratch: Path) -> None:
    hsi, msi = in_memory("hsi").rename("valley, 3 June"), in_memory("msi")
    settings = {**SETTINGS, "publish.formats": ["zarr", "cog", "envi", "netcdf", "stac"]}
    product = hyperfuse.fuse(hsi, msi, method="bicubic", output=tmp_path / "p", settings=settings, scratch=scratch)
    inputs = product.provenance["inputs"]
    assert [inputs[role]["uri"] for role in ("hsi", "msi")] == ["array:valley-3-June", f"array:{msi.name}"]
    assert inputs["hsi"]["name"] == "valley-3-June"
    told = str(scratch).encode()
    assert not [p for p in product.path.rglob("*") if p.is_file() and told in p.read_bytes()]
    again = hyperfuse.fuse(hsi, msi, method="bicubic", output=tmp_path / "p", settings=settings, scratch=scratch)
    assert again.job_key == product.job_key
    with pytest.raises(InputRejected, match=r"array:valley-3-June: was an array of another Python process"):
        open_scene("array:valley-3-June")
