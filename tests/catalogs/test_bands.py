"""Bands: sorting, tables, and the laws of spectral response."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfuse.catalogs.bands import Bands, nm_per, read_table
from hyperfuse.catalogs.errors import InputRejected

centers = st.lists(st.floats(350.0, 2500.0, allow_nan=False), min_size=1, max_size=40)


@given(centers, st.randoms(use_true_random=False))
def test_sort_permutes_all_columns_alike(wavelengths: list[float], random) -> None:
    n_bands = len(wavelengths)
    fwhm = [random.uniform(1, 20) for _ in range(n_bands)]
    good = [random.random() < 0.7 for _ in range(n_bands)]
    names = [f"b{i}" for i in range(n_bands)]
    bands = Bands.sort(wavelengths, unit="nm", of="x", fwhm=fwhm, good=good, names=names)
    assert sorted(bands.source_band) == list(range(n_bands))
    assert np.all(np.diff(bands.center_nm) >= 0)
    np.testing.assert_array_equal(bands.center_nm, np.array(wavelengths)[bands.source_band])
    np.testing.assert_array_equal(bands.fwhm_nm, np.array(fwhm)[bands.source_band])
    assert bands.names == tuple(names[i] for i in bands.source_band)
    assert not np.any(bands.good & ~np.array(good)[bands.source_band])  # sorting never makes a bad band good
    assert np.all(np.diff(bands.center_nm[bands.good]) > 0)
    # No wavelength that had a good band is lost.
    assert set(bands.center_nm[bands.good]) == set(np.array(wavelengths)[np.array(good)])


@given(centers, centers, st.integers(0, 2**32 - 1))
def test_srf_rows_sum_to_one_or_zero(narrow: list[float], broad: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours = Bands.sort(
        narrow, unit="nm", of="x", fwhm=rng.uniform(2, 15, len(narrow)), good=rng.random(len(narrow)) < 0.8
    )
    theirs = Bands.sort(broad, unit="nm", of="y", fwhm=rng.uniform(10, 100, len(broad)))
    weights, coverage = ours.srf(theirs)
    assert weights.shape == (len(broad), len(narrow))
    total = weights.sum(axis=1)
    assert np.all(np.isclose(total, 1) | (total == 0))
    assert np.all(weights >= 0)
    assert np.all(weights[:, ~ours.good] == 0)
    assert np.all((coverage >= 0) & (coverage <= 1))


def test_srf_of_a_line_is_the_line() -> None:
    ours = Bands.sort(np.arange(400.0, 1000.0, 5.0), unit="nm", of="x", fwhm=np.full(120, 6.0))
    theirs = Bands.sort([500.0, 650.0, 800.0], unit="nm", of="y", fwhm=[30.0, 40.0, 60.0])
    weights, coverage = ours.srf(theirs)
    np.testing.assert_allclose(
        weights @ ours.center_nm, theirs.center_nm, atol=0.01
    )  # symmetric response, linear spectrum
    np.testing.assert_allclose(coverage, 1.0, atol=0.01)


def test_srf_credits_no_band_across_a_gap() -> None:
    ours = Bands.sort([400.0, 410.0, 420.0, 900.0, 910.0], unit="nm", of="x", fwhm=[10.0] * 5)
    weights, coverage = ours.srf(Bands.sort([650.0], unit="nm", of="y", fwhm=[50.0]))
    assert coverage[0] < 0.01
    assert not weights.any()


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("Micrometers", [0.45, 2.2]),
        ("nm", [450, 2200]),
        (None, [0.45, 2.2]),
        (None, [450, 2200]),
        ("Unknown", [450, 2200]),
    ],
)
def test_units(unit: str | None, values: list[float]) -> None:
    np.testing.assert_allclose(Bands.sort(values, unit=unit, of="x").center_nm, [450, 2200])


def test_width_shares_the_unit_of_the_center() -> None:
    assert Bands.sort([0.45], unit="um", of="x", fwhm=[0.0058]).fwhm_nm == pytest.approx([5.8])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"wavelength": [0.45, 2.2], "unit": "nanometers"}, "correct the unit"),
        ({"wavelength": [450.0, 2200.0], "unit": "um"}, "correct the unit"),
        ({"wavelength": [450.0], "unit": "furlong"}, "expected nanometers or micrometers"),
        ({"wavelength": [450.0, np.nan], "unit": "nm"}, "1 of 2 wavelengths are missing"),
        ({"wavelength": [], "unit": "nm"}, "wavelengths are missing"),
        ({"wavelength": [450.0, 460.0], "unit": "nm", "fwhm": [5.0, 0.0]}, "FWHM of band 2 is 0 nm"),
        ({"wavelength": [450.0, 460.0], "unit": "nm", "fwhm": [np.nan, -1.0]}, "FWHM of band 2 is -1 nm"),
        ({"wavelength": [450.0, 460.0], "unit": "nm", "fwhm": [5.0]}, "1 FWHM values for 2 bands"),
        ({"wavelength": [450.0, 460.0], "unit": "nm", "good": [True]}, "1 bad-band flags for 2 bands"),
    ],
)
def test_absurd_tables_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputRejected, match=sentence):
        Bands.sort(of="cube.tif", **arguments)


def test_of_two_bands_at_one_wavelength_the_first_good_one_stays() -> None:
    bands = Bands.sort([500.0, 600.0, 500.0], unit="nm", of="x", good=[False, True, True])
    assert [int(i) for i in bands.source_band[bands.good]] == [2, 1]


def test_nearest_ignores_bad_bands() -> None:
    bands = Bands.sort([500.0, 510.0, 600.0], unit="nm", of="x", good=[False, True, True])
    assert bands.nearest(501.0) == 1
    with pytest.raises(LookupError, match=r"closest is 600\.0 nm"):
        bands.nearest(700.0)
    with pytest.raises(LookupError, match="all 3 bands are marked bad"):
        bands.mark_bad([True, True, True]).nearest(500.0)


def test_json_round_trip_is_strict_json() -> None:
    bands = Bands.sort([500.0, 400.0], unit="nm", of="x", fwhm=[np.nan, 5.0], good=[True, False])
    back = Bands.from_json(json.loads(json.dumps(bands.to_json(), allow_nan=False)))
    for field in ("center_nm", "fwhm_nm", "good", "source_band"):
        np.testing.assert_array_equal(getattr(back, field), getattr(bands, field))
    assert back.names == bands.names
    assert back.gsd_m is None


def test_sampling_distances_travel_with_the_bands() -> None:
    bands = Bands.sort([800.0, 400.0, 600.0], unit="nm", of="x", gsd_m=[20.0, 10.0, 60.0])
    assert bands.gsd_m is not None
    assert bands.gsd_m.tolist() == [10.0, 60.0, 20.0]
    assert bands[[0, 2]].gsd_m.tolist() == [10.0, 20.0]
    assert Bands.from_json(bands.mark_bad([True, False, False]).to_json()).gsd_m.tolist() == [10.0, 60.0, 20.0]


def test_table_of_numbers() -> None:
    table = read_table("665, 560,490")
    assert table.wavelength == (665.0, 560.0, 490.0)
    assert table.fwhm is None


def test_table_with_comments_gaps_and_two_units(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "\ufeff# source: somewhere, 2017\nBand, center_nm ,fwhm_um,good\n1,383.5,0.005,1\n\n2,388.5,,0\n", "utf-8"
    )
    table = read_table(str(path))
    assert table.wavelength == (383.5, 388.5)
    assert table.fwhm is not None
    assert table.fwhm[0] == pytest.approx(5.0)
    assert np.isnan(table.fwhm[1])
    assert table.good == (True, False)
    assert table.unit == "nm"


@pytest.mark.parametrize(
    ("content", "center", "width", "unit"),
    [
        ("Wavelength [nm];FWHM [nm]\n450,5;10,25\n\n ; \n550;\n", (450.5, 550), (10.25, np.nan), "nm"),
        ("  Center Wavelength (nm) ; Fwhm (um)\n450;0,01\n550;0.02\n", (450, 550), (10, 20), "nm"),
        ("wavelength_um\tfwhm_nm\n0.45\t10\n0.55\t20\n", (0.45, 0.55), (0.01, 0.02), "um"),
        ("wavelength (micrometers), fwhm {um}\n0.45, 0.01\n , \n0.55, 0.02\n", (0.45, 0.55), (0.01, 0.02), "um"),
    ],
)
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, content: str, center: tuple[float, ...], width: tuple[float, ...], unit: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    table = read_table(str(path))
    np.testing.assert_allclose(table.wavelength, center)
    assert table.fwhm is not None
    np.testing.assert_allclose(table.fwhm, width)
    assert table.unit == unit


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"band,name\n1,red\n", "no column center_nm"),
        (b"", "no column center_nm"),
        (b"center_nm\nred\n", "must be a number"),
        (b"center_nm,fwhm_nm\n450\n", "row 1 has 1 values for 2 columns"),
        (b"\xff\xfe\x00center", "not a text file"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputRejected, match=sentence):
        read_table(str(path))


@pytest.mark.parametrize("content", ["root:hunter2\nx\n", "center_nm\nhunter2\n", "center_nm,fwhm_nm\n450,hunter2\n"])
def test_no_message_quotes_what_a_table_holds(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(InputRejected) as told:
        read_table(str(path))
    assert "hunter2" not in str(told.value)


def test_missing_table_is_refused() -> None:
    with pytest.raises(InputRejected, match="no such band table"):
        read_table("nowhere.csv")


def test_nm_per() -> None:
    assert (nm_per("Micrometers"), nm_per(" nm "), nm_per("parsec"), nm_per(None)) == (1e3, 1.0, None, None)
