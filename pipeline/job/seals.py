"""Digests of what is complete, so that what is lost or damaged later is not read as samples, and not as a finding.

Zarr reads a missing chunk as its fill value, and here absent chunks are normal: one that is all holes is never written.
So the files of an array are listed with their digests once all of them are on the disk, and whatever resumes compares.
A record carries its own digest as its last member: one digit of a displacement or a scale that flips gives other samples.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from hyperfuse.catalogs.formats.files import file_sha256, flush, write_atomic

_SEALED = re.compile(rb'(.*),"seal":"([0-9a-f]{64})"\}', re.DOTALL)


def write_record(path: Path, text: str) -> None:
    """Write a JSON object, whole or not at all, with its SHA-256 as its last member `seal`."""
    text = text.rstrip()
    write_atomic(path, f'{text[:-1]},"seal":"{hashlib.sha256(text.encode()).hexdigest()}"}}')


def read_record(path: Path) -> bytes | None:
    """A JSON object as it was given to `write_record`; None if it is not there, or not as it was written."""
    try:
        found = _SEALED.fullmatch(path.read_bytes())
    except FileNotFoundError:
        return None
    if found is None:
        return None
    text = found[1] + b"}"
    return text if hashlib.sha256(text).hexdigest().encode() == found[2] else None


def seal(listing: Path, arrays: Iterable[Path]) -> str:
    """Bring arrays to the disk and list their files with digests.

    Parameters
    ----------
    listing : Path
        File to write.
    arrays : iterable of Path
        Their folders, in the folder of the list or below; a single file is an array of one.

    Returns
    -------
    str
        SHA-256 of the list.
    """
    found: dict[str, str] = {}
    for array in (array for array in arrays if array.exists()):
        for path in _files(array):
            flush(path)
            found[path.relative_to(listing.parent).as_posix()] = file_sha256(path)
        for folder in sorted({path.parent for path in _files(array)} | {array, array.parent}):
            flush(folder)
    write_atomic(listing, json.dumps(found, indent=0, sort_keys=True))
    return file_sha256(listing)


def changed(listing: Path, sha256: str, arrays: Iterable[Path]) -> list[Path]:
    """Arrays of which a file is lost, damaged or foreign; all of them if the list itself is not what it was."""
    arrays = list(arrays)
    if not listing.is_file() or file_sha256(listing) != sha256:
        return arrays
    listed: dict[str, str] = json.loads(listing.read_bytes())
    return [array for array in arrays if _digests(listing, array) != _part(listing, listed, array)]


def _part(listing: Path, listed: dict[str, str], array: Path) -> dict[str, str]:
    itself = array.relative_to(listing.parent).as_posix()
    return {name: digest for name, digest in listed.items() if name == itself or name.startswith(f"{itself}/")}


def _digests(listing: Path, array: Path) -> dict[str, str]:
    return {path.relative_to(listing.parent).as_posix(): file_sha256(path) for path in _files(array)}


def _files(array: Path) -> list[Path]:
    """All files of an array, in order; those that a writer has not renamed yet are none of it."""
    if array.is_file():
        return [array]
    return sorted(path for path in array.rglob("*") if path.is_file() and not path.name.endswith(".partial"))
