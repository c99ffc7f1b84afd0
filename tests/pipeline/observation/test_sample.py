"""Observation models: what tables tell is tested, and what nobody tells is found, on pairs whose truth is known."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.catalogs.sensors.synthetic import MSI_BANDS, Recipe
from hyperfuse.models.operators import degrade
from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.observation.blind import blind
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import MAX_PIXELS, NotEstimable, Sample, sampled_blocks, sigma_from_mtf
from hyperfuse.pipeline.observation.sensor_model import Observation, known, with_misfit
from hyperfuse.pipeline.run import open_run, run, stage_pair
from tests import DATA
from tests.synthetic import config, scene, whole

NOISE = "snr_hsi=35&snr_msi=40"
PLACE = f"size=240&ratio=4&bands=120&msi=6&seed=5&{NOISE}"


def pair(recipe: str):
    """HSI, MSI and the bands of both; one block."""
    hsi, msi = scene("hsi", recipe), scene("msi", recipe)
    return whole(hsi)[None], whole(msi)[None], hsi.bands, msi.bands


def tables(hsi: Bands, msi: Bands, ratio: int) -> Observation:
    return known(hsi, msi, psf_sigma_px=sigma_from_mtf(0.3, ratio), psf_origin="sensor")


def estimate(hsi, msi, hsi_bands, msi_bands, ratio=4) -> Observation:
    return blind(tables(hsi_bands, msi_bands, ratio), Sample.of(hsi, msi, ratio), hsi_bands, msi_bands)


def centroids(observation: Observation, bands: Bands) -> np.ndarray:
    return np.array(observation.srf) @ bands.center_nm


def simulated(cube, bands, *, ratio, mtf=0.3, shift_nm=0.0):
    """Both images of a noise-free cube, with the noise of the protocol; the true SRF lies off its table by a shift."""
    height, width = (size // ratio * ratio for size in cube.shape[1:])
    cube = np.nan_to_num(cube[:, :height, :width]).astype(np.float64)
    center, fwhm = np.array(list(MSI_BANDS.values()), float).T
    table, true = (Bands.sort(center + move, unit="nm", of="test", fwhm=fwhm) for move in (0.0, shift_nm))
    srf, _ = bands.srf(true)
    hsi = degrade(torch.from_numpy(cube), ratio, sigma_from_mtf(mtf, ratio)).numpy()
    msi = np.tensordot(srf, cube, axes=1)
    random = np.random.default_rng(0)

    def seen(image, snr):
        level = np.sqrt((image**2).mean(axis=(1, 2), keepdims=True)) * 10 ** (-snr / 20)
        return (image + level * random.standard_normal(image.shape))[None].astype(np.float32)

    return seen(hsi, 35), seen(msi, 40), table, srf


def test_sigma_is_that_of_the_modulation():
    """A Gaussian's modulation at frequency f is exp(-2 (pi sigma f)^2); Nyquist is half a cycle per coarse pixel."""
    sigma = sigma_from_mtf(0.27, 6)
    assert np.exp(-2 * (np.pi * sigma / (2 * 6)) ** 2) == pytest.approx(0.27)
    assert sigma == pytest.approx(Recipe(ratio=6, mtf=0.27).sigma_px)


@pytest.mark.parametrize("ratio", [3, 4])
def test_the_sample_is_degraded_as_the_methods_do_it(ratio):
    """Away from the rim; and a PSF off center by (y, x) reads a ramp that much further on."""
    random = np.random.default_rng(1)
    msi = random.random((1, 2, 12 * ratio, 14 * ratio), np.float32)
    sample = Sample.of(random.random((1, 3, 12, 14), np.float32), msi, ratio)
    ours = sample.degraded(Psf(1.9)) + sample.msi_mean[:, None, None, None]
    theirs = degrade(torch.from_numpy(msi[0]), ratio, 1.9).numpy()
    np.testing.assert_allclose(ours[:, 0, 4:-4, 4:-4], theirs[:, 4:-4, 4:-4], atol=1e-3)
    y, x = np.mgrid[: msi.shape[2], : msi.shape[3]].astype(np.float32)
    ramp = Sample.of(np.zeros((1, 1, 12, 14), np.float32), (y + 10 * x)[None, None], ratio)
    moved = ramp.degraded(Psf(1.9, y=0.7, x=-0.4)) - ramp.degraded(Psf(1.9))
    np.testing.assert_allclose(moved[0, 0, 4:-4, 4:-4], 0.7 - 4.0, atol=1e-2)


@pytest.mark.parametrize("shape", [(3, 7), (40, 41), (100, 1000), (5000, 300), (4000, 4000)])
@pytest.mark.parametrize(("n_hsi", "n_msi", "ratio"), [(60, 4, 3), (426, 12, 20)])
def test_sampled_blocks_are_bounded_apart_and_inside(shape, n_hsi, n_msi, ratio):
    blocks = sampled_blocks(shape, n_hsi=n_hsi, n_msi=n_msi, ratio=ratio)
    taken = np.zeros(shape, int)
    for block in blocks:
        assert block.y0 >= 0
        assert block.x0 >= 0
        taken[block.slices] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(block.shape[0] * block.shape[1] for block in blocks)
    assert len({block.shape for block in blocks}) == 1
    assert taken.sum() <= MAX_PIXELS
    spread = taken.any(axis=1).nonzero()[0]
    assert spread[0] - (shape[0] - 1 - spread[-1]) in range(-1, 2)  # as far from the top as from the bottom


def test_misfit_of_right_tables_is_small_and_of_a_wrong_psf_larger():
    hsi, msi, hsi_bands, msi_bands = pair(f"{PLACE}&mtf=0.3")
    sample = Sample.of(hsi, msi, 4)
    right = with_misfit(tables(hsi_bands, msi_bands, 4), sample)
    wrong = with_misfit(right.model_copy(update={"psf_sigma_px": 2.5}), sample)
    for told, blurred in zip(right.misfit, wrong.misfit, strict=True):
        assert told.r2 > 0.998
        assert told.relative_rmse < 0.02
        assert told.gain == pytest.approx(1.0, abs=0.02)
        assert blurred.r2 < told.r2 - 5e-4


@pytest.mark.parametrize("ratio", [3, 4, 6])
@pytest.mark.parametrize("mtf", [0.2, 0.4])
def test_blind_finds_psf_and_srf(ratio, mtf):
    hsi, msi, hsi_bands, msi_bands = pair(f"size=240&ratio={ratio}&bands=120&msi=6&seed={ratio}&{NOISE}&mtf={mtf}")
    found = estimate(hsi, msi, hsi_bands, msi_bands, ratio)
    assert found.psf_sigma_px == pytest.approx(sigma_from_mtf(mtf, ratio), rel=0.02)
    np.testing.assert_allclose(found.psf_center_px, 0.0, atol=0.03)
    np.testing.assert_allclose(centroids(found, hsi_bands), msi_bands.center_nm, atol=5.0)
    np.testing.assert_allclose(np.sum(found.srf, axis=1), 1.0)
    assert np.min(found.srf) >= 0.0
    assert min(misfit.r2 for misfit in found.misfit) > 0.99
    assert (found.psf_origin, found.srf_origin) == ("blind", "blind")


def test_gain_and_offset_are_told_and_change_nothing_else():
    hsi, msi, *bands = pair(f"{PLACE}&mtf=0.25")
    plain, scaled = estimate(hsi, msi, *bands), estimate(hsi, 1e4 * msi + 300.0, *bands)
    assert scaled.psf_sigma_px == pytest.approx(plain.psf_sigma_px, rel=2e-3)
    np.testing.assert_allclose(scaled.srf, plain.srf, atol=1e-3)
    for before, after in zip(plain.misfit, scaled.misfit, strict=True):
        assert after.gain == pytest.approx(1e4 * before.gain, rel=1e-3)
        assert after.offset == pytest.approx(1e4 * before.offset + 300.0, abs=5.0)


def test_holes_are_left_out():
    hsi, msi, hsi_bands, msi_bands = pair(f"{PLACE}&mtf=0.25&holes_hsi=0.1&holes_msi=0.05")
    assert np.isnan(hsi).any()
    assert np.isnan(msi).any()
    found = estimate(hsi, msi, hsi_bands, msi_bands)
    assert found.psf_sigma_px == pytest.approx(sigma_from_mtf(0.25, 4), rel=0.02)
    np.testing.assert_allclose(centroids(found, hsi_bands), msi_bands.center_nm, atol=5.0)


def test_bands_outside_the_hsi_have_no_response():
    hsi, msi, hsi_bands, msi_bands = pair(f"{PLACE}&high_nm=1000&mtf=0.25")
    found = estimate(hsi, msi, hsi_bands, msi_bands)
    assert not np.any(found.srf[4:])
    assert found.misfit[4:] == (None, None)
    assert found.psf_sigma_px == pytest.approx(sigma_from_mtf(0.25, 4), rel=0.02)
    np.testing.assert_allclose(centroids(found, hsi_bands)[:4], msi_bands.center_nm[:4], atol=5.0)


def test_one_wide_band_is_enough():
    """A panchromatic band, whose row is an average of many HSI bands."""
    hsi, _, hsi_bands, _ = pair(f"{PLACE}&mtf=0.25")
    pan = Bands.sort([650.0], unit="nm", of="test", fwhm=[300.0])
    truth = scene("truth", PLACE)
    msi = np.tensordot(truth.bands.srf(pan)[0], whole(truth), axes=1)[None].astype(np.float32)
    found = estimate(hsi, msi, hsi_bands, pan)
    assert found.psf_sigma_px == pytest.approx(sigma_from_mtf(0.25, 4), rel=0.05)
    assert centroids(found, hsi_bands)[0] == pytest.approx(truth.bands.srf(pan)[0] @ hsi_bands.center_nm, abs=5.0)


def test_the_center_shows_a_misregistration():
    """The MSI must move by +10 m east, -5 m north: the HSI sees at p what the MSI shows 1 px left of p, 0.5 px above."""
    found = estimate(*pair(f"{PLACE}&mtf=0.3&east_m=10&north_m=-5"))
    np.testing.assert_allclose(found.psf_center_px, (-0.5, -1.0), atol=0.03)


def test_a_wrong_table_is_corrected_in_part():
    truth = scene("truth", PLACE)
    hsi, msi, table, srf = simulated(whole(truth), truth.bands, ratio=4, shift_nm=10.0)
    found = estimate(hsi, msi, truth.bands, table)
    off = np.abs(centroids(found, truth.bands) - srf @ truth.bands.center_nm)
    assert off.mean() < 6.0
    told = with_misfit(tables(truth.bands, table, 4), Sample.of(hsi, msi, 4))
    assert all(mine.r2 >= theirs.r2 - 1e-4 for mine, theirs in zip(found.misfit, told.misfit, strict=True))
    assert found.misfit[0].r2 > told.misfit[0].r2 + 0.003


@pytest.mark.parametrize(
    "name", ["berlin_urban_gradient/pairA/EnMAP_BerlinUrbanGradient_raw244.bsq", "enmap_potsdam_tiles"]
)
@pytest.mark.parametrize(("ratio", "mtf"), [(3, 0.2), (4, 0.4), (6, 0.3)])
def test_blind_on_real_cubes(name, ratio, mtf):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real imagery is absent: {name} (see the README)")
    source = open_scene(Source(uri=str(path / "*.tif" if path.is_dir() else path)))
    bands = source.bands[source.good_bands]
    hsi, msi, table, srf = simulated(whole(source)[source.good_bands], bands, ratio=ratio, mtf=mtf)
    found = estimate(hsi, msi, bands, table, ratio)
    assert found.psf_sigma_px == pytest.approx(sigma_from_mtf(mtf, ratio), rel=0.05)
    np.testing.assert_allclose(centroids(found, bands), srf @ bands.center_nm, atol=5.0)


def test_what_cannot_be_told_is_refused():
    hsi, msi, hsi_bands, msi_bands = pair(PLACE)
    with pytest.raises(NotEstimable, match="of 49 sampled coarse pixels are valid"):
        Sample.of(hsi[..., :7, :7], msi[..., :28, :28], 4)
    with pytest.raises(NotEstimable, match="predicts no MSI band well"):
        estimate(hsi[..., ::-1, :].copy(), msi, hsi_bands, msi_bands)
    with pytest.raises(NotEstimable, match="no MSI band"):
        estimate(hsi[:, 100:], msi[:, :4], hsi_bands[np.arange(100, 120)], msi_bands[np.arange(4)])
    with pytest.raises(NotEstimable, match=r"no MSI band well|too little fine detail"):
        estimate(np.full_like(hsi, 0.2), np.full_like(msi, 0.2), hsi_bands, msi_bands)
    smooth = np.linspace(0.1, 0.5, 240, dtype=np.float32)[:, None] * np.linspace(0.5, 1.0, 240, dtype=np.float32)
    coarse = smooth.reshape(60, 4, 60, 4).mean(axis=(1, 3))
    noise = np.random.default_rng(0)
    featureless = (
        (np.tile(image, (1, n, 1, 1)) + 0.003 * noise.standard_normal((1, n, *image.shape))).astype(np.float32)
        for image, n in ((coarse, 120), (smooth, 6))
    )
    with pytest.raises(NotEstimable, match="lies at the limit of the search"):  # ever wider, as more noise is averaged
        estimate(*featureless, hsi_bands, msi_bands)


QUICK = {"publish__formats": "[zarr]"}


def test_a_blind_run_records_what_it_used(tmp_path):
    """The sensor's table says 0.3; the land was seen with 0.2, and that is what the product is made with."""
    product = run(
        config(tmp_path / "out", "size=200&ratio=4&bands=60&msi=6&seed=3&mtf=0.2", sensor_model="blind", **QUICK)
    )
    told = product.provenance["observation"]
    assert told["psf_origin"] == told["srf_origin"] == "blind"
    assert told["psf_sigma_px"] == pytest.approx(sigma_from_mtf(0.2, 4), rel=0.02)
    assert np.shape(told["srf"]) == (6, 60)
    assert all(misfit["r2"] > 0.98 for misfit in told["misfit"])
    assert product.provenance["config"]["sensor_model"] == "blind"


def test_a_run_by_tables_is_tested_too(tmp_path):
    product = run(config(tmp_path / "out", "size=200&ratio=4&bands=60&seed=3", sensor_model="tables", **QUICK))
    told = product.provenance["observation"]
    assert (told["psf_origin"], told["srf_origin"], told["note"]) == ("sensor", "table", "")
    assert all(misfit["r2"] > 0.95 for misfit in told["misfit"])
    given = run(
        config(tmp_path / "given", "size=200&ratio=4&bands=60&seed=3", psf_mtf=0.3, sensor_model="tables", **QUICK)
    )
    assert given.provenance["observation"]["psf_origin"] == "given"


def test_a_scene_that_tells_too_little_falls_back_to_the_tables_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        product = run(config(tmp_path / "out", "size=40&ratio=4&bands=20", sensor_model="blind", **QUICK))
    told = product.provenance["observation"]
    assert (told["psf_origin"], told["srf_origin"]) == ("sensor", "table")
    assert told["misfit"] == []
    assert "tables of the sensors are used" in told["note"]
    assert told["note"] in caplog.text


def test_a_band_that_the_hsi_does_not_predict_is_named(tmp_path, caplog):
    """Two places that have nothing to do with each other."""
    settings = {
        "hsi.uri": "synthetic:hsi?size=200&bands=60&seed=1",
        "msi.uri": "synthetic:msi?size=200&bands=60&seed=2",
        "output": str(tmp_path / "out"),
        "align.estimate": False,
        "quality.gate": "off",
        "publish.formats": ["zarr"],
        "sensor_model": "blind",
    }
    with caplog.at_level(logging.WARNING):
        product = run(load_config(None, settings))
    assert "predicts its band at 490 nm poorly" in caplog.text
    assert "no blind estimate" in product.provenance["observation"]["note"]
    assert len(product.provenance["observation"]["misfit"]) == 4


def test_measured_responses_reach_the_method_and_change_the_key(tmp_path):
    """A table of narrow triangles: the weights are theirs, the record says who gave them, and another table is another job."""
    centers = scene("msi").bands.center_nm
    keys = []
    for width in (30.0, 60.0):
        nm = np.arange(350.0, 2600.0, 2.0)
        columns = [np.maximum(0.0, 1.0 - np.abs(nm - center) / width) for center in centers]
        rows = [f"{at:g}," + ",".join(f"{column[i]:g}" for column in columns) for i, at in enumerate(nm)]
        path = tmp_path / "responses.csv"
        path.write_text("wavelength_nm," + ",".join(f"b{i}" for i in range(centers.size)) + "\n" + "\n".join(rows))
        with open_run(config(tmp_path / "out", msi__responses=str(path))) as held:
            observation = held.job.tables(*held.job.staged_bands)
            keys.append(held.job.record.key)
        assert observation.srf_origin == "given"
    assert keys[0] != keys[1]
    hsi = scene("hsi").bands
    reach = np.abs(hsi.center_nm[None] - centers[:, None]) > width + hsi.width_nm() * 2
    assert not np.array(observation.srf)[reach].any()


def test_the_psf_is_measured_unless_the_scene_does_not_tell_it(tmp_path):
    """Believed far too wide, it is found; a lone dot tells of itself and of no sensor."""
    recipe = "size=200&ratio=4&bands=60&seed=3"
    found = run(config(tmp_path / "out", recipe, psf_mtf=0.13, **QUICK)).provenance["observation"]
    assert found["psf_origin"] == "measured"
    assert found["psf_sigma_px"] == pytest.approx(sigma_from_mtf(0.3, 4), rel=0.02)
    dot = "size=160&ratio=4&bands=6&texture=0&dot=71.3,77.8"
    told = run(config(tmp_path / "dot", dot, align__estimate=False, quality__gate="off", **QUICK))
    assert told.provenance["observation"]["psf_origin"] == "sensor"


def test_samples_beside_their_pixels_are_not_resampled(tmp_path):
    """A displacement of a third of a coarse pixel: the staged samples are those of the HSI, and the offset is told."""
    recipe = "size=160&ratio=3&bands=12&seed=5&east_m=-7&north_m=11"
    hsi = whole(scene("hsi", recipe))
    for network, copied in (("map_subspace", True), ("bicubic", False)):
        with open_run(config(tmp_path / network, recipe, method=network, align__east_m=-7, align__north_m=11)) as held:
            job = stage_pair(held)
            array = store.open_array(job.folder / "stage" / "hsi.zarr")
            staged = np.asarray(array[...])
        inside = staged[:, 5:-5, 5:-5]
        assert (job.staged.samples_beside_px is not None) == copied
        # Every sample is one that was measured: found in the HSI to the last bit.
        assert bool(np.isin(inside[0], hsi[0]).all()) == copied
        if copied:
            # 10 m pixels, rows to the south: the MSI moves by (-0.7, +1.1) px, and so do the samples on its grid.
            beside = np.array(job.staged.samples_beside_px)
            np.testing.assert_allclose(beside - np.round(beside / 3) * 3, _nearest(np.array([1.1, 0.7])), atol=0.02)


def _nearest(px: np.ndarray) -> np.ndarray:
    """Offsets within half a coarse pixel of three fine ones."""
    return px - np.round(px / 3) * 3
