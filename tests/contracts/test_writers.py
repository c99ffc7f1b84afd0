"""What every format must keep."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperfuse.pipeline.config import OutputConfig
from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.products.draft import Asset, BadProduct, Draft
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers import writer
from tests.pipeline.conftest import SCALE, build_job, truth


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ProductFacts]:
    draft = build_job(tmp_path_factory.mktemp("published"), formats=available())
    return publish(draft).path, draft.provenance.product


@pytest.fixture
def product(published: tuple[Path, ProductFacts], tmp_path: Path) -> tuple[Path, ProductFacts]:
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
    assert list(inspect.signature(module.write).parameters) == ["cube"]
    assert list(inspect.signature(module.check).parameters) == ["folder", "expected"]
    assert module.suffix.startswith(".")
    assert module.open_cube is not None or not module.holds_errors


@pytest.mark.parametrize("name", available())
def test_accepts_what_was_published(name: str, product: tuple[Path, ProductFacts]) -> None:
    writer(name).check(*product)


@pytest.mark.parametrize("name", [name for name in available() if writer(name).open_cube is not None])
def test_opens_what_it_holds(name: str, published: tuple[Path, ProductFacts]) -> None:
    path, facts = published
    open_cube = writer(name).open_cube
    assert open_cube is not None
    with open_cube(writer(name).path(path, facts.name)) as dataset:
        cube = dataset["reflectance"]
        np.testing.assert_allclose(cube.values, truth(len(facts.wavelength_nm), facts.shape), atol=0.5001 * SCALE)
        assert cube.odc.geobox.affine.almost_equals(facts.geobox.affine, 1e-9)
        assert cube.odc.geobox.crs == facts.geobox.crs


@pytest.mark.parametrize("name", available())
def test_refuses_an_empty_folder(name: str, product: tuple[Path, ProductFacts], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadProduct, match=r"fused\."):
        writer(name).check(tmp_path / "empty", product[1])


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("what", ["wavelength_nm", "transform", "shape"])
def test_refuses_another_product(name: str, what: str, product: tuple[Path, ProductFacts]) -> None:
    path, facts = product
    other = facts.model_copy(update={what: [value + 1 for value in getattr(facts, what)]})
    with pytest.raises(BadProduct, match=r"fused\."):
        writer(name).check(path, other)


@pytest.mark.parametrize("name", [name for name in available() if name != "stac"])
@pytest.mark.parametrize(
    "change", [{"scale": 2e-4}, {"unit": "K"}, {"dtype": "float32"}, {"nodata": -9999}, {"crs_wkt": "EPSG:32632"}]
)
def test_refuses_another_packing(name: str, change: dict[str, Any], product: tuple[Path, ProductFacts]) -> None:
    path, facts = product
    with pytest.raises(BadProduct, match=r"fused\."):
        writer(name).check(path, facts.model_copy(update=change))


@pytest.mark.parametrize("name", available())
def test_writes_again_after_an_interruption(name: str, tmp_path: Path) -> None:
    draft: Draft = build_job(tmp_path)
    first = writer(name).write(draft.cube)
    again = writer(name).write(draft.cube)
    assert first == again
    assert all(isinstance(asset, Asset) and (draft.folder / asset.href).exists() for asset in again)
