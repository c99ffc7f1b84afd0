"""Area mosaics against known answers: halves of a cube, offsets, rims, holes, zones, order, blocks, interruptions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.ndimage import binary_erosion, distance_transform_edt

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, OutOfResources, UsageError
from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.mosaic import blend, feather
from hyperfuse.pipeline.mosaic import run as workflow
from hyperfuse.pipeline.mosaic.inputs import ProductCube, open_inputs
from hyperfuse.pipeline.mosaic.run import blend_area, finished_blocks, mosaic_products, open_area
from hyperfuse.pipeline.mosaic.settings import AreaConfig, area_config
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.products.writers import cog, writer
from tests.pipeline.mosaic.products import GSD, ORIGIN, TIMES, grid, ground, product

HEIGHT, WIDTH = 70, 110
FEATHER = 20


def area(folder: Path, *products: Path, **settings: Any) -> Product:
    settings = {
        "feather_px": FEATHER, "chunk": 32, "chunk_bands": 2, "output": folder / "area", "formats": ("zarr", "stac"),
    } | settings  # fmt: skip
    return mosaic_products(AreaConfig(products=products, **settings))


def counts(made: Product) -> NDArray[np.int16]:
    assert made.zarr is not None
    return np.asarray(store.open_array(made.zarr / "reflectance")[...])


def sources(made: Product) -> NDArray[np.uint16]:
    return np.asarray(store.open_array(made.path / f"{made.name}_source.zarr" / "source")[...])


def as_counts(cube: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.where(np.isfinite(cube), np.rint(np.nan_to_num(cube) * 1e4), -32768).astype(np.int16)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two products of one cube, 30 columns of which are in both."""
    folder, cube = tmp_path_factory.mktemp("halves"), ground(HEIGHT, WIDTH)
    west = product(folder, "west", cube[:, :, :70], grid(0, 0, HEIGHT, 70), hsi_time=TIMES[0])
    east = product(folder, "east", cube[:, :, 40:], grid(0, 40, HEIGHT, 70), hsi_time=TIMES[1])
    return west, east


def test_two_halves_give_the_cube_back(halves, tmp_path):
    made = area(tmp_path, *halves, feather_px=30)
    np.testing.assert_array_equal(counts(made), as_counts(ground(HEIGHT, WIDTH)))
    # The middle of the overlap is as far from one edge as from the other; nearer to the rim of both, the earlier is named.
    layer = sources(made)
    assert (layer[35, :55] == 1).all()
    assert (layer[35, 55:] == 2).all()
    assert (layer[0, :70] == 1).all()


def test_the_product_is_one_that_everybody_reads(halves, tmp_path):
    made = area(tmp_path, *halves, formats=("zarr", "cog", "stac"))
    assert verify(made.path) == made
    with xr.open_zarr(made.zarr) as data:
        assert data["reflectance"].odc.geobox == grid(0, 0, HEIGHT, WIDTH)
        assert float(data["reflectance"].sel(wavelength=600, method="nearest")[5, 6]) == pytest.approx(
            float(ground(HEIGHT, WIDTH)[0, 5, 6]), abs=1e-6
        )
    with rasterio.open(made.cog) as raster:
        np.testing.assert_array_equal(raster.read(), counts(made))
        assert (raster.nodata, raster.scales[0], raster.crs.to_epsg()) == (-32768, 1e-4, 32633)
    with xr.open_zarr(made.path / "area_source.zarr") as layer:
        table = {entry["number"]: entry["id"] for entry in layer["source"].attrs["products"]}
        assert table == {1: "west", 2: "east"}
        assert layer["source"].attrs["flag_meanings"] == "none west east"
        assert layer["source"].odc.geobox == grid(0, 0, HEIGHT, WIDTH)
    item = pystac.Item.from_file(str(made.item))
    assert [link.href for link in item.get_links("derived_from")] == [
        (half / f"{half.name}.json").as_uri() for half in halves
    ]
    assert item.properties["start_datetime"] == "2026-06-01T10:00:00Z"
    assert item.properties["end_datetime"] == "2026-06-02T10:00:00Z"
    assert set(item.assets) == {"zarr", "fused", "style", "source", "seams", "thumbnail", "provenance", "manifest"}
    inputs = made.provenance["inputs"]
    assert [(entry["id"], entry["copied"]) for entry in inputs] == [("west", True), ("east", True)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_area_is_a_product_again(halves, tmp_path):
    first = area(tmp_path, *halves)
    third = product(tmp_path, "south", ground(20, WIDTH), grid(HEIGHT - 10, 0, 20, WIDTH), hsi_time=TIMES[5])
    made = area(tmp_path, first.path, third, output=tmp_path / "larger")
    assert verify(made.path).provenance["product"]["shape"] == [HEIGHT + 10, WIDTH]
    np.testing.assert_array_equal(counts(made)[:, :55], as_counts(ground(HEIGHT, WIDTH))[:, :55])


def test_a_constant_offset_becomes_a_straight_line(tmp_path):
    # So large that the middle row is nearer to the seam than to any other edge.
    flat = np.full((3, 60, 60), 0.2, np.float32)
    west = product(tmp_path, "west", flat, grid(0, 0, 60, 60), hsi_time=TIMES[0])
    east = product(tmp_path, "east", flat + np.float32(0.1), grid(0, 44, 60, 60), hsi_time=TIMES[1])
    made = area(tmp_path, west, east, feather_px=16)
    row = counts(made)[0, 30]
    ramp = 0.2 + 0.1 * (np.arange(16) + 0.5) / 16
    np.testing.assert_array_equal(row[:44], 2000)
    np.testing.assert_allclose(row[44:60], ramp * 1e4, atol=0.51)
    np.testing.assert_array_equal(row[60:], 3000)
    (pair,) = json.loads((made.path / "seams.json").read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["pixels"]) == ("west", "east", 16 * 60)
    np.testing.assert_allclose(pair["mean"], 0.1, atol=1e-6)
    np.testing.assert_allclose(pair["rms"], 0.1, atol=1e-6)


def test_the_steps_tell_a_hard_seam_from_a_feathered_one(tmp_path):
    rng = np.random.default_rng(3)
    cube = (0.2 + 0.01 * rng.standard_normal((3, 100, 90))).astype(np.float32)
    west = product(tmp_path, "west", cube[:, :, :60], grid(0, 0, 100, 60), hsi_time=TIMES[0])
    east = product(tmp_path, "east", cube[:, :, 30:] + np.float32(0.2), grid(0, 30, 100, 60), hsi_time=TIMES[1])
    hard = area(tmp_path, west, east, feather_px=1, output=tmp_path / "hard").provenance["seams"]["steps"]
    soft = area(tmp_path, west, east, feather_px=30, output=tmp_path / "soft").provenance["seams"]["steps"]
    assert soft["alone"] == pytest.approx(0.01 * 2 / np.sqrt(np.pi), rel=0.05)
    assert hard["rim_over_alone"] > 5
    # Not 1: at the corners of the overlap the shares still change within few pixels.
    assert soft["rim_over_alone"] < 1.5
    assert soft["feather_over_alone"] < 1.2


def test_holes_and_rims_are_filled_from_the_other_product(tmp_path):
    cube = ground(60, 60)
    holed = cube.copy()
    holed[:, 20:30, 20:30] = np.nan
    holed[1, 40, 40] = np.nan
    one = product(tmp_path, "one", holed, grid(0, 0, 60, 60), hsi_time=TIMES[0])
    two = product(tmp_path, "two", cube, grid(0, 0, 60, 60), hsi_time=TIMES[1])
    made = area(tmp_path, one, two)
    np.testing.assert_array_equal(counts(made), as_counts(cube))
    layer = sources(made)
    assert (layer[20:30, 20:30] == 2).all()
    # Around the hole the whole product leads, at the distance of its edge the first is as good.
    assert layer[19, 25] == 2
    assert layer[5, 5] == 1
    assert layer[40, 40] == 2


def test_a_sample_that_only_one_band_of_one_product_has_is_kept(tmp_path):
    cube = ground(40, 40)
    cube[:, 10:20, 10:20] = np.nan
    cube[1, 15, 15] = 0.1234
    made = area(tmp_path, product(tmp_path, "one", cube, grid(0, 0, 40, 40)))
    np.testing.assert_array_equal(counts(made), as_counts(cube))
    layer = sources(made)
    assert layer[15, 15] == 1
    assert (layer[10:15, 10:20] == 0).all()
    assert layer[0, 0] == 1


def test_blocks_do_not_show(tmp_path):
    """The distance field over blocks is that of the whole, and so is the blend, whatever the size of the blocks."""
    rng = np.random.default_rng(7)
    parts, flags = [], []
    for number, (row, col) in enumerate([(0, 0), (13, 31), (37, 9)]):
        cube = ground(60, 70) + np.float32(0.01 * number)
        cube[:, rng.random((60, 70)) < 0.004] = np.nan
        parts.append(product(tmp_path, f"p{number}", cube, grid(row, col, 60, 70), hsi_time=TIMES[number]))
        whole = np.full((3, 97, 101), np.nan)
        whole[:, row : row + 60, col : col + 70] = cube
        flags.append(whole)
    made = [area(tmp_path, *parts, chunk=chunk, output=tmp_path / f"by_{chunk}") for chunk in (16, 64, 256)]
    for other in made[1:]:
        np.testing.assert_array_equal(counts(other), counts(made[0]))
        np.testing.assert_array_equal(sources(other), sources(made[0]))
        assert other.provenance["seams"]["pairs"] == made[0].provenance["seams"]["pairs"]
    total, weight = np.zeros((3, 97, 101)), np.zeros((97, 101))
    for whole in flags:
        valid = np.isfinite(whole[0])
        # A ring of invalid pixels all around: outside of its grid a product has nothing.
        distance = distance_transform_edt(np.pad(valid, 1))[1:-1, 1:-1]
        share = np.where(valid, np.clip((distance - 0.5) / FEATHER, 1e-6, 1), 0)
        total += share * np.nan_to_num(np.rint(whole * 1e4))
        weight += share
    want = np.where(weight > 0, np.rint(total / np.where(weight > 0, weight, 1)), -32768)
    assert np.abs(counts(made[0]) - want).max() <= 1  # a half may be rounded either way
    assert (counts(made[0]) != want).mean() < 0.005


def test_the_order_of_the_products_does_not_matter(tmp_path):
    rng = np.random.default_rng(11)
    paths = [
        product(
            tmp_path, f"p{number}", rng.random((3, 50, 50)).astype(np.float32), grid(13 * number, 17 * number, 50, 50),
            hsi_time=TIMES[number],
        )
        for number in range(3)
    ]  # fmt: skip
    first = area(tmp_path, *paths, output=tmp_path / "a")
    second = area(tmp_path, *paths[::-1], output=tmp_path / "b")
    np.testing.assert_array_equal(counts(first), counts(second))
    np.testing.assert_array_equal(sources(first), sources(second))
    assert first.job_key == second.job_key


def test_a_product_of_another_zone_shows_the_same_ground(tmp_path):
    """A function of the ground: resampled from zone 32 it is what zone 33 has, and no pixel is extrapolated."""
    left = GeoBox((90, 90), Affine(GSD, 0, ORIGIN[0], 0, -GSD, ORIGIN[1]), "EPSG:32633")
    middle = Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True).transform(
        ORIGIN[0] + 900, ORIGIN[1] - 450
    )
    right = GeoBox(
        (90, 90), Affine(GSD, 0, round(middle[0], -1) - 503, 0, -GSD, round(middle[1], -1) + 447), "EPSG:32632"
    )
    east = product(tmp_path, "east", of_the_ground(left), left, hsi_time=TIMES[0])
    west = product(tmp_path, "west", of_the_ground(right), right, hsi_time=TIMES[1])
    made = area(tmp_path, east, west)
    assert [entry["copied"] for entry in made.provenance["inputs"]] == [True, False]
    with xr.open_zarr(made.zarr) as data:
        box = data["reflectance"].odc.geobox
        shown = data["reflectance"].values
    there = np.isfinite(shown).all(axis=0)
    col, row = ~box.affine @ (ORIGIN[0], ORIGIN[1])
    assert there[round(row) : round(row) + 90, round(col) : round(col) + 90].all()
    assert there.sum() > 1.3 * 90 * 90
    off = np.abs(shown - of_the_ground(box)).max(axis=0)
    inner = binary_erosion(there, iterations=3)
    assert off[inner].max() < 3e-4
    # At the rim the kernel sees no farther: half a pixel of extrapolation at most.
    assert off[there].max() < 0.1 / 170 * GSD / 2
    (pair,) = json.loads((made.path / "seams.json").read_text())["pairs"]
    assert pair["largest_mean"] < 1e-4


def of_the_ground(box: GeoBox) -> NDArray[np.float32]:
    col, row = np.meshgrid(np.arange(box.shape[1]) + 0.5, np.arange(box.shape[0]) + 0.5)
    x, y = box.affine @ (col, row)
    x, y = Transformer.from_crs(str(box.crs), "EPSG:32633", always_xy=True).transform(x, y)
    plane = 0.3 + 0.1 * np.sin(x / 210) * np.cos(y / 170)
    return np.stack([plane, plane / 2, 0.4 - plane / 2]).astype(np.float32)


def test_crs_pixel_size_and_bounds_can_be_chosen(halves, tmp_path):
    made = area(tmp_path, *halves, gsd=20.0, bounds=(ORIGIN[0] + 205, ORIGIN[1] - 395, ORIGIN[0] + 605, ORIGIN[1] - 5))
    facts = made.provenance["product"]
    assert facts["transform"] == [20.0, 0.0, ORIGIN[0] + 200, 0.0, -20.0, ORIGIN[1]]
    assert facts["shape"] == [20, 21]
    assert facts["valid_fraction"] == 1.0
    other = area(tmp_path, *halves, crs="EPSG:32632", output=tmp_path / "zone32")
    assert other.provenance["product"]["crs"] == "EPSG:32632"
    assert not any(entry["copied"] for entry in other.provenance["inputs"])
    with pytest.raises(UsageError, match="gsd is missing: WGS 84 has other units"):
        area(tmp_path, *halves, crs="EPSG:4326", output=tmp_path / "degrees")


def test_bands_are_matched_by_their_centers(tmp_path):
    cube = ground(20, 20, 5)
    one = product(tmp_path, "one", cube, grid(0, 0, 20, 20), span_nm=(450, 900), hsi_time=TIMES[0])
    shifted = product(tmp_path, "shifted", cube, grid(0, 10, 20, 20), span_nm=(450.4, 900.4), hsi_time=TIMES[1])
    fewer = product(tmp_path, "fewer", cube[:4], grid(10, 0, 20, 20), span_nm=(450, 810), hsi_time=TIMES[2])
    made = area(tmp_path, one, shifted)
    with xr.open_zarr(made.zarr) as data:
        np.testing.assert_allclose(data["wavelength"], np.linspace(450, 900, 6)[1:] + 0.2)
    made = area(tmp_path, one, fewer, output=tmp_path / "fewer_bands")
    assert made.provenance["product"]["wavelength_nm"] == pytest.approx([540, 630, 720, 810])
    assert [entry["bands_left_out_nm"] for entry in made.provenance["inputs"]] == [[pytest.approx(900)], []]
    other = product(tmp_path, "other", cube, grid(0, 10, 20, 20), span_nm=(460, 1100), hsi_time=TIMES[3])
    with pytest.raises(
        InputRejected, match=r"0 of its 5 bands .* expected at least half; mosaic products of one sensor"
    ):
        area(tmp_path, one, other, output=tmp_path / "refused")


def test_products_that_do_not_belong_together_are_refused_in_a_sentence(halves, tmp_path):
    west, east = halves
    with pytest.raises(InputRejected, match=r"is the same product as .*; give each product once"):
        area(tmp_path, west, west)
    with pytest.raises(BadProduct, match=r"provenance\.json is missing"):
        area(tmp_path, west, tmp_path)
    radiance = product(tmp_path, "radiance", ground(20, 20), grid(0, 0, 20, 20), quantity="radiance")
    with pytest.raises(InputRejected, match="mosaic products of one quantity"):
        area(tmp_path, west, radiance)
    cog = product(tmp_path, "cog", ground(20, 20), grid(0, 0, 20, 20), formats=("cog", "stac"))
    with pytest.raises(InputRejected, match="published as cog, stac, expected a cube in Zarr"):
        area(tmp_path, west, cog)
    with pytest.raises(UsageError, match="not a CRS that PROJ knows"):
        area(tmp_path, west, east, crs="EPSG:1")
    with pytest.raises(InputRejected, match="the products lie too far apart for one area, or crs or gsd are wrong"):
        area(tmp_path, west, east, gsd=1e-3)
    with pytest.raises(UsageError, match=r"setting feather_px: .*; found 0"):
        area_config(products=halves, output=tmp_path / "area", feather_px=0)
    assert not (tmp_path / "area").exists()
    assert not list(tmp_path.glob(".area.*"))


def test_a_product_with_a_lost_chunk_is_refused(halves, tmp_path):
    west, east = (Path(shutil.copytree(half, tmp_path / half.name)) for half in halves)
    (east / "east.zarr" / "reflectance" / "c" / "0" / "1" / "1").unlink()
    with pytest.raises(InputRejected, match="8 of 9 chunks of its cube are there"):
        area(tmp_path, west, east)
    damaged = west / "west.zarr" / "reflectance" / "c" / "0" / "1" / "1"
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 4
    damaged.write_bytes(raw)
    with pytest.raises(InputRejected, match="do not decode"):
        area(tmp_path, west)
    assert not list(tmp_path.glob(".area.*"))


def test_what_is_in_the_way_stays_as_it_is(halves, tmp_path):
    made = area(tmp_path, *halves)
    with pytest.raises(ExpectedSkip, match="already published"):
        area(tmp_path, *halves)
    with pytest.raises(InputRejected, match="exists and is not this product"):
        area(tmp_path, *halves, feather_px=FEATHER + 1)
    assert verify(made.path)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_that_was_killed_goes_on_where_it_stopped(halves, tmp_path, monkeypatch):
    whole = counts(area(tmp_path, *halves, output=tmp_path / "whole"))
    seen = []

    def dying(*arguments, **options):
        if len(seen) == 5:
            raise Killed
        seen.append(arguments[2])
        return blend.blend_block(*arguments, **options)

    config = AreaConfig(products=halves, output=tmp_path / "area", feather_px=FEATHER, chunk=32, chunk_bands=2)
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "blend_block", dying)
        with pytest.raises(Killed):
            mosaic_products(config)
    assert not config.output.exists()
    with open_area(config) as held:
        assert len(finished_blocks(held.area)) == 5
        # A chunk that changed behind the ledger's back is blended again.
        chunk = next(path for path in (held.area.source / "c").rglob("*") if path.is_file())
        chunk.write_bytes(chunk.read_bytes() + b"x")
        assert blend_area(held) == 4
    made = mosaic_products(config)
    assert made.provenance["tiles"] == {"core": 32, "finished": 12, "resumed": 12}
    np.testing.assert_array_equal(counts(made), whole)


def test_a_run_that_died_while_it_published_publishes_whole(halves, tmp_path, monkeypatch):
    settings: dict[str, Any] = {"formats": ("zarr", "cog", "stac")}

    def dying(cube):
        (cube.folder / f"{cube.name}.tif").write_bytes(b"half a file")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(cog, "write", dying)
        with pytest.raises(Killed):
            area(tmp_path, *halves, **settings)
    assert not (tmp_path / "area").exists()
    made = area(tmp_path, *halves, **settings)
    assert verify(made.path).provenance["tiles"]["resumed"] == 12
    assert not list(tmp_path.glob(".area.*"))


def test_bounds_beside_all_products_are_refused_before_anything_is_written(halves, tmp_path):
    with pytest.raises(UsageError, match="setting bounds: no product lies within"):
        area(tmp_path, *halves, bounds=(0.0, 0.0, 300.0, 300.0))
    assert not list(tmp_path.glob(".area.*"))


def test_a_full_disk_is_told_before_anything_is_written(halves, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OutOfResources, match="free some space"):
        area(tmp_path, *halves)
    assert not list(tmp_path.glob(".area.*"))


def test_memory_is_bounded_by_the_block_whatever_the_number_of_products(tmp_path, monkeypatch):
    """No read is larger than a block and its margin, and with a small budget no more than a band at a time is held."""
    paths = [product(tmp_path, f"p{n}", ground(40, 40), grid(0, 25 * n, 40, 40), hsi_time=TIMES[n]) for n in range(4)]
    reads: list[tuple[int, int, int]] = []
    read = Scene.read

    def counted(self, window, bands=None):
        rows, cols = window
        reads.append((len(bands), rows.stop - rows.start, cols.stop - cols.start))
        return read(self, window, bands)

    monkeypatch.setattr(Scene, "read", counted)
    made = area(tmp_path, *paths, chunk=32, feather_px=4, memory_gb=1e-6)
    assert max(rows for _, rows, _ in reads) == max(cols for *_, cols in reads) == 32
    blends = reads[4 * 4 :]
    assert {bands for bands, *_ in blends} == {1}
    np.testing.assert_array_equal(np.unique(sources(made)), np.arange(1, 5))
    monkeypatch.undo()
    again = area(tmp_path, *paths, chunk=32, feather_px=4, output=tmp_path / "at_once")
    np.testing.assert_array_equal(counts(made), counts(again))
    assert again.provenance["seams"]["pairs"] == made.provenance["seams"]["pairs"]
    assert again.provenance["seams"]["steps"] == pytest.approx(made.provenance["seams"]["steps"])


def test_products_that_do_not_reach_a_block_are_not_looked_at(halves, tmp_path, monkeypatch):
    asked = []
    seen = feather.seen
    monkeypatch.setattr(blend, "seen", lambda *arguments: asked.append(arguments[3]) or seen(*arguments))
    area(tmp_path, *halves, feather_px=2, chunk=16)
    # 5 x 7 blocks; either product reaches five columns of them.
    assert len(asked) == 5 * (5 + 5)


def test_inputs_are_records_until_samples_are_asked_for(halves, monkeypatch, tmp_path):
    monkeypatch.setattr(ProductCube, "read", lambda *_: pytest.fail("nothing is read while products are opened"))
    inputs = open_inputs(AreaConfig(products=halves, output=tmp_path / "area"))
    assert inputs.names == ("west", "east")
    assert inputs.target == grid(0, 0, HEIGHT, WIDTH)


def test_every_format_is_open_to_an_area(halves, tmp_path):
    made = area(tmp_path, *halves, formats=available())
    assert made.formats == ("zarr", *sorted(set(available()) - {"zarr", "stac"}), "stac")
    assert verify(made.path).path == made.path
    wanted = made.open()["reflectance"].values
    for name in set(available()) - {"stac"}:
        with writer(name).open_cube(made.path_of(name)) as dataset:
            np.testing.assert_allclose(dataset["reflectance"].values, wanted, atol=1e-7)
