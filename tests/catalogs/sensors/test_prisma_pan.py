"""The panchromatic image of PRISMA: in the file of the cubes, on their grid, and the MSI where one file is all there is."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from pyproj import Transformer

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.flows.cli import main
from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.plan import open_pair
from tests.products import prisma as built
from tests.synthetic import whole


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built.prisma(tmp_path_factory.mktemp("prisma") / "PRS_L2D_STD_20240402102837_20240402102842_0001.he5")


def test_values_and_masks_by_h5py(product: Path) -> None:
    scene = open_scene(Source(uri=str(product), sensor="prisma_pan"))
    with h5py.File(product) as file:
        counts = file["HDFEOS/SWATHS/PRS_L2D_PCO/Data Fields/Cube"][:].astype(float)
        codes = file["HDFEOS/SWATHS/PRS_L2D_PCO/Data Fields/PIXEL_L2_ERR_MATRIX"][:]
        low, high = (float(file.attrs[f"L2ScalePan{end}"]) for end in ("Min", "Max"))
    expected = np.where((codes == 4) | ((counts == 0) & (codes == 0)), np.nan, low + counts * (high - low) / 65535)
    np.testing.assert_allclose(whole(scene)[0], expected, rtol=1e-6, atol=1e-7)
    assert np.isnan(expected).sum() == built.PER_PIXEL * expected.shape[1] + 2
    assert (scene.quantity, scene.bands.center_nm.tolist(), scene.bands.fwhm_nm.tolist()) == (
        "reflectance",
        [550.0],
        [300.0],
    )
    assert scene.gsd_m == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("corners", ["centers", "edges"])
def test_its_pixels_lie_where_its_latitudes_and_longitudes_say(tmp_path: Path, corners: str) -> None:
    path = built.prisma(tmp_path / "a.he5", corners=corners)
    scene = open_scene(Source(uri=str(path), sensor="prisma_pan"))
    with h5py.File(path) as file:
        lat, lon = (file[f"HDFEOS/SWATHS/PRS_L2D_PCO/Geolocation Fields/{n}"][:] for n in ("Latitude", "Longitude"))
    x, y = Transformer.from_crs(4326, built.EPSG, always_xy=True).transform(lon[33, 71], lat[33, 71])
    np.testing.assert_allclose(scene.geobox.affine @ (71.5, 33.5), (x, y), atol=1.0)  # float32 degrees: half a meter


def test_one_file_is_a_pair(product: Path) -> None:
    pair = open_pair(load_config(None, {"hsi.uri": str(product), "msi.uri": str(product), "output": "p"}))
    assert (pair.hsi.sensor, pair.msi.sensor) == ("prisma", "prisma_pan")
    assert pair.gsd_ratio == pytest.approx(6.0, rel=1e-3)


def test_fuse_of_one_file_gives_pixels_of_5_m(product: Path, tmp_path: Path) -> None:
    given = [
        "--method",
        "gsa",
        "--set",
        "align.estimate=false",
        "--set",
        "quality.gate=off",
        "--set",
        "publish.formats=[zarr]",
    ]
    assert main(["fuse", str(product), "--output", str(tmp_path / "p"), *given]) == 0
    import hyperfuse

    with hyperfuse.open(tmp_path / "p").open() as cube:
        step = np.diff(cube["x"])
        np.testing.assert_allclose(step, 5.0)
        assert cube.sizes["wavelength"] == 6
        assert float(np.isfinite(cube["reflectance"]).mean()) > 0.7


def test_a_scene_that_holds_one_image_is_no_pair(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fuse", "synthetic:hsi?size=80", "--output", str(tmp_path / "p")]) == 3
    assert "is given for both images, and a scene of synthetic holds one" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    away = built.prisma(tmp_path / "away.he5", pan_shift_px=9.0)
    with pytest.raises(InputRejected, match=r"9\.\d px away from where its corners put it, expected at most 2"):
        open_scene(Source(uri=str(away), sensor="prisma_pan"))
    cut = built.prisma(tmp_path / "cut.he5")
    with h5py.File(cut, "r+") as file:
        del file["HDFEOS/SWATHS/PRS_L2D_PCO/Data Fields/Cube"]
        file["HDFEOS/SWATHS/PRS_L2D_PCO/Data Fields/Cube"] = built.pan_counts()[:-1]
    with pytest.raises(InputRejected, match="expected a whole multiple of the 20 x 26 pixels of the cubes"):
        open_scene(Source(uri=str(cut), sensor="prisma_pan"))
    without = built.prisma(tmp_path / "without.he5")
    with h5py.File(without, "r+") as file:
        del file["HDFEOS/SWATHS/PRS_L2D_PCO"]
    with pytest.raises(InputRejected, match="holds no panchromatic image"):
        open_scene(Source(uri=str(without), sensor="prisma_pan"))
    torn = tmp_path / "torn.he5"
    torn.write_bytes(built.prisma(tmp_path / "whole.he5").read_bytes()[:20_000])
    with pytest.raises(InputRejected):
        open_scene(Source(uri=str(torn), sensor="prisma_pan"))
