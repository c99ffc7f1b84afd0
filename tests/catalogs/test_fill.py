"""Fill that no file declares is masked and told: margins, blocks and columns of one value in all bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from hyperfuse.catalogs.formats import stored
from hyperfuse.catalogs.sensors import Source, enmap
from tests.catalogs.sensors.test_generic import by_band, envi, opened, whole, write
from tests.products.enmap import enmap as enmap_product
from tests.products.enmap import metadata

SHAPE = (4, 60, 60)


def ground(dtype: str = "float32") -> np.ndarray:
    """Reflectance, or counts of it, that differ everywhere."""
    values = np.random.default_rng(5).uniform(0.05, 0.6, SHAPE)
    return (values if dtype.startswith("float") else np.round(values * 1e4)).astype(dtype)


def places() -> dict[str, np.ndarray]:
    rows, cols = np.mgrid[: SHAPE[1], : SHAPE[2]]
    return {
        "margin": rows + cols < 40,
        "block": (abs(rows - 30) < 5) & (abs(cols - 30) < 5),
        "column": cols == 17,
    }


@pytest.mark.parametrize("place", list(places()))
@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", 0), ("float32", -9999), ("float32", 0.123), ("float64", 0.1), ("int16", 0), ("int16", -9999),
     ("uint16", 65535), ("uint16", 0), ("uint16", 55537), ("int32", -2147483648)],
)  # fmt: skip
def test_undeclared_fill_is_masked_and_told(tmp_path: Path, place: str, dtype: str, value: float) -> None:
    data = ground(dtype)
    fill = places()[place]
    data[:, fill] = value
    data[1, 50, 50] = value  # one band alone is data
    path = write(tmp_path / "a.tif", data, tags=by_band())
    scene = opened(path)
    with rasterio.open(path) as oracle:
        raw = oracle.read()
    scale = 1 if dtype.startswith("float") else 1e-4
    expected = np.where((raw == raw[:1]).all(axis=0), np.nan, raw * scale)
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    np.testing.assert_allclose(scene.read((slice(10, 40), slice(5, 45)), [2]), expected[[2], 10:40, 5:45], rtol=1e-6)
    told = [note for note in scene.notes if "in all bands" in note]
    assert len(told) == 1
    assert told[0].startswith(f"{100 * fill.mean():.1f} % of the pixels are {np.float32(value):g} in all bands")
    assert "fill=keep" in told[0]
    kept = opened(path, fill="keep", scale=scale)  # samples of fill would decide otherwise
    np.testing.assert_allclose(whole(kept), raw * scale, rtol=1e-6)
    assert not any("in all bands" in note for note in kept.notes)


@pytest.mark.parametrize("nodata", [float("nan"), -1.0])
def test_fill_beside_a_declared_nodata_value(tmp_path: Path, nodata: float) -> None:
    data = ground()
    data[:, 20:30, 20:30] = -9999
    data[:, 5, :] = nodata
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band(), nodata=nodata))
    hole = np.zeros(SHAPE[1:], bool)
    hole[20:30, 20:30] = hole[5] = True
    np.testing.assert_array_equal(np.isnan(whole(scene)), np.broadcast_to(hole, SHAPE))
    assert any("2.8 % of the pixels are -9999 in all bands" in note for note in scene.notes)


def test_fill_under_a_scale_per_band(tmp_path: Path) -> None:
    data = ground("int16")
    data[:, :10] = 0
    scales, offsets = [1e-4, 2e-4, 1e-4, 1e-4], [0.1, 0.0, 0.0, 0.0]
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band(), scales=scales, offsets=offsets))
    expected = data * np.array(scales)[:, None, None] + np.array(offsets)[:, None, None]
    expected[:, :10] = np.nan
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-5)


def test_a_constant_bad_band_hides_no_fill(tmp_path: Path) -> None:
    data = ground("int16")
    data[:, :10] = 0
    data[2] = 1
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band()))
    assert np.isnan(whole(scene)[[0, 1, 3], :10]).all()
    assert scene.bands.good.tolist() == [True, True, False, True]


def test_minus_9999_in_a_type_without_a_sign(tmp_path: Path) -> None:
    data = ground("uint16")
    data[:, 20:40, 20:40] = np.array(-9999).astype(np.uint16)
    header = "wavelength units = Nanometers\nwavelength = {450, 550, 650, 850}\nreflectance scale factor = 10000"
    scene = opened(envi(tmp_path / "a.img", data, header=header, more="data ignore value = -9999\n"))
    assert np.isnan(whole(scene)[:, 20:40, 20:40]).all()
    assert np.isfinite(whole(scene)).mean() == pytest.approx(1 - 400 / 3600)
    assert any("55537 in all bands" in note for note in scene.notes)


def test_grey_and_dark_pixels_of_bytes_are_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(1, 255, SHAPE).astype("uint8")
    grey = rng.uniform(size=SHAPE[1:]) < 0.5
    data[:, grey] = rng.integers(1, 255, int(grey.sum()))
    scene = opened(write(tmp_path / "a.tif", data, photometric="minisblack", alpha="no"), wavelengths="450,550,650,850")
    np.testing.assert_array_equal(whole(scene), data)


def test_a_dark_band_of_its_own_is_data(tmp_path: Path) -> None:
    data = ground("int16")
    data[3, 20:40, 20:40] = 0  # water in the near infrared
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band()))
    np.testing.assert_allclose(whole(scene), data * 1e-4, rtol=1e-6)


def test_fill_of_a_large_image_shows_in_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SAMPLE_VALUES", 1000)
    data = np.random.default_rng(5).uniform(0.05, 0.6, (4, 700, 600)).astype("float32")
    data[:, :, :6] = 0
    data[:, 690:] = -1
    data[:, 300:330, 300:303] = -5
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band(), tiled=True, blockxsize=64, blockysize=64))
    block = whole(scene)
    assert np.isnan(block[:, :, :6]).all()
    assert np.isnan(block[:, 690:]).all()
    assert any("are 0 in all bands" in note for note in scene.notes)
    # Less than the small share: left alone.
    assert (block[:, 300:330, 300:303] == -5).all()


def test_enmap_l1c_without_its_class_layer(tmp_path: Path) -> None:
    folder = enmap_product(
        tmp_path / "l1c", level="L1C", xml=metadata("L1C").replace("<backgroundValue>-32768", "<backgroundValue>0")
    )
    for layer in folder.glob("*QL_QUALITY*"):
        layer.unlink()
    path = next(folder.glob("*SPECTRAL_IMAGE*"))
    with rasterio.open(path) as file:
        data, profile = file.read(), file.profile
    data[data == -32768] = 0
    data[:, :8] = 0
    profile.update(nodata=None)
    path.unlink()
    with rasterio.open(path, "w", **profile) as file:
        file.write(data)
    scene = enmap.open_scene(Source(uri=str(folder)))
    values = whole(scene)[scene.bands.good]
    empty = (data == 0).all(axis=0)
    assert empty[:8].all()
    assert np.isnan(values[:, empty]).all()
    assert np.isfinite(values[:, ~empty]).any()
