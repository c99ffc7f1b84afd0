"""The MTF tables, against figures typed from the documents and against the law that makes one PSF of several."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.sensors import (
    Mtf,
    Sensor,
    Source,
    available,
    band_sigmas_px,
    open_scene,
    sensor_module,
    sigma_from_mtf,
)
from tests.products import sentinel2 as built

LANARAS_2017 = {  # Sentinel-2A: band, modulation at the Nyquist frequency of its own sampling
    "B01": 0.32, "B02": 0.26, "B03": 0.28, "B04": 0.24, "B05": 0.38, "B06": 0.34, "B07": 0.34, "B08": 0.26, "B8A": 0.33,
    "B09": 0.26, "B11": 0.22, "B12": 0.23,
}  # fmt: skip


def named(*names: str) -> Bands:
    return Bands.sort(np.linspace(500, 900, len(names)), unit="nm", of="test", names=names)


def modulation(sigma_px: float, step: int) -> float:
    """What a Gaussian leaves of a cosine at the Nyquist frequency of pixels that are `step` fine ones, by summing it up."""
    x = np.arange(-100.0, 100.0, 0.01)
    weights = np.exp(-0.5 * (x / sigma_px) ** 2)
    return float((weights * np.cos(np.pi * x / step)).sum() / weights.sum())


def test_sentinel_2_has_the_published_mtf_of_each_band():
    sensor = sensor_module("sentinel2").SENSOR
    assert sensor.mtf_of(named(*LANARAS_2017)) == pytest.approx(tuple(LANARAS_2017.values()))
    # B10 is in no table: the requirement of the mission, 0.15 to 0.30, is all there is.
    assert 0.15 <= sensor.mtf_of(named("B10"))[0] <= 0.30


def test_the_names_in_the_table_are_those_of_a_scene(tmp_path: Path):
    scene = open_scene(Source(uri=str(built.sentinel2(tmp_path)), mask="none", bands="B01,B05,B8A,B11"))
    found = dict(zip(scene.bands.names, sensor_module(scene.sensor).SENSOR.mtf_of(scene.bands), strict=True))
    assert found == {"B01": 0.32, "B05": 0.38, "B8A": 0.33, "B11": 0.22}


def test_enmap_has_the_requirement_across_and_along_track():
    mtf = sensor_module("enmap").SENSOR.mtf
    assert (mtf.across, mtf.along) == (0.25, 0.16)


def test_prisma_is_as_wide_as_measured():
    sigma_px = sigma_from_mtf(sensor_module("prisma").SENSOR.mtf.mean, 1.0)
    assert 1.84 <= sigma_px * 2 * math.sqrt(2 * math.log(2)) <= 1.97


def test_sensors_without_a_published_figure_share_one():
    published = {"sentinel2", "sentinel2_eopf", "enmap", "prisma"}
    for name in set(available()) - published:
        sensor = sensor_module(name).SENSOR
        assert (sensor.mtf.across, sensor.mtf.along, dict(sensor.band_mtf)) == (0.3, None, {}), name


def test_along_and_across_are_one_gaussian_of_their_mean_variance():
    mtf = Mtf(across=0.25, along=0.16)
    variance = (sigma_from_mtf(0.25, 3.0) ** 2 + sigma_from_mtf(0.16, 3.0) ** 2) / 2
    assert modulation(math.sqrt(variance), 3) == pytest.approx(mtf.mean, abs=1e-6)
    assert mtf.mean == pytest.approx(0.2)


def test_bands_are_one_gaussian_of_their_mean_variance():
    sensor = Sensor(title="test", mtf=Mtf(across=0.3), band_mtf={"a": Mtf(across=0.1), "b": Mtf(across=0.4, along=0.2)})
    bands = named("a", "b", "c")
    variance = np.mean([sigma_from_mtf(mtf, 4.0) ** 2 for mtf in (0.1, math.sqrt(0.08), 0.3)])
    assert modulation(math.sqrt(variance), 4) == pytest.approx(sensor.mean_mtf(bands), abs=1e-6)


def test_each_band_has_the_psf_of_its_own_pixels():
    sigmas = band_sigmas_px(sensor_module("sentinel2").SENSOR, named("B05", "B08", "B8A", "B01"), (2, 1, 2, 6))
    assert sigmas[1] == 0.0
    for sigma_px, step, mtf in zip(sigmas[::2], (2, 2), (0.38, 0.33), strict=True):
        assert modulation(sigma_px, step) == pytest.approx(mtf, abs=1e-6)
    assert modulation(sigmas[3], 6) == pytest.approx(0.32, abs=1e-6)


def test_one_figure_for_all_bands_is_that_figure():
    for name, mtf in (("emit", 0.3), ("enmap", 0.2), ("prisma", 0.04)):
        assert sensor_module(name).SENSOR.mean_mtf(named(*"abcdefg")) == mtf


@pytest.mark.parametrize("wrong", [{"across": 0.0}, {"across": 1.0}, {"across": 0.3, "along": -0.1}])
def test_a_modulation_is_a_share(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="MTF"):
        Mtf(**wrong)
