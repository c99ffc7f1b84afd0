"""Files fetched into the cache: what a server may do wrong, and that nothing half-written or wrong is ever used."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import resource
import signal
import socket
import threading
import time

import pytest

from hyperfuse.catalogs.errors import HyperFuseError, InputRejected, OutOfResources, Transient
from hyperfuse.catalogs.remote import cache, http
from hyperfuse.catalogs.remote.cache import Expected, fetch
from hyperfuse.catalogs.remote.fetching import Fetching
from tests.servers import FileServer, dropped, serving

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(cache, "PAUSE_S", 0.0)
    with serving() as made:
        made.files["/a/image.tif"] = CONTENT
        monkeypatch.setenv("HYPERFUSE_HOSTS", made.host)
        yield made


@pytest.fixture
def fetching(tmp_path, monkeypatch, server):
    monkeypatch.setenv("HYPERFUSE_CACHE", str(tmp_path / "cache"))
    return Fetching.of()


def refused(kind: type[HyperFuseError], url: str, fetching: Fetching, expected: Expected | None = None) -> str:
    """The sentence of a fetch that fails; no version of the file is there then."""
    with pytest.raises(kind) as told:
        fetch(url, fetching, expected or Expected())
    assert not list(fetching.cache.rglob("current.json"))
    return str(told.value)


def test_a_file_is_fetched_once(server, fetching):
    path = fetch(f"{server.url}/a/image.tif", fetching)
    assert path.read_bytes() == CONTENT
    assert path.name == "image.tif"
    assert fetch(f"{server.url}/a/image.tif", fetching) == path
    assert [code for *_, code in server.asked] == [200, 304]


def test_a_file_that_changed_is_fetched_anew_and_the_old_one_stays(server, fetching):
    old = fetch(f"{server.url}/a/image.tif", fetching)
    server.files["/a/image.tif"] = CONTENT[::-1]
    new = fetch(f"{server.url}/a/image.tif", fetching)
    assert (old.read_bytes(), new.read_bytes()) == (CONTENT, CONTENT[::-1])


def test_dropped_at_half_and_resumed(server, fetching):
    server.misbehave = lambda handler, content: (
        "Range" not in handler.headers and dropped(handler, content, after=len(content) // 2)
    )
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT
    assert [(begins, code) for _, begins, code in server.asked] == [(None, 200), (f"bytes={len(CONTENT) // 2}-", 206)]


def test_a_later_run_goes_on_where_one_stopped(server, fetching, monkeypatch):
    monkeypatch.setattr(cache, "ATTEMPTS", 0)
    server.misbehave = lambda handler, content: dropped(handler, content, after=1000)
    told = refused(Transient, f"{server.url}/a/image.tif", fetching)
    assert "stopped sending" in told
    assert "run again to go on" in told
    server.misbehave = lambda *_: False
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT
    assert server.asked[-1][1:] == ("bytes=1000-", 206)


def test_a_file_that_changed_between_is_not_put_together_of_both(server, fetching, monkeypatch):
    monkeypatch.setattr(cache, "ATTEMPTS", 0)
    server.misbehave = lambda handler, content: dropped(handler, content, after=1000)
    refused(Transient, f"{server.url}/a/image.tif", fetching)
    server.misbehave = lambda *_: False
    server.files["/a/image.tif"] = CONTENT[::-1]
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT[::-1]


def test_a_server_that_resumes_another_version(server, fetching):
    """It knows ranges and not their condition: the tag of the second part tells."""

    def part(handler, content):
        if "Range" not in handler.headers:
            return dropped(handler, content, after=1000, ETag='"old"') if len(server.asked) == 0 else False
        span = f"bytes 1000-{len(content) - 1}/{len(content)}"
        server.send(handler, 206, b"\0" * (len(content) - 1000), **{"ETag": '"new"', "Content-Range": span})
        return True

    server.misbehave = part
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(server, fetching):
    def whole(handler, content):
        if len(server.asked) == 0:
            return dropped(handler, content, after=1000)
        server.send(handler, 200, content)
        return True

    server.misbehave = whole
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT


def test_a_server_that_promises_more_than_it_has(server, fetching):
    def short(handler, content):
        if "Range" in handler.headers:
            server.send(handler, 416, b"")
            return True
        return dropped(handler, content, after=len(content), **{"Content-Length": str(2 * len(content))})

    server.misbehave = short
    told = refused((Transient, InputRejected), f"{server.url}/a/image.tif", fetching)
    assert server.url in told


def test_a_server_that_goes_silent(server, fetching, monkeypatch):
    monkeypatch.setattr(http, "SILENT_S", 0.2)
    monkeypatch.setattr(cache, "ATTEMPTS", 2)
    over = threading.Event()

    def silent(handler, content):
        if "Range" not in handler.headers:
            dropped(handler, content, after=1000)
        over.wait(10)
        handler.close_connection = True
        return True

    server.misbehave = silent
    began = time.monotonic()
    told = refused(Transient, f"{server.url}/a/image.tif", fetching)
    over.set()
    assert time.monotonic() - began < 5
    assert "server" in told


def test_a_server_that_is_gone_leaves_the_copy(server, fetching, caplog):
    path = fetch(f"{server.url}/a/image.tif", fetching)
    server.misbehave = lambda handler, _: server.send(handler, 503, b"") is None
    assert fetch(f"{server.url}/a/image.tif", fetching) == path
    assert "the copy in the cache is used" in caplog.text
    assert "answers 503" in refused(Transient, f"{server.url}/a/image.tif", Fetching.of(fetching.cache / "other"))


@pytest.mark.parametrize(
    ("status", "kind", "why"),
    [
        (404, InputRejected, "answers 404, expected a file; check the address"),
        (401, InputRejected, "not for everybody; give a login"),
        (403, InputRejected, "not for everybody; give a login"),
        (429, Transient, "answers 429; run again later"),
        (500, Transient, "answers 500; run again later"),
    ],
)
def test_answers_that_are_no_file(server, fetching, status, kind, why):
    server.misbehave = lambda handler, _: server.send(handler, status, b"no") is None
    assert why in refused(kind, f"{server.url}/a/image.tif", fetching)


def test_nobody_listens(server, fetching, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HYPERFUSE_HOSTS", host)
    assert "does not answer" in refused(Transient, f"http://{host}/a.tif", Fetching.of(fetching.cache))


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:9/secret", "https://169.254.169.254/latest/meta-data/", "https://localhost/", "file:///etc/passwd",
     "https://[::1]/", "http://example.org/plain.tif"],
)  # fmt: skip
def test_redirects_into_a_private_network(server, fetching, target):
    def elsewhere(handler, _):
        server.send(handler, 302, b"", Location=target)
        return True

    server.misbehave = elsewhere
    told = refused(InputRejected, f"{server.url}/a/image.tif", fetching)
    assert "redirects to another place" in told or "cannot be asked" in told
    assert len(server.asked) == 1


def test_redirects_without_an_end(server, fetching):
    server.misbehave = lambda handler, _: server.send(handler, 302, b"", Location=f"{server.url}/a/image.tif") is None
    assert "redirects more than 10 times" in refused(InputRejected, f"{server.url}/a/image.tif", fetching)


def test_a_redirect_to_a_host_that_was_named(server, fetching):
    server.files["/b.tif"] = b"there"
    server.misbehave = lambda handler, _: (
        handler.path == "/a/image.tif" and server.send(handler, 302, b"", Location="/b.tif") is None
    )
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == b"there"


def test_hosts_that_nobody_named(server, fetching, monkeypatch):
    monkeypatch.delenv("HYPERFUSE_HOSTS")
    nobody = Fetching.of(fetching.cache)
    assert "expected https" in refused(InputRejected, f"{server.url}/a/image.tif", nobody)
    told = refused(InputRejected, f"https://{server.host}/a/image.tif", nobody)
    assert "name its host in HYPERFUSE_HOSTS if you mean it" in told
    assert server.asked == []


def test_a_name_that_resolves_to_something_else_the_second_time(server, fetching, monkeypatch):
    """The judgement of the name was right, and the connection leads inside: nothing is sent."""
    real, port = socket.getaddrinfo, server.http.server_port
    asked = []

    def resolve(host, *rest, **more):
        if host != "evil.example":
            return real(host, *rest, **more)
        asked.append(host)
        address = ("93.184.216.34", 443) if len(asked) == 1 else ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    told = refused(InputRejected, "https://evil.example/a/image.tif", fetching)
    assert told.startswith("evil.example: leads to 127.0.0.1, inside a private network")
    assert (len(asked), server.asked) == (2, [])


def test_more_than_the_limit_is_told_before_it_is_fetched(server, fetching):
    small = Fetching.of(fetching.cache, max_gb=1e-4)
    assert f"has {len(CONTENT)} bytes, more than is fetched" in refused(
        OutOfResources, f"{server.url}/a/image.tif", small
    )


def test_a_stream_without_end_is_cut_at_the_limit(server, fetching):
    def endless(handler, _):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client hangs up
            while True:
                handler.wfile.write(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")
        handler.close_connection = True
        return True

    server.misbehave = endless
    small = Fetching.of(fetching.cache, max_gb=1e-3)
    assert "more than is fetched" in refused(OutOfResources, f"{server.url}/a/image.tif", small)


def test_a_stream_that_is_cut_off(server, fetching, monkeypatch):
    """No length was promised: that the last chunk is missing tells."""
    monkeypatch.setattr(cache, "ATTEMPTS", 0)

    def cut(handler, content):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"1000\r\n" + content[:0x1000] + b"\r\n")
        handler.close_connection = True
        return True

    server.misbehave = cut
    assert "stopped sending" in refused(Transient, f"{server.url}/a/image.tif", fetching)


def test_a_disk_without_room(server, fetching, monkeypatch):
    usage = type(cache.shutil.disk_usage("/"))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    told = refused(OutOfResources, f"{server.url}/a/image.tif", fetching)
    assert "do not fit" in told
    assert "where 10 are free" in told


def test_a_disk_that_fills_while_it_is_written(server, fetching):
    """The kernel refuses a write beyond the size that files of this process may have."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, limits[1]))
    try:
        told = refused(OutOfResources, f"{server.url}/a/image.tif", fetching)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "does not fit into" in told
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT


def test_checksums_of_the_item(server, fetching):
    right = Expected(size=len(CONTENT), algorithm="sha256", digest=hashlib.sha256(CONTENT).hexdigest())
    path = fetch(f"{server.url}/a/image.tif", fetching, right)
    assert path.read_bytes() == CONTENT
    # What is known by its checksum is not asked for again.
    assert fetch(f"{server.url}/a/image.tif", fetching, right) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        (Expected(size=7), f"the server has {len(CONTENT)} bytes, its item tells 7"),
        (Expected(algorithm="sha256", digest="0" * 64), "its item tells 0000"),
        (Expected(algorithm="md5", digest="0" * 32), "its md5 is"),
    ],
)
def test_another_file_than_the_item_tells(server, fetching, expected, why):
    assert why in refused(InputRejected, f"{server.url}/a/image.tif", fetching, expected)


def test_a_copy_of_before_that_is_not_the_item_s(server, fetching):
    fetch(f"{server.url}/a/image.tif", fetching)
    with pytest.raises(InputRejected, match="its item tells 0000"):
        fetch(f"{server.url}/a/image.tif", fetching, Expected(algorithm="sha256", digest="0" * 64))


@pytest.mark.parametrize("header", ["Content-MD5", "ETag"])
def test_checksums_of_the_server(server, fetching, header):
    digest = hashlib.md5(b"another", usedforsecurity=False)
    told = {"Content-MD5": base64.b64encode(digest.digest()).decode()}
    if header == "ETag":
        told = {"ETag": f'"{digest.hexdigest()}"', "x-amz-request-id": "1"}
    server.misbehave = lambda handler, content: server.send(handler, 200, content, **told) is None
    assert f"the server tells {digest.hexdigest()}" in refused(InputRejected, f"{server.url}/a/image.tif", fetching)


def test_a_query_that_is_a_signature_is_in_no_name_and_no_message(server, fetching):
    one = fetch(f"{server.url}/a/image.tif?sig=SECRET1&se=2025", fetching)
    assert fetch(f"{server.url}/a/image.tif?sig=SECRET2&se=2026", fetching) == one
    told = refused(InputRejected, f"{server.url}/none.tif?sig=SECRET3", Fetching.of(fetching.cache / "other"))
    assert "SECRET" not in told
    for path in fetching.cache.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


def test_two_runs_fetch_one_file_once(server, fetching):
    began = threading.Barrier(2)
    found = []

    def run():
        began.wait()
        found.append(fetch(f"{server.url}/a/image.tif", fetching))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sorted(code for *_, code in server.asked) == [200, 304]


def test_a_copy_that_lost_bytes_is_fetched_anew(server, fetching):
    path = fetch(f"{server.url}/a/image.tif", fetching)
    os.truncate(path, 10)
    assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT


def test_a_server_that_never_tells_what_version_it_sends(server, fetching):
    server.misbehave = lambda handler, content: server.send(handler, 200, content) is None
    for _ in range(2):
        assert fetch(f"{server.url}/a/image.tif", fetching).read_bytes() == CONTENT


def test_the_server_of_these_tests_has_strong_tags():
    assert FileServer.tag(b"a") != FileServer.tag(b"b")
