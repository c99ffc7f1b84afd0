"""The NEON reader: planted counts, and a real cut."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, neon, open_scene
from tests import DATA
from tests.products import neon as built
from tests.synthetic import whole

REAL = DATA / "neon_sjer_h5" / "ex.h5"


@pytest.mark.parametrize("reference", [(1, 1), (4, 7)])
def test_planted_values_on_the_grid_of_the_reference_pixel(tmp_path, reference):
    scene = open_scene(Source(uri=str(built.neon(tmp_path / "a.h5", reference=reference))))
    assert scene.sensor == "neon"
    assert tuple(scene.geobox.affine) == tuple(built.GRID)
    assert scene.geobox.crs.epsg == 32611
    want = built.counts().transpose(2, 0, 1) / 10000
    want[(slice(None), *built.HOLE)] = np.nan
    np.testing.assert_allclose(whole(scene), want, rtol=1e-6)
    assert scene.bands.good.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(scene.bands.fwhm_nm, built.FWHM_NM)


def test_refusals(tmp_path):
    with pytest.raises(InputRejected, match="its grid is rotated"):
        open_scene(Source(uri=str(built.neon(tmp_path / "a.h5", rotation=", rotation=12.5"))))
    path = built.neon(tmp_path / "b.h5")
    with h5py.File(path, "r+") as file:
        group = file["HARV/Reflectance"]
        del group["Reflectance_Data"]
        group["Reflectance_Data"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "HARV/Reflectance/Reflectance_Data")
    assert not neon.accepts(str(path))
    with pytest.raises(InputRejected, match="is a link to another file"):
        open_scene(Source(uri=str(path), sensor="neon"))


@pytest.mark.skipif(not REAL.is_file(), reason="real imagery is absent: neon_sjer_h5 (see the README)")
def test_a_real_cut():
    scene = open_scene(Source(uri=str(REAL)))
    assert (scene.sensor, scene.cube.shape) == ("neon", (426, 30, 30))
    assert tuple(scene.geobox.affine)[:6] == (1, 0, 257000, 0, -1, 4112000)
    assert scene.geobox.crs.epsg == 32611
    assert scene.bands.center_nm[0] == pytest.approx(383.534, abs=1e-3)
    with h5py.File(REAL) as file:
        counts = file["SJER/Reflectance/Reflectance_Data"][...]
    np.testing.assert_allclose(whole(scene), counts.transpose(2, 0, 1) / 10000, rtol=1e-6)
