"""What every format must keep."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

from hyperfuse.pipeline.config import OutputConfig
from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.products.draft import Asset, BadProduct, Draft
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.products.writers import writer
from tests.pipeline.conftest import build_job


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    draft = build_job(tmp_path_factory.mktemp("published"), formats=available())
    return publish(draft).path, draft.provenance["product"]


@pytest.fixture
def product(published: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path, facts = published
    return Path(shutil.copytree(path, tmp_path / "copy")), facts


def test_settings_take_what_exists() -> None:
    assert OutputConfig(formats=available()).formats == available()
    with pytest.raises(ValueError, match=r"no format 'nope'"):
        OutputConfig(formats=("nope",))


def test_unknown_format_lists_the_known() -> None:
    with pytest.raises(LookupError, match=", ".join(available())):
        writer("shapefile")


@pytest.mark.parametrize("name", available())
def test_defines_the_names(name: str) -> None:
    module = writer(name)
    assert list(inspect.signature(module.write).parameters) == ["draft"]
    assert list(inspect.signature(module.check).parameters) == ["folder", "expected"]


@pytest.mark.parametrize("name", available())
def test_accepts_what_was_published(name: str, product: tuple[Path, dict[str, Any]]) -> None:
    writer(name).check(*product)


@pytest.mark.parametrize("name", available())
def test_refuses_an_empty_folder(name: str, product: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadProduct, match=r"fused\."):
        writer(name).check(tmp_path / "empty", product[1])


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("what", ["wavelength_nm", "transform", "shape"])
def test_refuses_another_product(name: str, what: str, product: tuple[Path, dict[str, Any]]) -> None:
    path, facts = product
    other = facts | {what: [value + 1 for value in facts[what]]}
    with pytest.raises(BadProduct, match=r"fused\."):
        writer(name).check(path, other)


@pytest.mark.parametrize("name", [name for name in available() if name != "stac"])
@pytest.mark.parametrize(
    "change", [{"scale": 2e-4}, {"unit": "K"}, {"dtype": "float32"}, {"nodata": -9999}, {"crs_wkt": "EPSG:32632"}]
)
def test_refuses_another_packing(name: str, change: dict[str, Any], product: tuple[Path, dict[str, Any]]) -> None:
    path, facts = product
    with pytest.raises(BadProduct, match=r"fused\."):
        writer(name).check(path, facts | change)


@pytest.mark.parametrize("name", available())
def test_writes_again_after_an_interruption(name: str, tmp_path: Path) -> None:
    draft: Draft = build_job(tmp_path)
    first = writer(name).write(draft)
    again = writer(name).write(draft)
    assert first == again
    assert all(isinstance(asset, Asset) and (draft.folder / asset.href).exists() for asset in again)
