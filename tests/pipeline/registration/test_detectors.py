from __future__ import annotations

import json

import numpy as np
import pytest

from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.grids import nest
from hyperfuse.pipeline.registration.estimate import estimate
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.registration.report import write_figure, write_table
from tests.simulated import MTF_SIGMA, simulate_detectors

RATIO = 4
COMMON = (0.3, -0.2)


@pytest.fixture(scope="module")
def truth():
    scene = open_scene(Source(uri="synthetic:truth?size=320&bands=40&seed=5&snr_hsi=0&snr_msi=0"))
    window = slice(0, 320), slice(0, 320)
    return scene.read(window, range(len(scene.bands))).astype(np.float64), scene.bands.center_nm


def measured(truth, move_of, *, swir_bands: bool):
    pair = simulate_detectors(*truth, ratio=RATIO, move_of=move_of, swir_bands=swir_bands)
    return estimate(pair, nest(pair, AlignConfig(), None), AlignConfig(), MTF_SIGMA * RATIO)


def apart(px: float):
    """The SWIR displaced by `px` along (0.8 east, 0.6 south) beside the VNIR."""
    return lambda nm: (COMMON[0] + 0.8 * px * (nm > 1000), COMMON[1] - 0.6 * px * (nm > 1000))


@pytest.mark.parametrize("swir_bands", [False, True])
@pytest.mark.parametrize("px", [0.1, 0.3, 0.54])
def test_a_detector_beside_the_other_is_told_with_its_size(truth, px, swir_bands):
    """The scene's displacement is that of the VNIR, whatever bands the MSI has; the SWIR within 0.03 px."""
    found = measured(truth, apart(px), swir_bands=swir_bands).registration
    assert (found.decision, found.model) == ("accept", "shift")
    gsd = RATIO * 10.0
    assert (found.east_m / gsd, found.north_m / gsd) == (
        pytest.approx(COMMON[0], abs=0.02),
        pytest.approx(-0.2, abs=0.02),
    )
    vnir, swir = found.detectors
    assert (vnir.name, vnir.significant) == ("VNIR", False)
    assert (swir.name, swir.significant, swir.decision) == ("SWIR", True, "accept")
    assert np.hypot(swir.east_px - 0.8 * px, swir.north_px + 0.6 * px) < 0.03
    assert "the SWIR lies 0." in found.reason
    beside = found.beside(np.array([665.0, 1610.0]))
    np.testing.assert_allclose(beside, [[0.0, 0.8 * px], [0.0, -0.6 * px]], atol=0.03)


@pytest.mark.parametrize("swir_bands", [False, True])
def test_detectors_that_look_alike_are_told_to(truth, swir_bands):
    found = measured(truth, apart(0.0), swir_bands=swir_bands).registration
    assert not any(detector.significant for detector in found.detectors)
    assert "SWIR" not in found.reason
    assert not found.beside(np.array([500.0, 2200.0])).any()


def test_bands_along_a_line(truth):
    """A keystone of 0.6 px from the first to the last band, found within 0.05 px at every wavelength."""
    _, nm = truth

    def move_of(wavelength: float):
        return COMMON[0] + 0.6 * (wavelength - 665.0) / np.ptp(nm), COMMON[1]

    found = measured(truth, move_of, swir_bands=True).registration
    expected = np.array([move_of(wavelength) for wavelength in nm]).T
    whole = np.array([[found.east_m], [found.north_m]]) / (RATIO * 10.0) + found.beside(nm)
    np.testing.assert_allclose(whole, expected, atol=0.05)
    assert found.detectors[1].east_px_per_um == pytest.approx(0.6e3 / np.ptp(nm), rel=0.25)
    assert "drifts by" in found.reason


def test_table_and_figure_show_the_spectrum(truth, tmp_path):
    found = measured(truth, apart(0.3), swir_bands=True)
    write_table(found, tmp_path / "table.geojson")
    table = json.loads((tmp_path / "table.geojson").read_text())
    rows = table["spectrum"]
    swir = [row["east_px"] for row in rows if row["center_nm"] > 1000]
    vnir = [row["east_px"] for row in rows if row["center_nm"] < 1000]
    assert swir
    assert vnir
    assert np.mean(swir) - np.mean(vnir) == pytest.approx(0.24, abs=0.03)
    assert Registration.model_validate(table["registration"]) == found.registration
    write_figure(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
