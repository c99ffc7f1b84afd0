"""Products beside each other: known differences, the figures of `qa.json`, and refusals in one sentence."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.flows.cli import main
from hyperfuse.pipeline.mosaic.run import mosaic_products
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.reports.compare import MOST, compare
from hyperfuse.pipeline.reports.comparison_page import write_page
from hyperfuse.pipeline.reports.html import number
from hyperfuse.pipeline.reports.index_page import product_entry
from hyperfuse.pipeline.reports.scores import SCORES, best
from hyperfuse.pipeline.run import run
from tests.pages import Page, looked_up, opened
from tests.pipeline.conftest import build_job
from tests.synthetic import config

RECIPE = "size=150&ratio=5&bands=24&seed=3&holes_msi=0.002"


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    folder = tmp_path_factory.mktemp("compared")
    return [
        run(config(folder / name, RECIPE, method=network))
        for name, network in (("<b>a & 'b'", "gsa"), ("second", "bicubic"))
    ]


@pytest.fixture(scope="module")
def page(products: list[Product]) -> Path:
    path = products[0].path.parent / "comparison.html"
    write_page(compare([product.path for product in products]), path)
    return path


def test_differences_are_those_of_the_cubes(products: list[Product]) -> None:
    found = compare([product.path for product in products])
    record = found.to_json()
    with products[0].open() as first, products[1].open() as second:
        delta = second["reflectance"].values.astype(np.float64) - first["reflectance"].values
    (difference,) = record["differences"]
    assert (difference["first"], difference["second"]) == ("gsa", "bicubic")
    np.testing.assert_allclose(difference["band_rmse"], np.sqrt(np.nanmean(delta**2, axis=(1, 2))), rtol=1e-5)
    np.testing.assert_allclose(difference["band_bias"], np.nanmean(delta, axis=(1, 2)), atol=1e-7)
    shown = found.differences[0].map
    whole = np.isfinite(delta).all(axis=0)
    np.testing.assert_allclose(shown[whole], np.sqrt(np.mean(delta**2, axis=0))[whole], rtol=1e-4)
    assert np.isnan(shown).any()  # the holes


def test_scores_are_those_of_each_qa_json(products: list[Product], page: Path) -> None:
    parsed = Page(page.read_text(encoding="utf-8"))
    records = [json.loads((product.path / "qa.json").read_text()) for product in products]
    shares = {score.key for score in SCORES if score.share}
    compared = 0
    for key, shown in parsed.cells.items():
        side, _, place = key.partition(".")
        if not side.isdigit():
            continue
        if place == "seams.score":  # one tile: nothing to measure
            assert shown == "not measured"
            continue
        record = records[int(side)]
        value = None if record[place.split(".")[0]] is None else looked_up(record, place)
        assert shown == number(value, share=place in shares), key
        compared += value is not None
    assert compared >= 2 * 9
    row = next(row for row in records[0]["reduced_resolution"]["rows"] if row["method"] == "gsa")
    assert f"{row['psnr_db']:.4g}" in parsed.cells.values()


def test_the_page_stands_alone_and_names_stay_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    assert "default-src 'none'" in parsed.policy
    assert all(link.startswith(("data:image/png;base64,", "./")) for link in parsed.links)
    assert "./%3Cb%3Ea%20%26%20%27b%27/report.html" in parsed.links
    assert "<b>a" not in text


def test_spectra_and_band_maps_are_those_of_the_products(products: list[Product], page: Path) -> None:
    data = json.loads(Page(page.read_text(encoding="utf-8")).scripts[0])
    for packed, product in zip(data["spectra"], products, strict=True):
        counts = np.frombuffer(base64.b64decode(packed), "<i2").reshape(len(data["rows"]), len(data["cols"]), -1)
        shown = np.where(counts == -32768, np.nan, counts * data["scale"])
        with product.open() as dataset:
            cube = dataset["reflectance"].values[:, data["rows"]][:, :, data["cols"]]
        np.testing.assert_allclose(shown.transpose(2, 0, 1), cube, atol=0.51 * data["scale"])
    (cells,) = data["differences"]
    values = np.frombuffer(base64.b64decode(cells["cells"]), np.uint8).reshape(-1, *cells["shape"])
    assert values.shape[0] == len(data["wavelength_nm"]) == 24
    assert (np.where(values == 255, 0, values).max(axis=(1, 2)) == 254).all()


def test_a_product_equals_itself_in_another_format(tmp_path: Path) -> None:
    """Zarr, GeoTIFF, NetCDF and ENVI of one mosaic: any may be compared with any, and the samples are the same."""
    paths = [
        publish(build_job(tmp_path, name=fmt, formats=(fmt,), n_bands=5)).path
        for fmt in ("zarr", "cog", "netcdf", "envi")
    ]
    record = compare(paths).to_json()
    assert [one["label"] for one in record["products"]] == ["zarr", "cog", "netcdf", "envi"]
    assert [one["largest"] < 1e-6 for one in record["differences"]] == [True] * 3
    assert {one["samples"] for one in record["differences"]} == {5 * (70 * 90 - 14 * 18)}
    assert record["products"][0]["scores"]["state"] is None
    write_page(compare(paths), tmp_path / "page.html")
    assert "not judged" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": (70, 91)}, "its grid"),
        ({"crs": "EPSG:4326"}, "its grid"),
        ({"quantity": "radiance"}, "its samples are radiance"),
        ({"span_nm": (1000.0, 2400.0)}, "no band in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    paths = [
        publish(build_job(tmp_path, name=name, formats=("zarr",), **made)).path
        for name, made in (("a", {}), ("b", change))
    ]
    with pytest.raises(InputRejected, match=sentence) as error:
        compare(paths)
    assert str(paths[1]) in str(error.value)


def test_products_with_other_bands_meet_in_those_they_share(tmp_path: Path) -> None:
    wide = publish(build_job(tmp_path, name="wide", formats=("zarr",), n_bands=8, span_nm=(400.0, 800.0))).path
    few = publish(build_job(tmp_path, name="few", formats=("zarr",), n_bands=4, span_nm=(400.0, 800.0))).path
    record = compare([wide, few]).to_json()
    with xr.open_zarr(wide / "wide.zarr") as a, xr.open_zarr(few / "few.zarr") as b:
        common = np.intersect1d(a["wavelength"], b["wavelength"])
        delta = b["reflectance"].sel(wavelength=common).values - a["reflectance"].sel(wavelength=common).values
    assert record["wavelength_nm"] == common.tolist()
    np.testing.assert_allclose(record["differences"][0]["band_bias"], np.nanmean(delta, axis=(1, 2)), atol=1e-6)


def test_other_inputs_and_displacements_are_noted(tmp_path: Path) -> None:
    paths = [publish(build_job(tmp_path, name=name, formats=("zarr",))).path for name in ("a", "b")]
    assert compare(paths).notes == ()
    record = json.loads((paths[1] / "provenance.json").read_text())
    record["inputs"]["hsi"]["sha256"] = "1" * 64
    record["registration"]["east_m"] += 0.5
    (paths[1] / "provenance.json").write_text(json.dumps(record))
    assert [note.split(" were ")[1] for note in compare(paths).notes] == [
        "made from different inputs (hsi).",
        "registered differently.",
    ]


def test_a_product_put_together_from_others_has_no_method(tmp_path: Path) -> None:
    scene = publish(build_job(tmp_path, name="scene", formats=("zarr", "stac"))).path
    made = mosaic_products(AreaConfig(products=(scene,), output=tmp_path / "area", formats=("zarr", "stac")))
    paths = [scene, made.path]
    found = compare(paths)
    assert [side.label for side in found.sides] == ["scene", "area"]
    assert compare([made.path, made.path]).notes == ()
    assert found.notes == ("area is a mosaic of fused products.",)
    assert found.differences[0].to_json()["rmse"] == 0.0
    write_page(found, tmp_path / "page.html")
    assert product_entry(paths[1]).state == "published"


def test_too_few_too_many_or_no_product(tmp_path: Path) -> None:
    path = publish(build_job(tmp_path, formats=("zarr",))).path
    for n in (1, MOST + 1):
        with pytest.raises(UsageError, match=f"{n} products given"):
            compare([path] * n)
    with pytest.raises(BadProduct, match="no record of a product"):
        compare([path, tmp_path])


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    path = publish(build_job(tmp_path, formats=("zarr",))).path
    (path / "qa.json").write_text("{")
    with pytest.raises(BadProduct, match=r"qa\.json"):
        compare([path, path])


def test_best_of_a_row() -> None:
    low, high, zero = (next(score for score in SCORES if score.best == kind) for kind in ("low", "high", "zero"))
    assert best(low, [2.0, 1.0, None]) == {1}
    assert best(high, [2.0, 1.0, 2.0]) == {0, 2}
    assert best(zero, [-0.1, 0.2]) == {0}
    assert best(low, [1.0, None]) == best(low, [1.0, 1.0]) == set()


def test_the_command_prints_and_writes(
    products: list[Product], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(product.path) for product in products]
    output = tmp_path / "page.html"
    assert main(["compare", *paths, "--output", str(output), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["output"] == str(output)
    assert output.is_file()
    assert main(["compare", *paths]) == 0
    assert "bicubic to gsa: RMSE" in capsys.readouterr().out
    assert main(["compare", *paths, "--output", str(tmp_path / "no" / "page.html")]) == 2


@pytest.mark.browser
def test_a_browser_compares(page: Path) -> None:
    with opened(page) as (shown, complaints):
        line = shown.locator("#spectrum path").first
        first = line.get_attribute("d")
        assert shown.locator("#spectrum path").count() == 2
        assert first.count("L") == 23  # a line through all 24 bands, though they lie farther apart than usual
        shown.locator(".swipe:not([hidden])").click(position={"x": 200, "y": 200})
        assert line.get_attribute("d") != first
        shown.locator("#cut").fill("20")
        after = shown.locator(".swipe:not([hidden]) img.after")
        assert "20%" in after.evaluate("image => getComputedStyle(image).clipPath")
        assert "bicubic" in after.get_attribute("alt")
        shown.locator("#right").select_option("0")
        assert "gsa" in after.get_attribute("alt")
        pixels = "canvas => canvas.toDataURL()"
        band = shown.locator("#cells canvas").evaluate(pixels)
        shown.locator("#band").fill("20")
        assert shown.locator("#cells canvas").evaluate(pixels) != band
        assert "nm" in shown.locator("#chosen").inner_text()
        assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shown.emulate_media(media="print")
        assert shown.locator("#cut").is_hidden()
        assert shown.locator(".swipe").nth(0).locator("img").nth(1).is_visible()
        assert complaints == []
