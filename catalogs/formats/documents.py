"""JSON documents of catalogues and products: read with bounds, written in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.files import write_atomic

MAX_DOCUMENT = 64 << 20
"""Bytes of a collection, at most: it has a link for each of its items."""
MAX_ITEM = 4 << 20
"""Bytes of an item, at most: that of a product with 400 bands and their statistics has 200 000."""


def read_document(path: Path, *, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    InputRejected
        If it cannot be read, is too large, too deeply nested, or no JSON object of finite numbers.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InputRejected(
            f"{path}: cannot be read ({error.strerror or error}); check the catalogue's links"
        ) from error
    return parse_document(content, str(path), limit=limit)


def parse_document(content: bytes, label: str, *, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
    """A JSON object from its text; errors are those of `read_document`."""
    if len(content) > limit:
        raise InputRejected(
            f"{label}: has more than {limit} bytes, expected a document of metadata; leave it out or fetch it again"
        )
    try:
        record = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InputRejected(f"{label}: is nested too deeply for metadata; leave it out or fetch it again") from error
    except ValueError as error:
        raise InputRejected(f"{label}: is no JSON ({error}); leave it out or fetch it again") from error
    if not isinstance(record, dict):
        raise InputRejected(f"{label}: holds a {type(record).__name__}, expected a JSON object")
    return record


def write_document(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON so that whoever looks finds the old file or the new one, whole."""
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
