"""Scenes behind a STAC API: a server in this process answers, pages, redirects and misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.sensors import open_scene
from hyperfuse.catalogs.stac import search
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.items import to_record
from tests.archives import scene_item

pytest.importorskip("pystac_client")


class Server:
    """A STAC API of some items, two on a page."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.misbehave: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self, {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self) -> None:
                server.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler, query: dict[str, Any]) -> None:
        if self.misbehave(handler):
            return
        if urlsplit(handler.path).path == "/":
            self.send(handler, {
                "type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "API",
                "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
                "links": [{"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": method}
                          for method in ("GET", "POST")],
            })  # fmt: skip
            return
        self.asked.append(query)
        start = int(query.get("token", 0))
        page: dict[str, Any] = {"type": "FeatureCollection", "features": self.items[start : start + 2], "links": []}
        if start + 2 < len(self.items):
            page["links"] = [
                {"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": query | {"token": start + 2}}
            ]
        self.send(handler, page)

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, record: Any, *, status: int = 200, **headers: str) -> None:
        body = record if isinstance(record, bytes) else json.dumps(record).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def items(server: Server, *hrefs: str) -> list[dict[str, Any]]:
    made = []
    for i, href in enumerate(hrefs):
        record = to_record(scene_item(f"s{i}", "msi"), Path("/"), now=datetime.now(UTC))
        record["assets"]["product"]["href"] = href
        record["links"] = [{"rel": "self", "href": f"{server.url}/collections/x/items/s{i}"}]
        made.append(record)
    return made


def test_a_scene_of_several_files_or_with_a_signed_address_is_opened_by_its_item(server):
    server.items = items(server, "https://data.example.org/0.tif?sig=abc", "https://data.example.org/1.tif")
    assets = server.items[1]["assets"]
    server.items[1]["assets"] = dict.fromkeys(("B02", "B03"), assets["product"])
    contents = Catalog.open(server.url).read()
    assert contents.refused == ()
    assert [scene.uri for scene in contents.scenes] == [f"{server.url}/collections/x/items/s{i}" for i in range(2)]


def test_pages_of_a_search(server):
    server.items = items(server, *[f"https://data.example.org/{i}.tif" for i in range(5)])
    contents = Catalog.open(f"{server.url}?collections=x,y&bbox=5,47,15,55&datetime=2024-05-01/..&max_items=100").read()
    assert contents.refused == ()
    assert [(scene.id, scene.uri) for scene in contents.scenes] == [
        (f"s{i}", f"https://data.example.org/{i}.tif") for i in range(5)
    ]
    with pytest.raises(InputRejected, match=r"lies on a server, .* fetch the product first"):
        open_scene(replace(contents.scenes[0].source(), sensor=None))
    assert len(server.asked) == 3
    assert server.asked[0]["collections"] == ["x", "y"]
    assert server.asked[0]["bbox"] == [5, 47, 15, 55]
    assert server.asked[0]["datetime"].startswith("2024-05-01")


def test_addresses_in_items_are_judged_as_everywhere(server):
    server.items = items(
        server, "relative.tif", "file:///etc/passwd", "/etc/passwd", "https://10.0.0.1/a.tif", "http://127.0.0.1:1/a.tif",
        "/vsicurl/http://10.0.0.1/a.tif", "https://data.example.org/a.tif",
    )  # fmt: skip
    contents = Catalog.open(server.url).read()
    # Relative addresses and rooted ones mean the server, never a file here.
    assert [scene.uri for scene in contents.scenes] == [
        f"{server.url}/collections/x/items/relative.tif", f"{server.url}/etc/passwd", "https://data.example.org/a.tif"
    ]  # fmt: skip
    assert len(contents.refused) == 4


def redirect_to(target: str) -> Callable[[BaseHTTPRequestHandler], bool]:
    def misbehave(handler: BaseHTTPRequestHandler) -> bool:
        if handler.path.startswith("/search"):
            Server.send(handler, b"", status=307, Location=target)
        return handler.path.startswith("/search")

    return misbehave


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "https://localhost/", "file:///etc/passwd", "http://127.0.0.1:1/"]
)
def test_redirects_into_a_private_network(server, target):
    server.items = items(server, "https://data.example.org/a.tif")
    server.misbehave = redirect_to(target)
    with pytest.raises(
        InputRejected, match=r"the search failed .*(private network|expected https)|private network|expected https"
    ):
        Catalog.open(server.url).read()


def test_next_pages_elsewhere(server):
    server.items = items(server, "https://data.example.org/a.tif")
    page = {
        "type": "FeatureCollection",
        "features": server.items,
        "links": [{"rel": "next", "href": "https://10.0.0.1/search"}],
    }

    def misbehave(handler: BaseHTTPRequestHandler) -> bool:
        if handler.path.startswith("/search"):
            server.send(handler, page)
        return handler.path.startswith("/search")

    server.misbehave = misbehave
    with pytest.raises(InputRejected, match="private network"):
        Catalog.open(server.url).read()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[" * 200_000, "search failed"),
        (b"<html>", "search failed"),
        (b'{"type": "FeatureCollection", "features": 5}', "search failed"),
        (b" " * 3_000_000, "answers with more than"),
    ],
)
def test_answers_that_are_no_page(server, monkeypatch, body, why):
    monkeypatch.setattr(search, "MAX_DOCUMENT", 2_000_000)

    def misbehave(handler: BaseHTTPRequestHandler) -> bool:
        if handler.path.startswith("/search"):
            server.send(handler, body)
        return handler.path.startswith("/search")

    server.misbehave = misbehave
    with pytest.raises(InputRejected, match=why):
        Catalog.open(server.url).read()


def test_what_cannot_be_searched(server):
    with pytest.raises(InputRejected, match=r"expected https"):
        Catalog.open("ftp://stac.example.org/v1").read()
    server.misbehave = lambda handler: bool(server.send(handler, b"", status=503)) or True
    with pytest.raises(InputRejected, match="503"):
        Catalog.open(server.url).read()
    for query, why in (("cloud=5", "no search term 'cloud'"), ("bbox=a", "expected a search such as")):
        with pytest.raises(UsageError, match=why):
            Catalog.open(f"{server.url}?{query}").read()


def test_without_pystac_client(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pystac_client", None)
    with pytest.raises(UsageError, match=r"pip install hyperfuse\[api\]"):
        Catalog.open("https://stac.example.org/v1").read()
