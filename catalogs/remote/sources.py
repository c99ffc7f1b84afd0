"""From the address of a scene to a path that readers open: an item, an image with its header, or a product in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from hyperfuse.catalogs.addresses import carries_user, without_query, without_user
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.packages import MAX_TEXT
from hyperfuse.catalogs.formats.raster import raster_driver
from hyperfuse.catalogs.remote.cache import fetch
from hyperfuse.catalogs.remote.fetching import Fetching
from hyperfuse.catalogs.remote.items import data_asset, item_of, lay_out
from hyperfuse.catalogs.sensors import Source, available, sensor_module

_RAW = {".bsq", ".bil", ".bip", ".img", ".dat", ".raw", ""}
"""Endings of ENVI images, which lie beside a header."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A scene in the cache."""

    path: Path
    """What a reader opens."""
    sensor: str | None
    """Its reader, if it is known."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Addresses by their paths in the cache."""

    def renamed(self, text: str) -> str:
        """A message in which addresses stand for their copies."""
        for path in sorted(self.names, key=len, reverse=True):
            text = text.replace(path, self.names[path])
        return text


def fetched(source: Source, fetching: Fetching) -> Fetched:
    """Fetch what is needed to open a scene; of an item, its assets are fetched as its reader asks for them.

    Raises
    ------
    UsageError
        If the address carries a login.
    InputRejected, OutOfResources, Transient
        As `catalogs.remote.cache.fetch`.
    """
    url = source.uri
    if carries_user(url):
        raise UsageError(
            f"{without_user(url)}: the address carries a user name, a password or a key; leave it out, and give the login to the "
            "client's own configuration or environment, or name the item that has signed addresses"
        )
    told = without_query(url)
    if url.startswith("s3://") and (url.endswith("/") or url.count("/") < 3):
        raise InputRejected(f"{told}: is a folder of a bucket, expected a file or a STAC item; name one")
    path = fetch(url, fetching)
    record = item_of(path) if path.stat().st_size <= MAX_TEXT else None
    if record is None:
        return _file(url, path, source.sensor, fetching)
    item = lay_out(url, path, record, fetching)
    accepts = (name for name in available() if sensor_module(name).accepts(str(item.path)))
    sensor = source.sensor or next(accepts, None)
    if sensor not in (None, "generic"):
        return Fetched(path=item.path, sensor=sensor, names=item.names)
    image = data_asset(item, told)
    return Fetched(path=image, sensor=source.sensor, names=item.names)


def _file(url: str, path: Path, sensor: str | None, fetching: Fetching) -> Fetched:
    """A file, with the header of an ENVI image."""
    told, names = without_query(url), {str(path): without_query(url)}
    if PurePosixPath(path.name).suffix.lower() in _RAW and raster_driver(path) is None:
        parts = urlsplit(url)
        stem = parts.path.removesuffix(PurePosixPath(parts.path).suffix)
        for header in (f"{stem}.hdr", f"{parts.path}.hdr"):
            try:
                found = fetch(urlunsplit(parts._replace(path=header)), fetching)
            except InputRejected:
                continue
            beside = path.with_suffix(".hdr")
            if not beside.exists() or not beside.samefile(found):
                beside.unlink(missing_ok=True)
                beside.hardlink_to(found)
            names[str(beside)] = told
            break
    return Fetched(path=path, sensor=sensor, names=names)
