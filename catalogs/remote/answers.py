"""What a server says of a file, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A file as its server describes it."""

    size: int | None
    """Bytes; None if the server does not tell."""
    tag: str | None
    """Strong ETag, or the time of the last change: the same while the bytes are the same. None if it tells neither."""
    md5: str | None
    """MD5 of the bytes, hexadecimal, where the server tells it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The bytes of a file, or that they are those of before."""

    facts: Facts
    unchanged: bool
    """The file is still that of the tag that was sent; there are no pieces."""
    start: int
    """Byte at which the pieces begin: 0, or where they were asked to go on."""
    pieces: Iterator[bytes]
    """Raises `Transient` when the server stops before its end."""
