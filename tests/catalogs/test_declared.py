"""What a file declares of itself is honoured: header keys of any case, gains, nodata, valid ranges, files beside it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from pyproj import CRS

from hyperfuse.catalogs.formats.stored import digest
from tests.catalogs.sensors.test_generic import CENTERS, GRID, by_band, counts, envi, opened, refused, whole, write

WAVELENGTHS = "wavelength units = Nanometers\nwavelength = {450, 550, 650, 850}"


def read_by_gdal(path: Path) -> np.ndarray:
    """All bands as rasterio gives them by default, masks and scales applied."""
    with rasterio.open(path) as file:
        raw = file.read(masked=True)
        scales, offsets = np.array(file.scales), np.array(file.offsets)
    return np.asarray((raw * scales[:, None, None] + offsets[:, None, None]).filled(np.nan))


# ENVI headers


def full_header(key: Callable[[str], str], *, interleave: str, packed: bool) -> str:
    keys = {
        "samples": 9, "lines": 12, "bands": 4, "header offset": 16, "file type": "ENVI Standard", "data type": 2,
        "interleave": interleave, "byte order": 1, "file compression": int(packed),
        "map info": "{UTM, 1, 1, 500000, 5800000, 10, 10, 33, North, WGS-84, units=Meters}",
        "wavelength units": "Micrometers", "wavelength": "{0.45, 0.55, 0.65, 0.85}", "fwhm": "{0.02, 0.03, 0.02, 0.1}",
        "bbl": "{1, 0, 1, 1}", "reflectance scale factor": 5000, "data ignore value": -99,
        "acquisition time": "2024-05-01T10:00:00Z",
    }  # fmt: skip
    return "ENVI\n" + "".join(f"{key(name)} = {value}\n" for name, value in keys.items())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("key", [str.lower, str.upper, str.title])
def test_keys_of_an_envi_header_in_any_case(
    tmp_path: Path,
    key: Callable[[str], str],
    interleave: str,
    packed: bool,  # noqa: FBT001
) -> None:
    data = counts()
    data[:, 3, 4] = -99
    axes = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    raw = b"\7" * 16 + np.ascontiguousarray(data.transpose(axes)).astype(">i2").tobytes()
    path = tmp_path / "a.img"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    path.with_suffix(".hdr").write_text(full_header(key, interleave=interleave, packed=packed))
    scene = opened(path)
    expected = np.where(data == -99, np.nan, data / 5000)
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    with rasterio.open(path) as oracle:
        np.testing.assert_array_equal(oracle.read(), data)
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, [20, 30, 20, 100])
    assert scene.bands.good.tolist() == [True, False, True, True]
    assert scene.quantity == "reflectance"
    assert scene.time is not None
    assert scene.time.isoformat() == "2024-05-01T10:00:00+00:00"


@pytest.mark.parametrize("key", [str.lower, str.upper])
@pytest.mark.parametrize("kind", ["reflectance ", ""])
def test_gains_of_an_envi_header(tmp_path: Path, key: Callable[[str], str], kind: str) -> None:
    data = counts()
    gains, offsets = [5e-5, 6e-5, 7e-5, 8e-5], [0.01, 0.02, 0.03, 0.04]
    path = envi(
        tmp_path / "a.img",
        data,
        header=WAVELENGTHS,
        more=f"{key(f'data {kind}gain values')} = {{{', '.join(map(str, gains))}}}\n"
        f"{key(f'data {kind}offset values')} = {{{', '.join(map(str, offsets))}}}\n",
    )
    scene = opened(path)
    expected = data * np.array(gains)[:, None, None] + np.array(offsets)[:, None, None]
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    if not kind:  # GDAL knows these
        np.testing.assert_allclose(whole(scene), read_by_gdal(path), rtol=1e-6)
    assert scene.quantity == "reflectance"


def test_a_scale_that_is_not_applied_is_named(tmp_path: Path) -> None:
    more = "data gain values = {2, 2, 2, 2}\nreflectance scale factor = 10000\n"
    scene = opened(envi(tmp_path / "a.img", counts(), header=WAVELENGTHS, more=more))
    np.testing.assert_allclose(whole(scene), counts() * 1e-4, rtol=1e-6)
    assert (
        "a.img: data gain values is declared beside reflectance scale factor 10000 and not applied" in scene.notes
    )  # fmt: skip


def test_gains_that_are_not_one_per_band_are_refused(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts(), header=WAVELENGTHS, more="data reflectance gain values = {1, 2}\n")
    refused(path, "2 data reflectance gain values for 4 bands")


def test_the_header_that_gdal_reads_is_in_the_digest(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts(), header=WAVELENGTHS)
    other = tmp_path / "a.img.hdr"
    other.write_text(path.with_suffix(".hdr").read_text().replace("450,", "460,"))
    with rasterio.open(path) as oracle:
        read = [Path(name) for name in oracle.files]
    scene = opened(path)
    assert scene.digest == digest(read)
    assert scene.bands.center_nm[0] == 460
    refused(path.with_suffix(".hdr"), r"a\.img is read with a\.img\.hdr; name the data file, or remove one")


def test_a_header_of_several_data_files_is_refused(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts(), header=WAVELENGTHS)
    (tmp_path / "a.dat").write_bytes(path.read_bytes())
    refused(path.with_suffix(".hdr"), r"may belong to any of a\.img, a\.dat")
    assert opened(path).cube.shape == (4, 12, 9)


def test_words_flag_bad_bands(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts(), header=WAVELENGTHS, more="bbl = {True, False, true, TRUE}\n")
    assert opened(path).bands.good.tolist() == [True, False, True, True]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_coordinate_system_string_without_map_info(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts(), header=WAVELENGTHS)
    header = path.with_suffix(".hdr")
    lines = [line for line in header.read_text().splitlines() if not line.startswith("map info")]
    wkt = CRS(32633).to_wkt("WKT1_ESRI")
    header.write_text("\n".join([*lines, f"coordinate system string = {{{wkt}}}"]) + "\n")
    refused(path, "no georeference")
    (tmp_path / "a.wld").write_text("10\n0\n0\n-10\n500005\n5799995\n")
    scene = opened(path)
    assert scene.geobox.affine == GRID
    assert scene.geobox.crs.proj == CRS(wkt)


# Nodata


@pytest.mark.parametrize("name", ["nodata", "nodatavals", "missing_value", "_FillValue", "fill_value"])
@pytest.mark.parametrize("store", ["nc", "zarr"])
def test_attributes_that_declare_nodata(tmp_path: Path, name: str, store: str) -> None:
    data = counts(dtype="uint16")
    data[:, :4] = 0
    dataset = stack(data, **{name: [0, 0, 0, 0] if name == "nodatavals" else np.uint16(0)})
    path = tmp_path / f"a.{store}"
    if store == "nc":
        dataset.to_netcdf(path, encoding={} if name == "_FillValue" else {"sr": {"_FillValue": None}})
    else:
        dataset.to_zarr(path, zarr_format=3, consolidated=False)
    scene = opened(path)
    expected = np.where(data == 0, np.nan, data * 1e-4)
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    assert not any("fill" in note for note in scene.notes)


@pytest.mark.parametrize("attrs", [{"valid_range": [200, 8000]}, {"valid_min": 200, "valid_max": 8000}])
def test_valid_range(tmp_path: Path, attrs: dict[str, object]) -> None:
    data = counts(dtype="uint16")
    path = tmp_path / "a.nc"
    attrs = {key: np.asarray(value, np.uint16) for key, value in attrs.items()}
    stack(data, **attrs, scale_factor=2e-4, add_offset=0.1).to_netcdf(path)
    with netCDF4.Dataset(path) as oracle:
        expected = np.ma.filled(oracle["sr"][:].astype(float), np.nan)
    assert 0 < np.isnan(expected).mean() < 0.5
    np.testing.assert_allclose(whole(opened(path)), expected, rtol=1e-6)


def test_unsigned_samples_with_signed_attributes(tmp_path: Path) -> None:
    data = counts(dtype="uint16")
    data[1, 2, 3] = 65535
    dataset = stack(data.view(np.int16), _Unsigned="true", missing_value=np.int16(-1))
    dataset.to_netcdf(tmp_path / "a.nc", encoding={"sr": {"_FillValue": None}})
    with netCDF4.Dataset(tmp_path / "a.nc") as oracle:
        expected = np.ma.filled(oracle["sr"][:].astype(float), np.nan)
    np.testing.assert_allclose(whole(opened(tmp_path / "a.nc")), expected * 1e-4, rtol=1e-6)


def test_a_range_that_runs_backwards_is_refused(tmp_path: Path) -> None:
    stack(counts(), valid_min=np.int16(9), valid_max=np.int16(3)).to_netcdf(tmp_path / "a.nc")
    refused(tmp_path / "a.nc", "valid samples from 9 to 3, expected an increasing range")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [-3.4028235e38, -9999.9, 1e20, 0.1])
def test_float_nodata_within_the_rounding_that_gdal_grants(tmp_path: Path, dtype: str, nodata: float) -> None:
    data = np.full((4, 12, 9), 0.5, dtype)
    data += np.random.default_rng(1).uniform(0, 0.2, data.shape).astype(dtype)
    near = np.float64(nodata) * (1 + np.arange(-7, 8) * np.finfo(np.float32).eps)
    near = near[np.abs(near) <= np.finfo(np.float32).max].astype(dtype)
    data[1].flat[: near.size] = near
    data[2, 3, 3] = nodata
    path = write(tmp_path / "a.tif", data, tags=by_band(), nodata=nodata if dtype == "float64" else np.float32(nodata))
    with rasterio.open(path) as oracle:
        valid = oracle.read_masks() > 0
    assert not valid[2, 3, 3]
    np.testing.assert_array_equal(np.isfinite(whole(opened(path, quantity="radiance"))), valid)


def test_a_nodata_value_that_the_type_cannot_hold_is_named(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.img", counts(dtype="uint16"), header=WAVELENGTHS, more="data ignore value = -9999\n")
    assert any("declares nodata -9999, which uint16 samples cannot be" in note for note in opened(path).notes)


# Files beside the image


def aux_xml(path: Path, text: str) -> Path:
    beside = path.with_name(path.name + ".aux.xml")
    beside.write_text(f"<PAMDataset>{text}</PAMDataset>")
    return beside


def band_xml(band: int, wavelength: float) -> str:
    return (
        f'<PAMRasterBand band="{band}"><Description>b{band}</Description><NoDataValue>-99</NoDataValue>'
        f"<Offset>{0.01 * band}</Offset><Scale>{2e-4 * band}</Scale>"
        f'<Metadata><MDI key="wavelength">{wavelength}</MDI><MDI key="Wavelength_Units">Nanometers</MDI>'
        '<MDI key="fwhm">12</MDI></Metadata></PAMRasterBand>'
    )


@pytest.mark.parametrize("format_", ["GTiff", "ENVI"])
def test_aux_xml(tmp_path: Path, format_: str) -> None:
    data = counts()
    data[:, 3:5, 3:5] = -99
    path = write(tmp_path / "a.img", data, driver=format_, nodata=-1)
    for made in tmp_path.glob("*.aux.xml"):
        made.unlink()
    beside = aux_xml(
        path,
        "<SRS>EPSG:32632</SRS><GeoTransform>400000, 20, 0, 5000000, 0, -20</GeoTransform>"
        + "".join(band_xml(i + 1, c) for i, c in enumerate(CENTERS)),
    )
    scene = opened(path)
    np.testing.assert_allclose(whole(scene), read_by_gdal(path), rtol=1e-6)
    assert np.isnan(whole(scene)).mean() > 0.03
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, 12)
    with rasterio.open(path) as oracle:
        assert scene.geobox.affine == oracle.transform
        assert scene.geobox.crs.epsg == oracle.crs.to_epsg() == (32632 if format_ == "GTiff" else 32633)
        assert scene.digest == digest([Path(name) for name in oracle.files])
    assert scene.bands.names == ("b1", "b2", "b3", "b4")
    beside.write_text(beside.read_text().replace("<Scale>0.0002", "<Scale>0.0003"))
    assert opened(path).digest != scene.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<PAMDataset><PAMRasterBand", "not well-formed XML"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><PAMDataset>&b;</PAMDataset>', "document type"),
        ("<PAMDataset><PAMRasterBand band='1'><Scale>much</Scale></PAMRasterBand></PAMDataset>", "expected a number"),
    ],
)
def test_a_damaged_aux_xml_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band())
    path.with_name("a.tif.aux.xml").write_text(text)
    refused(path, rf"a\.tif\.aux\.xml: .*{sentence}")


def test_aux_xml_of_other_software_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band())
    path.with_name("a.tif.aux.xml").write_text("<metadata><Esri/></metadata>")
    np.testing.assert_allclose(whole(opened(path)), counts() * 1e-4, rtol=1e-6)


@pytest.mark.parametrize("format_", ["GTiff", "ENVI"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_external_mask(tmp_path: Path, format_: str) -> None:
    data = counts()
    path = write(tmp_path / "a.img", data, driver=format_, tags=by_band())
    mask = np.full(data.shape[1:], 255, np.uint8)
    mask[3:6, 2:7] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    beside = tmp_path / "a.img.msk"
    assert beside.is_file()
    scene = opened(path)
    with rasterio.open(path) as oracle:
        expected = oracle.read(masked=True).filled(0) * 1e-4
        assert not np.asarray(oracle.read_masks(1))[3:6, 2:7].any()
    expected[:, mask == 0] = np.nan
    np.testing.assert_allclose(whole(scene), expected, rtol=1e-6)
    assert "a.img.msk: 0 is no data" in scene.notes
    beside.write_bytes(beside.read_bytes() + b"\0")
    assert opened(path).digest != scene.digest
    beside.write_text("<VRTDataset/>")
    refused(path, r"a\.img\.msk: is no GeoTIFF")


def test_external_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band())
    write(tmp_path / "m.tif", np.ones((1, 5, 5), np.uint8)).rename(tmp_path / "a.tif.msk")
    refused(path, "has 1 x 5 x 5 samples of uint8, expected the mask of 1 or 4 x 12 x 9")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_world_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", counts(), tags=by_band(), transform=None)
    (tmp_path / "a.tfw").write_text("20\n0\n0\n-20\n400010\n4999990\n")
    with rasterio.open(path) as oracle:
        assert oracle.transform == Affine(20, 0, 400000, 0, -20, 5000000)
        assert opened(path).geobox.affine == oracle.transform
    (tmp_path / "a.tfw").write_text("20\n0\nx\n")
    refused(path, r"a\.tfw: .*expected the six numbers of a world file")


def stack(data: np.ndarray, **attrs: object) -> xr.Dataset:
    """A cube as rioxarray and odc-geo lay it out."""
    n_bands, height, width = data.shape
    return xr.Dataset(
        {"sr": (("band", "y", "x"), data, {**attrs, "grid_mapping": "spatial_ref"})},
        coords={
            "y": GRID.f + GRID.e * (np.arange(height) + 0.5),
            "x": GRID.c + GRID.a * (np.arange(width) + 0.5),
            "center_wavelength": ("band", np.array(CENTERS[:n_bands]) / 1e3),
            "spatial_ref": ((), 32633, {"crs_wkt": CRS(32633).to_wkt()}),
        },
    )
