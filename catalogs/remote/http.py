"""Files behind https: asked with bounds, resumable by ranges, and from public hosts or those that the user named only.

Each address is judged before it is asked, redirects included (`catalogs.stac.trusted`), and each connection by the address
that it really leads to: a name may resolve to something else the second time. Logins are those of the client's own
configuration (`~/.netrc`, proxies of the environment).
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from hyperfuse.catalogs.addresses import without_query
from hyperfuse.catalogs.errors import HyperFuseError, InputRejected, Transient
from hyperfuse.catalogs.remote.answers import Answer, Facts
from hyperfuse.catalogs.stac.trusted import Trust, is_public

CONNECT_S = 20.0
"""Seconds until a server that does not take the connection is given up."""
SILENT_S = 60.0
"""Seconds until one that sends nothing is."""
_MAX_REDIRECTS = 10
_PIECE = 1 << 18
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_LATER = {408, 425, 429}
"""Answers below 500 that may be another one later."""


@contextmanager
def asked(url: str, trust: Trust, *, start: int = 0, tag: str | None = None) -> Iterator[Answer]:
    """Ask for a file.

    Parameters
    ----------
    url : str
    trust : Trust
        Hosts that may be asked.
    start : int
        Bytes that are there already; the answer goes on behind them if the file is still that of `tag`, else begins anew.
    tag : str, optional
        Of the file that is there. With `start` 0 it is whole, and the answer may be that it is unchanged.

    Raises
    ------
    InputRejected
        If nobody allowed that host, or the server says that there is no such file or that it is not for everybody.
    Transient
        If the server does not answer, or answers that it cannot now.
    """
    told = without_query(url)
    headers = {"Accept-Encoding": "identity"}  # ranges and checksums are those of the bytes on the way
    if tag is not None and start:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    elif tag is not None:
        headers["If-None-Match" if tag.startswith('"') else "If-Modified-Since"] = tag
    try:
        _judged(trust, url)
        with _session(trust) as session, session.get(
            url, headers=headers, stream=True, timeout=(CONNECT_S, SILENT_S)
        ) as answer:  # fmt: skip
            _require_file(answer, told)
            yield _answer(answer, told, start)
    except HyperFuseError:
        raise
    except requests.TooManyRedirects as error:
        if error.response is not None:
            error.response.close()
        raise InputRejected(f"{told}: redirects more than {_MAX_REDIRECTS} times; check the address") from error
    except requests.exceptions.SSLError as error:
        raise InputRejected(
            f"{told}: the certificate of its server is not accepted; check the address, or set REQUESTS_CA_BUNDLE"
        ) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Transient(f"{told}: its server does not answer ({type(error).__name__}); run again later") from error
    except requests.RequestException as error:
        # Their texts quote the address with its query.
        raise InputRejected(f"{told}: cannot be asked for ({type(error).__name__}); check the address") from error


def _require_file(answer: requests.Response, told: str) -> None:
    """Refuse an answer that holds no file."""
    code = answer.status_code
    if code in (200, 206, 304, 416):
        return
    if code in (401, 403):
        raise InputRejected(
            f"{told}: the server answers {code}, it is not for everybody; give a login for its host in ~/.netrc, or sign its "
            "item anew"
        )
    if code >= 500 or code in _LATER:
        raise Transient(f"{told}: the server answers {code}; run again later")
    raise InputRejected(f"{told}: the server answers {code}, expected a file; check the address")


def _answer(answer: requests.Response, told: str, start: int) -> Answer:
    headers = answer.headers
    if (packed := headers.get("Content-Encoding", "identity")) != "identity":
        raise InputRejected(f"{told}: is sent as {packed[:20]}, expected as it is; fetch it by hand")
    whole = answer.status_code == 200
    length = headers.get("Content-Length", "")
    size = int(length) if whole and length.isdecimal() else None
    begins = 0
    if answer.status_code == 206:
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            raise InputRejected(f"{told}: the server sends another part than was asked for; fetch it by hand")
        begins, size = start, None if found[2] == "*" else int(found[2])
    elif answer.status_code == 416:
        # Nothing behind what is there: either it is whole, or the file is another one now.
        total = headers.get("Content-Range", "").rpartition("/")[2]
        begins, size = start, int(total) if total.isdecimal() else 0
    facts = Facts(size=size, tag=_tag(headers), md5=_md5(headers) if whole else None)
    unchanged = answer.status_code == 304
    pieces = iter(()) if answer.status_code in (304, 416) else _pieces(answer, told)
    return Answer(facts=facts, unchanged=unchanged, start=begins, pieces=pieces)


def _pieces(answer: requests.Response, told: str) -> Iterator[bytes]:
    try:
        # As it comes: what a piece of full length lacks when the server hangs up would be lost.
        while piece := answer.raw.read1(_PIECE):
            yield piece
    except (requests.RequestException, HTTPError, OSError) as error:
        raise Transient(f"{told}: its server stopped sending ({type(error).__name__}); run again to go on") from error


def _tag(headers: Mapping[str, str]) -> str | None:
    """A validator of the bytes; weak ones speak of the meaning only."""
    tag = headers.get("ETag", "")
    return tag if re.fullmatch(r'"[^"]*"', tag) else headers.get("Last-Modified")


def _md5(headers: Mapping[str, str]) -> str | None:
    """MD5 by Content-MD5, or by the ETag of S3 where that is one: not of several parts, and not of encrypted ones."""
    try:
        given = base64.b64decode(headers.get("Content-MD5", ""), validate=True)
    except ValueError:
        given = b""
    if len(given) == 16:
        return given.hex()
    of_s3 = "x-amz-request-id" in headers and "aws:kms" not in headers.get("x-amz-server-side-encryption", "")
    plain = of_s3 and "x-amz-server-side-encryption-customer-algorithm" not in headers
    tag = headers.get("ETag", "").strip('"')
    return tag if plain and re.fullmatch(r"[0-9a-f]{32}", tag) else None


def _judged(trust: Trust, url: str) -> None:
    """Refuse a host that nobody allowed, in words without the query of the address."""
    trust.connect(without_query(url))
    if "@" in urlsplit(url).netloc:
        raise InputRejected(f"{without_query(url)}: its address carries a user name, expected none; use ~/.netrc")


def _session(trust: Trust) -> requests.Session:
    """A session that judges each redirect before it is followed, and each connection before anything is sent."""

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None:
                try:
                    _judged(trust, urljoin(resp.url, target))
                except InputRejected as error:
                    resp.close()
                    raise InputRejected(f"{without_query(resp.url)}: redirects to another place: {error}") from error
            return target

    session = Session()
    session.max_redirects = _MAX_REDIRECTS
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(trust))
    return session


class _Adapter(HTTPAdapter):
    """Connections whose other end is looked at. A proxy of the environment is the user's choice, and resolves names itself."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        named = self._trust.hosts

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return _looked_at(super()._new_conn(), self.host, self.port, named)

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return _looked_at(super()._new_conn(), self.host, self.port, named)

        plain = type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain})
        secure = type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": Secure})
        self.poolmanager.pool_classes_by_scheme = {"http": plain, "https": secure}


def _looked_at(made: socket.socket, host: str, port: int | None, named: frozenset[str]) -> socket.socket:
    """The same connection, if it leads to a public address or to a host that was named."""
    other = str(made.getpeername()[0])
    if {host.lower(), f"{host.lower()}:{port}"} & named or is_public(other):
        return made
    made.close()
    raise InputRejected(
        f"{host}: leads to {ipaddress.ip_address(other.partition('%')[0])}, inside a private network; name its host in "
        "HYPERFUSE_HOSTS if you mean it"
    )
