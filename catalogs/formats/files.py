"""Small files that others may look at while they are written, and digests of files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""What CIFS, FUSE and others say to flushing a folder."""


def write_atomic(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file that other processes see whole or not at all, and that survives a crash once it is seen.

    A private one nobody but its owner may read: settings name the places and machines of whoever runs a job.
    """
    # Two threads may write the same file, and the name of a file may be as long as the system allows.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.partial")
    temporary.unlink(missing_ok=True)  # of a process of this number that was killed
    try:
        # Created with its mode: nobody opens it in the moment before it is changed.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 if private else 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_KINDS = {
    b"<VRTDataset": "a GDAL virtual raster", b"<!DOCTYPE html": "a page of HTML", b"<html": "a page of HTML", b"<?xml": "XML",
    b"%PDF": "a PDF", b"PK": "a ZIP archive", b"\x1f\x8b": "compressed by gzip", b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz", b"\x28\xb5\x2f\xfd": "compressed by Zstandard", b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image", b"{": "JSON", b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
}  # fmt: skip


def kind_of(start: bytes) -> str:
    """What a file that is no image is, by its first bytes; they are not quoted, for it may be anyone's."""
    if not start:
        return "empty (0 bytes)"
    known = next(
        (kind for magic, kind in _KINDS.items() if start.lstrip()[: len(magic)].lower() == magic.lower()), None
    )
    if known is not None:
        return known
    return (
        "plain text"
        if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
        else "binary, of no kind known here"
    )


def flush(path: Path) -> None:
    """Bring a file or a folder to the disk; where a file system cannot flush folders, they are left to it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (stat.S_ISDIR(os.fstat(handle).st_mode) and error.errno in _NO_FLUSH):
            raise
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
