"""STAC items on servers: the item is fetched, and of its assets those that the reader of its scene asks for.

The item becomes a folder of the cache in which its assets seem to lie beside it; each is fetched when a reader looks into it, so
that nothing is fetched of which the reader makes no use.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from hyperfuse.catalogs.addresses import name_for_cache, without_query
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.documents import MAX_ITEM, parse_document
from hyperfuse.catalogs.formats.packages import MAX_MEMBERS, Member, Package, set_out
from hyperfuse.catalogs.remote.cache import Expected, fetch, file_name
from hyperfuse.catalogs.remote.fetching import Fetching

_HASHES = {"1114": ("sha1", 40), "1220": ("sha256", 64), "1340": ("sha512", 128), "d50110": ("md5", 32)}
"""Multihash: code and length in front of the digest."""
_MARK = b'"stac_version"'


@dataclass(frozen=True, kw_only=True)
class FetchedItem:
    """An item in the cache."""

    path: Path
    """The item; a package reader sees its assets beside it."""
    assets: Mapping[str, Any]
    """Its assets, by key."""
    members: Mapping[str, Member]
    """Those that can be fetched, by key."""
    names: Mapping[str, str]
    """Addresses of what lies on this disk, by its path, for messages."""


def item_of(path: Path) -> dict[str, Any] | None:
    """The STAC document in a file, if it is one."""
    with path.open("rb") as file:
        content = file.read(MAX_ITEM + 1)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{" or _MARK not in content:
        return None
    return parse_document(content, str(path), limit=MAX_ITEM)


def lay_out(url: str, path: Path, record: Mapping[str, Any], fetching: Fetching) -> FetchedItem:
    """A folder in which the assets of an item seem to lie.

    Parameters
    ----------
    url : str
        Address of the item.
    path : Path
        The item in the cache.
    record : mapping
        The same, parsed.
    fetching : Fetching

    Raises
    ------
    InputRejected
        If it is no item, or its assets are not those of a scene.
    """
    told = without_query(url)
    if record.get("type") != "Feature":
        raise InputRejected(
            f"{told}: is a STAC {str(record.get('type'))[:40]}, expected the item of one scene; name the address of an item, or read "
            "a catalogue with `hyperfuse catalog list`"
        )
    assets = record.get("assets")
    if not isinstance(assets, dict) or not 0 < len(assets) <= MAX_MEMBERS:
        raise InputRejected(f"{told}: is an item without assets; name the item of a scene")
    folder = fetching.cache / "items" / hashlib.sha256(name_for_cache(url).encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    own = _linked(path, folder / f"{path.name.removesuffix('.json')}.json")
    members, names, taken = {}, {str(own): told}, {own.name}
    for key, asset in assets.items():
        place = _place_of(asset, url)
        if place is None:
            continue
        name = file_name(place)
        # As the reader knows them: by the last part of their address.
        name = name if name not in taken else f"{file_name(str(key))}/{name}"
        if name in taken:
            continue
        taken.add(name)
        names[str(folder / name)] = without_query(place)
        members[key] = _member(place, folder / name, name, asset, fetching)
    item = Member(name=own.name, holder=own, offset=0, size=own.stat().st_size, packed=False)
    set_out(str(own), Package(path=folder, kind="folder", members=(item, *members.values())))
    return FetchedItem(path=own, assets=assets, members=members, names=names)


def data_asset(item: FetchedItem, told: str) -> Path:
    """The one image of an item that no reader of products knows.

    Raises
    ------
    InputRejected
        If it has none, or several.
    """
    keys = [key for key in item.members if key == "product"] or [
        key for key in item.members if "data" in (item.assets[key].get("roles") or ())
    ]
    keys = keys or (list(item.members) if len(item.members) == 1 else [])
    if len(keys) != 1 or (bring := item.members[keys[0]].bring) is None:
        raise InputRejected(
            f"{told}: no reader knows its scene, and {len(keys)} of its assets are of the role data ({', '.join(keys[:5]) or 'none'}), "
            "expected one; name the address of an image"
        )
    image = bring()
    headers = {f"{image.stem}.hdr", f"{image.name}.hdr"}
    for member in item.members.values():
        if member.name in headers and member.bring is not None:
            member.bring()
    return image


def _member(url: str, place: Path, name: str, asset: Mapping[str, Any], fetching: Fetching) -> Member:
    @cache
    def bring() -> Path:
        return _linked(fetch(url, fetching, _expected(asset)), place)

    return Member(name=name, holder=place, offset=0, size=0, packed=False, bring=bring)


def _linked(path: Path, place: Path) -> Path:
    """A second name of a file in the cache, put in one step."""
    if place.exists() and place.samefile(path):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name[:40]}.{os.getpid()}.link")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        # File systems without hard links; relative, so that the cache can be moved.
        new.symlink_to(os.path.relpath(path, place.parent))
    new.replace(place)
    return place


def _place_of(asset: Any, url: str) -> str | None:
    """The address of an asset that can be fetched; that of `alternate` where the first is in a bucket and the item is not."""
    if not isinstance(asset, dict):
        return None
    alternate = asset.get("alternate")
    others = alternate.values() if isinstance(alternate, dict) else ()
    hrefs = [asset.get("href"), *(other.get("href") for other in others if isinstance(other, dict))]
    places = [_joined(url, href) for href in hrefs if isinstance(href, str) and href and href.isprintable()]
    # A login of this user's buckets is not used because an item of others says so: only within the bucket of the item.
    bucket = "/".join(url.split("/")[:3]) + "/" if url.startswith("s3://") else None
    fit = (p for p in places if p.startswith(("https://", "http://")) or (bucket is not None and p.startswith(bucket)))
    return next(fit, None)


def _joined(url: str, href: str) -> str:
    if not url.startswith("s3://") or "://" in href:
        return urljoin(url, href)
    # urljoin knows no buckets.
    return "s3://" + urljoin(f"http://{url.removeprefix('s3://')}", href).removeprefix("http://")


def _expected(asset: Mapping[str, Any]) -> Expected:
    """Size and checksum by the extension `file`; one that is not understood is none."""
    size = asset.get("file:size")
    code = str(asset.get("file:checksum") or asset.get("checksum:multihash") or "").lower()
    for prefix, (algorithm, length) in _HASHES.items():
        if code.startswith(prefix) and len(code) == len(prefix) + length:
            return Expected(size=_whole(size), algorithm=algorithm, digest=code.removeprefix(prefix))
    return Expected(size=_whole(size))


def _whole(size: object) -> int | None:
    return size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None
