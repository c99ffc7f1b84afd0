"""The catalogue: written and read back, valid STAC, and robust against every kind of bad item."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pystac
import pytest
from pyproj import CRS
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.outline import outline
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.stac import items
from hyperfuse.catalogs.stac.catalog import Catalog
from tests.archives import archive, scene_item


@pytest.fixture
def catalog(tmp_path):
    """A catalogue of one HSI and one MSI, whose products lie in a folder of their own."""
    (tmp_path / "data").mkdir()
    made = Catalog.open(tmp_path / "cat", roots=[tmp_path / "data"])
    made.add(scene_item(name, role, uri=str(tmp_path / "data" / name)) for name, role in (("h", "hsi"), ("m", "msi")))
    return made


def document(catalog: Catalog, name: str) -> dict[str, Any]:
    return json.loads((catalog.folder / name).read_text())


def rewrite(catalog: Catalog, name: str, **changes: Any) -> None:
    """Change some members of a document; a dict changes members of a member."""
    record = document(catalog, name)
    for key, value in changes.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    (catalog.folder / name).write_text(json.dumps(record))


def why_refused(catalog: Catalog) -> str:
    """The reason of the only refusal; the other scene is still there."""
    contents = catalog.read()
    assert [scene.id for scene in contents.scenes] == ["m"]
    assert len(contents.refused) == 1
    return contents.refused[0].reason


def test_scenes_come_back_as_they_were(tmp_path):
    scenes = list(archive(20))
    odd = [
        scene_item("unknown", "msi", time=None, conditions=Conditions(), fingerprint=None, sensor=None, n_bands=4),
        scene_item(
            "date line", "hsi", footprint=outline([179, -179, -179, 179], [10, 10, 12, 12]), uri="/nowhere/a b%c*.tif"
        ),
        scene_item("made", "hsi", uri="synthetic:hsi?size=150&ratio=4", settings={"crs": "EPSG:32633", "scale": 1e-4}),
        scene_item("table", "hsi", settings={"wavelengths": "400, 500.5", "mask": "cloud,shadow"}),
    ]
    catalog = Catalog.open(tmp_path, roots=["/nowhere"])
    catalog.add([*scenes, *odd])
    contents = catalog.read()
    assert contents.refused == ()
    before = {scene.id: scene for scene in (*scenes, *odd)}
    assert [scene.id for scene in contents.scenes] == sorted(before)
    for scene in contents.scenes:
        was = before[scene.id]
        assert scene.footprint.equals(was.footprint)
        assert vars(scene) | {"footprint": None, "details": {}, "conditions": None} == vars(was) | {
            "footprint": None, "details": {}, "conditions": None, "gsd_m": pytest.approx(was.gsd_m)
        }  # fmt: skip
        for name, value in vars(was.conditions).items():
            assert getattr(scene.conditions, name) == pytest.approx(value)
    assert {scene.id for scene in catalog.items("msi")} == {s.id for s in before.values() if s.role == "msi"}


def test_all_documents_are_valid_stac(catalog):
    catalog.add([scene_item("untimed", "msi", time=None, uri="synthetic:msi?size=99")])
    validator = JsonSchemaSTACValidator()
    root = pystac.Catalog.from_file(str(catalog.folder / "catalog.json"))
    found = [root, *root.get_children(), *root.get_items(recursive=True)]
    assert sorted(one.id for one in found) == ["cat", "enmap", "h", "m", "sentinel2", "untimed"]
    for one in found:
        record = json.loads(Path(one.self_href).read_text())
        validator.validate_core(record, one.STAC_OBJECT_TYPE, "1.1.0")
    item = next(root.get_items("h", recursive=True))
    assert item.get_parent().id == "enmap"
    assert Path(item.assets["product"].get_absolute_href()) == catalog.folder.parent / "data" / "h"
    extent = root.get_child("enmap").extent
    assert extent.spatial.bboxes == [[10.0, 47.0, 10.4, 47.4]]


def test_adding_again_replaces_and_mends(catalog):
    before = {path: path.read_bytes() for path in catalog.folder.rglob("*.json")}
    catalog.add([])
    assert {path: path.read_bytes() for path in catalog.folder.rglob("*.json")} == before
    h = next(catalog.items("hsi"))
    catalog.add([replace(h, gsd_m=60.0)])
    assert [scene.gsd_m for scene in catalog.items()] == [60, 10]
    # Interrupted between items and links: the next addition finds them.
    (catalog.folder / "enmap" / "collection.json").unlink()
    (catalog.folder / "catalog.json").unlink()
    catalog.add([scene_item("n", "hsi", uri=h.uri)])
    assert [scene.id for scene in catalog.items()] == ["h", "m", "n"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("catalog.json", {"title": "Our own catalogue"}),
        ("catalog.json", {"links": [{"rel": "item", "href": "./a.json"}]}),
        ("catalog.json", {"links": [{"rel": "child", "href": "./deep/er/catalog.json"}]}),
        ("catalog.json", {"links": "none"}),
        ("enmap/collection.json", {"license": "CC-BY-4.0"}),
        ("enmap/collection.json", {"extent": {"spatial": {"bbox": []}}}),
    ],
)
def test_a_catalogue_of_others_is_never_added_to(catalog, name, changes):
    rewrite(catalog, name, **changes)
    before = {path: path.read_bytes() for path in catalog.folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="made or edited by others"):
        catalog.add([scene_item("n", "hsi")])
    assert {path: path.read_bytes() for path in catalog.folder.rglob("*") if path.is_file()} == before


def test_items_that_came_before_an_error_stay(catalog):
    def items():
        yield scene_item("first", "msi", uri="synthetic:msi")
        raise RuntimeError("a reader broke")

    with pytest.raises(RuntimeError):
        catalog.add(items())
    assert [scene.id for scene in catalog.items()] == ["first", "h", "m"]
    assert not [path for path in catalog.folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("name", ["../h", "/h", "", ".h", "collection", "a/b", "a\nb"])
def test_identifiers_that_are_no_file_names(catalog, name):
    with pytest.raises(ValueError, match="no name for an item"):
        catalog.add([scene_item(name, "hsi")])
    assert len(catalog.read().scenes) == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"assets": {"product": {"href": "/etc/passwd"}}}, "outside of the allowed folders"),
        ({"assets": {"product": {"href": "../../../etc/passwd"}}}, "outside of the allowed folders"),
        ({"assets": {"product": {"href": "file:///etc/passwd"}}}, "scheme 'file'"),
        ({"assets": {"product": {"href": "/vsicurl/http://10.0.0.1/x"}}}, "virtual file of GDAL"),
        ({"assets": {"product": {"href": "vrt:///etc/passwd"}}}, "virtual file of GDAL"),
        ({"assets": {"product": {"href": "https://169.254.169.254/latest"}}}, "inside a private network"),
        ({"assets": {"product": {"href": 5}}}, "outside|no STAC item"),
        ({"assets": {"product": {}}}, "no STAC item of a scene"),
        ({"assets": {"product": None}}, "no STAC item of a scene"),
        ({"assets": []}, "no asset of the role data|no STAC item"),
        ({"type": "FeatureCollection"}, "is a FeatureCollection"),
        ({"stac_version": "0.9.0"}, "expected an item of STAC 1"),
        ({"geometry": None}, "no GeoJSON"),
        ({"id": "a\nb"}, "printable"),
        ({"id": ""}, "printable"),
        ({"properties": {"hrhsi:sensor": "os"}}, "there is no sensor 'os'"),
        ({"properties": {"hrhsi:settings": {"uri": "/etc/passwd"}}}, "there is no setting uri"),
        ({"properties": {"hrhsi:settings": {"wavelengths": "/etc/passwd"}}}, "outside of the allowed folders"),
        ({"properties": {"hrhsi:settings": {"responses": "/etc/passwd"}}}, "outside of the allowed folders"),
        ({"properties": {"hrhsi:settings": {"responses": "../../../etc/passwd"}}}, "outside of the allowed folders"),
        # Digits, commas and points alone do not make numbers: this is a path.
        ({"properties": {"hrhsi:settings": {"wavelengths": "../.."}}}, "outside of the allowed folders"),
        ({"properties": {"hrhsi:settings": {"crs": "/etc/passwd"}}}, "no CRS that an item may name"),
        ({"properties": {"hrhsi:settings": {"crs": "+init=/etc/passwd:1"}}}, "no CRS that an item may name"),
        (
            {"properties": {"hrhsi:settings": {"crs": "+proj=longlat +nadgrids=/etc/passwd"}}},
            "no CRS that an item may name",
        ),
        ({"properties": {"hrhsi:settings": {"scale": [1]}}}, "there is no setting scale"),
        ({"properties": {"hrhsi:settings": "all"}}, "no STAC item of a scene"),
        ({"properties": {"gsd": -1}}, "ground sampling distance is -1"),
        ({"properties": {"gsd": "x"}}, "no STAC item of a scene"),
        ({"properties": {"hrhsi:mtime_ns": "now"}}, "no STAC item of a scene"),
        ({"properties": 3}, "no STAC item of a scene"),
        ({"id": "m"}, "there is another item m"),
    ],
)
def test_a_bad_item_is_refused_and_hides_no_other(catalog, changes, why):
    rewrite(catalog, "enmap/h.json", **changes)
    if changes.get("id") == "m":
        # Which of the two is first is a matter of links; one of them is told.
        contents = catalog.read()
        assert len(contents.scenes) == len(contents.refused) == 1
        assert why in contents.refused[0].reason
    else:
        assert re.search(why, why_refused(catalog))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        (" " * (4 << 20) + "{}", "has more than"),
        ("", "no JSON"),
        ("[]", "holds a list"),
        ('{"type": NaN}', "no number of JSON"),
    ],
)
def test_an_item_that_is_no_document(catalog, content, why):
    (catalog.folder / "enmap/h.json").write_text(content)
    assert why in why_refused(catalog)


@pytest.mark.parametrize(
    ("href", "why"),
    [
        ("./absent.json", "cannot be read"),
        ("/etc/hostname", "outside of the allowed folders"),
        ("file:///etc/hostname", "scheme 'file'"),
        ("https://example.org/item.json", "not followed from a catalogue on disk"),
        ("synthetic:hsi", "not followed from a catalogue on disk"),
    ],
)
def test_links_that_lead_away(catalog, href, why):
    links = [{"rel": "item", "href": href}, {"rel": "parent", "href": "../../../.."}]
    rewrite(catalog, "enmap/collection.json", links=links)
    assert why in why_refused(catalog)


def test_a_link_that_is_a_symlink_to_elsewhere(catalog, tmp_path):
    (tmp_path / "secret.json").write_text((catalog.folder / "enmap/h.json").read_text())
    (catalog.folder / "enmap/h.json").unlink()
    (catalog.folder / "enmap/h.json").symlink_to(tmp_path / "secret.json")
    assert "outside of the allowed folders" in why_refused(catalog)


def test_catalogues_that_lead_to_themselves(catalog):
    links = [
        {"rel": "child", "href": href}
        for href in ("./catalog.json", "./enmap/collection.json", "./enmap/../catalog.json")
    ]
    rewrite(catalog, "catalog.json", links=[*links, {"rel": "child", "href": "./sentinel2/collection.json"}])
    rewrite(
        catalog,
        "enmap/collection.json",
        links=[{"rel": "child", "href": "../catalog.json"}, {"rel": "item", "href": "h.json"}],
    )
    assert [scene.id for scene in catalog.items()] == ["h", "m"]
    rewrite(catalog, "sentinel2/collection.json", links="many")
    contents = catalog.read()
    assert [scene.id for scene in contents.scenes] == ["h"]
    assert "has no links of a STAC catalogue" in contents.refused[0].reason


def test_roots_are_named_by_the_user(catalog, tmp_path):
    contents = Catalog.open(catalog.folder / "catalog.json").read()
    assert contents.scenes == ()
    assert len(contents.refused) == 2
    assert (
        f"lies in {tmp_path / 'data'}, outside of the allowed folders ({catalog.folder})" in contents.refused[0].reason
    )
    # A catalogue above its products needs none.
    assert len(list(Catalog.open(catalog.folder, roots=[tmp_path]).items())) == 2


def test_no_catalogue(tmp_path):
    with pytest.raises(InputRejected, match=r"holds no catalogue .* make one with `hyperfuse catalog add"):
        Catalog.open(tmp_path).read()
    (tmp_path / "catalog.json").write_text("{}")
    with pytest.raises(InputRejected, match="has no links"):
        Catalog.open(tmp_path).read()
    with pytest.raises(UsageError, match="nothing can be added through an API"):
        Catalog.open("https://stac.example.org/v1").add([scene_item("h", "hsi")])


def test_items_of_others(catalog, tmp_path):
    """As an agency writes them: no word of ours, one asset or a folder of them."""
    folder = catalog.folder / "foreign"
    folder.mkdir()
    common = {
        "type": "Feature", "stac_version": "1.0.0", "links": [],
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]},
    }  # fmt: skip
    items = {
        "cog": {"properties": {"datetime": "2024-05-01T10:00:00Z", "instruments": ["msi"], "gsd": 10, "eo:cloud_cover": 12},
                "assets": {name: {"href": f"{name}.tif", "roles": ["data"]} for name in ("B02", "B03")}},
        "cube": {"properties": {"datetime": None, "start_datetime": "2024-05-01T10:00:00Z", "gsd": 30},
                 "assets": {"image": {"href": "cube.tif", "roles": ["data"], "eo:bands": [{}] * 200}, "look": {"href": "a.png"}}},
        "silent": {"properties": {"datetime": "2024-05-01T10:00:00Z", "gsd": 30},
                   "assets": {"image": {"href": "cube.tif", "roles": ["data"]}}},
        "empty": {"properties": {"datetime": "2024-05-01T10:00:00Z", "gsd": 30}, "assets": {"look": {"href": "a.png"}}},
    }  # fmt: skip
    for name, item in items.items():
        (folder / f"{name}.json").write_text(json.dumps(common | item | {"id": name}))
    links = [{"rel": "item", "href": f"{name}.json"} for name in items]
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "links": links}))
    contents = Catalog.open(folder).read()
    cog, cube = contents.scenes
    assert (cog.id, cog.role, cog.uri, cog.gsd_m, cog.conditions.cloud_cover) == ("cog", "msi", str(folder), 10, 0.12)
    assert (cube.id, cube.role, cube.uri, cube.n_bands) == ("cube", "hsi", str(folder / "cube.tif"), 200)
    assert cube.time is not None
    assert cube.fingerprint is None
    assert [r.reason.split(": ", 2)[2][:40] for r in contents.refused] == [
        "has no asset of the role data; leave it ", "tells neither instrument nor bands, so i"
    ]  # fmt: skip


def test_items_are_plain_records(tmp_path):
    """No object of pystac per item, and none of the bands is kept; `make bench-catalog` tells what 10,000 cost."""
    catalog = Catalog.open(tmp_path, roots=["/nowhere"])
    catalog.add(archive(300))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pystac.Item.from_dict", None)
        contents = catalog.read()
    assert (len(contents.scenes), contents.refused) == (300, ())
    assert not any(scene.details for scene in contents.scenes)


def test_every_setting_of_a_reader_was_judged():
    """One that names a file and is taken for a plain value would open what nobody allowed."""
    assert {*items.TABLES, *items._PLAIN} == {field.name for field in fields(Source)} - {"uri", "sensor"}


@pytest.mark.parametrize(
    "crs",
    [
        "EPSG:32632",
        "32632",
        "urn:ogc:def:crs:EPSG::32632",
        "+proj=utm +zone=32 +datum=WGS84",
        CRS("EPSG:3035").to_wkt(),
    ],
)
def test_plain_crs_of_an_item(catalog, crs):
    catalog.add([scene_item("n", "hsi", uri=str(catalog.folder.parent / "data" / "n"), settings={"crs": crs})])
    assert [scene.settings for scene in catalog.items() if scene.id == "n"] == [{"crs": crs}]
