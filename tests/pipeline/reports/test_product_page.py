"""The report: one file, no network, valid data, and the figures of `qa.json`; in a real browser behind a marker."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hyperfuse.pipeline.job.product_files import REPORT
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.reports.pictures import _spread
from hyperfuse.pipeline.reports.spectra import presets
from hyperfuse.pipeline.run import run
from tests.pages import Page, opened, require_figures
from tests.synthetic import config

RECIPE = "size=200&ratio=4&bands=100&seed=3&holes_msi=0.002"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    output = tmp_path_factory.mktemp("reported") / "<b>product & 'more'"
    return run(config(output, RECIPE, tiles__core=64, tiles__chunk=32))


@pytest.fixture(scope="module")
def page(product: Product) -> Page:
    return Page((product.path / REPORT).read_text(encoding="utf-8"))


def test_nothing_comes_from_the_network(page: Page) -> None:
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "default-src 'none'" in page.policy
    text = "".join(page.scripts)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts|eval|innerHTML)\b", text)
    # The namespace of SVG is a name, not an address.
    assert set(re.findall(r"https?://[\w./-]+", page.scripts[-1])) == {"http://www.w3.org/2000/svg"}
    assert page.open == []


def test_figures_are_those_of_qa_json(product: Product, page: Page) -> None:
    qa = json.loads((product.path / "qa.json").read_text())
    assert require_figures(page, qa) >= 25
    for row in qa["reduced_resolution"]["rows"]:
        index = qa["reduced_resolution"]["rows"].index(row)
        assert page.cells[f"reduced_resolution.rows.{index}.sam_deg"] == f"{row['sam_deg']:.4g}"


def test_pictures_are_pictures_before_and_after_of_one_size(page: Page) -> None:
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for uri in page.images]
    before, after = images[0], images[1]
    assert before.shape == after.shape
    assert before.shape[2] == 4
    # The coarse image is made of blocks of 4 x 4 equal pixels, the product is not.
    assert np.array_equal(before[100:104:4, 100:200:4], before[103:104, 103:200:4])
    assert not np.array_equal(after[100:104:4, 100:200:4], after[103:104, 103:200:4])
    assert after[..., 3].min() == 0  # the holes
    assert after[after[..., 3] > 0][:, :3].std() > 30


def test_spectra_are_those_of_the_product(product: Product, page: Page) -> None:
    data = json.loads(page.scripts[0])["spectra"]
    shape = (len(data["rows"]), len(data["cols"]), -1)
    counts = np.frombuffer(base64.b64decode(data["fused"]), "<i2").reshape(shape)
    shown = np.where(counts == -32768, np.nan, counts * data["scale"])
    with product.open() as dataset:
        cube = dataset["reflectance"].values[:, data["rows"]][:, :, data["cols"]]
    np.testing.assert_allclose(shown.transpose(2, 0, 1), cube, atol=0.51 * data["scale"])
    assert {preset["name"] for preset in data["presets"]} >= {"bright", "usual", "dark"}
    brightness = {p["name"]: np.nanmean(shown[p["row"], p["col"]]) for p in data["presets"]}
    assert brightness["bright"] > brightness["usual"] > brightness["dark"]


def test_names_stay_text(product: Product, page: Page) -> None:
    text = (product.path / REPORT).read_text(encoding="utf-8")
    assert "<b>product" not in text
    assert "&lt;b&gt;product &amp; &#39;more&#39;" in text


def test_points_of_a_large_product_lie_in_few_chunks() -> None:
    small, large = _spread(200, 64, 40), _spread(100_000, 256, 40)
    assert len(small) == 40
    assert 35 <= len(large) <= 40
    assert len(np.unique(small // 64)) == 4
    assert len(np.unique(large // 256)) == 8
    assert (np.diff(large) > 0).all()
    assert large[-1] < 100_000


def test_a_product_without_a_valid_point_has_nopresets(product: Product) -> None:
    from hyperfuse.pipeline.job.folder import Bands

    bands = Bands.sort([660.0, 860.0], unit="nm", of="test")
    assert presets(bands, np.full((2, 3, 3), np.nan, np.float32)) == []


@pytest.fixture
def browser_page(product: Product) -> Iterator[tuple[Any, list[str]]]:
    """The report on a phone, and what the browser complained of or asked for."""
    with opened(product.path / REPORT) as page:
        yield page


@pytest.mark.browser
def test_a_browser_shows_swipes_and_answers_clicks(browser_page: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, complaints = browser_page
    line = page.locator("#spectrum path").first
    first = line.get_attribute("d")
    page.locator(".swipe:not([hidden])").click(position={"x": 200, "y": 200})
    clicked = line.get_attribute("d")
    assert clicked != first
    page.get_by_role("button", name="dark").click()
    assert line.get_attribute("d") not in {first, clicked}
    page.locator("#cut").fill("20")
    cut = page.locator(".swipe:not([hidden]) img.after").evaluate("image => getComputedStyle(image).clipPath")
    assert "20%" in cut
    page.locator("#composites button").nth(1).click()
    assert page.locator(".swipe").nth(0).is_hidden()
    assert page.locator(".swipe").nth(1).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(media="print")
    assert page.locator("#cut").is_hidden()
    assert page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert complaints == []


@pytest.mark.browser
def test_a_standard_error_becomes_a_band(product: Product, tmp_path: Path) -> None:
    """The script's part: given errors in the spectra's own packing, a band lies around the product, broken at gaps."""
    text = (product.path / REPORT).read_text(encoding="utf-8")
    data = json.loads(Page(text).scripts[0])
    counts = np.frombuffer(base64.b64decode(data["spectra"]["fused"]), "<i2")
    errors = base64.b64encode(np.where(counts == -32768, -32768, 500).astype("<i2").tobytes()).decode()
    path = tmp_path / REPORT
    path.write_text(text.replace('"presets":', f'"error":"{errors}","presets":', 1), encoding="utf-8")
    with opened(path) as (page, complaints):
        band = page.locator("#spectrum path.band").first.get_attribute("d")
        assert "NaN" not in band
        assert len(band.split("L")) >= 2 * 3
        assert complaints == []
