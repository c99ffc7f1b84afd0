"""Planted pairs as files: every sample lies where the file says, or beside it by what is planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.pipeline.evaluation.field_files import PipelineFuser, fine_affine, written
from hyperfuse.pipeline.observation.field import planting, sampled_at
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import simulate
from hyperfuse.pipeline.quality.trials import Trial, evaluate, fuse_whole, score
from tests.synthetic import scene, whole

NM = np.arange(420.0, 1000.0, 20.0)
CLEAN = Protocol(hsi_snr_db=None, msi_snr_db=None)
SIZE = 96


@pytest.fixture(scope="module")
def ramp():
    """Samples that are their own place: column in the first half of the bands, row in the second, from 1 on."""
    column = np.broadcast_to(np.arange(SIZE) + 1.0, (SIZE, SIZE))
    values = np.stack([column if n < len(NM) // 2 else column.T for n in range(len(NM))]).astype(np.float32)
    return ReferenceCube(name="ramp", values=values, bands=Bands.sort(NM, unit="nm", of="ramp"))


def placed(ramp, row, folder):
    """Column and row (fine pixels) that each inner HSI sample shows, and those where its file says that it lies."""
    pair = simulate(ramp, replace(CLEAN, planted=planting(row)))
    config = written(pair, folder, {})
    with rasterio.open(config.hsi.uri) as file:
        shown = file.read([1, len(NM)]) * pair.unit - 1
        rows, columns = np.mgrid[: file.height, : file.width]
        x, y = rasterio.transform.xy(file.transform, rows.ravel(), columns.ravel())
        east, north = transform(file.crs, "EPSG:32633", x, y)
    told = np.stack(~fine_affine(4) @ (np.array(east), np.array(north))).reshape(shown.shape) - 0.5
    # Far from the rim, where the mirrored ramp is none.
    inner = np.isfinite(shown).all(axis=0) & (told > 16).all(axis=0) & (told < SIZE - 17).all(axis=0)
    assert inner.sum() > 150
    return shown[:, inner], told[:, inner]


@pytest.mark.parametrize(
    ("row", "beside"),
    [
        ("nothing", (0.0, 0.0)),
        ("lattice-0.5", (0.0, 0.0)),
        ("zone", (0.0, 0.0)),
        ("shift-0.25", (0.8, 0.6)),  # shows what lies a quarter of four pixels farther along columns and rows
        ("georeference-0.25", (-0.8, -0.6)),  # says that it lies there, and does not
    ],
)
def test_where_samples_lie(row, beside, ramp, tmp_path):
    shown, told = placed(ramp, row, tmp_path)
    np.testing.assert_allclose(shown - told, np.broadcast_to(np.array(beside)[:, None], shown.shape), atol=2e-3)


def test_lattices(ramp, tmp_path):
    """Half a fine pixel off; and a grid turned by the convergence of the two zones, without samples outside the MSI."""
    half = written(simulate(ramp, replace(CLEAN, planted=planting("lattice-0.5"))), tmp_path, {})
    with rasterio.open(half.hsi.uri) as hsi, rasterio.open(half.msi.uri) as msi:
        assert (hsi.transform.c - msi.transform.c, hsi.transform.f - msi.transform.f) == (3.75, -3.75)
        assert hsi.crs == msi.crs
    turned = written(simulate(ramp, replace(CLEAN, planted=planting("zone"))), tmp_path, {})
    with rasterio.open(turned.hsi.uri) as hsi:
        assert hsi.crs.to_epsg() == 32632
        outside = np.isnan(hsi.read(1))
        assert outside[0, 0]
        assert 0.02 < outside.mean() < 0.3


def test_what_files_tell(ramp, tmp_path):
    """Wavelengths and widths as told, not as planted; nothing of PSF or displacement."""
    config = written(simulate(ramp, replace(CLEAN, planted=planting("srf-10"))), tmp_path, {"sensor_model": "blind"})
    with rasterio.open(config.msi.uri) as file:
        assert [float(file.tags(n)["wavelength"]) for n in file.indexes] == [492.7, 559.8, 664.6, 832.8]
        assert [float(file.tags(n)["fwhm"]) for n in file.indexes] == [66.0, 36.0, 31.0, 106.0]
    assert config.psf_mtf is None
    assert config.align.estimate
    assert config.sensor_model == "blind"
    with pytest.raises(InputRejected, match="bands of several sampling distances"):
        written(simulate(replace(ramp, bands=ramp.bands), replace(CLEAN, msi="s2-10")), tmp_path, {})


def test_samples_at_any_place_against_a_plain_sum():
    rng = np.random.default_rng(0)
    fine, sigma, reach = rng.random((2, 24, 20)).astype(np.float32), 2.1, 20
    y, x = rng.uniform(-0.5, 23.5, 30), rng.uniform(-0.5, 19.5, 30)
    wide = np.pad(fine.astype(float), ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    rows, columns = np.arange(-reach, 24 + reach), np.arange(-reach, 20 + reach)
    for n, found in enumerate(sampled_at(fine, sigma, y, x).T):
        weight = np.exp(-((rows[:, None] - y[n]) ** 2 + (columns - x[n]) ** 2) / (2 * sigma**2))
        np.testing.assert_allclose(found, (wide * weight).sum(axis=(1, 2)) / weight.sum(), atol=5e-4)


def test_a_pipeline_against_the_method_alone():
    """Nothing planted, it is the method; a displacement is found, and what the product misses is not scored."""
    truth = scene("truth", "size=128&bands=30&seed=5")
    cube = ReferenceCube(name="land", values=whole(truth), bands=truth.bands)
    trials = [Trial(cube="land", protocol=(p := Protocol(planted=planting(row))), make=lambda p=p: simulate(cube, p))
              for row in ("nothing", "shift-0.25")]  # fmt: skip
    plain, shifted = evaluate(trials, ["gsa"], fuse=PipelineFuser({"quality.gate": "off"}))
    pair = trials[0].make()
    alone = score(fuse_whole("gsa", pair).image, pair)
    assert plain.error is None
    assert plain.scores.psnr_db == pytest.approx(alone.psnr_db, abs=0.3)
    assert plain.scores.pixels == alone.pixels
    assert plain.told["psf_sigma_px"] == pytest.approx(pair.observed.psf_sigma_px, rel=0.01)  # measured on the pair
    assert (shifted.told["registration"], plain.told["registration"]) == ("accept", "accept")
    # The move that brings the MSI onto the HSI: against the displacement of the samples, rows run south.
    assert shifted.told["east_m"] == pytest.approx(-0.25 * 0.8 * 30, abs=1.5)
    assert shifted.told["north_m"] == pytest.approx(0.25 * 0.6 * 30, abs=1.5)
    assert shifted.scores.pixels >= 0.8 * plain.scores.pixels
