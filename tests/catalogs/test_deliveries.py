"""Inputs as portals and other tools leave them, compared with what rasterio and h5py read of the same files."""

from __future__ import annotations

import json
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, open_scene
from tests.products import enmap as enmap_files
from tests.products.enmap import enmap
from tests.products.packing import planted, raster
from tests.products.prisma import LIMITS, prisma
from tests.products.sentinel2 import sentinel2
from tests.synthetic import whole

GRID = Affine(10, 0, 400000, 0, -10, 5800000)
CENTERS = (450.5, 560.25, 665.0, 842.0)


def envi(path, *, names=None, header=b"ENVI\n", **more):
    data = planted(4, 20, 24) / np.float32(1e4)
    path.write_bytes(data.tobytes())
    told = {"samples": 24, "lines": 20, "bands": 4, "data type": 4, "interleave": "bsq", "byte order": 0,
            "map info": "{UTM, 1, 1, 400000, 5800000, 10, 10, 33, North, WGS-84}", **more}  # fmt: skip
    if names:
        told["band names"] = "{" + ", ".join(names) + "}"
    path.with_suffix(".hdr").write_bytes(header + "".join(f"{key} = {value}\n" for key, value in told.items()).encode())
    return path


def test_wavelengths_in_the_band_names_of_envi(tmp_path):
    nm = envi(tmp_path / "nm.bsq", names=[f"Band {i + 1} ({nm:.3f})" for i, nm in enumerate(CENTERS)])
    um = envi(
        tmp_path / "um.bsq", names=[f"Resize (Band {i + 1}:a.img) ({nm / 1e3:.6f})" for i, nm in enumerate(CENTERS)]
    )
    for path in (nm, um):
        scene = open_scene(Source(uri=str(path)))
        np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(whole(scene), file.read())


@pytest.mark.parametrize("names", [["a (1)", "b (2)", "c (3)", "d (4)"], ["a (450)", "b (450)", "c (560)", "d (842)"],
                                   ["a (450)", "b", "c (560)", "d (842)"], ["a (450)", "b (0.56)", "c (665)", "d (842)"]])  # fmt: skip
def test_numbers_in_band_names_that_are_no_wavelengths(tmp_path, names):
    with pytest.raises(InputRejected, match="no wavelengths in the file"):
        open_scene(Source(uri=str(envi(tmp_path / "a.bsq", names=names))))


def test_a_header_with_a_byte_order_mark(tmp_path):
    path = envi(tmp_path / "a.bsq", header=b"\xef\xbb\xbfENVI\n", wavelength="{450, 560, 665, 842}")
    with pytest.raises(InputRejected, match=r"a\.hdr: begins with a byte order mark, expected ENVI; save it as UTF-8"):
        open_scene(Source(uri=str(path)))


def test_bands_that_hold_the_list_of_all(tmp_path):
    """Seen in TIFFs of Tanager that a tool wrote."""
    path = raster(tmp_path / "a.tif", planted(4, 20, 24) / np.float32(1e4), GRID, "EPSG:32633")
    with rasterio.open(path, "r+") as file:
        for band in range(1, 5):
            file.update_tags(
                band, wavelength="{" + ",".join(map(str, CENTERS)) + "}", fwhm="{5,6,7,8}", wavelength_units="nm"
            )
    scene = open_scene(Source(uri=str(path)))
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, [5, 6, 7, 8])


def nested(tmp_path):
    """An order as the portal packs it: the product is a zip in a tar, and in the folder that the tar unpacks to."""
    product, inner = enmap(tmp_path / "product"), tmp_path / f"{enmap_files.PREFIX[:-1]}.ZIP"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(product.iterdir()):
            archive.write(path, path.name)
    with tarfile.open(tmp_path / "order.tar.gz", "w:gz") as order:
        order.add(inner, f"order/ENMAP.HSI.L2A/x/{inner.name}")
    folder = tmp_path / "order" / "ENMAP.HSI.L2A" / "x"
    folder.mkdir(parents=True)
    inner.rename(folder / inner.name)
    return product, tmp_path / "order.tar.gz", tmp_path / "order"


def test_an_order_that_is_packed_twice(tmp_path):
    product, *packed = nested(tmp_path)
    plain = open_scene(Source(uri=str(product)))
    for path in packed:
        scene = open_scene(Source(uri=str(path)))
        assert (scene.sensor, scene.name, scene.geobox) == ("enmap", plain.name, plain.geobox)
        np.testing.assert_array_equal(whole(scene), whole(plain))


def test_an_archive_that_holds_itself_ends(tmp_path):
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        archive.writestr("note.md", "the end")
    for depth in range(1, 5):
        with zipfile.ZipFile(tmp_path / f"{depth}.zip", "w") as archive:
            archive.write(tmp_path / f"{depth - 1}.zip", f"{depth - 1}.zip")
    with pytest.raises(InputRejected, match="an archive with no product that a reader knows"):
        open_scene(Source(uri=str(tmp_path / "4.zip")))


def test_two_products_in_one_order(tmp_path, monkeypatch):
    enmap(tmp_path / "order" / "a")
    monkeypatch.setattr(enmap_files, "PREFIX", enmap_files.PREFIX.replace("_001_", "_002_"))
    enmap(tmp_path / "order" / "b")
    with pytest.raises(InputRejected, match=r"holds 2 EnMAP products .* expected one; name the METADATA.XML of one"):
        open_scene(Source(uri=str(tmp_path / "order")))
    with tarfile.open(tmp_path / "order.tar.gz", "w:gz") as order:
        order.add(tmp_path / "order", "order")
    with pytest.raises(InputRejected, match=r"unpack it, and name the METADATA.XML of one"):
        open_scene(Source(uri=str(tmp_path / "order.tar.gz")))


def test_a_product_of_enpt_with_the_corners_of_l1b(tmp_path):
    product = enmap(tmp_path / "enpt", shift_px=4)
    for path in product.glob("*.TIF"):
        with rasterio.open(path) as file:
            keep = {
                key: file.profile[key] for key in ("width", "height", "count", "dtype", "crs", "transform", "nodata")
            }
            with rasterio.open(path.with_suffix(".BSQ"), "w", driver="ENVI", **keep) as copy:
                copy.write(file.read())
        path.unlink()
        path.with_name(f"{path.stem}.BSQ.aux.xml").unlink(missing_ok=True)
    with pytest.raises(InputRejected, match=r"EnPT keeps the corners of L1B: .* name .*SPECTRAL_IMAGE.BSQ itself"):
        open_scene(Source(uri=str(product)))


def test_prisma_without_a_code_of_its_crs(tmp_path):
    path = prisma(tmp_path / "a.he5")
    plain = open_scene(Source(uri=str(path)))
    with h5py.File(path, "r+") as file:
        del file.attrs["Epsg_Code"]
        for key, value in {"Projection_Name": "UTM", "Projection_Id": "32", "Reference_Ellipsoid": "WGS84"}.items():
            file.attrs[key] = np.bytes_(value)
    scene = open_scene(Source(uri=str(path)))
    assert scene.geobox == plain.geobox
    assert any("no EPSG code in the file: EPSG:32632" in note for note in scene.notes)
    with h5py.File(path, "r+") as file:
        file.attrs["Projection_Name"] = np.bytes_("Lambert")
    with pytest.raises(InputRejected, match="its projection is Lambert 32, expected UTM and a zone"):
        open_scene(Source(uri=str(path)))


def test_prisma_without_error_matrices(tmp_path):
    path = prisma(tmp_path / "a.he5")
    with h5py.File(path, "r+") as file:
        fields = file["HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"]
        for kind in ("VNIR", "SWIR"):
            del fields[f"{kind}_PIXEL_L2_ERR_MATRIX"]
        stored = fields["VNIR_Cube"][:, 1, :]
    scene = open_scene(Source(uri=str(path)))
    (band,) = (i for i, name in enumerate(scene.bands.names) if name == "VNIR 2")
    low, high = LIMITS["Vnir"]
    expected = np.where(stored == 0, np.nan, low + stored.astype(float) * (high - low) / 65535)
    expected[0] = np.nan  # padding: no sun
    np.testing.assert_allclose(whole(scene)[band], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("lost", "why"),
    [("L2ScaleVnirMin", "has no attribute L2ScaleVnirMin, without which counts are no reflectance"),
     ("SWIR_Cube", "holds no SWIR cube, expected VNIR and SWIR; order the scene with both")],
)  # fmt: skip
def test_prisma_without_what_it_needs(tmp_path, lost, why):
    path = prisma(tmp_path / "a.he5")
    with h5py.File(path, "r+") as file:
        if lost in file.attrs:
            del file.attrs[lost]
        else:
            del file[f"HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/{lost}"]
    with pytest.raises(InputRejected, match=why):
        open_scene(Source(uri=str(path)))


def test_sentinel2_l2a_before_2018(tmp_path):
    product = sentinel2(tmp_path, offset=None)
    plain = whole(open_scene(Source(uri=str(product))))
    metadata = product / "MTD_MSIL2A.xml"
    text = metadata.read_text()
    for old, new in {
        "BOA_QUANTIFICATION_VALUE": "L2A_BOA_QUANTIFICATION_VALUE",
        "PRODUCT_URI>": "PRODUCT_URI_2A>",
    }.items():
        text = text.replace(old, new)
    metadata.write_text(text)
    for path in list(product.rglob("*.jp2")):
        path.rename(path.with_name(f"L2A_{path.name}"))
    np.testing.assert_array_equal(whole(open_scene(Source(uri=str(product)))), plain)


@pytest.mark.parametrize("where", ["asset", "bands", "raster:bands"])
def test_scale_and_offset_of_an_item_wherever_they_stand(tmp_path, where):
    assets = {}
    for name, gsd in (("B02", 10), ("B04", 10), ("B11", 20)):
        counts = planted(1, 40 * 10 // gsd, 40 * 10 // gsd, "uint16") + 1000
        for step in (1, 2):
            # The same band once more at a coarser sampling, as some catalogues have it.
            at = f"{name}_{gsd * step}m"
            grid = GRID @ Affine.scale(gsd * step / 10)
            raster(tmp_path / f"T_{at}.tif", counts[:, ::step, ::step], grid, "EPSG:32633", nodata=0)
            prefix = "" if where == "raster:bands" else "raster:"
            told = {f"{prefix}scale": 1e-4, f"{prefix}offset": -0.1}
            asset = {"href": f"./T_{at}.tif?st=2025&sig=abc", "bands": [{"name": name}]}
            assets[at] = asset | (told if where == "asset" else {where: [told]})
    properties = {"datetime": "2024-05-01T10:15:59Z", "platform": "Sentinel-2B", "constellation": "Sentinel 2",
                  "processing:version": "02.14"}  # fmt: skip
    item = {
        "stac_version": "1.1.0",
        "type": "Feature",
        "id": "S2",
        "properties": properties,
        "assets": assets,
        "links": [],
    }
    (tmp_path / "item.json").write_text(json.dumps(item))
    scene = open_scene(Source(uri=str(tmp_path)))
    assert (scene.sensor, scene.bands.names, scene.gsd_m) == (
        "sentinel2",
        ("B02", "B04", "B11"),
        pytest.approx(10, abs=0.1),
    )
    with rasterio.open(tmp_path / "T_B04_10m.tif") as file:
        np.testing.assert_allclose(whole(scene)[1], file.read(1) * 1e-4 - 0.1, atol=1e-6)
