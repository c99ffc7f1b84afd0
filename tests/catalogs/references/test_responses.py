"""Simulated sensors: the tables against measured responses, the weights against what they must do."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.references.responses import SETS, band_set
from tests import DATA

FULL = Bands.sort(np.arange(400.0, 2500.0, 10.0), unit="nm", of="test", fwhm=np.full(210, 10.0))
MEASURED = {
    "s2-10": "RSR_S2A_MSI_V4.csv", "oli-6": "RSR_L8_OLI.csv", "wv2-8": "RSR_WorldView2.csv", "wv3-16": "RSR_WorldView3.csv",
    "superdove-8": "RSR_PlanetScope_SD8.csv", "qb-4": "RSR_QuickBird2.csv", "landsat-6": "RSR_L5_TM.csv",
}  # fmt: skip


@pytest.mark.parametrize(("name", "file"), MEASURED.items())
def test_tables_against_measured_responses(name, file):
    path = DATA / "srf" / "derived" / file
    if not path.is_file():
        pytest.skip("measured responses are absent: srf (see the README)")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = [(float(row["center_nm"]), float(row["fwhm_nm"])) for row in csv.DictReader(lines)]
    for band in band_set(name).responses:
        center, width = min(rows, key=lambda row: abs(row[0] - band.center_nm))
        # Data sheets give outer limits, so the tables' bands may be wider, but must lie on those that were measured.
        assert abs(center - band.center_nm) < max(3.0, 0.35 * width), band.name
        assert 0.8 < band.fwhm_nm / width < 2.2, band.name


@pytest.mark.parametrize("name", SETS)
def test_weights_of_a_full_cube(name):
    made = band_set(name)
    weights, coverage = made.weights(FULL)
    assert weights.shape == (len(made.responses), len(FULL))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert coverage.min() > 0.9
    np.testing.assert_allclose(weights @ FULL.center_nm, made.bands.center_nm, atol=8.0)
    assert len(made.steps) == len(made.responses)
    assert min(made.steps) == 1
    assert made.one_gsd == (max(made.steps) == 1)


def test_box_weighs_all_bands_inside_alike():
    weights, _ = band_set("landsat-4").weights(FULL)
    inside = (FULL.center_nm >= 450) & (FULL.center_nm <= 520)
    np.testing.assert_allclose(weights[0], inside / inside.sum())


def test_what_the_cube_does_not_see():
    vnir = FULL[FULL.center_nm < 1000]
    for name in ("s2-6", "landsat-6"):
        weights, coverage = band_set(name).weights(vnir)
        assert not weights[-2:].any()
        np.testing.assert_allclose(coverage[-2:], 0.0, atol=1e-12)
        assert coverage[:-2].min() > 0.9


def test_unknown_set():
    with pytest.raises(UsageError, match="choose one of s2-4"):
        band_set("s2-5")
