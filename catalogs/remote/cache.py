"""The cache: each address is fetched once, checked, and put in place in one step.

    <cache>/files/<digest of the address>/
        lock                         held while the file is fetched
        partial, partial.json        what has come so far, and of which version: the next run goes on there
        <digest of the bytes>/NAME   a version, whole
        current.json                 which version is the last, and what its server said of it

An address is asked again each time it is used, without its bytes where they are the same. A copy is used unasked only where an
item tells its checksum, and with a warning where the server does not answer. Nothing is removed: folders of the cache may be
deleted while no run uses them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from hyperfuse.catalogs.addresses import name_for_cache, without_query
from hyperfuse.catalogs.errors import HyperFuseError, InputRejected, OutOfResources, Transient
from hyperfuse.catalogs.formats.files import flush, write_atomic
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.remote.answers import Answer
from hyperfuse.catalogs.remote.fetching import MAX_GB, Fetching
from hyperfuse.catalogs.remote.http import asked
from hyperfuse.catalogs.remote.s3 import read_bucket

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Times that a file is asked for without a byte more, before a fetch is given up."""
PAUSE_S = 1.0
"""Seconds before it is asked for again, times the number of times in vain."""
_MAX_ANSWERS = 200
_SCARCE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an item tells of a file."""

    size: int | None = None
    """Bytes."""
    algorithm: str | None = None
    """Name of a digest in hashlib ..."""
    digest: str = ""
    """... and its value, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class _Version:
    """A file of an address, whole."""

    path: Path
    tag: str | None
    checked: dict[str, str]
    """Digests that were compared."""


def fetch(url: str, fetching: Fetching, expected: Expected = Expected()) -> Path:
    """The file at an address, on this disk.

    Parameters
    ----------
    url : str
        https:// or s3://.
    fetching : Fetching
    expected : Expected, optional
        Size and checksum that an item tells.

    Raises
    ------
    InputRejected
        If nobody allowed that host, there is no such file, or its bytes are not those that server or item tell.
    OutOfResources
        If it is larger than the limit, or the disk is full.
    Transient
        If the server does not answer, or stops; what has come stays, and the next run goes on there.
    """
    told = without_query(url)
    folder = fetching.cache / "files" / hashlib.sha256(name_for_cache(url).encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, on_wait=lambda: log.info("%s: another run fetches it, waiting", told)):
            return _fetched(url, folder, fetching, expected)
    except OSError as error:
        if error.errno in _SCARCE:
            raise OutOfResources(
                f"{told}: its copy does not fit into {fetching.cache} ({error.strerror}); make room, or name another folder with "
                "fetch.cache or HYPERFUSE_CACHE"
            ) from error
        raise InputRejected(
            f"{told}: cannot be copied to {fetching.cache} ({error.strerror or error}); name another folder with fetch.cache or "
            "HYPERFUSE_CACHE"
        ) from error


def _fetched(url: str, folder: Path, fetching: Fetching, expected: Expected) -> Path:
    told, before = without_query(url), _current(folder)
    if before is not None and expected.algorithm and before.checked.get(expected.algorithm) == expected.digest:
        return before.path
    idle, damaged = 0, False
    for _ in range(_MAX_ANSWERS):
        have = _have(folder)
        try:
            answer, size = _one_answer(url, folder, fetching, expected, before)
            if answer is None and before is not None:
                _require_still(before, expected, told)
                return before.path
            return _in_place(folder, url, answer, size, expected)
        except Transient as error:
            idle = 0 if _have(folder) > have else idle + 1
            if idle < ATTEMPTS and _have(folder):
                log.info("%s; going on", error)
                time.sleep(idle * PAUSE_S)
                continue
            if before is None or _have(folder):
                raise
            log.warning("%s: its server does not answer, the copy in the cache is used", told)
            return before.path
        except _Damaged as error:
            _drop(folder)
            if damaged:
                raise InputRejected(str(error)) from error
            damaged, before = True, None
            log.warning("%s; fetched again", error)
    raise Transient(f"{told}: its server stopped {_MAX_ANSWERS} times; run again to go on")


class _Damaged(HyperFuseError):
    """The bytes are not those that were told."""


def _one_answer(
    url: str, folder: Path, fetching: Fetching, expected: Expected, before: _Version | None
) -> tuple[Answer | None, int]:
    """Take what one answer brings; None if the version of before is the current one. With the bytes that are there then."""
    told, have, tag = without_query(url), _have(folder), _partial_tag(folder)
    if tag is None:
        have = 0
    asked_tag = tag if have else None if before is None else before.tag
    with _opened(url, fetching, have, asked_tag) as answer:
        if answer.unchanged and before is not None:
            return None, 0
        if answer.start and answer.facts.tag not in (None, tag):
            raise _Damaged(f"{told}: changed while it was fetched; fetch it when it is at rest")
        size = answer.facts.size
        _require_room(told, size, answer.start, fetching, expected)
        if answer.start == 0:
            # In this order: bytes of one version never stand beside the tag of another.
            (folder / "partial").unlink(missing_ok=True)
            write_atomic(folder / "partial.json", json.dumps({"tag": answer.facts.tag, "md5": answer.facts.md5}))
        with (folder / "partial").open("r+b" if answer.start else "wb") as file:
            file.seek(answer.start)
            file.truncate()
            n_bytes = _taken(file, answer, told, fetching)
        if size is not None and n_bytes < size:
            raise Transient(f"{told}: its server stopped after {n_bytes} of {size} bytes; run again to go on")
        if size is not None and n_bytes > size:
            raise _Damaged(f"{told}: the server tells {size} bytes and sends {n_bytes}; check the address")
        return answer, n_bytes


def _opened(url: str, fetching: Fetching, start: int, tag: str | None) -> AbstractContextManager[Answer]:
    if url.startswith("s3://"):
        return read_bucket(url, start=start, tag=tag)
    return asked(url, fetching.trust, start=start, tag=tag)


def _taken(file: IO[bytes], answer: Answer, told: str, fetching: Fetching) -> int:
    """Write what comes; the number of bytes that are there then."""
    n_bytes = answer.start
    for piece in answer.pieces:
        n_bytes += len(piece)
        if n_bytes > fetching.max_bytes:
            raise _too_large(told, f"more than {fetching.max_bytes}")
        file.write(piece)
    return n_bytes


def _require_room(told: str, size: int | None, start: int, fetching: Fetching, expected: Expected) -> None:
    if size is None:
        return
    if expected.size is not None and size != expected.size:
        raise InputRejected(
            f"{told}: the server has {size} bytes, its item tells {expected.size}; it is another file, fetch the item anew"
        )
    if size > fetching.max_bytes:
        raise _too_large(told, str(size))
    free = shutil.disk_usage(fetching.cache).free
    if size - start > free:
        raise OutOfResources(
            f"{told}: its {size - start} bytes do not fit into {fetching.cache}, where {free} are free; make room, or name another "
            "folder with fetch.cache or HYPERFUSE_CACHE",
            observed=size - start,
            allowed=free,
        )


def _too_large(told: str, found: str) -> OutOfResources:
    return OutOfResources(f"{told}: has {found} bytes, more than is fetched; raise fetch.max_gb or {MAX_GB}")


def _in_place(folder: Path, url: str, answer: Answer | None, size: int, expected: Expected) -> Path:
    """Check what has come, and make it the current version in one step."""
    told, partial = without_query(url), folder / "partial"
    if expected.size is not None and size != expected.size:
        raise _Damaged(
            f"{told}: has {size} bytes, its item tells {expected.size}; it is another file, fetch the item anew"
        )
    record = _record(folder / "partial.json")
    checked = _require_expected(partial, expected, record.get("md5"), told)
    flush(partial)
    place = folder / checked["sha256"][:16] / file_name(url)
    place.parent.mkdir(exist_ok=True)
    partial.replace(place)
    flush(place.parent)
    tag = record.get("tag") if answer is None else answer.facts.tag or record.get("tag")
    told_of = {
        "address": told,
        "path": f"{place.parent.name}/{place.name}",
        "size": size,
        "tag": tag,
        "checked": checked,
    }
    write_atomic(folder / "current.json", json.dumps(told_of, indent=1))
    (folder / "partial.json").unlink(missing_ok=True)
    return place


def _require_expected(path: Path, expected: Expected, md5: str | None, told: str) -> dict[str, str]:
    """The digests of a file, if they are those that were told."""
    wanted = {name: value for name, value in ((expected.algorithm, expected.digest), ("md5", md5)) if name and value}
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", *wanted}}
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            for one in digests.values():
                one.update(piece)
    found = {name: one.hexdigest() for name, one in digests.items()}
    for name, value in wanted.items():
        if found[name] != value:
            source = "its item" if name == expected.algorithm and value == expected.digest else "the server"
            raise _Damaged(
                f"{told}: its {name} is {found[name]}, {source} tells {value}; it is damaged or another file"
            )
    return found


def _require_still(version: _Version, expected: Expected, told: str) -> None:
    """Refuse a version of the cache that is not the file that an item tells."""
    size = version.path.stat().st_size
    if expected.size not in (None, size):
        raise _Damaged(f"{told}: has {size} bytes, its item tells {expected.size}; it is another file")
    if expected.algorithm:
        _require_expected(version.path, expected, None, told)


def file_name(url: str) -> str:
    """The name under which a file is kept: readers look at names inside packages."""
    base = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+-]", "_", base)[-150:].lstrip(".") or "data"


def _current(folder: Path) -> _Version | None:
    """The last version, if its file is there as it was put."""
    record = _record(folder / "current.json")
    try:
        path = folder / str(record["path"])
        if path.resolve().is_relative_to(folder.resolve()) and path.stat().st_size == record["size"]:
            return _Version(path=path, tag=record.get("tag"), checked=dict(record.get("checked", {})))
    except (OSError, LookupError, TypeError, ValueError):
        pass
    return None


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _have(folder: Path) -> int:
    try:
        return (folder / "partial").stat().st_size
    except OSError:
        return 0


def _partial_tag(folder: Path) -> str | None:
    tag = _record(folder / "partial.json").get("tag")
    return tag if isinstance(tag, str) else None


def _drop(folder: Path) -> None:
    for name in ("partial", "partial.json"):
        (folder / name).unlink(missing_ok=True)
