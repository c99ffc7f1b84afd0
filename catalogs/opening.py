"""Opening scenes that lie on disks which may fail: a disk that did not answer is told from a file that is damaged.

Readers know formats. Whatever keeps them from reading, they say that the file is damaged and should be fetched again;
here their causes are looked at, so that a scene on a disk that is away for an hour is tried again and not given up.
"""

from __future__ import annotations

import copy
import errno
import glob
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hyperfuse.catalogs.addresses import is_remote
from hyperfuse.catalogs.arrays import copy_of, is_array
from hyperfuse.catalogs.errors import HyperFuseError, InputRejected, MetadataMissing, OutOfResources, Transient
from hyperfuse.catalogs.remote.fetching import Fetching
from hyperfuse.catalogs.remote.sources import fetched
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene

_PASSING = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
    errno.ENOMEDIUM, errno.EBUSY,
})  # fmt: skip
"""What a disk or a network says that may answer later."""
_WORDS = tuple(os.strerror(code) for code in sorted(_PASSING))
"""The same as GDAL and HDF5 quote it: their errors carry no number."""
_SCARCE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_MAX_ENTRIES = 100_000
"""Entries of a folder that are looked at."""


def open_source(source: Source, fetching: Fetching | None = None) -> Scene:
    """Open a scene, see `catalogs.sensors.open_scene`; one on a server is fetched into a cache first.

    Parameters
    ----------
    source : Source
    fetching : Fetching, optional
        Where it is fetched to; by the environment unless given.

    Raises
    ------
    InputRejected
        If it is a pipe, a socket or a device, no sensor accepts it, or the one that does cannot use it; or its server
        refuses it.
    Transient
        If a disk or a network did not answer.
    OutOfResources
        If disk, memory or the number of open files did not suffice to open it.
    """
    if is_array(source.uri):
        own = open_source(replace(source, uri=str(copy_of(source.uri))))
        return replace(own, uri=source.uri, source=source, name=source.uri.partition(":")[2])
    if not is_remote(source.uri):
        return _opened(source)
    local = fetched(source, fetching or Fetching.of())
    try:
        scene = _opened(replace(source, uri=str(local.path), sensor=local.sensor))
    except HyperFuseError as error:
        told = copy.copy(error)
        told.args = (local.renamed(str(error)),)
        if isinstance(told, MetadataMissing):
            told.lacks = local.renamed(told.lacks)
        raise told from error
    notes = tuple(local.renamed(note) for note in scene.notes)
    return replace(scene, uri=source.uri, source=source, notes=notes)


def _opened(source: Source) -> Scene:
    try:
        if not source.uri.startswith("synthetic:"):
            _require_files(source.uri)
        with reads_named():
            try:
                return open_scene(source)
            except InputRejected as error:
                if _unsaid(error):
                    _read_through(Path(source.uri))
                raise
    except OSError as error:
        raise _named(error, source.uri) from error


@contextmanager
def reads_named() -> Iterator[None]:
    """Turn the rejection of a file that could not be read because its disk did not answer into what it is.

    Raises
    ------
    Transient, OutOfResources
    """
    try:
        yield
    except InputRejected as error:
        cause = next((one for one in _causes(error) if is_passing(one) or _is_scarce(one)), None)
        if cause is None:
            raise
        if _is_scarce(cause):
            raise OutOfResources(str(error)) from error
        # The remedy of the reader, after the semicolon, is to fetch the file again.
        told = str(error).rpartition("; ")[0] or str(error)
        raise Transient(f"{told}; its disk or network did not answer, run again") from error


def is_passing(error: BaseException) -> bool:
    """Whether an error says that a disk or a network did not answer."""
    if isinstance(error, HyperFuseError):
        return isinstance(error, Transient)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return error.errno in _PASSING
    return isinstance(error, TimeoutError) or any(words in str(error) for words in _WORDS)


def _is_scarce(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _SCARCE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error's causes, the nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _unsaid(error: InputRejected) -> bool:
    """Whether a library failed without saying why: the cause is an error of its own, and carries no number of the system."""
    causes = [one for one in _causes(error) if not isinstance(one, HyperFuseError)]
    return any(isinstance(one, RuntimeError | OSError) and not (getattr(one, "errno", None) or 0) > 0 for one in causes)


def _read_through(path: Path) -> None:
    """Read all bytes of a file: what is damaged can be read, what its disk does not give cannot."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def _named(error: OSError, uri: str) -> HyperFuseError:
    why = f"{uri}: cannot be read ({error.strerror or error})"
    if is_passing(error):
        return Transient(f"{why}; its disk or network did not answer, run again")
    if _is_scarce(error):
        return OutOfResources(f"{why}; make room and run again")
    return InputRejected(f"{why}; check the path and its permissions")


def _require_files(uri: str) -> None:
    """Refuse what is no file and no folder: reading a pipe waits for ever, reading a device may never end."""
    path = Path(uri)
    for found in [path] if path.exists() else map(Path, glob.glob(uri) if glob.has_magic(uri) else ()):  # noqa: PTH207
        mode = found.stat().st_mode
        odd = _odd_in(found) if stat.S_ISDIR(mode) else None if stat.S_ISREG(mode) else found
        if odd is not None:
            raise InputRejected(
                f"{odd}: is a pipe, a socket or a device, expected a file; name a file, or a folder that holds files only"
            )


def _odd_in(folder: Path) -> Path | None:
    """The first entry below a folder that is no file, folder or dangling link."""
    todo, n_entries = [os.fspath(folder)], 0
    while todo and n_entries < _MAX_ENTRIES:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                n_entries += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif not entry.is_file() and not entry.is_dir() and Path(entry.path).exists():
                    return Path(entry.path)
    return None
