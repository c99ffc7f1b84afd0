"""Scenes at addresses, opened as those on disk are: files, items and what of them is fetched, buckets."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import rasterio
from affine import Affine

from hyperfuse.catalogs.errors import InputRejected, Transient, UsageError
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.remote import cache
from hyperfuse.catalogs.remote.items import item_of
from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.gather import gather
from hyperfuse.flows.cli import main
from tests.products.landsat import landsat
from tests.products.packing import planted, raster, tarred
from tests.products.planetscope import planetscope
from tests.servers import dropped, serving

GRID = Affine(10, 0, 400000, 0, -10, 5800000)


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "PAUSE_S", 0.0)
    with serving() as made:
        monkeypatch.setenv("HYPERFUSE_HOSTS", made.host)
        monkeypatch.setenv("HYPERFUSE_CACHE", str(tmp_path / "cache"))
        yield made


def upload(server, folder, place=""):
    for path in folder.rglob("*"):
        if path.is_file():
            server.files[f"{place}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


def whole(scene):
    return scene.read((slice(0, scene.geobox.shape[0]), slice(0, scene.geobox.shape[1])), range(len(scene.bands)))


def fetched_names(server):
    return {path.partition("?")[0].rpartition("/")[2] for path, _, code in server.asked if code == 200}


@pytest.fixture
def sentinel2(tmp_path):
    """COGs with their item, as a catalogue of the cloud has them: signed, with a second format and pictures."""
    folder = tmp_path / "s2"
    assets = {}
    for number, name in enumerate(("B02", "B03", "B04", "B08", "B11")):
        step = 2 if name == "B11" else 1
        data = planted(1, 40 // step, 40 // step, "uint16") + 1000 * number
        raster(folder / f"T33_{name}.tif", data, GRID @ Affine.scale(step), "EPSG:32633", nodata=0)
        digest = hashlib.sha256((folder / f"T33_{name}.tif").read_bytes()).hexdigest()
        assets[name] = {"href": f"./T33_{name}.tif?sig=SECRET&se=2025", "roles": ["data"], "file:checksum": f"1220{digest}",
                        "raster:bands": [{"scale": 1e-4, "offset": -0.1}]}  # fmt: skip
        assets[f"{name}-jp2"] = {"href": f"./T33_{name}_large.jp2", "roles": ["data"]}
    assets |= {"thumbnail": {"href": "./preview.jpg"}, "visual": {"href": "s3://elsewhere/TCI.tif"}}
    item = {
        "stac_version": "1.0.0", "type": "Feature", "id": "S2B_33UUU", "links": [], "geometry": None, "assets": assets,
        "properties": {"datetime": "2024-05-01T10:15:59Z", "platform": "sentinel-2b", "constellation": "sentinel-2",
                       "s2:processing_baseline": "05.10"},
    }  # fmt: skip
    (folder / "S2B_33UUU").write_text(json.dumps(item))
    return folder


def test_of_an_item_only_what_its_reader_asks_for_is_fetched(server, sentinel2):
    upload(server, sentinel2, "/items")
    scene = open_source(Source(uri=f"{server.url}/items/S2B_33UUU", bands="B02,B08"))
    assert (scene.sensor, scene.uri, scene.bands.names) == (
        "sentinel2",
        f"{server.url}/items/S2B_33UUU",
        ("B02", "B08"),
    )
    assert fetched_names(server) == {"S2B_33UUU", "T33_B02.tif", "T33_B08.tif"}
    for band, name in enumerate(scene.bands.names):
        with rasterio.open(sentinel2 / f"T33_{name}.tif") as file:
            np.testing.assert_allclose(whole(scene)[band], file.read(1) * 1e-4 - 0.1, atol=1e-6)
    assert "SECRET" not in repr(scene.notes)


def test_the_digest_is_that_of_the_same_files_on_disk(server, sentinel2):
    upload(server, sentinel2, "/items")
    afar = open_source(Source(uri=f"{server.url}/items/S2B_33UUU"))
    (sentinel2 / "S2B_33UUU").rename(sentinel2 / "S2B_33UUU.json")
    text = (sentinel2 / "S2B_33UUU.json").read_text()
    assert afar.digest == open_source(Source(uri=str(sentinel2))).digest
    assert "?sig=" in text  # the reader takes names without their query


def test_an_asset_that_is_not_the_one_of_the_item(server, sentinel2):
    upload(server, sentinel2, "/items")
    server.files["/items/T33_B08.tif"] += b"\0"
    with pytest.raises(
        InputRejected, match=r"T33_B08.tif: its sha256 is .* its item tells .* damaged or another file"
    ) as told:
        open_source(Source(uri=f"{server.url}/items/S2B_33UUU"))
    assert "SECRET" not in str(told.value)


def test_an_asset_that_is_missing(server, sentinel2):
    upload(server, sentinel2, "/items")
    del server.files["/items/T33_B03.tif"]
    with pytest.raises(InputRejected, match=r"/items/T33_B03.tif: the server answers 404"):
        open_source(Source(uri=f"{server.url}/items/S2B_33UUU"))


def test_an_item_that_leads_into_the_network_of_the_machine(server, sentinel2, tmp_path):
    upload(server, sentinel2, "/items")
    item = json.loads(server.files["/items/S2B_33UUU"])
    item["assets"]["B08"]["href"] = "https://169.254.169.254/T33_B08.tif"
    server.files["/items/S2B_33UUU"] = json.dumps(item).encode()
    with pytest.raises(InputRejected, match="inside a private network"):
        open_source(Source(uri=f"{server.url}/items/S2B_33UUU"))
    # A file of this machine or a bucket of its user is none of the item's assets at all.
    for href in ("file:///etc/passwd", "/etc/passwd", "s3://mine/T33_B08.tif"):
        item["assets"]["B08"]["href"] = href
        server.files["/items/S2B_33UUU"] = json.dumps(item).encode()
        names = open_source(Source(uri=f"{server.url}/items/S2B_33UUU")).bands.names
        assert names == ("B02", "B03", "B04", "B11")


def test_items_of_landsat_and_planetscope(server, tmp_path):
    folder = landsat(tmp_path / "landsat")
    names = sorted(p.name for p in folder.iterdir())
    item = {"stac_version": "1.0.0", "type": "Feature", "id": "LC09", "properties": {}, "links": [],
            "assets": {f"a{i}": {"href": f"../landsat/{name}"} for i, name in enumerate(names)}}  # fmt: skip
    upload(server, folder, "/landsat")
    server.files["/items/lc09.json"] = json.dumps(item).encode()
    scene, here = open_source(Source(uri=f"{server.url}/items/lc09.json")), open_source(Source(uri=str(folder)))
    assert scene.sensor == "landsat"
    np.testing.assert_array_equal(whole(scene), whole(here))
    order = planetscope(tmp_path / "planet")
    upload(server, order, "/order")
    (item_name,) = (p.name for p in order.glob("*.json"))
    scene, here = open_source(Source(uri=f"{server.url}/order/{item_name}")), open_source(Source(uri=str(order)))
    assert (scene.sensor, scene.digest) == ("planetscope", here.digest)
    np.testing.assert_array_equal(whole(scene), whole(here))


def test_an_item_of_one_image_that_no_product_reader_knows(server, tmp_path):
    made = raster(tmp_path / "a" / "cube.tif", planted(3, 20, 20) / np.float32(1e4), GRID, "EPSG:32633")
    upload(server, made.parent, "/x")
    item = {"stac_version": "1.1.0", "type": "Feature", "id": "x", "properties": {}, "links": [],
            "assets": {"image": {"href": "cube.tif", "roles": ["data"]}, "thumb": {"href": "t.png"}}}  # fmt: skip
    server.files["/x/item.json"] = json.dumps(item).encode()
    scene = open_source(Source(uri=f"{server.url}/x/item.json", wavelengths="490,560,665"))
    np.testing.assert_allclose(whole(scene), planted(3, 20, 20) / 1e4, rtol=1e-6)
    item["assets"]["other"] = {"href": "other.tif", "roles": ["data"]}
    server.files["/x/item.json"] = json.dumps(item).encode()
    with pytest.raises(InputRejected, match=r"2 of its assets are of the role data \(image, other\), expected one"):
        open_source(Source(uri=f"{server.url}/x/item.json"))
    server.files["/x/item.json"] = json.dumps({"stac_version": "1.0.0", "type": "Collection"}).encode()
    with pytest.raises(InputRejected, match="is a STAC Collection, expected the item of one scene"):
        open_source(Source(uri=f"{server.url}/x/item.json"))


def test_an_envi_image_with_its_header(server, tmp_path):
    data = planted(3, 20, 20) / np.float32(1e4)
    folder = tmp_path / "envi"
    folder.mkdir()
    (folder / "hsi.bsq").write_bytes(data.tobytes())
    (folder / "hsi.hdr").write_text(
        "ENVI\nsamples = 20\nlines = 20\nbands = 3\ndata type = 4\ninterleave = bsq\nbyte order = 0\n"
        "map info = {UTM, 1, 1, 400000, 5800000, 10, 10, 33, North, WGS-84}\n"
        "wavelength units = Nanometers\nwavelength = {490, 560, 665}\n"
    )
    upload(server, folder, "/e")
    np.testing.assert_allclose(whole(open_source(Source(uri=f"{server.url}/e/hsi.bsq"))), data)
    del server.files["/e/hsi.hdr"]
    server.files["/f/hsi.bsq"] = server.files["/e/hsi.bsq"]
    with pytest.raises(
        InputRejected, match=r"/f/hsi.bsq: is .*, expected GeoTIFF, JPEG 2000, ENVI with its .hdr beside it"
    ):
        open_source(Source(uri=f"{server.url}/f/hsi.bsq"))


def test_an_archive_and_what_is_no_image(server, tmp_path):
    tarred(landsat(tmp_path / "landsat"), tmp_path / "LC09.tar")
    server.files["/LC09.tar"] = (tmp_path / "LC09.tar").read_bytes()
    server.files["/page.tif"] = b"<!DOCTYPE html><html>log in</html>"
    assert open_source(Source(uri=f"{server.url}/LC09.tar")).sensor == "landsat"
    with pytest.raises(InputRejected, match=rf"^{server.url}/page.tif: is a page of HTML, expected"):
        open_source(Source(uri=f"{server.url}/page.tif"))


@pytest.mark.parametrize("uri", ["https://user:word@example.org/a.tif", "https://example.org/a.tif?token=word",
                                 "https://example.org/a.tif?a=1&X-Amz-Signature=word"])  # fmt: skip
def test_logins_in_an_address(uri, tmp_path, capsys):
    with pytest.raises(UsageError, match="user name, a password or a key") as told:
        open_source(Source(uri=uri))
    assert "word" not in str(told.value).replace("password", "")
    assert main(["info", uri]) == 2
    assert main(["fuse", uri, "b.tif", "--output", str(tmp_path / "p")]) == 2
    assert "word" not in capsys.readouterr().err.replace("password", "")


def test_the_command_line(server, tmp_path, capsys, monkeypatch):
    made = raster(tmp_path / "up" / "cube.tif", planted(3, 20, 20) / np.float32(1e4), GRID, "EPSG:32633")
    upload(server, made.parent)
    assert main(["info", f"{server.url}/cube.tif", "--set", "wavelengths=490,560,665", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "cube"
    assert main(["info", f"{server.url}/none.tif"]) == 3
    server.misbehave = lambda handler, content: dropped(handler, content, after=100)
    monkeypatch.setenv("HYPERFUSE_CACHE", str(tmp_path / "other"))
    assert main(["info", f"{server.url}/cube.tif"]) == 9
    monkeypatch.setenv("HYPERFUSE_FETCH_MAX_GB", "1e-9")
    server.misbehave = lambda *_: False
    assert main(["info", f"{server.url}/cube.tif"]) == 6
    monkeypatch.delenv("HYPERFUSE_HOSTS")
    assert main(["info", f"{server.url}/cube.tif"]) == 3
    monkeypatch.setenv("HYPERFUSE_FETCH_MAX_GB", "much")
    assert main(["info", f"{server.url}/cube.tif"]) == 2


def test_a_catalogue_of_addresses(server, sentinel2, tmp_path):
    upload(server, sentinel2, "/items")
    catalog, source = Catalog.open(tmp_path / "catalog"), Source(uri=f"{server.url}/items/S2B_33UUU", bands="B02,B08")
    assert [one.state for one in gather(catalog, [source])] == ["added"]
    assert [one.state for one in gather(catalog, [source])] == ["unchanged"]
    (scene,) = Catalog.open(tmp_path / "catalog").read().scenes
    assert (scene.uri, scene.role) == (source.uri, "msi")
    server.files["/items/S2B_33UUU"] += b" "
    assert [one.state for one in gather(catalog, [source])] == ["changed"]
    assert "SECRET" not in "".join(p.read_text() for p in (tmp_path / "catalog").rglob("*.json"))


def test_what_is_no_document_of_stac(tmp_path):
    for name, content in {"a": b"II*\0", "b": b"{}", "c": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert item_of(tmp_path / name) is None


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a server of our own."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "THEKEY")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "THESECRET")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").clear_instance_cache()
        system = fsspec.filesystem("s3")
        system.mkdir("scenes")
        yield system
        system.clear_instance_cache()
    made.stop()


def test_an_item_in_a_bucket(bucket, sentinel2, tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERFUSE_CACHE", str(tmp_path / "cache"))
    for path in sentinel2.iterdir():
        bucket.pipe(f"scenes/items/{path.name}", path.read_bytes())
    scene = open_source(Source(uri="s3://scenes/items/S2B_33UUU", bands="B02"))
    with rasterio.open(sentinel2 / "T33_B02.tif") as file:
        np.testing.assert_allclose(whole(scene)[0], file.read(1) * 1e-4 - 0.1, atol=1e-6)
    assert not list((tmp_path / "cache").rglob("T33_B08.tif"))
    for path in (tmp_path / "cache").rglob("*.json"):
        assert "THE" not in path.read_text()


def test_a_file_in_a_bucket_in_pieces_resumed_and_replaced(bucket, tmp_path, monkeypatch):
    from hyperfuse.catalogs.remote import s3
    from hyperfuse.catalogs.remote.fetching import Fetching

    monkeypatch.setattr(s3, "_PIECE", 1000)
    monkeypatch.setattr(cache, "PAUSE_S", 0.0)
    content = bytes(range(250)) * 100
    bucket.pipe("scenes/a.bin", content)
    fetching, real = Fetching.of(tmp_path / "cache"), s3._pieces

    def cut(*arguments):
        for number, piece in enumerate(real(*arguments)):
            if number == 3:
                raise Transient("cut")
            yield piece

    monkeypatch.setattr(s3, "_pieces", cut)
    monkeypatch.setattr(cache, "ATTEMPTS", 0)
    with pytest.raises(Transient):
        cache.fetch("s3://scenes/a.bin", fetching)
    started = []
    monkeypatch.setattr(
        s3, "_pieces", lambda system, told, facts, start: started.append(start) or real(system, told, facts, start)
    )
    assert cache.fetch("s3://scenes/a.bin", fetching).read_bytes() == content
    assert started == [3000]
    bucket.pipe("scenes/a.bin", content[::-1])
    assert cache.fetch("s3://scenes/a.bin", fetching).read_bytes() == content[::-1]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://scenes/none.tif", "there is no such file in the bucket"),
        ("s3://nobody/none.tif", "there is no such file in the bucket"),
        ("s3://scenes/items/", "is a folder of a bucket"),
        ("s3://scenes", "is a folder of a bucket"),
    ],
)
def test_what_is_not_in_a_bucket(bucket, tmp_path, monkeypatch, uri, why):
    monkeypatch.setenv("HYPERFUSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputRejected, match=why):
        open_source(Source(uri=uri))
