"""Products of many sensors into a catalogue: what their items tell, and what becomes of bad, changed and moved ones."""

from __future__ import annotations

import shutil
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from hyperfuse.catalogs.pairing.ranking import PairingRules, pair
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.catalogs.stac import gather as gather_module
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.clear_map import CELLS
from hyperfuse.catalogs.stac.gather import gather
from hyperfuse.catalogs.stac.items import SceneItem
from hyperfuse.catalogs.stac.survey import absolute
from tests import DATA
from tests.products import desis, emit, enmap, landsat, planetscope, prisma, sentinel2


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> Path:
    """One product of every sensor, and three that no reader can use."""
    folder = tmp_path_factory.mktemp("products")
    enmap.enmap(folder / "enmap")
    desis.desis(folder / "desis")
    prisma.prisma(folder / "prisma.he5")
    emit.emit(folder / "emit")
    sentinel2.sentinel2(folder)
    landsat.landsat(folder / "landsat")
    planetscope.planetscope(folder / "planet")
    (folder / "text.tif").write_text("<VRTDataset/>")
    with zipfile.ZipFile(folder / "slip.zip", "w") as archive:
        archive.writestr("../../METADATA.XML", "EnMAP")
    prisma.prisma(folder / "l1.he5", level="1")
    return folder


def sources(folder: Path, *names: str) -> list[Source]:
    return [Source(uri=str(folder / name)) for name in (names or sorted(p.name for p in folder.iterdir()))]


def opened(monkeypatch) -> list[str]:
    """Addresses that are surveyed from now on."""
    seen: list[str] = []
    plain = gather_module.survey

    def survey(source: Source, **options) -> SceneItem:
        seen.append(Path(source.uri).name)
        return plain(source, **options)

    monkeypatch.setattr(gather_module, "survey", survey)
    return seen


def test_every_sensor(products, tmp_path):
    catalog = Catalog.open(tmp_path / "cat", roots=[products])
    told = gather(catalog, sources(products))
    assert {Path(one.uri).name: one.reason for one in told if one.state != "added"} == {
        "l1.he5": f"{products}/l1.he5: holds PRS_L1_HCO, PRS_L1_PCO, expected PRS_L2D_HCO: only L2D lies on a map grid; order the scene as L2D",
        "slip.zip": f"{products}/slip.zip: holds '../../METADATA.XML', a name that leaves the archive; fetch it from its operator",
        "text.tif": next(one.reason for one in told if one.uri.endswith("text.tif")),
    }
    contents = catalog.read()
    assert contents.refused == ()
    assert {scene.sensor: scene.role for scene in contents.scenes} == {
        "enmap": "hsi", "desis": "hsi", "prisma": "hsi", "emit": "hsi",
        "sentinel2": "msi", "landsat": "msi", "planetscope": "msi",
    }  # fmt: skip
    for item in contents.scenes:
        scene = open_scene(item.source())  # each leads back to its product
        assert item.fingerprint is not None
        assert (item.fingerprint.sha256, item.time, item.n_bands) == (scene.digest, scene.time, len(scene.bands))
        assert item.conditions == scene.conditions
        assert item.gsd_m == pytest.approx(scene.gsd_m, rel=1e-5)


def test_the_outline_is_that_of_the_valid_pixels(products, tmp_path):
    catalog = Catalog.open(tmp_path, roots=[products])
    gather(catalog, sources(products, "enmap"))
    item = next(catalog.items())
    to_lonlat = Transformer.from_crs(enmap.CRS, 4326, always_xy=True)
    height, width = enmap.SHAPE
    # Row 0 is background: the outline begins below it.
    corners = [
        to_lonlat.transform(*(enmap.GRID @ (col, row)))
        for col, row in ((0, 1), (width, 1), (width, height), (0, height))
    ]
    expected = shapely.Polygon(corners)
    assert shapely.area(shapely.symmetric_difference(item.footprint, expected)) < 1e-3 * expected.area
    assert item.clear is not None
    cloudy = [row for row in item.clear if "0" in row or "8" in row]
    assert 1 <= len(cloudy) <= 4  # cloud, shadow and cirrus, one pixel each


def test_adding_again_opens_nothing(products, tmp_path, monkeypatch):
    catalog = Catalog.open(tmp_path, roots=[products])
    seen = opened(monkeypatch)
    assert [one.state for one in gather(catalog, sources(products, "enmap", "landsat"))] == ["added", "added"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert [one.state for one in gather(catalog, sources(products, "enmap", "landsat"))] == ["unchanged", "unchanged"]
    assert seen == ["enmap", "landsat"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    # What the user says of a product is part of it.
    masked = [Source(uri=str(products / "enmap"), mask="none")]
    assert [one.state for one in gather(catalog, masked)] == ["changed"]
    assert [one.state for one in gather(catalog, masked)] == ["unchanged"]
    assert [scene.settings for scene in catalog.items("hsi")] == [{"mask": "none"}]


def test_tables_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("center_nm\n500\n")
    monkeypatch.chdir(tmp_path)
    for uri in ("a.tif", "synthetic:msi?size=96"):
        source = absolute(Source(uri=uri, wavelengths="t.csv", responses="t.csv"))
        assert source.wavelengths == source.responses == str(tmp_path / "t.csv")


def test_changed_moved_and_copied(products, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copytree(products / "landsat", data / "a")
    catalog = Catalog.open(tmp_path / "cat", roots=[data])
    name = landsat.NAME
    (first,) = gather(catalog, sources(data, "a"))
    assert (first.state, first.id) == ("added", name)
    shutil.copytree(data / "a", data / "copy")
    (copied,) = gather(catalog, sources(data, "copy"))
    assert (copied.state, copied.id, copied.reason) == ("known", name, f"the same as {data / 'a'}")
    shutil.rmtree(data / "copy")
    (data / "a").rename(data / "b")
    (moved,) = gather(catalog, sources(data, "b"))
    assert (moved.state, moved.id) == ("changed", name)
    assert [scene.uri for scene in catalog.items()] == [str(data / "b")]
    before = next(catalog.items()).fingerprint
    shutil.rmtree(data / "b")
    landsat.landsat(data / "b", forms=("xml",))
    (changed,) = gather(catalog, sources(data, "b"))
    assert changed.state == "changed"
    after = next(catalog.items()).fingerprint
    assert before is not None
    assert after is not None
    assert before.sha256 != after.sha256
    # Another product of the same name gets a name of its own.
    landsat.landsat(data / "c", forms=("txt",))
    (second,) = gather(catalog, sources(data, "c"))
    assert second.state == "added"
    assert second.id is not None
    assert second.id.startswith(f"{name}-")
    assert len(list(catalog.items())) == 2


def test_a_bug_of_a_reader_costs_one_product(products, tmp_path, monkeypatch):
    plain = gather_module.survey

    def survey(source: Source, **options) -> SceneItem:
        if source.uri.endswith("desis"):
            raise ZeroDivisionError("of its own")
        return plain(source, **options)

    monkeypatch.setattr(gather_module, "survey", survey)
    counted = []
    told = gather(
        Catalog.open(tmp_path), sources(products, "desis", "enmap"), progress=lambda *count: counted.append(count)
    )
    assert [one.state for one in told] == ["refused", "added"]
    assert "its reader failed (ZeroDivisionError: of its own); please report this" in told[0].reason
    assert counted == [("products", 1, 2), ("products", 2, 2)]


def test_roles(tmp_path):
    recipe = "size=150&ratio=4&bands=40&seed=3"
    told = gather(Catalog.open(tmp_path), [Source(uri=f"synthetic:{role}?{recipe}") for role in ("hsi", "msi")])
    assert [one.state for one in told] == ["added", "added"]
    pairing = pair(Catalog.open(tmp_path).items(), PairingRules())
    assert [(p.hsi.id, p.chosen and p.chosen.msi.id) for p in pairing] == [("synthetic-hsi", "synthetic-msi")]
    few = Source(uri="synthetic:hsi?size=150&ratio=4&bands=12&seed=3")
    gather(Catalog.open(tmp_path / "few"), [few])
    assert next(Catalog.open(tmp_path / "few").items()).role == "msi"
    gather(Catalog.open(tmp_path / "few"), [few], role="hsi")
    assert next(Catalog.open(tmp_path / "few").items()).role == "hsi"


def test_paths_become_absolute(products, tmp_path, monkeypatch):
    monkeypatch.chdir(products)
    gather(Catalog.open(tmp_path), [Source(uri="./enmap/../landsat")])
    (item,) = Catalog.open(tmp_path, roots=[products]).items()
    assert item.uri == str(products / "landsat")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real scenes in {DATA}")
def test_real_scenes(tmp_path):
    """An overcast Landsat scene, and a Sentinel-2 tile with clouds in its northeast."""
    catalog = Catalog.open(tmp_path, roots=[DATA])
    told = gather(catalog, sources(DATA, "landsat8_c2l2_fixture", "s2_l2a_cog_fixture"))
    assert [one.state for one in told] == ["added", "added"]
    overcast, desert = catalog.items()
    assert overcast.clear == ("0" * CELLS,) * CELLS
    assert desert.clear is not None
    clear = np.array([[int(c, 16) for c in row] for row in desert.clear]) / 15
    assert clear[CELLS // 2 :].min() == 1
    assert clear[:8, 16:].mean() < 0.8
    # Of clouds and cirrus, the product's own count.
    assert 1 - clear.mean() == pytest.approx(desert.conditions.cloud_cover, abs=0.01)
    assert desert.time == datetime.fromisoformat("2020-02-19T11:34:25.405+00:00")
