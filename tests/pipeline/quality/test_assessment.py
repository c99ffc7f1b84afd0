"""`qa.json` and the gates: what a product says of itself, and whether it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperfuse.catalogs.errors import QualityRefused
from hyperfuse.pipeline.job.product_files import QA
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.run import run
from tests.synthetic import config

RECIPE = "size=200&ratio=4&bands=40&seed=3"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return run(
        config(
            tmp_path_factory.mktemp("judged") / "product",
            RECIPE,
            tiles__core=64,
            tiles__chunk=32,
        )
    )


def qa(product: Product) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    record: dict[str, Any] = json.loads((product.path / QA).read_text(), parse_constant=refuse)
    return record


def test_a_good_product_is_published_without_warnings(product: Product) -> None:
    record = qa(product)
    assert record["state"] == "published", record["warnings"]
    assert record["consistency"]["hsi"]["sam_deg"] < 1.5
    assert record["consistency"]["msi"]["r2"] > 0.98
    assert len(record["consistency"]["hsi"]["band_rmse"]) == len(product.provenance["product"]["wavelength_nm"])
    assert abs(record["seams"]["score"]) < 0.05 + 2 * record["seams"]["spread"]
    assert 0 <= record["no_reference"]["d_lambda_k"] < 0.1
    assert record["validity"]["valid"] == product.provenance["product"]["valid_fraction"]
    names = {gate["name"] for gate in record["gates"]}
    assert names == {
        "min_valid", "registration", "radiometry", "max_hsi_sam_deg", "max_hsi_bias", "min_msi_r2", "max_seam", "max_implausible", "displacement", "better_than_bicubic",
    }  # fmt: skip
    assert set(record["conventions"]) >= {"errors", "hsi", "msi", "sam", "seam", "no_reference", "reduced_resolution"}


def test_reduced_resolution_has_the_controls(product: Product) -> None:
    rows = {row["method"]: row for row in qa(product)["reduced_resolution"]["rows"]}
    assert set(rows) == {"map_subspace", "gsa", "bicubic"}
    assert rows["map_subspace"]["sam_deg"] < rows["gsa"]["sam_deg"] < rows["bicubic"]["sam_deg"]
    assert rows["gsa"]["psnr_db"] > rows["bicubic"]["psnr_db"] + 1


def test_every_record_tells_the_same(product: Product) -> None:
    """qa.json, provenance and STAC item agree, and the manifest covers the file."""
    record, summary = qa(product), product.provenance["quality"]
    assert product.item is not None
    item = json.loads(product.item.read_text())
    assert item["properties"]["hrhsi:quality"] == summary
    assert summary["state"] == record["state"]
    assert summary["hsi_sam_deg"] == record["consistency"]["hsi"]["sam_deg"]
    assert summary["seam"] == record["seams"]["score"]
    reduced = {row["method"]: row["sam_deg"] for row in record["reduced_resolution"]["rows"]}
    assert {name: scores["sam_deg"] for name, scores in summary["reduced_resolution"].items()} == reduced
    assert QA in json.loads((product.path / "manifest.json").read_text())["files"]
    assert item["assets"]["qa"]["file:checksum"].startswith("1220")
    assert verify(product.path).path == product.path


def test_gates_warn_refuse_or_stand_open(tmp_path: Path) -> None:
    """A refused product leaves its tiles, so that the next word costs no fusion."""
    strict = {"quality__max_hsi_sam_deg": 1e-6, "method": "bicubic"}
    out = tmp_path / "product"
    with pytest.raises(
        QualityRefused, match=r"spectral angle to the HSI: .*at most 1e-06 wanted.*quality\.gate=warn"
    ) as refused:
        run(config(out, RECIPE, **strict, quality__gate="refuse"))
    assert refused.value.exit_code == 7
    assert not out.exists()
    (staging,) = tmp_path.glob(".product.*.staging")
    assert (staging / QA).is_file()
    warned = run(config(out, RECIPE, **strict))
    assert warned.provenance["tiles"]["resumed"] == warned.provenance["tiles"]["finished"]
    assert warned.provenance["quality"]["state"] == "published with warnings"
    assert any("spectral angle" in warning for warning in warned.provenance["quality"]["warnings"])
    opened = run(config(tmp_path / "open", RECIPE, **strict, quality__gate="off"))
    assert opened.provenance["quality"]["state"] == "published"
    assert qa(opened)["gates"] == []


def test_a_product_that_does_not_agree_with_the_msi_is_refused_though_gates_only_warn(tmp_path: Path) -> None:
    """The MSI is taken to lie 5 coarse pixels from where it does; what follows is another image's detail."""
    lost = {"align__east_m": 160, "align__north_m": -120, "publish__formats": "[zarr]"}
    small = "size=100&ratio=4&bands=12&seed=3"
    out = tmp_path / "product"
    with pytest.raises(
        QualityRefused, match=r"R2 0\.\d+, less than 0\.5.*hyperfuse register.*quality\.gate=off"
    ) as refused:
        run(config(out, small, **lost))
    assert refused.value.exit_code == 7
    assert not out.exists()
    (staging,) = tmp_path.glob(".product.*.staging")
    record = json.loads((staging / QA).read_text())
    (gate,) = (gate for gate in record["gates"] if gate.get("refuses"))
    assert (record["state"], gate["name"], gate["limit"]) == ("refused", "min_msi_r2", 0.9)
    assert gate["value"] == pytest.approx(record["consistency"]["msi"]["r2"], abs=0.1)
    # Its tiles stay, and who has looked may publish them; a lower floor does the same, with the warnings.
    warned = run(config(out, small, **lost, quality__refuse_msi_r2=0))
    assert warned.provenance["tiles"]["resumed"] == warned.provenance["tiles"]["finished"]
    assert warned.provenance["quality"]["state"] == "published with warnings"
    assert run(config(tmp_path / "open", small, **lost, quality__gate="off")).provenance["quality"]["warnings"] == []


def test_a_method_without_the_msi_need_not_agree_with_it(tmp_path: Path) -> None:
    settings = {"method": "bicubic", "quality__refuse_msi_r2": 0.97, "publish__formats": "[zarr]"}
    quality = run(config(tmp_path / "p", "size=100&ratio=4&bands=12&seed=3", **settings)).provenance["quality"]
    assert quality["msi_r2"] < 0.97
    assert quality["state"] == "published with warnings"


def test_a_pair_too_small_for_the_protocol_says_so(tmp_path: Path) -> None:
    record = qa(run(config(tmp_path / "small", "size=64&ratio=4&bands=8&seed=1")))
    assert record["reduced_resolution"]["rows"] == []
    assert "whole pixels, expected at least" in record["reduced_resolution"]["error"]
    assert "better_than_bicubic" not in {gate["name"] for gate in record["gates"]}
