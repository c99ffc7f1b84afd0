"""Addresses in catalogues: what is followed, and every way out that is closed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.stac.trusted import MAX_LENGTH, Trust, as_href


@pytest.fixture
def trust(tmp_path):
    (tmp_path / "catalog" / "enmap").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    return Trust.of([tmp_path / "catalog", tmp_path / "data"], hosts=["stac.lab:8080"])


def base(tmp_path: Path) -> str:
    return str(tmp_path / "catalog" / "enmap")


def test_files_under_the_roots(trust, tmp_path):
    assert trust.follow("./a.json", base(tmp_path)) == str(tmp_path / "catalog/enmap/a.json")
    assert trust.follow("../../data/a%20b.tif", base(tmp_path)) == str(tmp_path / "data/a b.tif")
    assert trust.follow(f"{tmp_path}/data/tiles*.tif", base(tmp_path)) == str(tmp_path / "data/tiles*.tif")
    assert trust.follow("synthetic:hsi?size=150", base(tmp_path)) == "synthetic:hsi?size=150"


@pytest.mark.parametrize(
    "href",
    ["../../../etc/passwd", "/etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "../../database/a", "..%2f..%2f..", "../..",
     "*/../../../../etc/passwd"],
)  # fmt: skip
def test_files_outside_of_the_roots(trust, tmp_path, href):
    with pytest.raises(InputRejected, match=r"outside of the allowed folders .* name its folder with --root"):
        trust.follow(href, base(tmp_path))


def test_a_link_that_leads_out(trust, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "data" / "inside").symlink_to(tmp_path / "secret")
    with pytest.raises(InputRejected, match=r"lies in .*secret"):
        trust.follow("../../data/inside/key.tif", base(tmp_path))
    # A root that is a link itself is where it leads to.
    (tmp_path / "mount").symlink_to(tmp_path / "secret")
    assert Trust.of([tmp_path / "mount"]).follow("key.tif", str(tmp_path / "mount")) == str(tmp_path / "secret/key.tif")


@pytest.mark.parametrize(
    ("href", "why"),
    [
        ("/vsicurl/http://10.0.0.1/a.tif", "virtual file of GDAL"),
        ("/VSIZIP/a.zip/b.tif", "virtual file of GDAL"),
        ("%2fvsis3/bucket/key", "virtual file of GDAL"),
        ("//vsimem/a", "virtual file of GDAL"),
        ("vrt:///etc/passwd?bands=1", "virtual file of GDAL"),
        ("file:///etc/passwd", "the scheme 'file', expected https"),
        ("FILE:///etc/passwd", "the scheme 'file', expected https"),
        ("http://example.org/a.tif", "the scheme 'http', expected https"),
        ("ftp://example.org/a.tif", "the scheme 'ftp'"),
        ("s3://bucket/a.tif", "the scheme 's3'"),
        ("NETCDF:/etc/passwd:a", "the scheme 'netcdf'"),
        ("C:/windows", "the scheme 'c'"),
        ("//example.org/a.tif", "the scheme ''"),
        ("https://user:word@example.org/a.tif", "carries a user name"),
        ("", "empty"),
        ("a\0b", "unprintable"),
        ("a%00b", "virtual file"),
        ("a\nb", "unprintable"),
        ("a" * (MAX_LENGTH + 1), "longer than"),
        ("https://example.org:port/", "no address"),
    ],
)
def test_schemes_and_virtual_files(trust, tmp_path, href, why):
    with pytest.raises(InputRejected, match=why):
        trust.follow(href, base(tmp_path))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",  # noqa: S104
     "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "[::1]", "[::]", "[fe80::1]", "[fd00::1]",
     "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "localhost", "LOCALHOST", "a.localhost", "nas.local", "metadata.google.internal", "server", ""],
)  # fmt: skip
def test_private_hosts(trust, tmp_path, host):
    with pytest.raises(InputRejected, match="inside a private network"):
        trust.follow(f"https://{host}/a.tif", base(tmp_path))


def test_public_and_named_hosts(trust):
    assert trust.follow("https://example.org/a.tif", "/anywhere") == "https://example.org/a.tif"
    assert trust.follow("https://93.184.216.34/a.tif", "/anywhere") == "https://93.184.216.34/a.tif"
    # A document from a server speaks of that server, and of no file here.
    assert trust.follow("../a.tif", "https://example.org/items/1/") == "https://example.org/items/a.tif"
    assert trust.follow("/etc/passwd", "https://example.org/items/1/") == "https://example.org/etc/passwd"
    assert trust.follow("http://stac.lab:8080/a", "/anywhere") == "http://stac.lab:8080/a"
    with pytest.raises(InputRejected, match="expected https"):
        trust.follow("http://stac.lab:9090/a", "/anywhere")


def test_a_public_name_that_resolves_to_a_private_address(monkeypatch):
    told = {"good.example": "93.184.216.34", "evil.example": "169.254.169.254"}

    def resolve(host, port, **_):
        if host not in told:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (told[host], port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert Trust().connect("https://good.example/") == "https://good.example/"
    with pytest.raises(InputRejected, match=r"leads to 169\.254\.169\.254"):
        Trust().connect("https://evil.example/")
    with pytest.raises(InputRejected, match="not known here"):
        Trust().connect("https://absent.example/")


NAMES = st.sampled_from(["a", "b", "c d"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9
)


@given(st.lists(NAMES, min_size=1, max_size=5), st.lists(NAMES.filter(str.isprintable), min_size=1, max_size=4))
def test_an_address_that_was_written_is_read_back(parts, folder):
    place = "/r/" + "/".join(part for part in parts if part.isprintable() and part not in (".", ".."))
    place = place.rstrip("/") or "/r"
    at = Path("/r", *(part for part in folder if part not in (".", "..")))
    assert Trust(roots=(Path("/r"),)).follow(as_href(place, at), str(at)) == place


def test_relative_where_it_can_be():
    assert as_href("/a/b/c.tif", Path("/a/d")) == "../b/c.tif"
    assert as_href("/a/d", Path("/a/d")) == "."
    assert as_href("/a/data/enmap", Path("/a/cat/enmap")) == "../../data/enmap"
    assert as_href("/x/c.tif", Path("/a/d")) == "/x/c.tif"
    assert as_href("synthetic:hsi?size=9", Path("/a")) == "synthetic:hsi?size=9"
