"""The PlanetScope reader: planted counts by the specification; no real file is at hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import rasterio

from hyperfuse.catalogs.errors import InputRejected, MetadataMissing
from hyperfuse.catalogs.sensors import Source, open_scene
from tests.products import planetscope as built
from tests.products.packing import planted, raster, zipped
from tests.synthetic import whole


@pytest.mark.parametrize(
    ("mask", "layers"),
    [(None, ("cloud", "shadow", "unusable")), ("none", ()), ("haze,snow", ("heavy haze", "snow"))],
)
def test_planted_values_and_layers(tmp_path, mask, layers):
    folder = built.planetscope(tmp_path / "a")
    want = planted(4, *built.SHAPE) * 1e-4
    for at in (built.HOLE, *(built.place(layer) for layer in layers)):
        want[(slice(None), *at)] = np.nan
    for place in (folder, zipped(folder, tmp_path / "a.zip")):
        scene = open_scene(Source(uri=str(place), mask=mask))
        assert (scene.sensor, scene.name, scene.bands.names) == ("planetscope", built.ID, tuple(built.BANDS))
        assert tuple(scene.geobox.affine) == tuple(built.GRID)
        np.testing.assert_allclose(whole(scene), want, rtol=1e-6)
        np.testing.assert_allclose(scene.bands.center_nm, [center for center, _ in built.BANDS.values()])
        np.testing.assert_allclose(scene.bands.fwhm_nm, [width for _, width in built.BANDS.values()])


def test_what_is_missing_is_told(tmp_path):
    folder = built.planetscope(tmp_path / "a", udm2=False)
    assert open_scene(Source(uri=str(folder))).notes == ("no UDM2 in the delivery: clouds are not masked",)
    item = folder / f"{built.ID}.json"
    right = json.loads(item.read_text())
    item.write_text(json.dumps(right | {"assets": {}}))
    with pytest.raises(InputRejected, match="0 of the surface reflectance images"):
        open_scene(Source(uri=str(folder)))
    del right["assets"]["sr"]["raster:bands"][0]["scale"]
    item.write_text(json.dumps(right))
    with pytest.raises(InputRejected, match="KeyError"):
        open_scene(Source(uri=str(folder)))


def order(folder, *, instrument="PSB.SD", udm2=True):
    """An order as it is delivered without STAC: GeoJSON of the scene, image and UDM2."""
    built.planetscope(folder, udm2=udm2)
    (folder / f"{built.ID}.json").unlink()
    (folder / "manifest.json").write_text('{"name": "", "files": []}')
    properties = {"acquired": "2024-05-01T10:11:12.340000Z", "cloud_cover": 0.04, "sun_elevation": 53.5, "sun_azimuth": 144.5,
                  "view_angle": -2.5, "item_type": "PSScene", "instrument": instrument}  # fmt: skip
    (folder / f"{built.ID}_metadata.json").write_text(
        json.dumps({"type": "Feature", "id": built.ID, "properties": properties})
    )
    return folder


def test_an_order_without_a_stac_item(tmp_path):
    folder = order(tmp_path / "a")
    image = folder / f"{built.ID}_3B_AnalyticMS_SR_clip.tif"
    with rasterio.open(image) as file, rasterio.open(folder / f"{built.ID}_3B_udm2_clip.tif") as udm2:
        bad = (udm2.read([3, 6, 8]) != 0).any(axis=0)
        want = np.where(bad | (file.read() == 0), np.nan, file.read() * 1e-4)
        grid = file.transform
    for place in (folder, zipped(folder, tmp_path / "a.zip"), image):
        scene = open_scene(Source(uri=str(place)))
        assert (scene.sensor, scene.name, scene.geobox.affine) == ("planetscope", built.ID, grid)
        np.testing.assert_allclose(whole(scene), want, rtol=1e-6)
        np.testing.assert_allclose(scene.bands.center_nm, [490, 565, 665, 865])
        np.testing.assert_allclose(scene.bands.fwhm_nm, [50, 36, 30, 40])
        assert (scene.conditions.cloud_cover, scene.conditions.off_nadir_deg) == (pytest.approx(0.04), 2.5)
    older = open_scene(Source(uri=str(order(tmp_path / "b", instrument="PS2"))))
    np.testing.assert_allclose(older.bands.center_nm, [485, 545, 630, 820])


def test_an_image_with_udm2_beside_it_and_nothing_else(tmp_path):
    folder = order(tmp_path / "a")
    (folder / f"{built.ID}_metadata.json").unlink()
    image = folder / f"{built.ID}_3B_AnalyticMS_SR_clip.tif"
    with pytest.raises(
        MetadataMissing, match=r"has 4 bands of the instrument unknown, .* add --set wavelengths=NM,NM,NM,NM"
    ) as told:
        open_scene(Source(uri=str(image)))
    assert told.value.settings == ("wavelengths=NM,NM,NM,NM",)
    scene = open_scene(Source(uri=str(image), wavelengths="490,565,665,865"))
    with rasterio.open(folder / f"{built.ID}_3B_udm2_clip.tif") as udm2:
        bad = (udm2.read([3, 6, 8]) != 0).any(axis=0)
    np.testing.assert_array_equal(np.isnan(whole(scene)[3]), bad | (planted(4, *built.SHAPE)[3] == 0) | hole())
    assert str(scene.time).startswith("2024-05-01 10:11:12")
    # Without its mask and metadata it is an image as any other.
    (folder / f"{built.ID}_3B_udm2_clip.tif").unlink()
    assert open_scene(Source(uri=str(image), wavelengths="490,565,665,865", scale=1e-4)).sensor == "generic"


def hole():
    mask = np.zeros(built.SHAPE, bool)
    mask[built.HOLE] = True
    return mask


def test_eight_bands_are_those_of_superdove(tmp_path):
    folder = order(tmp_path / "a")
    (folder / f"{built.ID}_3B_AnalyticMS_SR_clip.tif").unlink()
    raster(
        folder / f"{built.ID}_3B_AnalyticMS_SR_8b_clip.tif", planted(8, *built.SHAPE, "uint16"), built.GRID, built.CRS
    )
    scene = open_scene(Source(uri=str(folder)))
    np.testing.assert_allclose(scene.bands.center_nm, [443, 490, 531, 565, 610, 665, 705, 865])


def test_an_order_of_two_scenes(tmp_path):
    folder = order(tmp_path / "a")
    second = built.ID.replace("101112", "101113")
    for path in list(folder.iterdir()):
        if path.name.startswith(built.ID):
            shutil.copy(path, folder / path.name.replace(built.ID, second))
    with pytest.raises(InputRejected, match=r"holds 2 images of surface reflectance .* expected one; name its image"):
        open_scene(Source(uri=str(folder)))
    assert open_scene(Source(uri=str(folder / f"{second}_3B_AnalyticMS_SR_clip.tif"))).name == second
