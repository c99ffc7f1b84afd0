"""The generic reader: every format against an independent reading, every refusal by its sentence."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from pyproj import CRS

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats import raster as _rasters
from hyperfuse.catalogs.formats import stored as _stored
from hyperfuse.catalogs.scene import Cube, Scene
from hyperfuse.catalogs.sensors import Source, generic
from tests import DATA

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real imagery is not at {DATA}")

CENTERS = [450.0, 550.0, 650.0, 850.0]
CENTERS_UM = "wavelength units = Micrometers\nwavelength = {0.45, 0.55, 0.65, 0.85}"
GRID = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5800000.0)


def counts(shape: tuple[int, int, int] = (4, 12, 9), dtype: str = "int16") -> np.ndarray:
    """Values that differ everywhere, up to 9000."""
    return (
        np.random.default_rng(7).permutation(np.linspace(100, 9000, int(np.prod(shape)))).reshape(shape).astype(dtype)
    )


def write(path: Path, data: np.ndarray, *, tags: dict[int, dict[str, str]] | None = None, **options: Any) -> Path:
    """A raster as GDAL writes it; `tags` by band, 0 for the file."""
    ns = options.pop("ns", None)
    scales, offsets = options.pop("scales", None), options.pop("offsets", None)
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": GRID, "dtype": data.dtype.name, **options}
    with rasterio.open(path, "w", count=data.shape[0], height=data.shape[1], width=data.shape[2], **profile) as file:
        file.write(data)
        for band, values in (tags or {}).items():
            file.update_tags(band, ns=ns, **values)
        if scales:
            file.scales = scales
        if offsets:
            file.offsets = offsets
    return path


def by_band(unit: str = "Nanometers", factor: float = 1.0, **more: str) -> dict[int, dict[str, str]]:
    return {
        i + 1: {"wavelength": str(c * factor), "wavelength_units": unit, "fwhm": str(20 * factor), **more}
        for i, c in enumerate(CENTERS)
    }


def envi(path: Path, data: np.ndarray, *, more: str = "", interleave: str = "bsq", header: str = CENTERS_UM) -> Path:
    """An ENVI pair written by hand, so that the header is what a camera vendor would write."""
    axes = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    code = {"int16": 2, "float32": 4, "uint16": 12}[data.dtype.name]
    path.write_bytes(np.ascontiguousarray(data.transpose(axes)).astype(data.dtype.newbyteorder("<")).tobytes())
    n_bands, height, width = data.shape
    path.with_suffix(".hdr").write_text(
        f"ENVI\nsamples = {width}\nlines = {height}\nbands = {n_bands}\nheader offset = 0\nfile type = ENVI Standard\n"
        f"data type = {code}\ninterleave = {interleave}\nbyte order = 0\n"
        "map info = {UTM, 1, 1, 500000, 5800000, 10, 10, 33, North, WGS-84, units=Meters}\n"
        f"{header}\n{more}"
    )
    return path


def cube_set(data: np.ndarray, **attrs: Any) -> xr.Dataset:
    """A CF dataset of one cube, rows from south to north as NetCDF files often have them."""
    n_bands, height, width = data.shape
    x = GRID.c + GRID.a * (np.arange(width) + 0.5)
    y = (GRID.f + GRID.e * (np.arange(height) + 0.5))[::-1]
    cube = xr.DataArray(data[:, ::-1], dims=("wavelength", "y", "x"), attrs={"grid_mapping": "spatial_ref", **attrs})
    return xr.Dataset(
        {"cube": cube, "spatial_ref": ((), 0, {"crs_wkt": CRS.from_epsg(32633).to_wkt()})},
        coords={
            "x": x,
            "y": y,
            "wavelength": ("wavelength", np.array(CENTERS[:n_bands]) / 1000, {"units": "um"}),
            "fwhm": ("wavelength", np.full(n_bands, 20.0), {"units": "nm"}),
            "good_wavelengths": ("wavelength", np.array([1, 1, 0, 1][:n_bands], np.int8)),
        },
        attrs={"time_coverage_start": "2024-05-06T07:08:09Z"},
    )


def opened(path: Path | str, **options: Any) -> Scene:
    assert generic.accepts(str(path))
    return generic.open_scene(Source(uri=str(path), **options))


def whole(scene: Scene) -> np.ndarray:
    return scene.read((slice(0, scene.cube.shape[1]), slice(0, scene.cube.shape[2])))


def refused(path: Path | str, sentence: str, **options: Any) -> None:
    with pytest.raises(InputRejected, match=sentence):
        generic.open_scene(Source(uri=str(path), **options))


# Formats


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_geotiff_with_band_tags(tmp_path: Path, compress: str) -> None:
    data = counts((4, 40, 30))
    tags = {**by_band("Micrometers", 1e-3), 0: {"start_time": "2022-07-24T10:45:26"}}
    path = write(tmp_path / "a.tif", data, tags=tags, compress=compress, tiled=True, blockxsize=16, blockysize=16)
    scene = opened(path)
    assert isinstance(scene.cube, Cube)
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, 20)
    assert (scene.quantity, scene.unit, scene.cube.block) == ("reflectance", "1", (16, 16))
    assert scene.geobox.affine == GRID
    assert scene.time == datetime(2022, 7, 24, 10, 45, 26, tzinfo=UTC)
    assert "taken for reflectance x 10000" in scene.notes[0]
    np.testing.assert_allclose(whole(scene), data * 1e-4, rtol=1e-6)
    np.testing.assert_array_equal(scene.read((slice(5, 21), slice(3, 18)), [2, 0]), whole(scene)[[2, 0], 5:21, 3:18])
    assert scene.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_geotiff_with_imagery_domain(tmp_path: Path) -> None:
    tags = {i + 1: {"CENTRAL_WAVELENGTH_UM": str(c / 1000), "FWHM_UM": "0.015"} for i, c in enumerate(CENTERS)}
    scene = opened(write(tmp_path / "a.tif", counts(), tags=tags, ns="IMAGERY"))
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, 15)


def test_declared_scale_offset_nodata_and_bad_bands(tmp_path: Path) -> None:
    data = counts()
    data[:, 2, 3] = -99
    tags = by_band()
    tags[2]["bbl"] = "0"
    path = write(tmp_path / "a.tif", data, tags=tags, nodata=-99, scales=[2e-4] * 4, offsets=[-0.2] * 4)
    scene = opened(path)
    expected = np.where(data == -99, np.nan, data * 2e-4 - 0.2)
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-5, atol=1e-7)
    # Bands that have no flag in the file are good.
    assert scene.bands.good.tolist() == [True, False, True, True]
    overruled = opened(path, scale=1e-3, offset=0.0, nodata=int(data[0, 0, 0]), quantity="radiance")
    assert overruled.quantity == "radiance"
    assert np.isnan(whole(overruled)[0, 0, 0])
    assert whole(overruled)[0, 2, 3] == pytest.approx(-0.099)


def test_infinite_values_are_no_data(tmp_path: Path) -> None:
    data = counts(dtype="float32") / 1e4
    data[0, 0, 0], data[1, 1, 1] = np.inf, np.nan
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band()))
    assert scene.quantity == "reflectance"
    assert np.isnan(whole(scene)).sum() == 2


def test_float_samples_beyond_two_are_radiance(tmp_path: Path) -> None:
    scene = opened(write(tmp_path / "a.tif", counts(dtype="float32") / 100, tags=by_band()))
    assert (scene.quantity, scene.unit) == ("radiance", "unknown")
    assert "taken for radiance" in scene.notes[0]


def test_bytes_are_digital_numbers_and_alpha_is_a_mask(tmp_path: Path) -> None:
    data = (counts((4, 12, 9)) % 200 + 1).astype("uint8")
    data[3] = 255
    data[3, 4, 4] = 0
    scene = opened(write(tmp_path / "a.tif", data, photometric="RGB", alpha="yes"), wavelengths="650,550,450")
    assert (scene.quantity, scene.unit, scene.cube.shape) == ("digital_number", "DN", (3, 12, 9))
    expected = data[:3][::-1].astype("float32")
    expected[:, 4, 4] = np.nan
    np.testing.assert_array_equal(whole(scene), expected)


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("packed", [False, True])
def test_envi(tmp_path: Path, interleave: str, packed: bool) -> None:  # noqa: FBT001
    data = counts()
    header = (
        "wavelength units = Micrometers\nwavelength = {0.85, 0.45, 0.4843, 0.55}\n"
        "fwhm = {0.0152, 0.0148, 0.015, 0.016}\n"
        "bbl = {1, 1, 1, 0}\nreflectance scale factor = 5000\ndata ignore value = -99\n"
        f"acquisition time = 2020-01-02T03:04:05Z\nfile compression = {int(packed)}"
    )
    data[0, 0, 0] = -99
    path = envi(tmp_path / "a.dat", data, header=header, interleave=interleave)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    scene = opened(path)
    np.testing.assert_allclose(scene.bands.center_nm, [450, 484.3, 550, 850])  # GDAL's IMAGERY domain says 484
    np.testing.assert_allclose(scene.bands.fwhm_nm, [14.8, 15, 16, 15.2])
    assert scene.bands.good.tolist() == [True, True, False, True]
    assert scene.bands.source_band.tolist() == [1, 2, 3, 0]
    assert scene.time == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert scene.geobox.crs.epsg == 32633
    with rasterio.open(path, driver="ENVI") as oracle:
        expected = np.where(oracle.read() == -99, np.nan, oracle.read() / 5000)[[1, 2, 3, 0]]
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    np.testing.assert_array_equal(scene.read((slice(3, 7), slice(2, 9)), [3, 1]), whole(scene)[[3, 1], 3:7, 2:9])
    assert opened(path.with_suffix(".hdr")).digest == scene.digest
    assert isinstance(scene.cube.samples, _rasters.GzipSamples if packed else _rasters.RasterSamples)


@pytest.mark.parametrize("store", ["netcdf4", "netcdf3", "zarr3", "zarr2"])
def test_arrays(tmp_path: Path, store: str) -> None:
    data = counts()
    data[0, 0, 0] = -99
    dataset = cube_set(
        data, _FillValue=np.int16(-99), scale_factor=2e-4, add_offset=0.1, units="1", long_name="reflectance"
    )
    path = tmp_path / "a.bin"
    if store.startswith("zarr"):
        dataset.to_zarr(path, zarr_format=int(store[-1]), consolidated=False)
    else:
        dataset.to_netcdf(path, engine="netcdf4", format=store.upper() + ("_CLASSIC" if store == "netcdf3" else ""))
    scene = opened(path)
    np.testing.assert_allclose(whole(scene), np.where(data == -99, np.nan, data * 2e-4 + 0.1), rtol=1e-6)
    np.testing.assert_array_equal(scene.read((slice(3, 7), slice(2, 9)), [3, 0, 1]), whole(scene)[[3, 0, 1], 3:7, 2:9])
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, 20)
    assert scene.bands.good.tolist() == [True, True, False, True]
    np.testing.assert_allclose(scene.geobox.affine[:6], GRID[:6])
    assert scene.geobox.crs.epsg == 32633
    assert scene.time == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert (scene.quantity, scene.notes) == ("reflectance", ())
    assert pickle.loads(pickle.dumps(scene.cube)).shape == scene.cube.shape  # noqa: S301


def test_degrees_without_a_crs_and_a_time_axis(tmp_path: Path) -> None:
    data = counts()
    dataset = cube_set(data).drop_vars("spatial_ref").rename(x="lon", y="lat")
    dataset = dataset.assign_coords(
        lon=("lon", 13 + 1e-4 * np.arange(9), {"units": "degrees_east"}),
        lat=("lat", 52 + 1e-4 * np.arange(12), {"units": "degrees_north"}),
    )
    dataset["cube"].attrs = {}
    dataset["cube"] = dataset["cube"].expand_dims(time=[3.5])
    dataset["time"].attrs["units"] = "days since 2020-01-01"
    dataset.to_netcdf(tmp_path / "a.nc")
    scene = opened(tmp_path / "a.nc")
    assert scene.geobox.crs.epsg == 4326
    assert scene.time == datetime(2020, 1, 4, 12, tzinfo=UTC)
    assert "taken for EPSG:4326" in scene.notes[0]
    np.testing.assert_allclose(whole(scene), data * 1e-4, rtol=1e-6)


def test_one_of_several_variables(tmp_path: Path) -> None:
    dataset = cube_set(counts())
    dataset["other"] = dataset["cube"] * 2
    dataset["other"].attrs = dataset["cube"].attrs
    dataset.to_netcdf(tmp_path / "a.nc")
    refused(tmp_path / "a.nc", r"holds 2 images \(cube, other\).*hsi\.variable=NAME")
    refused(tmp_path / "a.nc", "no image 'third'", variable="third")
    assert opened(tmp_path / "a.nc", variable="other").cube.shape == (4, 12, 9)


def test_south_up_image_is_turned(tmp_path: Path) -> None:
    data = counts()
    upright = opened(write(tmp_path / "a.tif", data, tags=by_band()))
    south_up = Affine(10.0, 0.0, 500000.0, 0.0, 10.0, 5800000.0 - 120)
    turned = opened(write(tmp_path / "b.tif", data[:, ::-1], tags=by_band(), transform=south_up))
    assert turned.geobox == upright.geobox
    np.testing.assert_array_equal(whole(turned), whole(upright))
    part = (slice(1, 5), slice(2, 4))
    np.testing.assert_array_equal(turned.read(part), upright.read(part))


def test_rotated_grid_is_kept(tmp_path: Path) -> None:
    rotated = GRID @ Affine.rotation(30)
    assert opened(write(tmp_path / "a.tif", counts(), tags=by_band(), transform=rotated)).geobox.affine.almost_equals(
        rotated
    )


# Mosaics


def tiles(folder: Path, data: np.ndarray, *, shift: float = 0.0, **options: Any) -> str:
    """Three of the four quarters of an image; the second starts 2 columns early and holds other values there."""
    write(folder / "t1.tif", data[:, :6, :5], tags=by_band(), **options)
    early = data[:, :6, 3:].copy()
    early[:, :, :2] = 5
    write(folder / "t2.tif", early, tags=by_band(), transform=GRID @ Affine.translation(3 + shift, 0), **options)
    write(folder / "t3.tif", data[:, 6:, 5:], tags=by_band(), transform=GRID @ Affine.translation(5, 6), **options)
    return str(folder / "t*")


def test_mosaic(tmp_path: Path) -> None:
    data = counts()
    uri = tiles(tmp_path, data, nodata=-99)
    (tmp_path / "t1.txt").write_text("companions do not count")
    scene = opened(uri)
    expected = (data * 1e-4).astype("float32")
    expected[:, 6:, :5] = np.nan
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    np.testing.assert_array_equal(scene.read((slice(4, 8), slice(2, 7)), [1]), whole(scene)[[1], 4:8, 2:7])
    assert scene.geobox.affine == GRID
    assert scene.name == "t"
    (tmp_path / "t3.tif").unlink()
    assert opened(uri).digest != scene.digest


def test_files_of_macos_are_no_tiles(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band())
    (tmp_path / "._a.tif").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    np.testing.assert_array_equal(whole(opened(f"{tmp_path}/*.tif")), whole(opened(path)))


def test_holes_of_the_first_tile_are_filled_by_the_next(tmp_path: Path) -> None:
    data = counts()
    holed = data.copy()
    holed[:, 3:5] = -99
    write(tmp_path / "a1.tif", holed, tags=by_band(), nodata=-99)
    write(tmp_path / "a2.tif", data, tags=by_band(), nodata=-99)
    np.testing.assert_allclose(whole(opened(tmp_path / "a?.tif")), data * 1e-4, rtol=1e-6)


def test_tiles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    refused(tiles(tmp_path, counts(), shift=0.3), r"t2\.tif: lies 0\.300 px off the lattice")
    tiles(tmp_path, counts())
    write(tmp_path / "t4.tif", counts(), tags=by_band(), crs="EPSG:32632")
    refused(tmp_path / "t*.tif", r"t4\.tif: CRS differs")
    write(tmp_path / "t4.tif", counts(), tags=by_band(factor=1.01))
    refused(tmp_path / "t*.tif", r"t4\.tif: its 4 bands differ")
    (tmp_path / "t4.tif").write_bytes(b"")
    refused(tmp_path / "t*.tif", r"t4\.tif: is empty")


# Bands without signal


def test_dead_and_clipped_bands_are_not_good(tmp_path: Path) -> None:
    data = counts()
    data[1] = 300
    data[2, :8] = 9500
    scene = opened(write(tmp_path / "a.tif", data, tags=by_band()))
    assert scene.bands.good.tolist() == [True, False, False, True]
    assert any("1 of 4 bands are empty or constant and not used (in the file: 2)" in note for note in scene.notes)
    assert any("1 of 4 bands are clipped" in note for note in scene.notes)


def test_undeclared_nodata_is_noted(tmp_path: Path) -> None:
    data = counts()
    data[:, :2] = -9999
    assert any("are -9999" in note for note in opened(write(tmp_path / "a.tif", data, tags=by_band())).notes)


def test_half_written_file_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.tif", np.zeros((4, 12, 9), "int16"), tags=by_band()), "written only in part")


@pytest.mark.parametrize("big", ["NO", "YES"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_blocks_that_were_never_written(tmp_path: Path, big: str, endian: str) -> None:
    options = {
        "tiled": True,
        "blockxsize": 16,
        "blockysize": 16,
        "SPARSE_OK": True,
        "BIGTIFF": big,
        "ENDIANNESS": endian,
    }
    data = counts((4, 32, 32))
    data[:, :16, :16] = 0
    path = write(tmp_path / "a.tif", data, tags=by_band(), **options)
    refused(path, r"a\.tif: 25\.0 % of its blocks were never written and no nodata value is declared")
    scene = opened(path, nodata=0)
    assert "25.0 % of the blocks were never written: no data" in scene.notes[0]
    np.testing.assert_allclose(whole(scene), np.where(data == 0, np.nan, data * 1e-4), rtol=1e-6)


def test_large_image_is_sampled_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stored, "SAMPLE_VALUES", 1000)
    data = counts((4, 300, 200))
    data[1] = 0
    path = write(tmp_path / "a.tif", data, tags=by_band())
    scene = opened(path)
    assert scene.bands.good.tolist() == [True, False, True, True]
    values, complete = _stored.sample(scene.cube)
    assert (values.shape, complete) == ((4, 16 * 64 * 64), False)


# Refusals


def test_wavelengths_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts())
    refused(path, r"a\.tif: no wavelengths in the file of 4 bands; add --set wavelengths=NM,NM,NM,NM to the command")
    refused(path, "has 4 bands, but 450,550 gives 2 wavelengths", wavelengths="450,550")
    table = tmp_path / "t.csv"
    table.write_text("center_um,fwhm_um\n" + "\n".join(f"{c / 1000},0.01" for c in CENTERS))
    scene = opened(path, wavelengths=str(table))
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, 10)


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        (by_band("Nanometers", 1e-3), "0.45 to 0.85 in Nanometers are not 300-15000 nm"),
        (by_band("Micrometers"), "450 to 850 in Micrometers are not"),
        (by_band(fwhm="0"), "FWHM of band 1 is 0 nm"),
        (by_band(fwhm="wide"), "correct the header or give a table"),
        (by_band() | {3: {"fwhm": "5"}}, "1 of 4 wavelengths are missing"),
    ],
)
def test_absurd_wavelengths_are_refused(tmp_path: Path, tags: dict[int, dict[str, str]], sentence: str) -> None:
    refused(write(tmp_path / "a.tif", counts(), tags=tags), sentence)


def test_crs_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band(), crs=None)
    refused(
        path,
        r"a\.tif: no CRS in the file of 4 bands; add --set crs=EPSG:CODE to the command, of a pair with hsi\. or msi\.",
    )
    refused(path, "is not a CRS that PROJ knows", crs="EPSG:nonsense")
    assert opened(path, crs="EPSG:32618").geobox.crs.epsg == 32618


def test_all_that_is_missing_is_asked_for_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts(), crs=None)
    refused(
        path,
        r"a\.tif: no wavelengths, no CRS in the file of 4 bands; add --set wavelengths=NM,NM,NM,NM --set crs=EPSG:CODE to the command",
    )
    assert opened(path, crs="EPSG:32633", wavelengths="450,550,650,850").cube.shape == (4, 12, 9)


def test_georeference_is_asked_for(tmp_path: Path) -> None:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = write(tmp_path / "a.tif", counts(), tags=by_band(), transform=Affine.identity())
    refused(path, r"a\.tif: no georeference")


def test_vrt_named_tif_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_text("<VRTDataset rasterXSize='9' rasterYSize='12'></VRTDataset>")
    assert not generic.accepts(str(path))
    refused(path, r"a\.tif: is a GDAL virtual raster, expected GeoTIFF")


def test_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"")
    assert not generic.accepts(str(path))
    refused(path, r"a\.tif: is empty \(0 bytes\)")
    refused(tmp_path / "b.tif", "no such file")
    refused(tmp_path / "*.bsq", "no image matches")
    refused(tmp_path, "looks like a folder of TIFF files")


@pytest.mark.parametrize("keep", [4, 7, 9, 100, 0.5, 0.999])
def test_truncated_geotiff_is_refused(tmp_path: Path, keep: float) -> None:
    path = write(
        tmp_path / "a.tif",
        counts((4, 64, 64)),
        tags=by_band(),
        compress="deflate",
        tiled=True,
        blockxsize=16,
        blockysize=16,
    )
    # GDAL opens half the file; of 99.9 % it loses the tag with wavelengths and scale, with a mere warning.
    path.write_bytes(path.read_bytes()[: int(keep if keep > 1 else path.stat().st_size * keep)])
    refused(path, r"a\.tif: parts of it lie beyond its end", wavelengths="450,550,650,850")


def test_file_truncated_after_opening_names_the_window(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts((4, 64, 64)), tags=by_band())
    scene = opened(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputRejected, match=r"a\.tif: rows 32-64, columns 0-64 cannot be read"):
        scene.read((slice(32, 64), slice(0, 64)))


def test_truncated_envi_is_refused(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts())
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, r"has 862 bytes, its header declares 864")
    path = envi(tmp_path / "b.img", counts(), more="file compression = 1\n")
    path.write_bytes(gzip.compress(path.read_bytes())[:-40])
    refused(path, r"b\.img: (rows 0-12, columns 0-9 cannot be read|GDAL cannot open)")


def test_envi_header_without_data_is_refused(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts())
    path.unlink()
    refused(tmp_path / "a.hdr", "header without its data file")


def test_absurd_sizes_are_refused_before_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts((1, 2, 2)), tags={1: by_band()[1]})
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=20_000_000, width=2, dtype="uint8", crs="EPSG:32633", transform=GRID,
        SPARSE_OK=True, tiled=True,
    ):  # fmt: skip
        pass
    refused(path, "declares 1 bands x 20000000 rows x 2 columns")


def test_absurd_zarr_is_refused_before_reading(tmp_path: Path) -> None:
    cube_set(counts()).to_zarr(tmp_path / "a.zarr", consolidated=False)
    metadata = tmp_path / "a.zarr/x/zarr.json"
    metadata.write_text(metadata.read_text().replace('"shape": [\n    9\n  ]', '"shape": [\n    900000000000\n  ]'))
    refused(tmp_path / "a.zarr", "declares a length of 900000000000")


def test_hdf5_that_reaches_for_other_files_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file.create_group("g")["away"] = h5py.ExternalLink("/etc/passwd", "/")
    refused(tmp_path / "link.h5", r"g/away is a link to another file \(/etc/passwd\)")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("d", (4,), "u1", external=[("/etc/passwd", 0, 4)])
    refused(tmp_path / "raw.h5", "d keeps its samples in another file")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4,), "u1")
        layout[:] = h5py.VirtualSource("other.h5", "d", (4,))
        file.create_virtual_dataset("d", layout)
    refused(tmp_path / "virtual.h5", "d is a virtual dataset")


def test_damaged_netcdf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    cube_set(counts()).to_netcdf(path)
    path.write_bytes(path.read_bytes()[:2000])
    refused(path, r"a\.nc: cannot be opened")


def test_damaged_zarr_chunk_names_the_window(tmp_path: Path) -> None:
    cube_set(counts()).to_zarr(tmp_path / "a.zarr", consolidated=False)
    chunk = next(p for p in sorted((tmp_path / "a.zarr/cube").rglob("*")) if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:20])
    refused(tmp_path / "a.zarr", r"a\.zarr: rows 0-12, columns 0-9 cannot be read")


def test_irregular_coordinates_are_refused(tmp_path: Path) -> None:
    dataset = cube_set(counts())
    x = dataset["x"].to_numpy().copy()
    x[3] += 4
    dataset.assign_coords(x=x).to_netcdf(tmp_path / "a.nc")
    refused(tmp_path / "a.nc", "coordinate x is not regular")


# Threads


def test_reads_from_several_threads_agree(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", counts((4, 64, 64)), tags=by_band(), compress="deflate")
    cube_set(counts((4, 64, 64))).to_netcdf(tmp_path / "a.nc")
    windows = [(slice(r, r + 16), slice(c, c + 16)) for r in range(0, 64, 16) for c in range(0, 64, 16)] * 3
    for name in ("a.tif", "a.nc"):
        scene = opened(tmp_path / name)
        image = whole(scene)
        with ThreadPoolExecutor(4) as pool:
            for (rows, cols), part in zip(windows, pool.map(scene.read, windows), strict=True):
                np.testing.assert_array_equal(part, image[:, rows, cols])


# Real data


@needs_data
def test_berlin_pair() -> None:
    folder = DATA / "berlin_urban_gradient/pairA"
    hsi = opened(folder / "EnMAP_BerlinUrbanGradient_raw244.bsq")
    msi = opened(folder / "HighResolution_BerlinUrbanGradient.hdr")
    assert hsi.cube.shape == (244, 80, 60)
    assert msi.cube.shape == (4, 660, 494)
    assert hsi.geobox.crs.epsg == msi.geobox.crs.epsg == 32633
    assert (hsi.quantity, msi.quantity) == ("reflectance", "reflectance")
    np.testing.assert_allclose(msi.bands.center_nm, [484.3, 558.4, 646.5, 804.6])
    np.testing.assert_allclose(msi.bands.fwhm_nm, [14.8, 15.2, 15.3, 16.2])
    assert hsi.bands.source_band.tolist() != list(range(244))  # VNIR and SWIR overlap
    # 986 nm is in the file twice (bands 88 and 98); no band is dead, the simulation runs through the water vapor.
    assert len(hsi.good_bands) == 243
    with rasterio.open(folder / "EnMAP_BerlinUrbanGradient_raw244.bsq", driver="ENVI") as oracle:
        np.testing.assert_allclose(whole(hsi), oracle.read()[hsi.bands.source_band] * 1e-4, rtol=1e-6)
    assert msi.gsd_m == pytest.approx(3.6, rel=1e-3)


@needs_data
def test_enmap_tiles_are_one_scene() -> None:
    scene = opened(DATA / "enmap_potsdam_tiles/*.tif")
    assert scene.cube.shape == (224, 64, 96)
    assert scene.time == datetime(2022, 7, 24, 10, 45, 26, tzinfo=UTC)
    assert sorted(scene.bands.source_band[~scene.bands.good] + 1) == [130, 131, 132, 133, 134, 135]
    image = whole(scene)[scene.bands.good]
    assert np.isfinite(image).mean() > 0.99
    for path in sorted((DATA / "enmap_potsdam_tiles").glob("*.tif")):
        with rasterio.open(path) as oracle:
            rows, cols = (round(v) for v in reversed(~scene.geobox.affine @ (oracle.transform.c, oracle.transform.f)))
            raw = oracle.read(masked=True)
        expected = (raw.filled(np.nan) * np.float32(1e-4))[scene.bands.source_band]
        part = scene.read((slice(rows, rows + 32), slice(cols, cols + 32)))
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-8)


@needs_data
def test_neon_without_crs_and_wavelengths() -> None:
    path = DATA / "neon_harv_pair/NEON_D01_HARV_DP3_726000_4699000_reflectance_crop.tif"
    table = str(DATA / "srf/derived/NEON_NIS_426_SJER2017.csv")
    refused(path, "no CRS in the file", wavelengths=table)
    refused(path, "no wavelengths in the file", crs="EPSG:32618")
    scene = opened(path, crs="EPSG:32618", wavelengths=table)
    assert scene.cube.shape == (426, 40, 40)
    assert scene.gsd_m == pytest.approx(1.0, rel=1e-3)
    clipped = scene.bands.center_nm[~scene.bands.good]
    # Clipped to 1.4998 in the water vapor: exactly where nothing reaches the ground.
    assert len(clipped) == 34
    assert np.all(((clipped > 1340) & (clipped < 1450)) | ((clipped > 1790) & (clipped < 1970)))


@pytest.mark.parametrize("setting", ["mask", "bands"])
def test_settings_of_products_are_refused(tmp_path: Path, setting: str) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band())
    with pytest.raises(UsageError, match=f"has no {setting} to choose"):
        generic.open_scene(Source(uri=str(path), **{setting: "none"}))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("Band 1 (0.45 um), Band 2 (0.56 um), Band 3 (0.665 um), Band 4 (0.842 um)", [450.0, 560.0, 665.0, 842.0]),
        ("450 nm, 560.5nm, 665 Nanometers, 842 nm", [450.0, 560.5, 665.0, 842.0]),
    ],
)
def test_wavelengths_in_the_names_of_the_bands(tmp_path, names, expected):
    """Headers without a wavelength list whose names say it."""
    path = envi(tmp_path / "a.bsq", counts(), header=f"band names = {{{names}}}")
    np.testing.assert_allclose(opened(path).bands.center_nm, expected)


@pytest.mark.parametrize(
    "names", ["450 nm, 560 nm, red, 842 nm", "B1, B2, B3, B4", "450-500 nm, 560 nm, 665 nm, 1 um 2 um"]
)
def test_names_that_do_not_all_tell_one_wavelength_tell_none(tmp_path, names):
    path = envi(tmp_path / "a.bsq", counts(), header=f"band names = {{{names}}}")
    with pytest.raises(InputRejected, match="wavelength"):
        opened(path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GRANULE/x", "a Sentinel-2 SAFE without MTD_MSIL1C.xml or MTD_MSIL2A.xml"),
        ("LC09_L2SP_193024_20230612_SR_B4.TIF", "a Landsat scene without its MTL file"),
        ("ENMAP01-____L2A-DT0_SPECTRAL_IMAGE.TIF", "an EnMAP product without its METADATA.XML"),
        ("PRS_L2D_STD_20240402.he5", "a folder of PRISMA files; name one of them"),
        ("a.tif", "a folder of TIFF files; name one, quote a glob"),
        ("manifest.json", "a fused product of HyperFuse"),
        ("notes.txt", "a folder without Zarr metadata"),
    ],
)
def test_a_folder_is_told_by_what_it_resembles(tmp_path, name, told):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, told)


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "an empty folder; name a scene")
