"""Measured responses: areas by closed forms, tables and what is wrong with them, and what becomes of the SRF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfuse.catalogs.bands import SIGMA_PER_FWHM, Bands, ResponseCurve
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.curves import read_curves, with_curves
from hyperfuse.catalogs.sensors import Source, open_scene
from tests import DATA
from tests.synthetic import SMALL

TRIANGLE = ResponseCurve(wavelength_nm=np.array([500.0, 550.0, 600.0]), response=np.array([0.0, 1.0, 0.0]))
HSI = Bands.sort(np.arange(400.0, 1000.0, 5.0), unit="nm", of="hsi", fwhm=np.full(120, 6.0))


def msi(*curves: ResponseCurve, centers: tuple[float, ...] = (550.0,)) -> Bands:
    return replace(Bands.sort(centers, unit="nm", of="msi", fwhm=[50.0] * len(centers)), curves=curves)


def test_the_area_of_a_triangle():
    low, high = np.array([400.0, 500.0, 550.0, 525.0, 590.0]), np.array([500.0, 550.0, 700.0, 575.0, 590.0])
    np.testing.assert_allclose(TRIANGLE.area(low, high), [0, 0.5, 0.5, 0.75, 0], atol=1e-12)


@given(st.lists(st.floats(450, 650), min_size=2, max_size=6, unique=True))
def test_areas_add_up(cuts):
    cuts = np.sort(cuts)
    parts = TRIANGLE.area(cuts[:-1], cuts[1:])
    np.testing.assert_allclose(parts.sum(), TRIANGLE.area(cuts[:1], cuts[-1:])[0], atol=1e-12)


def test_a_measured_gaussian_is_the_gaussian_of_the_table():
    nm = np.arange(400.0, 700.0, 0.5)
    curve = ResponseCurve(wavelength_nm=nm, response=7 * np.exp(-0.5 * ((nm - 550) / (50 * SIGMA_PER_FWHM)) ** 2))
    weights, coverage = HSI.srf(msi(curve))
    table, covered = HSI.srf(replace(msi(curve), curves=None))
    np.testing.assert_allclose(weights, table, atol=4e-4)
    np.testing.assert_allclose(coverage, covered, atol=1e-3)


def test_weights_follow_the_curve_and_coverage_its_area():
    box = ResponseCurve(wavelength_nm=np.array([379.9, 380.0, 420.0, 420.1]), response=np.array([0.0, 1.0, 1.0, 0.0]))
    bands = msi(box, TRIANGLE, centers=(400.0, 550.0))
    weights, coverage = HSI.srf(bands)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    # The HSI begins at 397.5 nm: 22.5 of 40.1 nm of the box.
    assert coverage[0] == pytest.approx(22.55 / 40.1, abs=1e-3)
    np.testing.assert_allclose(weights[0, :4], 5 / 22.55, rtol=0.01)
    assert coverage[1] == pytest.approx(1)
    dark, less = HSI.mark_bad(HSI.center_nm == 550).srf(bands)
    assert dark[1, HSI.nearest(550)] == 0
    assert less[1] == pytest.approx(1 - TRIANGLE.area(np.array([547.5]), np.array([552.5]))[0])


def test_bands_keep_their_curves_through_json_and_selection():
    bands = msi(TRIANGLE, TRIANGLE, centers=(540.0, 560.0))
    again = Bands.from_json(bands.to_json())[[1]].mark_bad([False])
    assert again.curves is not None
    np.testing.assert_array_equal(again.curves[0].response, TRIANGLE.response)


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_table_is_read_by_name_or_by_order(tmp_path):
    path = table(
        tmp_path / "a.csv", "# measured\nwavelength_um,RED,Blue\n0.48,0,0\n0.45,0,0.9\n0.66,1,0\n0.42,0,0\n0.70,0,0\n"
    )
    curves = read_curves(path)
    assert list(curves) == ["red", "blue"]
    np.testing.assert_allclose(curves["blue"].wavelength_nm, [420, 450, 480, 660, 700])
    named = Bands.sort([665.0, 452.0], unit="nm", of="msi", names=["red", "blue"])
    ordered = Bands.sort([665.0, 452.0], unit="nm", of="msi", names=["one", "two"])
    for bands in (named, ordered):
        taken = with_curves(bands, path, of="msi").curves
        assert taken is not None
        assert [curve.response.argmax() for curve in taken] == [1, 3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nm,a\n500,1\n", "has 2 columns, expected one named wavelength_nm"),
        ("wavelength_nm\n500\n", "has 1 columns, expected one named wavelength_nm and one per band"),
        ("wavelength_nm,a\n500,x\n510,1\n", "every wavelength and response must be a number"),
        ("wavelength_nm,a\n500,-1\n510,1\n", "column 2: a response is negative"),
        ("wavelength_nm,a\n500,1\n500,1\n", "column 2: the wavelengths do not increase"),
        ("wavelength_nm,a\n500,1\n", "expected two or more"),
        ("wavelength_nm,a,b\n500,1,1\n600,1,1\n", "msi the bands 550.0 nm; expected one column for each"),
        ("wavelength_nm,a\n700,1\n800,1\n", "lies at 700-800 nm, its center in msi at 550 nm"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(tmp_path, text, told):
    with pytest.raises(InputRejected, match=told):
        with_curves(Bands.sort([550.0], unit="nm", of="msi"), table(tmp_path / "a.csv", text), of="msi")


@pytest.mark.parametrize(
    "text",
    ["root:x:0:hunter2\nbin:x:1\n", "wavelength_nm,hunter2\n500,hunter2\n600,1\n", "wavelength_nm,hunter2\n500,-1\n600,1\n",
     "wavelength_nm,hunter2,b\n500,1,1\n600,1,1\n"],
)  # fmt: skip
def test_no_message_quotes_what_a_file_holds(tmp_path, text):
    """A catalogue may name any file as a table, and messages go to logs, records and pages."""
    with pytest.raises(InputRejected) as told:
        with_curves(Bands.sort([550.0], unit="nm", of="msi"), table(tmp_path / "a.csv", text), of="msi")
    assert "hunter2" not in str(told.value)


def test_a_scene_takes_the_table_whoever_reads_it(tmp_path):
    uri = f"synthetic:msi?{SMALL}"
    bands = open_scene(Source(uri=uri)).bands
    rows = [
        f"{nm}," + ",".join(str(max(0.0, 1 - abs(nm - c) / 60)) for c in bands.center_nm) for nm in range(350, 2600, 5)
    ]
    path = table(
        tmp_path / "a.csv", "wavelength_nm," + ",".join(f"b{i}" for i in range(len(bands))) + "\n" + "\n".join(rows)
    )
    curves = open_scene(Source(uri=uri, responses=str(path))).bands.curves
    assert curves is not None
    assert len(curves) == len(bands)
    with pytest.raises(InputRejected, match="no such table of responses"):
        open_scene(Source(uri=uri, responses=str(tmp_path / "none.csv")))


@pytest.mark.skipif(not (DATA / "srf").exists(), reason="../shared/data is not beside the checkout")
def test_published_responses_of_sentinel_2_have_the_centers_of_the_table(tmp_path):
    """The operator's curves of B2, B3, B4 and B8, joined into one table of 1 nm, against their published centers."""
    blocks = (DATA / "srf" / "acolite" / "S2A_MSI_V4.txt").read_text().split("# S2A_MSI Band ")[1:]
    grid = np.arange(400.0, 1000.0)
    columns = {}
    for block in blocks:
        name, *lines = block.splitlines()
        pairs = np.array([line.split() for line in lines if line[:1].isdigit()], float)
        columns[f"B{name.strip()}"] = np.interp(grid, *pairs.T, left=0, right=0)
    wanted = {"B2": 492.7, "B3": 559.8, "B4": 664.6, "B8": 832.8}
    rows = [",".join(f"{columns[band][i]:g}" for band in wanted) for i in range(grid.size)]
    text = "\n".join(f"{nm:g},{row}" for nm, row in zip(grid, rows, strict=True))
    path = table(tmp_path / "s2.csv", f"wavelength_nm,{','.join(wanted)}\n{text}\n")
    bands = Bands.sort(list(wanted.values()), unit="nm", of="s2", names=list(wanted))
    fine = Bands.sort(np.arange(400.0, 1000.0, 2.0), unit="nm", of="hsi")
    weights, coverage = fine.srf(with_curves(bands, path, of="s2"))
    np.testing.assert_allclose(weights @ fine.center_nm, list(wanted.values()), atol=0.5)
    np.testing.assert_allclose(coverage, 1, atol=1e-3)
