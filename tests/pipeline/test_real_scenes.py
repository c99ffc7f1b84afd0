"""The main job on real scenes: products that every usual reader opens with the right grid, scale and wavelengths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401 (registers the accessor)
import pytest
import rasterio
import rioxarray  # noqa: F401 (registers the accessor)
import xarray as xr
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.geometry.grids import nest, on_lattice
from hyperfuse.pipeline.job.product_files import QA
from hyperfuse.pipeline.plan import open_pair, psf_sigma_px
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.registration.estimate import estimate
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.run import run
from tests import DATA
from tests.pages import Page, opened, require_figures

BERLIN = DATA / "berlin_urban_gradient" / "pairA"
NEON = DATA / "neon_harv_pair"
POTSDAM = DATA / "enmap_potsdam_tiles"


def needs(folder: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not folder.is_dir(), reason=f"real imagery is absent: {folder.name} (see the README)")


def fused(folder: Path, hsi: str, msi: str, output: Path, **settings: str) -> Product:
    """The product of two files of a folder; skips where that is absent. Settings are given with `__` for dots."""
    if not folder.is_dir():
        pytest.skip(f"real imagery is absent: {folder.name} (see the README)")
    files = {"hsi.uri": str(folder / hsi), "msi.uri": str(folder / msi), "output": str(output)}
    return run(load_config(None, files | {key.replace("__", "."): value for key, value in settings.items()}))


@pytest.fixture(scope="module")
def berlin(tmp_path_factory: pytest.TempPathFactory) -> Product:
    files = "EnMAP_BerlinUrbanGradient_raw244.bsq", "HighResolution_BerlinUrbanGradient.bsq"
    return fused(BERLIN, *files, tmp_path_factory.mktemp("berlin") / "berlin")


@pytest.fixture(scope="module")
def berlin_msi():
    return open_scene(Source(uri=str(BERLIN / "HighResolution_BerlinUrbanGradient.bsq")))


def test_berlin_registration_and_grid(berlin, berlin_msi):
    """The known answer: the HR image moves by +3.6 m E, -3.6 m N (one of its pixels), the match from 0.96 to 0.97."""
    registration = berlin.provenance["registration"]
    assert registration["decision"] == "accept"
    assert registration["east_m"] == pytest.approx(3.6, abs=2.0)
    assert registration["north_m"] == pytest.approx(-3.6, abs=2.0)
    assert registration["correlation_after"] > registration["correlation_before"] > 0.9
    with berlin.open() as data:
        assert on_lattice(berlin_msi.geobox, data["reflectance"].odc.geobox) is not None
    assert berlin.provenance["observation"]["ratio"] == 8
    assert berlin.provenance["product"]["valid_fraction"] == 1.0


def test_berlin_opens_with_plain_xarray(berlin):
    with xr.open_zarr(berlin.zarr) as data:
        cube = data["reflectance"]
        assert cube.dims == ("wavelength", "y", "x")
        wavelength = data["wavelength"].values
        assert len(wavelength) == 243  # 244, less the second band at 986 nm
        assert np.all(np.diff(wavelength) > 0)
        assert wavelength[0] == pytest.approx(424)
        assert wavelength[-1] == pytest.approx(2446)
        assert data["wavelength"].attrs["units"] == "nm"
        near_red = cube.sel(wavelength=665, method="nearest")
        assert 0.0 < float(near_red.mean()) < 0.4  # reflectance, not counts
        assert cube.encoding["_FillValue"] == -32768
        assert cube.encoding["scale_factor"] == pytest.approx(1e-4)


def test_berlin_opens_with_rioxarray(berlin):
    with xr.open_zarr(berlin.zarr) as data:
        cube = data["reflectance"]
        assert cube.rio.crs.to_epsg() == 32633
        np.testing.assert_allclose(tuple(cube.rio.transform())[:6], tuple(cube.odc.geobox.affine)[:6], atol=1e-6)
        assert cube.rio.transform().a == pytest.approx(3.6)
        assert cube.rio.encoded_nodata == -32768


def test_berlin_opens_with_odc_geo(berlin):
    with xr.open_zarr(berlin.zarr) as data:
        geobox = data["reflectance"].odc.geobox
        assert geobox.crs.epsg == 32633
        expected = berlin.provenance["product"]["transform"]
        np.testing.assert_allclose(tuple(geobox.affine)[:6], expected, atol=1e-6)


def test_berlin_cog_opens_with_rasterio(berlin):
    with rasterio.open(berlin.cog) as cog, xr.open_zarr(berlin.zarr) as data:
        assert cog.crs.to_epsg() == 32633
        np.testing.assert_allclose(tuple(cog.transform)[:6], berlin.provenance["product"]["transform"], atol=1e-9)
        assert cog.nodata == -32768
        assert set(cog.scales) == {1e-4}
        assert cog.count == 243
        central = [float(cog.tags(band, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) for band in cog.indexes]
        np.testing.assert_allclose(np.array(central) * 1e3, data["wavelength"].values, atol=1e-3)
        raw = xr.open_zarr(berlin.zarr, mask_and_scale=False)["reflectance"]
        assert np.array_equal(cog.read(100), raw[99].values)


def test_berlin_keeps_the_spectra_of_the_coarse_image(berlin):
    """Averaged back over its blocks, the product is the HSI: fusion adds detail, it does not change the spectra."""
    source = open_scene(Source(uri=str(BERLIN / "EnMAP_BerlinUrbanGradient_raw244.bsq")))
    with berlin.open() as data:
        fused = data["reflectance"].mean(dim=("y", "x")).values
    height, width = source.geobox.shape
    coarse = np.nanmean(source.read((slice(0, height), slice(0, width)), source.good_bands), axis=(1, 2))
    np.testing.assert_allclose(fused, coarse, atol=0.01)


def test_berlin_judges_itself(berlin):
    """What the figures of qa.json say of a classical method on a scene with a real ratio of 8.33."""
    record = json.loads((berlin.path / QA).read_text())
    hsi, msi = record["consistency"]["hsi"], record["consistency"]["msi"]
    assert hsi["pixels"] > 0.9 * 60 * 80
    assert hsi["sam_deg"] < 3.0
    assert abs(hsi["bias"]) < 0.002
    assert msi["r2"] > 0.98  # the default gives of the MSI's detail what the HSI bears out
    assert record["validity"]["implausible_samples"] < 1e-3
    rows = {row["method"]: row for row in record["reduced_resolution"]["rows"]}
    assert rows["gsa"]["psnr_db"] > rows["bicubic"]["psnr_db"] + 5
    assert rows["gsa"]["sam_deg"] < rows["bicubic"]["sam_deg"]
    assert berlin.report is not None
    assert verify(berlin.path).provenance["quality"]["state"] == record["state"]


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return fused(
        NEON,
        "NEON_D01_HARV_DP3_726000_4699000_reflectance_crop.tif",
        "2019_D01_HARV_DP3_726000_4699000_image_crop.tif",
        tmp_path_factory.mktemp("neon") / "neon",
        hsi__crs="EPSG:32618",
        hsi__wavelengths=str(DATA / "srf" / "derived" / "NEON_NIS_426_SJER2017.csv"),
        msi__wavelengths="650,550,470",
        method="gsa",  # hands the MSI's detail over whole, so that the comparison with it has a known answer
    )


def test_neon_pair_with_its_crs_given(neon):
    """No CRS and no wavelengths in the file; the known displacement is -0.4 m E, +0.6 m N."""
    registration = neon.provenance["registration"]
    assert registration["east_m"] == pytest.approx(-0.4, abs=0.15)
    assert registration["north_m"] == pytest.approx(0.6, abs=0.15)
    with neon.open() as data:
        assert data["reflectance"].odc.geobox.crs.epsg == 32618
        assert data["reflectance"].odc.geobox.resolution.x == pytest.approx(0.1)
        assert data["reflectance"].shape[1:] == (400, 400)
    assert neon.provenance["observation"]["ratio"] == 10
    # The RGB image holds digital numbers up to 255: the product is compared with it in these, by the radiometric fit.
    assert neon.provenance["quality"]["msi_r2"] > 0.98
    assert neon.provenance["quality"]["msi_rmse"] < 10
    assert verify(neon.path).name == "neon"


@pytest.mark.parametrize("pair", ["berlin", "neon"])
def test_reports_show_the_figures_of_qa_json(pair, request):
    product = request.getfixturevalue(pair)
    text = product.report.read_text(encoding="utf-8")
    page = Page(text)
    assert require_figures(page, json.loads((product.path / QA).read_text())) >= 15  # no Wald score at ratio 10
    points = json.loads((product.path / "registration.geojson").read_text())["features"]
    # Every arrow is a shaft and a head, and lies over every picture; some tie points lie outside of the product.
    arrows = sum(path.count("M") for path in page.paths) / 2 / text.count('class="swipe"')
    assert 0.5 * len(points) < arrows <= len(points)


@pytest.mark.browser
@pytest.mark.parametrize("pair", ["berlin", "neon"])
def test_reports_open_in_a_browser(pair, request, tmp_path):
    product = request.getfixturevalue(pair)
    with opened(product.report) as (page, complaints):
        qa = json.loads((product.path / QA).read_text())
        shown = page.locator("[data-key='consistency.hsi.sam_deg']").inner_text()
        assert shown == f"{qa['consistency']['hsi']['sam_deg']:.4g}"
        line = page.locator("#spectrum path").first
        first = line.get_attribute("d")
        page.locator(".swipe:not([hidden])").click(position={"x": 60, "y": 150})
        assert line.get_attribute("d") != first
        page.locator("#arrows").click()
        assert page.locator(".swipe:not([hidden]) svg.arrows").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.screenshot(path=tmp_path / "report.png", full_page=True)
        assert complaints == []


def planted(settings: dict[str, str], **known: float) -> Registration:
    """The registration of a pair whose MSI has been put elsewhere, `known` meters from where its file says."""
    config = load_config(None, settings | {"output": "unused"})
    pair = open_pair(config)
    box = pair.msi.geobox
    moved = GeoBox(box.shape, box.affine.translation(known["east"], known["north"]) @ box.affine, box.crs)
    pair = replace(pair, msi=replace(pair.msi, geobox=moved))
    grids = nest(pair, config.align, None)
    return estimate(pair, grids, config.align, psf_sigma_px(config, pair, grids)).registration


@needs(BERLIN)
@pytest.mark.parametrize(("east", "north"), [(0.0, 0.0), (47.3, -81.1), (-133.7, 12.4), (205.0, 190.0)])
def test_berlin_planted_moves_are_found(east, north):
    """Its own +3.6 m E, -3.6 m N less what was planted, within a tenth of a coarse pixel (3 m)."""
    found = planted(
        {
            "hsi.uri": str(BERLIN / "EnMAP_BerlinUrbanGradient_raw244.bsq"),
            "msi.uri": str(BERLIN / "HighResolution_BerlinUrbanGradient.bsq"),
        },
        east=east,
        north=north,
    )
    assert found.decision == "accept"
    assert found.east_m == pytest.approx(3.6 - east, abs=3.0)
    assert found.north_m == pytest.approx(-3.6 - north, abs=3.0)


@needs(NEON)
@pytest.mark.parametrize(("east", "north"), [(0.0, 0.0), (1.37, -2.2), (-5.05, 3.3)])
def test_neon_planted_moves_are_found(east, north):
    """Its own -0.4 m E, +0.6 m N less what was planted, within a tenth of a coarse pixel (0.1 m)."""
    found = planted(
        {
            "hsi.uri": str(NEON / "NEON_D01_HARV_DP3_726000_4699000_reflectance_crop.tif"),
            "hsi.crs": "EPSG:32618",
            "hsi.wavelengths": str(DATA / "srf" / "derived" / "NEON_NIS_426_SJER2017.csv"),
            "msi.uri": str(NEON / "2019_D01_HARV_DP3_726000_4699000_image_crop.tif"),
            "msi.wavelengths": "650,550,470",
        },
        east=east,
        north=north,
    )
    assert found.decision == "accept"
    assert found.east_m == pytest.approx(-0.4 - east, abs=0.1)
    assert found.north_m == pytest.approx(0.6 - north, abs=0.1)


@pytest.mark.slow
@needs(POTSDAM)
def test_enmap_tiles_as_one_scene_with_a_simulated_msi(tmp_path):
    """Six EnMAP tiles in a glob; the MSI is simulated from them at 10 m, so the product must keep their spectra."""
    tiles = str(POTSDAM / "*.tif")
    hsi = open_scene(Source(uri=tiles))
    assert hsi.cube.shape == (224, 64, 96)
    assert len(hsi.good_bands) == 218
    height, width = hsi.geobox.shape
    cube = hsi.read((slice(0, height), slice(0, width)))
    centers = (490.0, 560.0, 665.0, 842.0)
    planes = np.stack([cube[hsi.bands.nearest(nm)] for nm in centers])
    fine = planes.repeat(3, axis=1).repeat(3, axis=2)
    fine += 0.005 * np.random.default_rng(0).standard_normal(fine.shape).astype(np.float32)
    path = tmp_path / "msi.tif"
    transform = hsi.geobox.affine @ hsi.geobox.affine.scale(1 / 3)
    with rasterio.open(
        path, "w", driver="GTiff", height=3 * height, width=3 * width, count=4, dtype="float32",
        crs=str(hsi.geobox.crs), transform=transform, nodata=float("nan"),
    ) as file:  # fmt: skip
        file.write(fine.astype(np.float32))
        for band, nm in enumerate(centers, start=1):
            file.update_tags(band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=str(nm / 1e3))
    product = run(load_config(None, {"hsi.uri": tiles, "msi.uri": str(path), "output": str(tmp_path / "potsdam")}))
    assert product.provenance["registration"]["decision"] == "accept"
    assert np.hypot(*(product.provenance["registration"][key] for key in ("east_m", "north_m"))) < 3.0
    with product.open() as data:
        assert data["reflectance"].shape == (218, 3 * height, 3 * width)
        assert np.all(np.diff(data["wavelength"].values) > 0)
        assert str(data["time"].values).startswith("2022-07-24")
        mean = data["reflectance"].mean(dim=("y", "x")).values
    np.testing.assert_allclose(mean, np.nanmean(cube[hsi.good_bands], axis=(1, 2)), atol=0.005)
