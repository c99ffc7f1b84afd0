"""Arrays of this process that are opened like files: `array:NAME`, of the copy that lies on disk while they are.

What is made of an array names the array, and not the copy: that is gone when somebody reads the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from hyperfuse.catalogs.errors import InputRejected

_SCHEME = "array:"
_copies: ContextVar[Mapping[str, Path]] = ContextVar("_copies", default={})  # noqa: B039 (never changed in place)


def is_array(uri: str) -> bool:
    """Whether an address is that of an array."""
    return uri.startswith(_SCHEME)


def array_uri(name: str) -> str:
    """Address of the array of that name."""
    return _SCHEME + name


@contextmanager
def copies_at(copies: Mapping[str, Path]) -> Iterator[None]:
    """Where the copies of arrays lie, by the arrays' names, for whatever this thread opens meanwhile."""
    before = _copies.set({**_copies.get(), **copies})
    try:
        yield
    finally:
        _copies.reset(before)


def copy_of(uri: str) -> Path:
    """The copy of an array.

    Raises
    ------
    InputRejected
        If this process has no such array.
    """
    try:
        return _copies.get()[uri.removeprefix(_SCHEME)]
    except KeyError:
        raise InputRejected(
            f"{uri}: was an array of another Python process, expected a file; give the array to `hyperfuse.fuse` again"
        ) from None
