"""Standard errors: laws of the calibration, coverage on scenes with known truth, and the same figures in every format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.models import Observed
from hyperfuse.pipeline.evaluation.presets import CUBES, cube_trials, within
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.product_files import QA, REPORT
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.products.writers import writer
from hyperfuse.pipeline.quality.msi_detail import activity, detail_energy, filled
from hyperfuse.pipeline.quality.rehearsal import Rehearsal
from hyperfuse.pipeline.quality.standard_error import _finished, _ledger, calibration, estimate_errors
from hyperfuse.pipeline.quality.uncertainty import (
    Calibration,
    FullResolution,
    NotCalibrated,
    Z,
    calibrate,
    guessed,
    scale_gap,
    sparsification,
    standard_error,
)
from hyperfuse.pipeline.run import fuse_tiles, open_run, run, stage_pair
from tests import DATA
from tests.benchmarks.uncertainty import coverage, synthetic
from tests.checkers import assert_follows_cf
from tests.synthetic import config, scene, whole

RECIPE = "size=270&ratio=4&bands=24&seed=5&holes_msi=0.02"
ERRORS = "reflectance_standard_error"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return run(
        config(
            tmp_path_factory.mktemp("uncertain") / "product", RECIPE, method="gsa", tiles__core=64, tiles__chunk=32,
            publish__uncertainty=True, publish__overviews=True, publish__formats=["zarr", "cog", "netcdf", "stac"],
        )
    )  # fmt: skip


def record(product: Product) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((product.path / QA).read_text())["uncertainty"]
    return found


def trial(rng: np.random.Generator, edge: int = 32) -> SimulatedPair:
    """A pair at ratio 2 whose MSI is lively in one half and calm in the other."""
    fine = 2 * edge
    msi = rng.normal(size=(3, fine, fine)).astype(np.float32)
    msi[:, :, : fine // 2] *= 0.1
    return SimulatedPair(
        name="trial", truth=np.zeros((16, fine, fine), np.float32), hsi=np.zeros((16, edge, edge), np.float32), msi=msi,
        observed=Observed(hsi_bands=16, msi_bands=3, ratio=2, psf_sigma_px=1.0),
    )  # fmt: skip


def calibrated(pair: SimulatedPair, fused: np.ndarray, *, noise_share: float = 0.0) -> Calibration:
    """With the same pair at both resolutions."""
    full = FullResolution.of(pair.hsi * pair.unit, pair.msi * pair.unit, [fused * pair.unit], pair.observed)
    return calibrate(replace(Rehearsal.of(pair, fused), noise_share=np.full(len(fused), noise_share)), full)


def test_errors_that_follow_the_raw_scale_are_covered_everywhere() -> None:
    rng = np.random.default_rng(0)
    pair = trial(rng)
    active = activity(pair.msi, detail_energy(pair.msi, 2, 1.0).mean(axis=(1, 2)), 2, 1.0)
    scale = np.sqrt(np.linspace(0.1, 1, 16)[:, None, None] + np.linspace(1, 4, 16)[:, None, None] * active)
    found = calibrated(pair, (scale * rng.normal(size=pair.truth.shape)).astype(np.float32))
    assert found.calibrated
    assert found.coverage == pytest.approx(0.9, abs=0.01)
    # The scale is that of the errors themselves, k = 1, in every band and where it is calm as where it is lively.
    ratio = standard_error(found, active) / scale
    assert np.abs(ratio.mean(axis=(1, 2)) - 1).max() < 0.12
    for half in (slice(0, 28), slice(36, 64)):
        assert ratio[:, :, half].mean() == pytest.approx(1, abs=0.1)
    assert found.gap == pytest.approx([1] * 16, abs=0.02)


def test_heavy_tails_change_the_factor_not_the_coverage() -> None:
    rng = np.random.default_rng(1)
    pair = trial(rng)
    found = calibrated(pair, rng.standard_t(2.5, size=pair.truth.shape).astype(np.float32))
    assert found.coverage == pytest.approx(0.9, abs=0.01)
    assert all(abs((group.coverage or 0) - 0.9) < 0.02 for group in found.groups)


def test_errors_in_another_unit_are_scaled_with_it() -> None:
    rng = np.random.default_rng(2)
    pair = trial(rng)
    fused = rng.normal(size=pair.truth.shape).astype(np.float32)
    one, other = calibrated(pair, fused), calibrated(replace(pair, unit=0.5), fused)
    assert other.mean_width == pytest.approx(0.5 * (one.mean_width or 0), rel=1e-5)
    assert other.gap == pytest.approx(one.gap)


def test_the_gap_is_that_of_the_detail_and_of_each_band_and_never_below_one() -> None:
    reduced, silent = np.array([1.0, 2.0, 4.0]), np.zeros(2)
    np.testing.assert_allclose(scale_gap((4 * reduced, reduced), (silent, silent)), 2)
    np.testing.assert_allclose(scale_gap((np.array([4.0, 0.0, 16.0]), np.array([1.0, 0.0, 4.0])), (silent, silent)), 2)
    np.testing.assert_allclose(
        scale_gap((4 * reduced, reduced), (np.array([64.0, 4.0, 0.25, 0.0]), np.ones(4))), [4, 2, np.sqrt(2), 2]
    )
    np.testing.assert_allclose(scale_gap((reduced / 9, reduced), (np.array([1.0, 4.0]), np.ones(2))), [1, np.sqrt(2)])
    np.testing.assert_allclose(scale_gap((np.zeros(3), reduced), (silent, silent)), 1)


def test_noise_has_no_gap() -> None:
    rng = np.random.default_rng(4)
    pair = trial(rng)
    found = calibrated(pair, rng.normal(size=pair.truth.shape).astype(np.float32), noise_share=0.75)
    np.testing.assert_allclose(found.model_copy(update={"gap": [3.0] * 16}).growth, np.sqrt(0.25 * 9 + 0.75))
    np.testing.assert_allclose(found.model_copy(update={"gap": [3.0] * 16, "noise_share": [1.0] * 16}).growth, 1)


def test_sparsification_of_a_perfect_a_useless_and_a_perverse_order() -> None:
    found = np.abs(np.random.default_rng(0).normal(size=4000))
    useless = sparsification(np.random.default_rng(1).uniform(size=4000), found)
    assert sparsification(found, found) == 0.0
    assert sparsification(3 * found**2, found) == 0.0  # the order counts alone
    assert 0.2 < useless < sparsification(-found, found)
    assert sparsification(found, np.zeros(4000)) == 0.0


def test_activity_is_one_on_average_and_knows_no_unit() -> None:
    msi = np.random.default_rng(0).normal(size=(2, 48, 48)).astype(np.float32)
    usual = detail_energy(msi, 4, 2.0).mean(axis=(1, 2))
    found = activity(msi, usual, 4, 2.0)
    assert found.mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(activity(1000 * msi + 7, usual * 1e6, 4, 2.0), found, rtol=2e-3)
    assert detail_energy(np.full((1, 16, 16), 0.3, np.float32), 4, 2.0).max() < 1e-10


def test_a_quadrant_without_a_valid_pixel_calibrates_nothing_and_the_guess_says_so() -> None:
    pair = trial(np.random.default_rng(0))
    fused = pair.truth.copy()
    fused[:, :32, :32] = np.nan
    with pytest.raises(NotCalibrated, match="too few valid pixels"):
        calibrated(pair, fused)
    rng = np.random.default_rng(3)
    hsi, msi = rng.normal(size=(5, 12, 12)).astype(np.float32), rng.normal(size=(2, 24, 24)).astype(np.float32)
    seen = Observed(hsi_bands=5, msi_bands=2, ratio=2, psf_sigma_px=1.0)
    found = guessed(FullResolution.of(hsi, msi, [np.full((5, 24, 24), np.nan, np.float32)], seen), reason="why")
    assert not found.calibrated
    assert found.reason == "why"
    # Nothing of the HSI is explained by an unrelated MSI, so its own spread is the standard error.
    mean = standard_error(found, np.ones((1, 1), np.float32))[:, 0, 0]
    np.testing.assert_allclose(mean, hsi.std(axis=(1, 2)), rtol=0.05)


@pytest.mark.parametrize("method", ["gsa", "map_subspace"])
def test_intervals_hold_on_land_that_was_not_used(method: str) -> None:
    """At reduced resolution 90 % of other quadrants; at full resolution as far as the scales agree, which on land whose fine
    pixels are purer than what calibrates them is on the safe side.
    """
    found = coverage(synthetic("size=256&ratio=4&bands=24&seed=8"), method)
    assert found.reduced is not None
    assert 0.8 < found.reduced[0] <= found.reduced[1] < 0.98
    assert 0.88 < np.mean(found.reduced) < 0.92
    assert found.full > 0.84
    assert found.ause < 0.45


@pytest.mark.skipif(not DATA.is_dir(), reason="the real cubes are not beside this checkout")
@pytest.mark.parametrize("method", ["gsa", "map_subspace"])
def test_intervals_hold_on_a_real_cube_that_was_not_used(method: str) -> None:
    name, protocol = "jasper-ridge", Protocol(ratio=2)
    (one,) = cube_trials(within(DATA, CUBES[name]), [protocol], name=name)
    found = coverage(one.make(), method)
    assert 0.84 < found.full < 0.94
    assert 0.86 < np.mean(found.split) < 0.94


def test_the_product_holds_a_standard_error_for_every_valid_sample(product: Product) -> None:
    with product.open() as data:
        cube, errors = data["reflectance"].load(), data[ERRORS].load()
    assert cube.attrs["ancillary_variables"] == ERRORS
    assert errors.attrs["standard_name"] == "surface_bidirectional_reflectance standard_error"
    assert errors.attrs["units"] == cube.attrs["units"]
    assert errors.dims == cube.dims
    assert errors.encoding["dtype"] == np.int16
    np.testing.assert_array_equal(np.isnan(errors), np.isnan(cube))
    assert np.isnan(cube).any()
    assert float(errors.min()) >= 0
    truth = whole(scene("truth", RECIPE))[:, : cube.shape[1], : cube.shape[2]]
    valid = np.isfinite(cube.values)
    within = np.abs(cube.values - truth)[valid] <= Z * errors.values[valid]
    assert 0.86 < within.mean() < 0.97
    found = record(product)
    assert found["calibrated"]
    assert 0.88 < found["coverage"] < 0.92
    assert found["mean_standard_error"] == pytest.approx(float(errors.mean()), rel=2e-3)
    assert found["groups"][0]["low_nm"] == pytest.approx(float(data["wavelength"][0]))
    assert "nothing on the scene can prove it" in found["caveat"]


def test_every_format_tells_the_same(product: Product) -> None:
    assert product.zarr is not None
    assert product.netcdf is not None
    assert product.item is not None
    stored = store.open_array(product.zarr / ERRORS)[...]
    with netCDF4.Dataset(product.netcdf) as dataset:
        dataset.set_auto_maskandscale(False)
        np.testing.assert_array_equal(dataset[ERRORS][...], stored)
    with xr.open_dataset(product.netcdf, engine="netcdf4") as dataset, product.open() as data:
        assert dataset[ERRORS].attrs["standard_name"] == data[ERRORS].attrs["standard_name"]
        assert dataset[ERRORS].encoding["scale_factor"] == data[ERRORS].encoding["scale_factor"]
    for name in set(product.formats) - {"stac"}:
        open_cube, path = writer(name).open_cube, product.path_of(name)
        assert open_cube is not None
        assert path is not None
        with open_cube(path) as data:
            assert (ERRORS in data) == writer(name).holds_errors, name
    # The product stays an input like any other, and its standard errors can be asked for.
    for path in (product.zarr, product.netcdf):
        assert open_scene(Source(uri=str(path))).cube.shape == stored.shape
        assert open_scene(Source(uri=str(path), variable=ERRORS)).cube.shape == stored.shape
    asset = json.loads(product.item.read_text())["assets"]["standard-error"]
    assert asset["roles"] == ["uncertainty"]
    assert (product.path / asset["href"]).is_dir()
    assert len(asset["bands"]) == len(stored)
    assert asset["bands"][0]["raster:scale"] == pytest.approx(1e-5)
    assert "Standard error of the product" in (product.path / REPORT).read_text()


def test_the_netcdf_passes_a_cf_checker(product: Product, tmp_path: Path) -> None:
    assert product.netcdf is not None
    assert_follows_cf(product.netcdf, tmp_path)


def test_a_missing_chunk_of_the_errors_is_found(product: Product, tmp_path: Path) -> None:
    copy = tmp_path / product.path.name
    shutil.copytree(product.path, copy)
    verify(copy)
    next(path for path in (copy / f"{product.name}.zarr" / ERRORS / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(BadProduct, match="missing"):
        verify(copy)


def test_tiles_of_any_size_in_any_order_give_the_same_errors_and_a_rerun_does_what_is_left(tmp_path: Path) -> None:
    recipe = "size=180&ratio=4&bands=6&seed=5"
    stored = []
    for core in (64, 192):
        settings = {"tiles__core": core, "tiles__chunk": 32, "publish__uncertainty": True, "method": "gsa"}
        with open_run(config(tmp_path / f"core{core}", recipe, **settings)) as held:
            job = stage_pair(held)
            fuse_tiles(job)
            estimate_errors(job)
            array = store.open_array(job.errors)
            stored.append(array[...].astype(int))
            if core == 64:
                key, kept = "1.1", {record.key: record for record in _finished(job).values()}
                (_ledger(job).folder / f"{key}.json").unlink()
                chunk = next(store.chunk_paths(job.errors, array, job.plan.tile(0, 0).core))
                chunk.write_bytes(b"damaged")
                assert _finished(job).keys() == kept.keys() - {key, "0.0"}
                estimate_errors(job)
                np.testing.assert_array_equal(store.open_array(job.errors)[...], stored[0])
                again = _finished(job)
                assert again.keys() == kept.keys()
                assert again["0.1"].seconds == kept["0.1"].seconds  # untouched
    # Rounding may differ by a count where windows differ, values may not.
    assert np.abs(stored[0] - stored[1]).max() <= 1


def test_the_gain_of_an_msi_that_is_harmonized_is_no_gap(tmp_path: Path) -> None:
    recipe, found = "size=180&ratio=4&bands=24&seed=5&high_nm=1000", []
    for scale in (1.0, 0.9):
        settings = {"msi__scale": scale, "method": "gsa", "publish__uncertainty": True}
        with open_run(config(tmp_path / f"scale{scale}", recipe, **settings)) as held:
            job = stage_pair(held)
            fuse_tiles(job)
            assert job.staged.harmony is not None
            found.append(calibration(job))
    np.testing.assert_allclose(found[1].gap, found[0].gap, rtol=0.02)
    np.testing.assert_allclose(found[1].energy, found[0].energy, rtol=0.05)


def test_a_scene_too_small_for_its_ratio_is_rehearsed_at_a_smaller_one(tmp_path: Path) -> None:
    found = record(
        run(config(tmp_path / "small", "size=90&ratio=4&bands=12&seed=3", method="gsa", publish__uncertainty=True))
    )
    assert found["calibrated"]
    assert found["trial_ratio"] == 3
    assert 0.85 < found["coverage"] < 0.95
    assert found["scale_gap"] > 1


def test_a_scene_too_small_is_published_with_a_guess_that_says_so(tmp_path: Path) -> None:
    found = record(
        run(config(tmp_path / "small", "size=44&ratio=4&bands=12&seed=3", method="gsa", publish__uncertainty=True))
    )
    assert not found["calibrated"]
    assert found["coverage"] is None
    assert "coarse pixels" in found["reason"] or "whole pixels" in found["reason"]
    assert found["mean_standard_error"] > 0


def test_without_the_option_nothing_is_said(tmp_path: Path) -> None:
    plain = run(config(tmp_path / "plain", "size=90&ratio=4&bands=6&seed=3", method="bicubic"))
    with plain.open() as data:
        assert set(data.data_vars) == {"reflectance"}
        assert "ancillary_variables" not in data["reflectance"].attrs
    assert json.loads((plain.path / QA).read_text())["uncertainty"] is None


def test_holes_are_filled_with_the_mean_of_their_band() -> None:
    image = np.array([[[1.0, np.nan], [3.0, np.nan]], [[5.0, 5.0], [5.0, 5.0]]], np.float32)
    np.testing.assert_allclose(filled(image)[0], [[1, 2], [3, 2]])
    assert np.isfinite(filled(np.full((1, 2, 2), np.nan, np.float32))).all()
