"""Advisory locks on folders."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperfuse.catalogs.errors import Busy


@contextmanager
def locked(folder: Path, told: str = "") -> Iterator[None]:
    """Hold a job folder; the kernel lets go when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
    told : str, optional
        What is busy, where that is no job.

    Raises
    ------
    Busy
        If another process holds it, naming it.
    """
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            told = told or f"{folder.name}: another run works on this job"
            raise Busy(f"{told} ({file.read().strip()}); wait for it") from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process works in a job folder now."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
