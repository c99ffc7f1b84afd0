"""Items of a STAC API, fetched with bounds and only from hosts that may be asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit, urlunsplit

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.documents import MAX_DOCUMENT
from hyperfuse.catalogs.stac.trusted import Trust

log = logging.getLogger(__name__)

MAX_ITEMS = 20_000
"""Items of one search, at most."""
TIMEOUT_S = 60.0
"""Seconds until a silent server is given up."""
_PIECE = 1 << 16
_TERMS = ("collections", "bbox", "datetime", "max_items")


def api_items(address: str, trust: Trust) -> Iterator[tuple[str, str, Mapping[str, Any] | InputRejected]]:
    """Address, base and record of the items that a search finds.

    Parameters
    ----------
    address : str
        URL of the API; its query may hold `collections`, `bbox`, `datetime` and `max_items`.
    trust : Trust
        Hosts that may be asked; pages and redirects that lead elsewhere are refused.

    Raises
    ------
    InputRejected
        If the API cannot be reached, answers with something else, or leads where nobody allowed.
    UsageError
        If pystac-client is missing, or the query is not understood.
    """
    try:
        from pystac_client import Client  # noqa: PLC0415 (an optional dependency)
        from pystac_client.exceptions import APIError  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            f"{address}: a STAC API needs pystac-client; install it with `pip install hyperfuse[api]`"
        ) from error
    url, terms = _terms(address)
    try:
        client = Client.open(url, stac_io=_guarded(trust))
        for record in client.search(**terms).items_as_dicts():
            links = record.get("links") or ()
            own = next((str(link.get("href")) for link in links if link.get("rel") == "self"), url)
            place = urljoin(url, own)
            yield place, urljoin(place, "."), record
    except (
        APIError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        NotImplementedError,
    ) as error:
        raise InputRejected(
            f"{url}: the search failed ({' '.join(str(error).split())[:300]}); check the address"
        ) from error


def _terms(address: str) -> tuple[str, dict[str, Any]]:
    """The API's address without its query, and the query as terms of a search."""
    parts = urlsplit(address)
    query = parse_qs(parts.query, keep_blank_values=True)
    if unknown := sorted(set(query) - set(_TERMS)):
        # Without the query: a term that is not known here may be a key of the server.
        raise UsageError(
            f"{address.partition('?')[0]}: there is no search term {unknown[0]!r}; choose some of {', '.join(_TERMS)}"
        )
    terms: dict[str, Any] = {"max_items": MAX_ITEMS, "limit": 200}
    try:
        if "collections" in query:
            terms["collections"] = query["collections"][0].split(",")
        if "bbox" in query:
            terms["bbox"] = [float(v) for v in query["bbox"][0].split(",")]
        if "datetime" in query:
            terms["datetime"] = query["datetime"][0]
        if "max_items" in query:
            terms["max_items"] = min(int(query["max_items"][0]), MAX_ITEMS)
    except ValueError as error:
        raise UsageError(
            f"{address}: {error}; expected a search such as bbox=5,47,15,55&datetime=2024-05-01/.."
        ) from error
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), terms


def _guarded(trust: Trust) -> Any:
    """A connection that asks before each request, redirects included, and stops reading where no page goes on."""
    import requests  # noqa: PLC0415 (comes with pystac-client)
    from pystac_client.exceptions import APIError  # noqa: PLC0415
    from pystac_client.stac_api_io import StacApiIO  # noqa: PLC0415

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None:
                trust.connect(urljoin(resp.url, target))
            return target

    class Guarded(StacApiIO):
        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            verb = (method or "GET").upper()
            if verb not in ("GET", "POST"):
                raise InputRejected(f"{href}: the server asks for {verb}, expected a search")
            trust.connect(href)
            sent: dict[str, Any] = {"json": parameters} if verb == "POST" else {"params": parameters}
            with self.session.request(verb, href, headers=headers, timeout=TIMEOUT_S, stream=True, **sent) as answer:
                if not answer.ok:
                    raise APIError(f"{href} answers {answer.status_code} {answer.reason}")
                content = bytearray()
                for piece in answer.iter_content(_PIECE):
                    content += piece
                    if len(content) > MAX_DOCUMENT:
                        raise InputRejected(
                            f"{href}: answers with more than {MAX_DOCUMENT >> 20} MiB; search for less at once"
                        )
            return content.decode("utf-8")

    guarded = Guarded(max_retries=None)
    guarded.session = Session()
    return guarded
