"""Which addresses in a catalogue are followed.

A catalogue is written by others: an address in it may name any file of this machine, or any server that this machine
can reach. Followed are files under folders that the user named, recipes of synthetic scenes, and https addresses of
public hosts or of hosts that the user named. Everything else is refused and never repaired.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from hyperfuse.catalogs.errors import InputRejected

MAX_LENGTH = 4096
"""Characters of an address, at most."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_VIRTUAL = re.compile(r"\s*/+vsi[a-z0-9_]+([/?]|$)|\s*vrt:", re.IGNORECASE)
"""GDAL's virtual file systems and its inline VRT: both open what they name inside."""
HOSTS = "HYPERFUSE_HOSTS"
"""Environment variable: hosts that the user names, with their port where one is given, and buckets as s3://NAME, separated by
commas."""
_PRIVATE_NAMES = ("localhost", "local", "internal", "localdomain", "home.arpa")


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the user allowed.

    Raises
    ------
    InputRejected
        By every method, naming the address and what was expected.
    """

    roots: tuple[Path, ...] = ()
    """Folders whose files may be opened, links resolved."""
    hosts: frozenset[str] = frozenset()
    """Hosts, with their port where one is given, that the user named: these may be private, and may speak http."""

    @classmethod
    def of(cls, roots: Iterable[Path | str] = (), *, hosts: Iterable[str] = ()) -> Trust:
        """Trust in some folders, whatever links lead to them, in some hosts, and in those that the environment names."""
        named = (*hosts, *(host.strip() for host in os.environ.get(HOSTS, "").split(",")))
        return cls(
            roots=tuple(dict.fromkeys(Path(root).resolve() for root in roots)),
            hosts=frozenset(host.lower() for host in named if host),
        )

    def follow(self, href: str, base: str) -> str:
        """The place that an address in a document means.

        Parameters
        ----------
        href : str
            As the document has it; percent-encoded characters are decoded once, before anything is judged.
        base : str
            Folder or URL of the document.

        Returns
        -------
        str
            Absolute path with links resolved, `synthetic:` recipe, or URL.
        """
        if not href or len(href) > MAX_LENGTH or not href.isprintable():
            raise InputRejected(
                f"{base}: names an address that is empty, longer than {MAX_LENGTH} characters or unprintable"
            )
        if href.startswith("synthetic:"):
            return href
        plain = unquote(href)
        if not plain.isprintable() or _VIRTUAL.match(plain):
            raise InputRejected(
                f"{base}: {href[:200]!r} is a virtual file of GDAL, expected a file or an https address"
            )
        is_remote = _SCHEME.match(href) or href.startswith("//") or _is_url(base)
        return self.url(urljoin(base, href) if _is_url(base) else href) if is_remote else self._path(plain, Path(base))

    def url(self, url: str) -> str:
        """The same URL, if its scheme is https and its host is public, or if the user named its host or bucket."""
        try:
            parts = urlsplit(url)
            host, named = (parts.hostname or "").lower(), (parts.netloc.lower() in self.hosts)
            if parts.scheme == "s3" and f"s3://{parts.netloc.lower()}" in self.hosts:
                return url
            _ = parts.port
        except ValueError as error:
            raise InputRejected(f"{url[:200]!r} is no address ({error})") from error
        if parts.scheme not in ("https", *(("http",) if named else ())):
            raise InputRejected(
                f"{url[:200]!r} has the scheme {parts.scheme!r}, expected https or a path under the allowed folders; {HOSTS} names "
                "hosts that may speak http, and buckets (s3://NAME)"
            )
        if "@" in parts.netloc:
            raise InputRejected(
                f"{parts.hostname!r}: its address carries a user name, expected none; use the server's own login"
            )
        if not named and _is_private_name(host):
            raise InputRejected(
                f"{url[:200]!r} is an address inside a private network; name its host in {HOSTS} if you mean it"
            )
        return url

    def connect(self, url: str) -> str:
        """The same URL, if besides `url` no address that its host resolves to is private."""
        self.url(url)
        parts = urlsplit(url)
        if parts.netloc.lower() in self.hosts:
            return url
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InputRejected(f"{url[:200]!r}: its host is not known here ({error}); check the address") from error
        if private := [str(entry[4][0]) for entry in found if not is_public(str(entry[4][0]))]:
            raise InputRejected(
                f"{url[:200]!r} leads to {private[0]}, inside a private network; name its host in {HOSTS} if you mean it"
            )
        return url

    def _path(self, plain: str, base: Path) -> str:
        place = (base / plain).resolve()
        if not any(place.is_relative_to(root) for root in self.roots):
            told = ", ".join(map(str, self.roots)) or "none"
            raise InputRejected(
                f"{base}: {plain[:200]!r} lies in {place.parent}, outside of the allowed folders ({told}); name its folder "
                "with --root if you mean it"
            )
        return str(place)


def as_href(place: str, folder: Path) -> str:
    """An address as it is written into a document in a folder; inverse of `Trust.follow`.

    Paths become relative where document and file lie under one folder other than the root of the disk.
    """
    if _SCHEME.match(place):
        return place
    apart = os.path.commonpath([place, folder]) == folder.anchor
    return quote(place if apart else os.path.relpath(place, folder), safe="/")


def _is_url(base: str) -> bool:
    return base.startswith(("https://", "http://"))


def _is_private_name(host: str) -> bool:
    """Whether a host, by its name alone, is none of the public network."""
    name = host.rstrip(".")
    try:
        # Also the old forms of a number: 2130706433, 0x7f.1, 127.1.
        return not is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except OSError:
        pass
    try:
        return not is_public(name)
    except ValueError:
        return "." not in name or name.endswith(tuple(f".{private}" for private in _PRIVATE_NAMES))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_global and not (mapped or ip).is_multicast
