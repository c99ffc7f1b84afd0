"""The whole way: tiles are invisible, dots stay where they are, what was done is not done again, nothing is left behind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

from hyperfuse import models
from hyperfuse.catalogs.errors import Busy, ExpectedSkip, HyperFuseError, InputRejected, OutOfResources, QualityRefused
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.sensors import Mtf, synthetic
from hyperfuse.pipeline.execution import cluster
from hyperfuse.pipeline.fusion import tile_fuser as fuse
from hyperfuse.pipeline.job.folder import Job
from hyperfuse.pipeline.plan import job_record, open_pair, plan_report
from hyperfuse.pipeline.products import commit
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.run import fuse_tiles, open_run, run, stage_pair
from tests.synthetic import SMALL, TILES, config, fused_tiles, methods_without_weights, scene, whole

QUICK = {"publish__formats": "[zarr]"}


def fused(product) -> np.ndarray:
    with product.open() as data:
        return data["reflectance"].values


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", methods_without_weights())
@pytest.mark.parametrize(
    "recipe", ["size=150&ratio=4&bands=6&seed=3", "height=97&width=131&ratio=3&bands=5&holes_hsi=0.02&east_m=7"]
)
def test_tiles_are_invisible(tmp_path, name, recipe):
    """Tiled equals whole within 1e-5, for sizes that are multiples of nothing, with holes and a displacement.

    A method that is approximate by its own word stays within 1e-3.
    """
    observed = models.Observed(hsi_bands=6, msi_bands=4, ratio=4, psf_sigma_px=2.0)
    tolerance = 1e-5 if models.method(name).specify(observed).exact else 1e-3
    shared = QUICK | {"method": name, "publish__dtype": "float32"}
    whole_image = fused_tiles(config(tmp_path / "whole", recipe, **shared))
    tiled = fused_tiles(config(tmp_path / "tiled", recipe, **shared, tiles__core=32, tiles__chunk=16))
    assert np.isfinite(whole_image).any()
    np.testing.assert_allclose(tiled, whole_image, rtol=tolerance, atol=tolerance)


# sfim multiplies the upsampled HSI by a ratio: a lone dot keeps the centroid of the HSI's own samples.
@pytest.mark.parametrize("name", [name for name in methods_without_weights() if not name.startswith("sfim")])
@pytest.mark.parametrize(
    "recipe",
    [
        "ratio=2",
        "ratio=3",
        "ratio=4",
        "ratio=6",
        "ratio=8.33&mtf=0.1",
        "ratio=3&hsi_crs=EPSG:32632",
        "ratio=8.33&mtf=0.1&east_m=13&north_m=-6",
    ],
)
def test_a_dot_lands_where_it_is(tmp_path, name, recipe):
    """The target's centroid in the product is within 0.1 fine pixels of its true place, whatever the ratio or zone.

    At 8.33 the HSI is given a softer PSF: with the usual modulation of 0.3 it is so undersampled that the centroid of
    its own raw samples is 0.13 fine pixels off, before anything is resampled.
    """
    row, col = 121.3, 117.8
    full = f"size=240&bands=6&texture=0&snr_hsi=0&snr_msi=0&dot={row},{col}&{recipe}"
    # One dot is no texture to register by, so a displacement is given, not estimated.
    moved = {"align__east_m": 13, "align__north_m": -6} if "east_m" in recipe else {"align__estimate": False}
    asked = config(tmp_path / "dot", full, method=name, publish__dtype="float32", **moved)
    values, geobox = fused_tiles(asked)[2], job_record(asked, open_pair(asked)).grid.grids().product
    truth = scene("truth", full).geobox
    expected_x, expected_y = truth.affine @ (col, row)
    # Signed moments over a window: interpolation has negative lobes, and leaving them out would move the centroid.
    signal = values - np.nanmedian(values)
    rows, cols = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    at_col, at_row = ~geobox.affine @ (expected_x, expected_y)
    # ... and a resampled HSI has six to each side, of 8.33 fine pixels: cut, they would move it as well.
    near = (np.abs(rows - at_row) < 80) & (np.abs(cols - at_col) < 80)
    signal = np.where(near, signal, 0.0)
    x, y = geobox.affine @ (float((signal * cols).sum() / signal.sum()), float((signal * rows).sum() / signal.sum()))
    assert abs(x - expected_x) < 0.1 * 10
    assert abs(y - expected_y) < 0.1 * 10


def test_the_hsi_has_the_mean_psf_of_its_bands_unless_one_is_given(tmp_path, monkeypatch):
    names = scene("hsi").bands.names
    table = {name: Mtf(across=0.1) for name in names[:6]} | {name: Mtf(across=0.4, along=0.2) for name in names[6:]}
    monkeypatch.setattr(synthetic, "SENSOR", replace(synthetic.SENSOR, band_mtf=table))

    def sigma_px(**settings) -> float:
        asked = config(tmp_path / "a", **settings)
        return job_record(asked, open_pair(asked)).psf_sigma_px

    # ln MTF is -2 (pi sigma / 8)^2 at the Nyquist frequency of pixels that are four fine ones: variances are averaged.
    variances = [-math.log(mtf) / 2 * (8 / math.pi) ** 2 for mtf in (0.1, 0.1, 0.4, 0.2)]
    assert sigma_px() == pytest.approx(math.sqrt(sum(variances) / 4), rel=1e-4)
    assert sigma_px(psf_mtf=0.4) == pytest.approx(math.sqrt(variances[2]), rel=1e-4)


def test_with_the_hsi_as_reference_the_msi_is_moved_onto_it(tmp_path):
    """The product shows the truth five columns east and seven rows south of where the MSI does."""
    recipe = "size=120&ratio=4&bands=24&seed=3&snr_hsi=inf&snr_msi=inf&east_m=50&north_m=-70"
    known = {"align__reference": "hsi", "align__east_m": 50, "align__north_m": -70, "method": "gsa"}
    image = fused_tiles(config(tmp_path / "p", recipe, **known, publish__dtype="float32"))[:, 20:-20, 20:-20]
    truth = whole(scene("truth", recipe))
    rows, cols = image.shape[1:]

    def error(down: int, right: int) -> float:
        there = truth[:, 20 - down : 20 - down + rows, 20 - right : 20 - right + cols]
        return float(np.sqrt(((image - there) ** 2).mean()))

    assert error(7, 5) < 0.3 * min(error(0, 0), error(-7, -5))


def test_a_part_of_the_scenes_is_that_part_of_the_whole(tmp_path):
    """Bounds that begin inside a coarse pixel: the same samples and holes, but for what the rim reaches."""
    recipe = "size=140&ratio=4&bands=6&seed=3&holes_hsi=0.03"
    shared = {"method": "bicubic", "publish__dtype": "float32", "align__estimate": False}
    all_of_it = fused_tiles(config(tmp_path / "all", recipe, **shared))
    left, top = synthetic.ORIGIN
    row, col, rows, cols = 13, 22, 101, 90
    bounds = [left + 10 * col, top - 10 * (row + rows), left + 10 * (col + cols), top - 10 * row]
    tiled = {"align__bounds": bounds, "tiles__core": 32, "tiles__chunk": 16}
    part = fused_tiles(config(tmp_path / "part", recipe, **shared, **tiled))
    assert part.shape[1:] == (rows, cols)
    inner = slice(None), slice(16, -16), slice(16, -16)
    expected = all_of_it[:, row : row + rows, col : col + cols][inner]
    assert 0 < np.isnan(expected).mean() < 0.5
    np.testing.assert_allclose(part[inner], expected, atol=1e-5)


def test_methods_beat_the_control(tmp_path):
    from hyperfuse.pipeline.demo import demonstrate

    shown = demonstrate(tmp_path / "demo", method="gsa", recipe="size=200&ratio=4&bands=20&seed=5")
    gsa, control = shown.scores["gsa"], shown.scores["bicubic"]
    assert gsa.psnr_db > control.psnr_db + 3
    assert gsa.sam_deg < control.sam_deg
    assert gsa.ergas < control.ergas
    assert leftovers(tmp_path) == ["demo"]


def test_a_product_is_complete_and_nothing_else_is_left(tmp_path):
    steps: list[tuple[str, int, int]] = []
    product = run(config(tmp_path / "out"), progress=lambda *step: steps.append(step[:3]))
    assert leftovers(tmp_path) == ["out"]
    assert verify(product.path).job_key == product.job_key
    assert {"stage hsi", "stage msi", "first pass", "fuse"} <= {name for name, _, _ in steps}
    with xr.open_zarr(product.zarr) as data:
        assert data["reflectance"].dims == ("wavelength", "y", "x")
        assert float(data["reflectance"].max()) < 1.5
    assert product.provenance["registration"]["decision"] == "accept"
    assert product.provenance["inputs"]["hsi"]["sha256"] == scene("hsi").digest


def test_the_registration_goes_with_the_product(tmp_path):
    """Table and figure are in the manifest and in the STAC item, and the record is in both and in the provenance."""
    product = run(config(tmp_path / "out", SMALL + "&east_m=17&north_m=-23"))
    registration = product.provenance["registration"]
    assert (registration["east_m"], registration["north_m"]) == pytest.approx((17, -23), abs=1.2)
    table = json.loads((product.path / "registration.geojson").read_text())
    assert table["registration"] == registration
    assert sum(point["properties"]["used"] for point in table["features"]) == registration["tie_points"]
    item = json.loads(product.item.read_text())
    assert item["properties"]["hrhsi:registration"] == registration
    named = {asset["href"]: asset["type"] for asset in item["assets"].values()}
    assert named["./registration.geojson"] == "application/geo+json"
    assert named["./registration.png"] == "image/png"
    (product.path / "registration.png").write_bytes(b"another")
    with pytest.raises(BadProduct, match=r"registration\.png"):
        verify(product.path)


FLAT = "size=150&ratio=4&bands=12&texture=0&snr_hsi=30&snr_msi=30"


def test_images_that_cannot_be_registered_are_not_fused(tmp_path):
    with pytest.raises(QualityRefused, match="could not be registered"):
        run(config(tmp_path / "out", FLAT, **QUICK))
    assert leftovers(tmp_path) == []


def test_a_refused_registration_can_be_overruled(tmp_path, caplog):
    # Noise alone: neither is there anything to agree about.
    product = run(config(tmp_path / "out", FLAT, **QUICK, align__on_refuse="keep", quality__gate="off"))
    registration = product.provenance["registration"]
    assert (registration["decision"], registration["model"]) == ("refuse", "none")
    assert "geometry was left as it was" in caplog.text


def test_holes_are_marked_and_do_not_spread(tmp_path):
    recipe = SMALL + "&holes_msi=0.02&holes_hsi=0.01"
    with_holes = fused(run(config(tmp_path / "a", recipe, **QUICK)))
    truth = scene("truth", recipe)
    height, width = truth.geobox.shape
    error = np.abs(
        with_holes - truth.read((slice(0, height), slice(0, width)))[:, : with_holes.shape[1], : with_holes.shape[2]]
    )
    assert 0.01 < np.isnan(with_holes).mean() < 0.3
    assert np.nanmax(error) < 0.6
    assert np.nanmean(error) < 0.03


class Stopped(Exception):
    pass


def stop_after(n: int):
    """A progress that stops the run once `n` tiles are fused, as a signal would."""

    def progress(stage: str, done: int, total: int, pace: object = None) -> None:
        if stage == "fuse" and done >= n:
            raise Stopped

    return progress


def test_an_interrupted_run_resumes(tmp_path):
    """Only unfinished tiles are computed again, and the data are those of an undisturbed run."""
    settings = config(
        tmp_path / "out", SMALL, **QUICK, **{key.replace(".", "__"): v for key, v in TILES.items()}, tiles__batch=1
    )
    with pytest.raises(Stopped):
        run(settings, progress=stop_after(5))
    assert not (tmp_path / "out").exists()
    staging = next(tmp_path.glob(".out.*.staging"))
    done = {path.name: path.stat().st_mtime_ns for path in (staging / "tiles").glob("*.json")}
    assert 5 <= len(done) < 9  # what was being written when it stopped is finished too
    with open_run(settings) as held:
        job = stage_pair(held)
        assert fuse_tiles(job) == len(done)
        now = {path.name: path.stat().st_mtime_ns for path in (staging / "tiles").glob("*.json")}
    assert len(now) == 9
    assert {name: now[name] for name in done} == done
    product = run(settings)
    assert product.provenance["tiles"]["resumed"] == 9
    undisturbed = run(settings.model_copy(update={"output": tmp_path / "other"}))
    assert np.array_equal(fused(product), fused(undisturbed), equal_nan=True)
    assert leftovers(tmp_path) == ["other", "out"]


def test_a_damaged_tile_is_computed_again(tmp_path):
    settings = config(tmp_path / "out", SMALL, **QUICK, tiles__core=64, tiles__chunk=32, tiles__batch=1)
    with pytest.raises(Stopped):
        run(settings, progress=stop_after(6))
    staging = next(tmp_path.glob(".out.*.staging"))
    done = len(list((staging / "tiles").glob("*.json")))
    chunk = next(staging.glob("product/out.zarr/reflectance/c/0/0/0"))
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert run(settings).provenance["tiles"]["resumed"] == done - 1


def test_same_job_is_skipped_and_another_refused(tmp_path):
    settings = config(tmp_path / "out", **QUICK)
    product = run(settings)
    before = (product.path / "manifest.json").read_bytes()
    with pytest.raises(ExpectedSkip, match="already published"):
        run(settings)
    with pytest.raises(InputRejected, match="exists and is not this product"):
        run(settings.model_copy(update={"method": "bicubic"}))
    assert (product.path / "manifest.json").read_bytes() == before
    assert leftovers(tmp_path) == ["out"]


def test_a_held_job_is_busy(tmp_path):
    settings = config(tmp_path / "out", **QUICK)
    with open_run(settings), pytest.raises(Busy, match="another run works on this job"):
        run(settings)


def test_other_settings_clear_an_abandoned_staging(tmp_path):
    settings = config(tmp_path / "out", SMALL, **QUICK)
    with pytest.raises(Stopped):
        run(settings, progress=stop_after(0))
    assert len(list(tmp_path.glob(".out.*.staging"))) == 1
    run(settings.model_copy(update={"method": "bicubic"}))
    assert leftovers(tmp_path) == ["out"]


def win_with(winner, loser):
    """A progress of the loser: when its tiles are fused, the winner publishes at the same output."""

    def win(stage: str, done: int, total: int, pace: object = None) -> None:
        if stage == "fuse" and done == total:
            elsewhere = loser.output.with_name("winner")
            run(winner.model_copy(update={"output": elsewhere}))
            elsewhere.rename(loser.output)

    return win


def test_who_loses_the_race_to_an_output_leaves_nothing(tmp_path, caplog):
    """Its tiles lay there until somebody asked for the winner's product again, which nobody may ever do."""
    winner = config(tmp_path / "out", SMALL, method="bicubic", **QUICK)
    loser = winner.model_copy(update={"method": "gsa"})
    with pytest.raises(InputRejected, match="exists and is not this product"):
        run(loser, progress=win_with(winner, loser))
    assert "another run has published there; the tiles of this one are removed" in caplog.text
    assert leftovers(tmp_path) == ["out"]


def test_who_was_killed_before_losing_is_cleared_by_whoever_comes(tmp_path):
    winner = config(tmp_path / "out", SMALL, method="bicubic", **QUICK)
    loser = winner.model_copy(update={"method": "gsa"})

    def die(stage: str, done: int, total: int, pace: object = None) -> None:
        win_with(winner, loser)(stage, done, total)
        if (tmp_path / "out").exists():
            raise Stopped

    with pytest.raises(Stopped):
        run(loser, progress=die)
    assert len(list(tmp_path.glob(".out.*.staging"))) == 1
    run(config(tmp_path / "other", SMALL, method="bicubic", **QUICK))
    assert len(list(tmp_path.glob(".out.*.staging"))) == 1, "another output is no reason"
    with pytest.raises(InputRejected):
        run(loser)
    assert leftovers(tmp_path) == ["other", "out"]


def test_a_lock_dies_with_its_holder(tmp_path):
    (tmp_path / "lock").write_text("process 1 on elsewhere")
    with locked(tmp_path):
        assert "elsewhere" not in (tmp_path / "lock").read_text()


def test_a_target_that_appears_costs_no_tile(tmp_path):
    """Somebody makes a folder where the product should go while tiles are fused: refused, and nothing is lost."""
    settings = config(tmp_path / "out", **QUICK)

    def meddle(stage: str, done: int, total: int, pace: object = None) -> None:
        if stage == "fuse" and done == total:
            (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(InputRejected, match="is not this product"):
        run(settings, progress=meddle)
    (tmp_path / "out").rmdir()
    assert run(settings).provenance["tiles"]["resumed"] == 1


def test_a_failing_method_leaves_the_output_absent(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(fuse.TileFuser, "compute", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run(config(tmp_path / "out", **QUICK))
    assert not (tmp_path / "out").exists()


def test_resources_are_checked_first(tmp_path):
    with pytest.raises(OutOfResources, match=r"lower tiles\.chunk or raise --memory"):
        run(config(tmp_path / "out", **QUICK, tiles__memory_gb=0.1))
    with pytest.raises(OutOfResources, match=r"lower tiles\.core or raise --memory"):
        run(config(tmp_path / "out", **QUICK, tiles__core=2048, tiles__memory_gb=1.0))
    with pytest.raises(OutOfResources, match=r"choose auto or cpu|CUDA"):
        run(config(tmp_path / "out", **QUICK, device="cuda:99"))
    assert leftovers(tmp_path) == []


def test_what_a_run_has_written_is_not_asked_of_the_disk_again(tmp_path, monkeypatch):
    """A run that filled its disk could not be resumed, however much was freed: the whole product had to fit beside its tiles."""
    settings = config(tmp_path / "out", SMALL, **QUICK, tiles__core=64, tiles__chunk=32)
    with pytest.raises(Stopped):
        run(settings, progress=stop_after(8))
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    needed = planned(settings).expected_plan.disk_bytes(uncertain=False) // 2
    space = type("Usage", (), {"free": max(needed - held, 0)})()
    monkeypatch.setattr(commit.shutil, "disk_usage", lambda _: space)
    with pytest.raises(OutOfResources, match="free some space"):
        run(config(tmp_path / "other", SMALL, **QUICK))
    # A tile that was on its way when the run was stopped may have been finished as well.
    assert run(settings).provenance["tiles"]["resumed"] in (8, 9)


def planned(settings) -> Job:
    return Job(Path(), job_record(settings, open_pair(settings)))


def test_plan_writes_nothing(tmp_path):
    report = plan_report(config(tmp_path / "out"))
    assert report["ratio"] == 4
    assert report["tiles"]["number"] == 1
    assert report["product"]["bands"] == 12
    assert leftovers(tmp_path) == []


def test_dask_cluster_gives_the_same_product(tmp_path):
    from distributed import Client, LocalCluster

    settings = config(tmp_path / "a", SMALL, **QUICK, tiles__core=64, tiles__chunk=32, tiles__batch=2)
    alone = fused(run(settings))
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        address = cluster.scheduler_address
        product = run(settings.model_copy(update={"output": tmp_path / "b", "dask": address}))
    assert np.array_equal(fused(product), alone, equal_nan=True)


def test_failed_tiles_are_named_and_the_others_kept(tmp_path, monkeypatch):
    from distributed import LocalCluster

    settings = config(tmp_path / "out", SMALL, **QUICK, tiles__core=64, tiles__chunk=32, tiles__batch=1)
    sound = fuse.TileFuser.load

    def poisoned(self, tiles):
        if tiles[0].key == "1.1":
            raise RuntimeError("poison")
        return sound(self, tiles)

    monkeypatch.setattr(fuse.TileFuser, "load", poisoned)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        pytest.raises(HyperFuseError, match=r"1 tiles failed, first \(1, 1\): poison"),
    ):
        run(settings.model_copy(update={"dask": cluster.scheduler_address}))
    staging = next(tmp_path.glob(".out.*.staging"))
    assert len(list((staging / "tiles").glob("*.json"))) == 8
    monkeypatch.setattr(fuse.TileFuser, "load", sound)
    assert run(settings).provenance["tiles"]["resumed"] == 8


def test_no_scheduler_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with pytest.raises(OutOfResources, match="no Dask scheduler answers"):
        run(config(tmp_path / "out", **QUICK, dask="tcp://127.0.0.1:9"))


def half_of(folder: Path, role: str, recipe: str, *, left: bool) -> dict[str, str]:
    """Settings that open one half of a synthetic image, from a GeoTIFF whose other half is nodata."""
    image, cube = scene(role, recipe), whole(scene(role, recipe)).astype("float32")
    middle = cube.shape[2] // 2
    cube[:, :, slice(middle, None) if left else slice(None, middle)] = -9999
    height, width = cube.shape[1:]
    with rasterio.open(
        folder / f"{role}.tif", "w", driver="GTiff", count=len(cube), height=height, width=width, dtype="float32",
        crs=str(image.geobox.crs), transform=image.geobox.affine, nodata=-9999,
    ) as target:  # fmt: skip
        target.write(cube)
    wavelengths = ",".join(f"{nm:.1f}" for nm in image.bands.center_nm)
    return {
        f"{role}__uri": str(folder / f"{role}.tif"),
        f"{role}__wavelengths": wavelengths,
        f"{role}__quantity": "reflectance",
    }


@pytest.mark.parametrize(("left", "end"), [(False, ExpectedSkip), (True, QualityRefused)])
def test_scenes_that_meet_only_where_one_has_no_data(tmp_path, left, end):
    """Nothing is wrong with them, and there is nothing to do; two halves that meet but show different land are another case."""
    (tmp_path / "out").mkdir()
    recipe = "size=96&ratio=4&bands=6&seed=3"
    halves = half_of(tmp_path, "hsi", recipe, left=True) | half_of(
        tmp_path, "msi", recipe.replace("seed=3", "seed=9"), left=left
    )
    with pytest.raises(
        end, match="overlap only where one of them has no data" if end is ExpectedSkip else "could not be registered"
    ):
        run(config(tmp_path / "out" / "p", **halves))
    assert leftovers(tmp_path / "out") == []
