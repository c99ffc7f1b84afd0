"""Spectral libraries: every layout gives the same spectra; headers that lie are refused; sensors see them as they should."""

from __future__ import annotations

import numpy as np
import pytest

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.references.libraries import REACH_NM, SpectralLibrary, library_of, open_library
from tests import DATA
from tests.libraries import soils_and_leaves, write_library

NM, SPECTRA = soils_and_leaves()


@pytest.mark.parametrize(
    ("dtype", "factor", "changes"),
    [
        ("<f4", 1.0, {}),
        (">f8", 1.0, {"header_offset": "37"}),
        ("<i2", 10_000.0, {}),
        ("<f4", 100.0, {}),
        (
            "<f8",
            1.0,
            {"file_type": "ENVI Standard", "samples": "1", "lines": "12", "bands": "212", "interleave": "bil"},
        ),
        ("<f8", 1.0, {"file_type": "ENVI Standard", "samples": "4", "lines": "3", "bands": "212", "interleave": "bip"}),
    ],
)
def test_every_layout_gives_the_same_spectra(tmp_path, dtype, factor, changes):
    path = write_library(tmp_path / "soils.sli", NM, SPECTRA * factor, dtype=dtype, **changes)
    for named in (path, path.with_suffix(".hdr")):
        found = open_library(named)
        np.testing.assert_allclose(found.wavelength_nm, NM)
        np.testing.assert_allclose(found.reflectance, SPECTRA, atol=1e-4)


def test_wavelengths_in_any_order_and_unit(tmp_path):
    order = np.random.default_rng(1).permutation(NM.size)
    path = write_library(tmp_path / "a.sli", NM[order], SPECTRA[:, order], per_nm=1e-3)
    found = open_library(path)
    np.testing.assert_allclose(found.wavelength_nm, NM)
    np.testing.assert_allclose(found.reflectance, SPECTRA, atol=1e-6)


def test_spectra_that_are_no_reflectance_are_left_out(tmp_path):
    spectra = SPECTRA.copy()
    spectra[2, 5], spectra[3, 7], spectra[4, 0] = np.nan, 1.8, -0.3
    found = open_library(write_library(tmp_path / "a.sli", NM, spectra))
    np.testing.assert_allclose(found.reflectance, np.delete(SPECTRA, [2, 3, 4], axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lines": "13"}, "declares 2756 samples, the file has 10176 bytes"),
        ({"lines": "99999999999"}, "lines is '99999999999', expected a count"),
        ({"lines": "9999999"}, "expected at most"),
        ({"lines": "-1"}, "lines is '-1'"),
        ({"data_type": "6"}, "data type '6'"),
        ({"header_offset": "-7"}, "header offset '-7'"),
        ({"interleave": "bsx"}, "interleave is 'bsx'"),
        ({"wavelength": "{400, 410}"}, "gives 2 wavelengths for spectra of 212 samples"),
        ({"wavelength": "{400, blue}"}, "no list of wavelengths"),
        ({"wavelength_units": "Index"}, "wavelength unit 'Index' is unknown"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, changes, told):
    path = write_library(tmp_path / "a.sli", NM, SPECTRA, **changes)
    with pytest.raises(InputRejected, match=told):
        open_library(path)


def test_what_is_no_library_is_refused(tmp_path):
    with pytest.raises(InputRejected, match="put both beside each other"):
        open_library(tmp_path / "absent.sli")
    path = write_library(tmp_path / "a.sli", NM, np.full_like(SPECTRA, np.nan))
    with pytest.raises(InputRejected, match="none of its 0 spectra"):
        open_library(path)
    path = write_library(tmp_path / "b.sli", NM, SPECTRA * 1e7)
    with pytest.raises(InputRejected, match="expected reflectance in 0-1, percent or ten thousandths"):
        open_library(path)


def test_a_sensor_sees_lines_as_they_are():
    """A symmetric response of a straight line is its value at the center, whatever the width."""
    line = 0.1 + 0.2 * (NM - 380) / 2000
    library = SpectralLibrary(name="lines", wavelength_nm=NM, reflectance=np.stack([line, np.full_like(line, 0.3)]))
    for fwhm in (3.0, 30.0):
        center = np.array([612.3, 1203.7, 2104.1])
        seen = library.seen_by(Bands.sort(center, unit="nm", of="test", fwhm=np.full(3, fwhm)))
        np.testing.assert_allclose(seen, [np.interp(center, NM, line), [0.3] * 3], rtol=1e-3)


def test_a_broad_band_blurs_a_step():
    step = np.where(NM < 1000, 0.1, 0.5)
    library = SpectralLibrary(name="step", wavelength_nm=NM, reflectance=step[None].astype(np.float32))
    seen = library.seen_by(Bands.sort([950.0, 995.0, 1040.0], unit="nm", of="test", fwhm=[60.0] * 3))[0]
    assert 0.1 < seen[0] < 0.15
    assert seen[1] == pytest.approx(0.3, abs=0.01)  # half of it lies on either side
    assert 0.45 < seen[2] < 0.5


def test_what_a_library_covers():
    """Water vapor is bridged, a missing detector is not, and beyond the ends it reaches a little."""
    bridged = NM[(NM < 1340) | (NM > 1500)]
    torn = NM[(NM < 1000) | (NM > 1500)]
    asked = np.array([380 - REACH_NM - 1, 380 - REACH_NM + 1, 1200.0, 1420.0, 2500.0, 2600.0])
    for own, covered in ((bridged, [0, 1, 1, 1, 1, 0]), (torn, [0, 1, 0, 0, 1, 0])):
        library = SpectralLibrary(name="a", wavelength_nm=own, reflectance=np.ones((1, own.size), np.float32))
        assert library.covers(asked).tolist() == [bool(c) for c in covered]


def test_pixels_of_a_cube_are_a_library():
    values = np.random.default_rng(0).uniform(100, 4000, (NM.size, 30, 40)).astype(np.float32)
    values[:, 3, 4] = np.nan
    bands = Bands.sort(NM, unit="nm", of="cube").mark_bad(NM > 2400)
    library = library_of(ReferenceCube(name="cube", values=values, bands=bands), at_most=500, seed=3)
    assert library.wavelength_nm[-1] == 2400
    assert 499 <= len(library) <= 500
    pixels = values[NM <= 2400].reshape(library.wavelength_nm.size, -1).T / 10_000
    assert (np.abs(pixels - library.reflectance[7]).max(axis=1) < 1e-6).sum() == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="real imagery is absent (see the README)")
def test_real_libraries():
    berlin = open_library(DATA / "berlin_urban_gradient" / "speclib" / "SpecLib_BerlinUrbanGradient.sli")
    assert (len(berlin), berlin.wavelength_nm[0], berlin.wavelength_nm[-1]) == (75, 460.0, 2409.0)
    # Spectrum 31 is managed grass: the red edge must be there, and where it belongs.
    grass = berlin.reflectance[30]
    red, infrared = (np.interp(nm, berlin.wavelength_nm, grass) for nm in (670.0, 800.0))
    assert infrared > 4 * red
    mixed = open_library(DATA / "spectral_libraries" / "ecostress" / "ecostress_library_with_mixtures")
    assert len(mixed) == 1978  # of 2041
    assert mixed.wavelength_nm[0] == pytest.approx(375.594)
