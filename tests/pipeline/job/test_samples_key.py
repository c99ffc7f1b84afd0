"""What decides samples decides which tiles are kept; a licence, formats and reports do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import grimp
import numpy as np
import pytest
import xarray as xr

import hyperfuse.pipeline.products.publish as publishing
from hyperfuse.pipeline import run as way
from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.job import records
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.quality import standard_error
from hyperfuse.pipeline.run import run
from tests import ROOT
from tests.synthetic import SMALL, config

CUT = {"method": "gsa", "tiles__core": 64, "tiles__chunk": 32, "publish__formats": "[zarr]"}
N_TILES = 9


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def die(*_: object, **__: object) -> None:
    raise Killed


def killed_run(monkeypatch: pytest.MonkeyPatch, step: tuple[object, str], output: Path, **settings: Any) -> None:
    """A run that dies at a step."""
    with monkeypatch.context() as patch:
        patch.setattr(*step, die)
        with pytest.raises(Killed):
            run(config(output, SMALL, **CUT | settings))


BEFORE_JUDGING, BEFORE_RENAME, AFTER_RENAME = (way, "assess"), (publishing, "put_in_place"), (publishing, "_discard")


def samples(product: Product) -> np.ndarray[Any, Any]:
    """Stored counts; NaN where a sample is not valid."""
    with product.open() as data:
        return np.round(data["reflectance"].values.astype(np.float64) / 1e-4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    return samples(run(config(tmp_path_factory.mktemp("undisturbed") / "out", SMALL, **CUT)))


@pytest.mark.parametrize(
    ("step", "other"),
    [
        (BEFORE_JUDGING, {"publish__license": "CC0-1.0"}),
        (BEFORE_RENAME, {"publish__formats": "[cog, stac]"}),
        (BEFORE_RENAME, {"publish__overviews": True, "publish__uncertainty": True}),
        (BEFORE_JUDGING, {"quality__min_msi_r2": 0.5}),
    ],
    ids=["license", "formats", "overviews", "limits"],
)
def test_another_publication_takes_over_the_tiles(tmp_path, monkeypatch, undisturbed, step, other):
    killed_run(monkeypatch, step, tmp_path / "out", publish__license="CC-BY-4.0")
    product = run(config(tmp_path / "out", SMALL, **{**CUT, "publish__license": "CC-BY-4.0", **other}))
    assert product.provenance["tiles"]["resumed"] == N_TILES
    assert np.array_equal(samples(product), undisturbed, equal_nan=True)
    assert verify(product.path).job_key == product.job_key
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_product_is_that_of_the_second_run(tmp_path, monkeypatch, undisturbed):
    """Nothing of what the first run would have published is left in it: licence, errors, overviews, formats, key."""
    first = {"publish__license": "CC-BY-4.0", "publish__uncertainty": True, "publish__overviews": True}
    killed_run(monkeypatch, BEFORE_RENAME, tmp_path / "out", **first | {"publish__formats": "[zarr, cog, stac]"})
    other = {"publish__license": "CC0-1.0", "publish__formats": "[zarr, stac]"}
    product = run(config(tmp_path / "out", SMALL, **CUT | other))
    clean = run(config(tmp_path / "clean", SMALL, **CUT | other))
    assert product.provenance["tiles"]["resumed"] == N_TILES
    assert json.loads(product.item.read_text())["properties"]["license"] == "CC0-1.0"
    with xr.open_zarr(product.zarr) as data, xr.open_zarr(clean.zarr) as expected:
        assert data.attrs["license"] == "CC0-1.0"
        assert data.attrs["hrhsi"]["job_key"] == product.job_key == clean.job_key
        assert set(data.variables) == set(expected.variables)
        assert data["reflectance"].attrs == expected["reflectance"].attrs
        assert data.attrs.keys() == expected.attrs.keys()
    files = [{path.relative_to(p.path).as_posix() for path in p.path.rglob("*")} for p in (product, clean)]
    assert files[0] == {name.replace("clean", "out") for name in files[1]}
    assert np.array_equal(samples(product), undisturbed, equal_nan=True)


@pytest.mark.parametrize("other", [{"publish__dtype": "float32"}, {"tiles__chunk_bands": 5}, {"method": "bicubic"}])
def test_what_decides_stored_samples_makes_them_anew(tmp_path, monkeypatch, other):
    killed_run(monkeypatch, BEFORE_JUDGING, tmp_path / "out")
    product = run(config(tmp_path / "out", SMALL, **CUT | other))
    clean = run(config(tmp_path / "clean", SMALL, **CUT | other))
    assert product.provenance["tiles"]["resumed"] == 0
    assert np.array_equal(samples(product), samples(clean), equal_nan=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "out"]


def test_a_product_that_was_exchanged_is_no_mosaic_of_this_job(tmp_path, monkeypatch, undisturbed):
    """After an exchange the staging folder holds the version of before, whose samples and place are others."""
    run(config(tmp_path / "out", SMALL, **CUT | {"method": "bicubic", "align__reference": "hsi"}))
    killed_run(monkeypatch, AFTER_RENAME, tmp_path / "out", publish__replace=True)
    another = {"publish__replace": True, "publish__license": "CC0-1.0"}
    product = run(config(tmp_path / "out", SMALL, **CUT | another))
    assert verify(product.path).provenance["config"]["publish"]["license"] == "CC0-1.0"
    assert np.array_equal(samples(product), undisturbed, equal_nan=True)


def test_errors_of_other_code_are_made_anew(tmp_path, monkeypatch):
    """The key of the samples says nothing of the code of their errors."""
    uncertain = {"publish__uncertainty": True}
    with monkeypatch.context() as patch:
        patch.setattr(standard_error, "code_version", lambda: "0.0")
        killed_run(patch, BEFORE_JUDGING, tmp_path / "out", **uncertain)
    staging = next(tmp_path.glob(".out.*.staging"))
    calibration = staging / standard_error.CALIBRATION
    record = json.loads(calibration.read_text())
    for group in record["groups"]:
        group["factor"] *= 7
    calibration.write_text(json.dumps(record))
    product = run(config(tmp_path / "out", SMALL, **CUT | uncertain))
    clean = run(config(tmp_path / "clean", SMALL, **CUT | uncertain))
    assert product.provenance["tiles"]["resumed"] == N_TILES
    with product.open() as data, clean.open() as expected:
        xr.testing.assert_equal(data["reflectance_standard_error"], expected["reflectance_standard_error"])


def test_settings_are_shared_out_between_samples_and_publication():
    plain = load_config(None, {"hsi.uri": "a", "msi.uri": "b", "output": "o"})

    def parts(**changes: Any) -> tuple[bool, bool]:
        other = load_config(
            None,
            {"hsi.uri": "a", "msi.uri": "b", "output": "o"} | {k.replace("__", "."): v for k, v in changes.items()},
        )
        return (
            other.decides_samples() != plain.decides_samples(),
            other.decides_publication() != plain.decides_publication(),
        )

    for name, value in (("license", "MIT"), ("formats", "[cog]"), ("overviews", True), ("uncertainty", True)):
        assert parts(**{f"publish__{name}": value}) == (False, True), name
    for name, value in (
        ("publish__dtype", "float32"), ("strict", True), ("residual", "never"), ("tiles__chunk", 128), ("precision", "bf16"),
        ("tiles__chunk_bands", 8), ("align__max_shift_px", 3), ("harmonize__mode", "off"), ("method", "gsa"), ("psf_mtf", 0.2),
    ):  # fmt: skip
        assert parts(**{name: value}) == (True, False), name
    for name, value in (("quality__gate", "off"), ("tiles__batch", 1), ("device", "cpu"), ("publish__replace", True)):
        assert parts(**{name: value}) == (False, False), name


NO_DECISION = {"catalogs.addresses", "catalogs.opening", "catalogs.errors", "pipeline.composite", "pipeline.config", "pipeline.cores", "pipeline.formats", "pipeline.pipelining", "pipeline.progress", "pipeline.stage_times"}  # fmt: skip
"""Messages, names of settings (their values are in the key), the figure of the tie points, and how work is spread."""

CLOSED = {"hyperfuse.catalogs.opening", "hyperfuse.pipeline.config"}
"""Behind them is how files are found and fetched, whose bytes are in the key, and what settings may be."""


def test_all_that_decides_samples_is_in_their_code():
    """Oracle: the graph of imports, from where samples are made; nothing it reaches may be left out."""
    graph = grimp.build_graph("hyperfuse")
    makers = {
        f"hyperfuse.pipeline.{name}"
        for name in (
            "job.stage", "job.completeness", "fusion.passes", "fusion.strict", "fusion.tile_fuser", "fusion.weights",
            "quality.residual_decision", "geometry.grids",
        )
    } | {"hyperfuse.catalogs.sensors", "hyperfuse.models"}  # fmt: skip
    reached, todo = set(), list(makers)
    while todo:
        if (name := todo.pop()) not in reached:
            reached.add(name)
            if name in CLOSED:
                continue
            todo += graph.find_modules_directly_imported_by(name)
    found = {path.relative_to(records._ROOT) for path in records.sample_sources()}
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found}
    assert {name.removeprefix("hyperfuse.") for name in reached} - NO_DECISION <= modules
    assert not [
        path for path in found if set(path.parts) & {"reports", "products", "archive", "training", "flows", "stac"}
    ]


@pytest.mark.parametrize(
    ("edited", "decides"),
    [
        ("pipeline/fusion/packing.py", True),
        ("pipeline/quality/residual_decision.py", True),
        ("models/gsa.py", True),
        ("pipeline/reports/html.py", False),
        ("pipeline/products/publish.py", False),
        ("pipeline/quality/assessment.py", False),
        ("catalogs/stac/items.py", False),
    ],
)
def test_an_edit_counts_where_it_decides(tmp_path, monkeypatch, edited, decides):
    for package in ("catalogs", "models", "pipeline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(records, "_ROOT", tmp_path)
    before = records.samples_code.__wrapped__(), records.code_version.__wrapped__()
    path = tmp_path / edited
    path.write_text(path.read_text() + "\n")
    after = records.samples_code.__wrapped__(), records.code_version.__wrapped__()
    assert (after[0] != before[0]) is decides
    assert after[1] != before[1]
