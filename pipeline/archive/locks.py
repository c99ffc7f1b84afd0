"""Locks of a night: one per archive, one per device; none outlives its process (`catalogs.locks`)."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.locks import locked
from hyperfuse.pipeline.archive.settings import ArchiveConfig

log = logging.getLogger(__name__)

STATE = ".archive"
"""Folder with the archive's lock, beside the products."""
_SAME = {"auto": "cuda:0", "cuda": "cuda:0"}
"""Names that may mean the same device."""
_TURN_SECONDS = 0.05


@contextmanager
def alone_in(archive: ArchiveConfig) -> Iterator[None]:
    """Hold the folder of an archive, and make it if it is not there.

    Raises
    ------
    Busy
        If another night holds it.
    InputRejected
        If it cannot be made or written.
    """
    try:
        (archive.folder / STATE).mkdir(parents=archive.folder.parent.is_dir(), exist_ok=True)
    except OSError as error:
        raise InputRejected(
            f"{archive.folder}: cannot be made or written ({error.strerror}); its parent folder must exist"
        ) from error
    with locked(archive.folder / STATE, f"{archive.folder}: another night works on this archive"):
        yield


@contextmanager
def alone_on(device: str) -> Iterator[None]:
    """Hold a device, after waiting for it: nights of several archives on one machine share it scene by scene.

    Raises
    ------
    InputRejected
        If another user has taken the folder of the locks.
    """
    folder = Path(tempfile.gettempdir()) / f"hyperfuse-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not stat.S_ISDIR(folder.lstat().st_mode) or folder.lstat().st_uid != os.getuid():
        raise InputRejected(f"{folder}: belongs to another user; remove it, or set TMPDIR to a folder of your own")

    def tell() -> None:
        log.info("waiting for %s, which works on a scene of another archive", device)

    with locked(folder, name=f"{_SAME.get(device, device).replace(':', '-')}.lock", on_wait=tell):
        yield
    # The kernel wakes who waits, and who takes the lock again at once would still be faster, all night long.
    time.sleep(_TURN_SECONDS)
