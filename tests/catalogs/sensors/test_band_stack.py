"""Bands that lie apart, in variables or in files: compared with xarray and rasterio."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from pyproj import CRS

from hyperfuse.catalogs.errors import InputRejected, MetadataMissing
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.catalogs.stac.survey import survey
from tests.products.packing import planted, raster
from tests.synthetic import whole

GRID = Affine(10, 0, 400000, 0, -10, 5800000)
BANDS = {"blue": 492.7, "green": 559.8, "red": 664.6, "nir": 832.8}
COUNTS = planted(4, 20, 24, "uint16")
NM = ",".join(map(str, BANDS.values()))


def stack(*, dates=1, told=True, **variables):
    """As odc-stac gives it: a variable per band over (time, y, x), nodata as an attribute, a scene classification beside."""
    coords = {"y": 5800000 - 10 * (np.arange(20) + 0.5), "x": 400000 + 10 * (np.arange(24) + 0.5),
              "time": np.array(["2024-05-01", "2024-05-11"], "M8[ns]")[:dates],
              "spatial_ref": ((), 32633, {"crs_wkt": CRS(32633).to_wkt()})}  # fmt: skip
    dataset = xr.Dataset(coords=coords)
    for number, (name, nm) in enumerate(BANDS.items()):
        data = np.stack([COUNTS[number] + 7 * date for date in range(dates)])
        data[:, 3, 4] = 0
        attrs = {"nodata": 0, "grid_mapping": "spatial_ref"} | ({"wavelength": nm / 1e3} if told else {})
        dataset[name] = (("time", "y", "x"), data, attrs)
    scl = np.full((dates, 20, 24), 4, "uint8")
    dataset["scl"] = (("time", "y", "x"), scl, {"nodata": 0, "grid_mapping": "spatial_ref"})
    return dataset.assign(variables)


def written(dataset, path):
    if path.suffix == ".nc":
        dataset.to_netcdf(path, encoding={name: {"_FillValue": None} for name in dataset.data_vars})
    else:
        dataset.to_zarr(path, zarr_format=2 if "v2" in path.name else 3, consolidated=False)
    return str(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.nc", "v2.zarr", "v3.zarr"])
def test_bands_as_variables(tmp_path, name):
    uri = written(stack(), tmp_path / name)
    scene = open_scene(Source(uri=uri))
    np.testing.assert_allclose(scene.bands.center_nm, list(BANDS.values()), rtol=1e-6)
    assert scene.bands.names == tuple(BANDS)
    with xr.open_dataset(uri, engine="netcdf4" if name.endswith("nc") else "zarr", decode_coords="all") as oracle:
        for band, values in zip(BANDS, whole(scene), strict=True):
            expected = oracle[band].isel(time=0).to_numpy().astype(float)
            np.testing.assert_allclose(values, np.where(expected == 0, np.nan, expected * 1e-4), rtol=1e-6)
        assert scene.geobox.affine.c == float(oracle.x[0]) - 5
    assert any("not used: the variables scl" in note for note in scene.notes)


def test_bands_and_date_that_are_chosen(tmp_path):
    uri = written(stack(dates=2), tmp_path / "a.nc")
    with pytest.raises(InputRejected, match=r"holds 2 dates .* --set hsi.variable=@2024-05-01"):
        open_scene(Source(uri=uri))
    assert open_scene(Source(uri=uri, variable="@2024-05-11")).bands.names == tuple(BANDS)
    scene = open_scene(Source(uri=uri, variable="red,green@2024-05-11"))
    # Bands are sorted by wavelength, as of every scene.
    assert scene.bands.names == ("green", "red")
    with xr.open_dataset(uri) as oracle:
        expected = oracle["green"].sel(time="2024-05-11").to_numpy().squeeze().astype(float)
    np.testing.assert_allclose(whole(scene)[0], np.where(expected == 0, np.nan, expected * 1e-4), rtol=1e-6)
    with pytest.raises(InputRejected, match="no image 'swir' in it; arrays with rows and columns: blue, green"):
        open_scene(Source(uri=uri, variable="red,swir@2024-05-11"))


def test_scale_and_offset_of_each_band(tmp_path):
    dataset = stack()
    for number, name in enumerate(BANDS):
        dataset[name].attrs |= {"scale_factor": 1e-4 * (number + 1), "add_offset": -0.1 * number}
    scene = open_scene(Source(uri=written(dataset, tmp_path / "a.nc")))
    with xr.open_dataset(tmp_path / "a.nc", mask_and_scale=True) as oracle:
        for band, values in zip(BANDS, whole(scene), strict=True):
            expected = oracle[band].isel(time=0).to_numpy()
            keep = np.isfinite(values)
            assert (~keep).sum() == 1
            np.testing.assert_allclose(values[keep], expected[keep], rtol=1e-5)


def test_names_of_bands_are_no_wavelengths(tmp_path):
    """B02 is blue of Sentinel-2 at 492 nm, and of Landsat in HLS at 482 nm."""
    uri = written(stack(told=False), tmp_path / "a.nc")
    with pytest.raises(
        MetadataMissing, match=r"no wavelengths .* NM are the centers of the bands blue, green, red, nir"
    ) as told:
        open_scene(Source(uri=uri))
    assert told.value.settings == ("wavelengths=NM,NM,NM,NM",)
    np.testing.assert_allclose(open_scene(Source(uri=uri, wavelengths=NM)).bands.center_nm, list(BANDS.values()))


def test_words_that_tell_a_wavelength(tmp_path):
    """As the long names of the Zarr products of Sentinel-2 have them."""
    dataset = stack(told=False)
    for name, nm in BANDS.items():
        dataset[name].attrs["long_name"] = f"BOA reflectance from MSI acquisition at spectral band {name} {nm} nm"
    scene = open_scene(Source(uri=written(dataset, tmp_path / "a.nc")))
    np.testing.assert_allclose(scene.bands.center_nm, list(BANDS.values()))


def test_variables_that_do_not_go_together(tmp_path):
    dataset = stack()
    dataset["nir"].attrs["valid_max"] = 9000
    uri = written(dataset, tmp_path / "a.nc")
    with pytest.raises(InputRejected, match="nir declares another valid range than blue"):
        open_scene(Source(uri=uri))
    assert open_scene(Source(uri=uri, variable="blue,green,red")).bands.names == ("blue", "green", "red")


def files(folder, names=("B02", "B03", "B8A", "B11")):
    for number, name in enumerate(names):
        raster(folder / f"S2_20240501_{name}_{name}.tif", COUNTS[number], GRID, "EPSG:32633", nodata=0)
    (folder / "S2_20240501_B02_B02.txt").write_text("notes")
    return str(folder / "S2_*_{band}_{band}.tif")


def test_a_file_for_each_band(tmp_path, monkeypatch):
    uri = files(tmp_path / "a")
    scene = open_scene(Source(uri=uri, wavelengths="492.7,559.8,864.7,1613.7"))
    assert scene.bands.names == ("B02", "B03", "B8A", "B11")
    for name, values in zip(scene.bands.names, whole(scene), strict=True):
        with rasterio.open(tmp_path / "a" / f"S2_20240501_{name}_{name}.tif") as oracle:
            np.testing.assert_allclose(values, oracle.read(1) * 1e-4, rtol=1e-6)
            assert scene.geobox.affine == oracle.transform
    some = open_scene(Source(uri=uri, variable="B11,B03", wavelengths="1613.7,559.8"))
    assert some.bands.names == ("B03", "B11")
    np.testing.assert_array_equal(whole(some), whole(scene)[[1, 3]])
    item = survey(Source(uri=uri, wavelengths="492.7,559.8,864.7,1613.7"), role="msi")
    assert item.fingerprint is not None
    assert item.fingerprint.size == sum(p.stat().st_size for p in (tmp_path / "a").glob("*.tif"))
    monkeypatch.chdir(tmp_path)
    assert open_scene(Source(uri="./a/S2_*_{band}_{band}.tif", variable="B03", wavelengths="560")).bands.names == (
        "B03",
    )


def test_files_that_are_no_bands_of_one_image(tmp_path):
    uri = files(tmp_path / "a")
    with pytest.raises(MetadataMissing, match="of the bands B02, B03, B8A, B11 in nanometers, in file order"):
        open_scene(Source(uri=uri))
    with pytest.raises(InputRejected, match="no image of the band B04 matches it; there are B02, B03, B11, B8A"):
        open_scene(Source(uri=uri, variable="B02,B04"))
    with pytest.raises(InputRejected, match="no image matches it; there are none"):
        open_scene(Source(uri=str(tmp_path / "b" / "{band}.tif")))
    raster(tmp_path / "a" / "S2_20240511_B02_B02.tif", COUNTS[0], GRID, "EPSG:32633")
    with pytest.raises(
        InputRejected, match=r"S2_20240501_B02_B02.tif and S2_20240511_B02_B02.tif are both the band B02"
    ):
        open_scene(Source(uri=uri))
    raster(tmp_path / "c" / "B02.tif", COUNTS[0], GRID, "EPSG:32633")
    raster(tmp_path / "c" / "B11.tif", COUNTS[3][::2, ::2], GRID @ Affine.scale(2), "EPSG:32633")
    with pytest.raises(InputRejected, match="B11 has 10 x 12 pixels at another place than the 20 x 24 of B02"):
        open_scene(Source(uri=str(tmp_path / "c" / "{band}.tif"), wavelengths="492,1614"))
    raster(tmp_path / "d" / "B02.tif", COUNTS[:2], GRID, "EPSG:32633")
    with pytest.raises(InputRejected, match=r"B02.tif: holds 2 bands, expected one in each file"):
        open_scene(Source(uri=str(tmp_path / "d" / "{band}.tif"), wavelengths="492"))
