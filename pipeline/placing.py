"""Where a product is built: beside its final place, in a hidden folder of its own, and what may be in the way."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalogs.errors import InputRejected, OutOfResources
from pipeline.device import exhausted


def staging_folder(output: Path, key: str) -> Path:
    """The hidden folder beside `output` that becomes it; `key` is the SHA-256 of what decides the content."""
    return output.parent / f".{output.name}.{key[:12]}.staging"


def require_parent(output: Path) -> None:
    """Refuse a place that nothing can be written to.

    Raises
    ------
    InputRejected
        If the parent folder does not exist or is read-only.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise InputRejected(f"{output}: its parent folder {parent} does not exist or is no folder; create it first")
    try:
        # Permission bits lie to root and know nothing of read-only mounts, so a folder is made and taken away.
        Path(tempfile.mkdtemp(prefix=".hyperfuse-probe-", dir=parent)).rmdir()
    except OSError as error:
        raise InputRejected(
            f"{output}: {parent} is read-only ({error}); choose a folder that can be written"
        ) from error


@contextmanager
def resources_named(output: Path) -> Iterator[None]:
    """Turn a full disk and exhausted memory into the sentence of whoever must act; what is done stays done.

    Raises
    ------
    OutOfResources
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
        raise
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        raise OutOfResources(f"a tile does not fit in memory ({error}); lower tiles.core and run again") from error
