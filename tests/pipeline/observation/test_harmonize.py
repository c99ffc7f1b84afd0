"""The radiometric fit, what is made of it, and what fusion gains: lines whose gain and offset are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfuse.catalogs.errors import QualityRefused
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.pipeline.config import HarmonizeConfig, RunConfig, load_config
from hyperfuse.pipeline.fusion.windows import StagedPair
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.product_files import QA
from hyperfuse.pipeline.observation.harmonize import harmonize, harmonize_whole, harmony_of
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.radiometry import RadiometricFit, fit_line
from hyperfuse.pipeline.observation.sensor_model import Observation
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.quality.consistency import consistency, radiometry
from hyperfuse.pipeline.quality.trials import fuse_whole, score
from hyperfuse.pipeline.run import fuse_tiles, open_run, run, stage_pair
from tests.pipeline.test_real_scenes import BERLIN, needs
from tests.synthetic import scene, whole

LIMITS = HarmonizeConfig()
GAIN = np.array([1.08, 0.93, 1.05, 0.9], np.float32)
OFFSET = np.array([0.01, -0.008, 0.004, -0.012], np.float32)
RECIPE = "size=128&bands=60&seed=5"


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    truth = scene("truth", RECIPE)
    return simulate(ReferenceCube(name="land", values=whole(truth), bands=truth.bands), Protocol())


def off(pair: SimulatedPair, gain: np.ndarray | float, offset: np.ndarray | float) -> SimulatedPair:
    """The pair with another MSI, each band of its own line."""
    gain, offset = (np.broadcast_to(np.float32(v), len(pair.msi)).reshape(-1, 1, 1) for v in (gain, offset))
    return replace(pair, msi=pair.msi * gain + offset)


def independent(n: int) -> np.ndarray:
    return np.arange(n)


# --- the line ------------------------------------------------------------------------------------------------------


def test_a_quarter_of_clouds_does_not_move_the_line():
    rng = np.random.default_rng(0)
    x = rng.gamma(4.0, 0.05, 2000)
    y = 1.1 * x + 0.02 + 0.002 * rng.standard_normal(2000)
    cloudy = rng.random(2000) < 0.25
    y[cloudy] = rng.uniform(0.4, 0.9, int(cloudy.sum()))
    fit = fit_line(x, y, independent(2000))
    assert fit.gain == pytest.approx(1.1, abs=0.005)
    assert fit.offset == pytest.approx(0.02, abs=0.001)
    assert fit.near == pytest.approx(0.75, abs=0.03)
    assert fit.r2_near > 0.99
    assert fit.r2 < 0.5  # least squares over all pixels, which the log warns of
    assert fit.residual == pytest.approx(0.002, rel=0.2)


def test_errors_of_both_sides_do_not_shrink_the_gain():
    rng = np.random.default_rng(1)
    true = rng.gamma(4.0, 0.05, 20_000)
    noise = 0.03 * rng.standard_normal((2, 20_000))
    fit = fit_line(true + noise[0], 1.1 * (true + noise[1]), independent(20_000))
    assert np.polyfit(true + noise[0], 1.1 * (true + noise[1]), 1)[0] < 1.05
    assert fit.gain == pytest.approx(1.1, abs=0.02)
    assert abs(fit.gain - 1.1) < fit.gain_error


def test_errors_say_how_far_off_the_line_is():
    """Of residuals that come in patches: neighbors counted as independent would promise far too much."""
    rng = np.random.default_rng(2)
    cells = np.repeat(np.arange(40), 25)
    off_by = []
    for _ in range(200):
        x = rng.gamma(4.0, 0.05, 1000)
        y = 1.1 * x + 0.02 + np.repeat(0.003 * rng.standard_normal(40), 25) + 0.0005 * rng.standard_normal(1000)
        fit = fit_line(x, y, cells)
        off_by.append(((fit.gain - 1.1) / fit.gain_error, (fit.offset - 0.02) / fit.offset_error))
    share = (np.abs(off_by) < 2.0).mean(axis=0)
    assert (share > 0.9).all()
    assert np.abs(off_by).max() < 5.0


@given(scale=st.floats(1e-3, 1e5), shift=st.floats(-10.0, 10.0), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_another_unit_is_another_line(scale, shift, seed):
    rng = np.random.default_rng(seed)
    x = rng.gamma(4.0, 0.05, 300)
    y = 0.9 * x + 0.01 + 0.005 * rng.standard_normal(300)
    one, other = (fit_line(x, values, independent(300)) for values in (y, scale * (y + shift)))
    assert other.gain == pytest.approx(scale * one.gain, rel=1e-4)
    assert other.offset == pytest.approx(scale * (one.offset + shift), rel=1e-4, abs=1e-4 * scale)
    assert other.gain_error == pytest.approx(scale * one.gain_error, rel=1e-3)
    assert other.r2 == pytest.approx(one.r2, abs=1e-6)


def test_constant_and_unrelated_bands_are_no_error():
    rng = np.random.default_rng(0)
    flat = fit_line(rng.random(100), np.full(100, 0.3), independent(100))
    assert np.isfinite([flat.gain, flat.offset, flat.gain_error]).all()
    apart = fit_line(rng.random(500), rng.random(500), independent(500))
    assert apart.r2_near < 0.3
    assert apart.gain_error > 0.05


# --- the decision --------------------------------------------------------------------------------------------------


def fit(gain: float = 1.0, offset: float = 0.0, **other: float) -> RadiometricFit:
    told = {
        "relative_rmse": 0.02,
        "r2": 0.99,
        "gain_error": 0.004,
        "offset_error": 0.001,
        "r2_near": 0.99,
        "pixels": 500,
    }
    return RadiometricFit(gain=gain, offset=offset, **(told | other))


def observed(*fits: RadiometricFit | None, coverage: float = 1.0) -> Observation:
    return Observation(
        psf_sigma_px=2.0, psf_origin="sensor", srf=((1.0,),) * len(fits), srf_origin="table",
        coverage=(coverage,) * len(fits), misfit=fits,
    )  # fmt: skip


BOTH = ("reflectance", "reflectance")


@pytest.mark.parametrize(
    ("told", "decision"),
    [
        (fit(1.05, 0.003), "applied"),
        (fit(1.0, 0.01), "applied"),
        (fit(1.005, 0.0015), "agrees"),
        (fit(1.001, 0.0002, gain_error=1e-6, offset_error=1e-6), "agrees"),
        (fit(1.3), "beyond"),
        (fit(0.8), "beyond"),
        (fit(1.0, -0.05), "beyond"),
        (fit(1.05, r2_near=0.5), "doubtful"),
        (fit(1.05, gain_error=0.2), "doubtful"),
        (fit(1.05, near=0.3), "doubtful"),
        (fit(-1.0), "doubtful"),
        (None, "not compared"),
    ],
)
def test_each_band_is_decided_by_its_line(told, decision):
    found = harmony_of(LIMITS, observed(told, fit()), BOTH, "msi")
    assert [band.decision for band in found.bands] == [decision, "agrees"]
    assert found.passed == (decision != "beyond")
    assert found.is_applied == (decision == "applied")
    if decision == "applied":
        assert (found.bands[0].gain, found.bands[0].offset) == (told.gain, told.offset)
    else:
        assert (found.bands[0].gain, found.bands[0].offset) == (1.0, 0.0)


def test_what_the_hsi_hardly_covers_is_left_alone():
    found = harmony_of(LIMITS, observed(fit(1.1), coverage=0.6), BOTH, "msi")
    assert [band.decision for band in found.bands] == ["not compared"]
    assert "none could be compared" in found.reason


def test_modes():
    shifted = observed(fit(1.05), fit(1.3))
    cfg = RunConfig.model_validate(
        {"hsi": {"uri": "a"}, "msi": {"uri": "b"}, "output": "c", "harmonize": {"mode": "require"}}
    )
    with pytest.raises(QualityRefused, match="1 of 2 bands differ from the HSI"):
        harmonize(cfg, shifted, BOTH, "msi")
    assert harmonize(cfg, observed(fit(1.05)), BOTH, "msi").is_applied
    auto = harmony_of(LIMITS, shifted, BOTH, "msi")
    assert [band.decision for band in auto.bands] == ["applied", "beyond"]
    none = harmony_of(HarmonizeConfig.model_validate({"mode": False}), shifted, BOTH, "msi")
    assert none.passed
    assert not none.is_applied
    other = harmony_of(LIMITS, shifted, ("reflectance", "radiance"), "msi")
    assert not other.is_applied
    assert "is radiance" in other.reason


MISTAKES = [
    (1.0, 0.1, "msi.offset=-0.1"),
    (1.0, -0.1, "msi.offset=0"),
    (1e4, 0.0, "msi.scale=1e-4"),
    (1e4, 1e3, "msi.scale=1e-4 and msi.offset=-0.1"),
    (100.0, 0.0, "msi.scale=0.01"),
    (1e-2, 0.0, "hsi.scale=0.01"),
    (1e-4, 0.0, "hsi.scale=1e-4"),
    (1 / 2.75e-5, 0.2 / 2.75e-5, "msi.scale=2.75e-5 and msi.offset=-0.2"),
    (1e-4 / 2.75e-5, 2e-5 / 2.75e-5, "msi.scale=2.75e-5 and msi.offset=-0.2"),
]


@pytest.mark.parametrize(("gain", "offset", "remedy"), MISTAKES)
def test_a_mistake_is_named_with_the_setting_that_mends_it(pair, gain, offset, remedy):
    """On top of the small disagreement of a real pair; and nothing is applied."""
    reflectance = off(pair, 1.04, 0.005)
    wrong, found = harmonize_whole(off(reflectance, gain, offset), LIMITS)
    assert found.mistake.startswith("land ")
    assert f"set {remedy}" in found.mistake
    assert not found.passed
    assert not found.is_applied
    np.testing.assert_array_equal(wrong.msi, off(reflectance, gain, offset).msi)
    _, mended = harmonize_whole(reflectance, LIMITS)
    assert not mended.mistake
    assert mended.passed


def test_an_atmosphere_is_no_forgotten_offset(pair):
    """Haze lifts the blue by 0.1 and leaves the infrared: too much to correct, but not to be mended by a setting."""
    haze = np.linspace(0.1, 0.0, len(pair.msi))
    _, found = harmonize_whole(off(pair, 0.95, haze), LIMITS)
    assert not found.mistake
    assert not found.passed
    assert "check msi.scale, msi.offset" in found.reason


# --- what fusion gains ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsa", "map_subspace", "hysure", "cnmf"])
def test_fusion_is_what_the_right_pair_gives(name, pair):
    wrong = off(pair, GAIN, OFFSET)
    mended, found = harmonize_whole(wrong, LIMITS)
    assert {band.decision for band in found.bands} == {"applied"}
    np.testing.assert_allclose(found.gain[:, 0, 0], GAIN, atol=0.01)
    np.testing.assert_allclose(found.offset[:, 0, 0], OFFSET, atol=0.002)
    right, bad, good = (score(fuse_whole(name, p).image, p).psnr_db for p in (pair, wrong, mended))
    assert good == pytest.approx(right, abs=0.05)
    assert abs(good - right) <= abs(bad - right) + 0.02


def test_a_right_pair_is_left_as_it_is(pair):
    same, found = harmonize_whole(pair, LIMITS)
    assert {band.decision for band in found.bands} <= {"agrees", "applied"}
    assert np.abs(found.gain - 1.0).max() < 0.005
    for name in ("gsa", "map_subspace", "hysure"):
        before, after = (score(fuse_whole(name, p).image, p).psnr_db for p in (pair, same))
        assert after == pytest.approx(before, abs=0.02)


def test_bands_of_coarser_pixels_are_blurred_by_what_they_lack():
    """Blurred by the whole PSF their contrast, and with it the gain, would seem too small."""
    truth = scene("truth", "size=192&bands=100&seed=5")
    pair = simulate(
        ReferenceCube(name="land", values=whole(truth), bands=truth.bands),
        Protocol(ratio=3, msi="s2-10", hsi_snr_db=50.0, msi_snr_db=50.0),
    )
    assert max(pair.observed.steps) == 2
    _, found = harmonize_whole(pair, LIMITS)
    np.testing.assert_allclose(found.gain, 1.0, atol=0.01)
    blind = replace(pair, observed=replace(pair.observed, msi_steps=(), msi_sigma_px=()))
    _, naive = harmonize_whole(blind, LIMITS)
    assert naive.gain.min() < 0.98


# --- the whole way -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes the pair of a recipe as GeoTIFFs, the MSI with another line, and gives the settings that fuse them."""

    def write(gain: float = 1.0, offset: float = 0.0) -> dict[str, str]:
        told = {"output": str(tmp_path / "product"), "publish.formats": "[zarr]", "tiles.core": 64, "tiles.chunk": 32}
        for role in ("hsi", "msi"):
            image = scene(role, "size=150&bands=60&seed=3")
            samples = whole(image)
            if role == "msi":
                samples = samples * np.float32(gain) + np.float32(offset)
            path = tmp_path / f"{role}.tif"
            with rasterio.open(
                path, "w", driver="GTiff", dtype="float32", count=len(samples), height=samples.shape[1],
                width=samples.shape[2], crs=str(image.geobox.crs), transform=image.geobox.affine,
            ) as file:  # fmt: skip
                file.write(samples)
            table = tmp_path / f"{role}.csv"
            rows = zip(image.bands.center_nm, image.bands.fwhm_nm, strict=True)
            table.write_text("center_nm,fwhm_nm\n" + "".join(f"{nm:.2f},{width:.2f}\n" for nm, width in rows))
            told |= {f"{role}.uri": str(path), f"{role}.wavelengths": str(table), f"{role}.quantity": "reflectance"}
        return told

    return write


def test_windows_are_corrected_where_they_are_read(files):
    with open_run(load_config(None, files(1.06, 0.01) | {"method": "gsa"})) as held:
        job = stage_pair(held)
        box = Box(y0=2, y1=12, x0=3, x1=13)
        harmony = job.staged.harmony
        assert harmony is not None
        applied = np.array([band.decision == "applied" for band in harmony.bands])
        assert applied.any()
        # HSI bands are wider than the narrowest MSI band, which alone makes 2 % in it.
        np.testing.assert_allclose(harmony.gain[applied], 1.06, atol=0.03)
        stored = store.read(
            store.open_array(job.folder / "stage/msi.zarr"), box.times(4), np.array(job.staged.msi.kept)
        )
        read = StagedPair(job).read(box).msi[0].numpy()
        np.testing.assert_allclose(read, (stored - harmony.offset) / harmony.gain, rtol=1e-6)
        np.testing.assert_array_equal(job.staged.as_fused(stored), harmony.corrected(stored))
        gain, offset = radiometry(job)
        np.testing.assert_array_equal(gain, harmony.gain)
        np.testing.assert_array_equal(offset, harmony.offset)
        fuse_tiles(job)
        found = consistency(job)
    assert found.msi is not None
    # In the MSI's own unit, gain and offset included, nothing is left of the 6 % and 0.01.
    assert np.abs(found.msi.band_bias).max() < 0.002


def test_a_product_says_how_the_msi_was_harmonized(files):
    product = run(load_config(None, files(1.06, 0.01)))
    qa = json.loads((product.path / QA).read_text())
    for record in (qa, product.provenance):
        assert record["harmony"]["passed"]
        assert "brought to the HSI" in record["harmony"]["reason"]
    for line, band in zip(qa["radiometric_fit"], qa["harmony"]["bands"], strict=True):
        assert {"gain", "offset", "r2", "pixels", "residual", "gain_error"} <= line.keys()
        if band["decision"] == "applied":
            assert (band["gain"], band["offset"]) == (line["gain"], line["offset"])
    assert "brought to the HSI" in (product.path / "report.html").read_text()


def test_a_forgotten_offset_is_a_warning_and_refused_where_agreement_is_required(files, tmp_path):
    settings = files(1.0, 0.1) | {"method": "bicubic"}
    product = run(load_config(None, settings))
    quality = product.provenance["quality"]
    assert quality["state"] == "published with warnings"
    assert any("set msi.offset=-0.1" in warning for warning in quality["warnings"])
    again = settings | {"output": str(tmp_path / "again")}
    with pytest.raises(QualityRefused, match=r"BOA_ADD_OFFSET of -1000 was not applied; set msi\.offset=-0\.1"):
        run(load_config(None, again | {"harmonize.mode": "require"}))
    mended = run(load_config(None, again | {"harmonize.mode": "require", "msi.offset": -0.1}))
    assert mended.provenance["harmony"]["passed"]


@needs(BERLIN)
def test_a_real_pair_is_harmonized_by_a_few_percent(tmp_path):
    """Berlin, EnMAP and HyMap: two overflights, both reflectance of the same atmosphere's correction."""
    with open_run(
        load_config(
            None,
            {
                "hsi.uri": str(BERLIN / "EnMAP_BerlinUrbanGradient_raw244.bsq"),
                "msi.uri": str(BERLIN / "HighResolution_BerlinUrbanGradient.bsq"),
                "output": str(tmp_path / "berlin"),
                "method": "bicubic",
                "sensor_model": "tables",
            },
        )
    ) as held:
        job = stage_pair(held)
        harmony = job.staged.harmony
    assert harmony is not None
    assert harmony.passed
    assert harmony.is_applied
    # Contrast differs by some percent, more where the HSI is resampled by a sharper kernel; the mean level hardly does.
    assert np.abs(harmony.gain - 1.0).max() < 0.07
    assert np.abs(harmony.gain * 0.1 + harmony.offset - 0.1).max() < 0.003
