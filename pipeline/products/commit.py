"""Where a product is built: beside its final place, in a hidden folder of its own; what may be in the way, and the rename."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, OutOfResources, Transient
from hyperfuse.catalogs.formats.files import flush
from hyperfuse.catalogs.opening import is_passing
from hyperfuse.pipeline.fusion.device import exhausted
from hyperfuse.pipeline.job.staging_folder import staging_folders

log = logging.getLogger(__name__)

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def require_parent(output: Path) -> None:
    """Refuse a place that nothing can be written to.

    Raises
    ------
    InputRejected
        If the parent folder does not exist or is read-only.
    Transient
        If its disk or network does not answer.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise InputRejected(f"{output}: its parent folder {parent} does not exist or is no folder; create it first")
    try:
        # Permission bits lie to root and know nothing of read-only mounts, so a folder is made and taken away.
        Path(tempfile.mkdtemp(prefix=".hyperfuse-probe-", dir=parent)).rmdir()
    except OSError as error:
        if is_passing(error):
            raise Transient(f"{output}: a disk or a network did not answer ({error}); run again") from error
        raise InputRejected(
            f"{output}: {parent} is read-only ({error}); choose a folder that can be written"
        ) from error


def require_disk(output: Path, n_bytes: int) -> None:
    """Refuse a disk that is sure to be too small for a product of so many bytes, uncompressed.

    What earlier runs left in staging folders of the product is counted as free: it is used again, or removed.

    Raises
    ------
    OutOfResources
        If less than half of it is free: noise bounds what lossless codecs save.
    """
    parent = output.absolute().parent
    free, needed = shutil.disk_usage(parent).free, n_bytes // 2
    if free < needed:
        held = sum(path.lstat().st_size for folder in staging_folders(output) for path in files_of(folder))
        needed = max(needed - held, 0)
    if free < needed:
        raise OutOfResources(
            f"{parent}: {free / 1e9:.3g} GB free, at least {needed / 1e9:.3g} GB needed; free some space"
        )


@contextmanager
def resources_named(output: Path) -> Iterator[None]:
    """Turn a full disk, a disk that fails and exhausted memory into the sentence of whoever must act; what is done stays done.

    Raises
    ------
    OutOfResources, Transient
    """
    try:
        yield
    except OSError as error:
        # GDAL reports a full disk in words only.
        if error.errno in {errno.ENOSPC, errno.EDQUOT} or "No space left" in str(error):
            free = shutil.disk_usage(output.absolute().parent).free
            raise OutOfResources(
                f"{output.absolute().parent}: the disk is full ({free / 1e9:.2f} GB free); free some space and run again "
                "to resume"
            ) from error
        raise Transient(f"{output}: a disk or a network did not answer ({error}); run again to resume") from error
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        raise OutOfResources(f"a tile does not fit in memory ({error}); lower tiles.core and run again") from error


def put_in_place(root: Path, output: Path, *, aside: Path | None = None) -> None:
    """Bring a sealed folder to the disk and rename it to the product's path, on the same file system.

    Parameters
    ----------
    root, output : Path
        The folder, and the path of the product.
    aside : Path, optional
        Where a product that stands there goes; unless given, nothing is replaced.

    Raises
    ------
    ExpectedSkip
        If something has appeared there.
    """
    _sync(root)
    if aside is not None and os.path.lexists(output):
        _exchange(root, output, aside)
    else:
        _rename_new(root, output)
    flush(output.parent)


def files_of(root: Path) -> Iterator[Path]:
    """All that is no folder, links included and not followed."""
    for folder, folders, names in os.walk(root):
        yield from (Path(folder) / name for name in names)
        yield from (Path(folder) / name for name in folders if (Path(folder) / name).is_symlink())


def _sync(root: Path) -> None:
    """Files first, then the folders that name them."""
    for path in files_of(root):
        flush(path)
    for folder, _, _ in os.walk(root, topdown=False):
        flush(Path(folder))


def _rename_new(root: Path, output: Path) -> None:
    """Rename onto a path that must not exist."""
    try:
        if not _renameat2(root, output, _NOREPLACE):
            # Without the system call a race remains in which an empty folder is replaced; a full one never is.
            if os.path.lexists(output):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
            os.rename(root, output)  # noqa: PTH104 (the name that faults are injected into)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            raise ExpectedSkip(f"{output} appeared while the product was built; it was left as it is") from error
        raise


def _exchange(root: Path, output: Path, aside: Path) -> None:
    """Swap the new version with the old one, which then goes with the staging folder."""
    if _renameat2(root, output, _EXCHANGE):
        return
    log.warning("%s: this file system cannot exchange two folders; the product is away for a moment", output)
    output.rename(aside)
    root.rename(output)


def _renameat2(source: Path, target: Path, how: int) -> bool:
    """Rename that refuses or exchanges an existing target; False where the system or the file system has no such call."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), how) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(target))
