"""Archives as they should be, and archives that nobody should open."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats import packages as _packages
from hyperfuse.catalogs.formats.packages import open_package
from hyperfuse.catalogs.sensors import Source, available, open_scene, sensor_module
from tests.products import enmap as built
from tests.products.packing import tar_with, tarred, zip_of, zipped


def test_what_macos_leaves_behind_is_no_member(tmp_path: Path) -> None:
    folder = tmp_path / "product"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.tif").write_bytes(b"II*\0")
    for name in ("in/._a.tif", ".DS_Store", "._in"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    archive = tmp_path / "product.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "in" / "a.tif", "in/a.tif")
        file.writestr("__MACOSX/in/._a.tif", b"\0\5\x16\7")
        file.writestr("in/._a.tif", b"\0\5\x16\7")
    for path in (folder, archive):
        package = open_package(str(path))
        assert package is not None
        assert [member.name for member in package.members] == ["in/a.tif"]


def refused(path: Path, sentence: str) -> None:
    """By every way in: the package itself, and a scene of it."""
    with pytest.raises(InputRejected, match=sentence):
        open_package(str(path))
    with pytest.raises(InputRejected, match=sentence):
        open_scene(Source(uri=str(path)))


@pytest.fixture
def content(tmp_path: Path) -> Path:
    folder = tmp_path / "product"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.xml").write_text("<a/>")
    (folder / "inner" / "b.bin").write_bytes(bytes(range(256)) * 40)
    return folder


@pytest.mark.parametrize("packing", ["folder", "zip", "stored", "tar", "tar.gz"])
def test_all_packages_hold_the_same(content, tmp_path, packing):
    path = {
        "folder": lambda: content.parent,
        "zip": lambda: zipped(content, tmp_path / "x.zip"),
        "stored": lambda: zipped(content, tmp_path / "x.zip", compression=zipfile.ZIP_STORED),
        "tar": lambda: tarred(content, tmp_path / "x.tar"),
        "tar.gz": lambda: tarred(content, tmp_path / "x.tar.gz"),
    }[packing]()
    package = open_package(str(path))
    assert package.one("A.XML").name == "product/a.xml"
    member = package.one("*.bin")
    want = (content / "inner" / "b.bin").read_bytes()
    assert package.read(member) == want
    for whole_files in (False, True):
        there = package.in_place([member], whole_files=whole_files)[member.name]
        assert there.holder.read_bytes()[there.offset : there.offset + there.size] == want
    assert there.offset == 0
    assert not there.packed


@pytest.mark.parametrize("name", ["../a.xml", "/etc/a.xml", "x/../../a.xml", "C:/a.xml", "x\\a.xml"])
def test_names_that_leave_the_archive(tmp_path, name):
    refused(zip_of(tmp_path / "a.zip", **{name: "<a/>"}), "a name that leaves the archive")
    refused(tar_with(tmp_path / "a.tar", tarfile.TarInfo(name), b"<a/>"), "a name that leaves the archive")


def test_links_in_archives(tmp_path):
    link = zipfile.ZipInfo("a.tif")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "a.zip", "a.tif is a link")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("a.tif")
        info.type, info.linkname = kind, "/etc/passwd"
        refused(tar_with(tmp_path / f"{kind!r}.tar", info), "is a link, a device or a sparse file")


def test_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(_packages, "LARGE", 1 << 16)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tif", bytes(1 << 20))
    refused(tmp_path / "a.zip", "unpacks to more than 200 times its size")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("a.tif")
        info.size = 1 << 20
        tar.addfile(info, io.BytesIO(bytes(1 << 20)))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(packed.getvalue()))
    refused(tmp_path / "a.tar.gz", "unpacks to more than 200 times its size")


def test_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_packages, "MAX_MEMBERS", 10)
    refused(zip_of(tmp_path / "a.zip", **{f"{i}.tif": "x" for i in range(11)}), "holds more than 10 files")


def test_a_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.xml", "<a/>")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.xml", "<b/>")
    refused(tmp_path / "a.zip", "holds a.xml twice")


def test_a_member_that_is_longer_than_it_says(content, tmp_path):
    """The directory understates the size of a member: what it says is unpacked and then the rest is missed."""
    path = zipped(content, tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\1\2")
    raw[at + 24 : at + 28] = (100).to_bytes(4, "little")
    path.write_bytes(raw)
    package = open_package(str(path))
    member = package.one("b.bin")
    assert member.size == 100
    with pytest.raises(InputRejected, match="cannot be unpacked"):
        package.in_place([member])


def test_a_stored_member_with_two_sizes(content, tmp_path):
    path = zipped(content, tmp_path / "a.zip", compression=zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\1\2")
    raw[at + 24 : at + 28] = (100).to_bytes(4, "little")
    path.write_bytes(raw)
    refused(path, "has two sizes")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_torn_archives(content, tmp_path, kind):
    path = (zipped if kind == "zip" else tarred)(content, tmp_path / f"a.{kind}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InputRejected, match=r"fetch it again|truncated"):
        open_package(str(path))


def test_metadata_are_read_to_a_limit(content):
    package = open_package(str(content))
    with pytest.raises(InputRejected, match="has 10240 bytes, expected at most 100 of metadata"):
        package.read(package.one("b.bin"), limit=100)


def test_archives_without_a_product_are_refused_in_one_sentence(content, tmp_path):
    for path in (zipped(content, tmp_path / "a.zip"), tarred(content, tmp_path / "a.tar")):
        with pytest.raises(InputRejected, match="no product that a reader knows"):
            open_scene(Source(uri=str(path)))


def test_no_module_takes_what_is_another_ones(tmp_path):
    """Exactly one specific module accepts a product, wherever it is packed and whatever it is called."""
    folder = built.enmap(tmp_path / "a")
    for path in (folder, zipped(folder, tmp_path / "S2A_MSIL2A.zip"), tarred(folder, tmp_path / "PRS_L2D.tar")):
        takers = [name for name in available() if sensor_module(name).accepts(str(path))]
        assert [name for name in takers if name != "generic"] == ["enmap"]
