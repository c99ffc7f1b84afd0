"""Advisory locks on folders: held by one process at a time, and by none that has died.

The kernel keeps a lock (`flock`) and takes it away from a process that ends, however it ends. Some network file systems
have none (Lustre mounted without it, some NFS and FUSE). There a lease file stands for it: it names host, boot, process
and the start of the process, and its holder touches it every few seconds.

    alive     on the same boot of the same host: while a process of that number and start runs
              elsewhere: while the file was touched in the last two minutes, by the clock of the file system
    taken     the lease of the next number is created where there was none (O_EXCL); of two, one succeeds
    released  the file says so and stays until the next holder removes it, so that numbers only grow

A lease is weaker than a lock of the kernel: a process on another host that was stopped for more than two minutes has
lost it. All hosts must see the same file system, and either all of them or none must have locks on it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import Busy, InputRejected, Transient

log = logging.getLogger(__name__)

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_BEAT_S = 10.0
"""Seconds between two touches of a lease."""
_LEASE_S = 120.0
"""Seconds without a touch after which the holder of a lease on another host counts as dead."""
_WATCH_S = 25.0
"""Seconds for which such a lease is watched before it is taken over: clocks may be wrong, a touch is not."""
_POLL_S = 1.0
_TOLD = 200  # bytes of a lock file that are shown


@contextmanager
def locked(
    folder: Path, told: str = "", *, name: str = "lock", on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a folder.

    Parameters
    ----------
    folder : Path
    told : str, optional
        What is busy, where that is no job.
    name : str
        Name of the lock file in the folder; it is never followed where it is a link.
    on_wait : callable, optional
        Called before waiting for another holder; without it, being held is an error.

    Raises
    ------
    Busy
        If another process holds it, naming it.
    InputRejected
        If something else than a file has the lock's name.
    Transient
        If the file system does not answer.
    """
    path = folder / name
    told = told or f"{folder.name}: another run works on this job"
    with _opened(path, os.O_RDWR | os.O_CREAT) as handle:
        taken = _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        if taken is False:
            if on_wait is None:
                raise Busy(f"{told} ({_holder(handle)}); wait for it")
            on_wait()
            taken = _flock(handle, fcntl.LOCK_EX, path)
        if taken is None:
            with _leased(path, told, on_wait):
                yield
            return
        _require_in_place(handle, path, told)
        _sign(handle)
        yield


def is_held(folder: Path, name: str = "lock") -> bool:
    """Whether a process holds a folder now; what is no lock file, or cannot be read, counts as held."""
    path = folder / name
    try:
        with _opened(path, os.O_RDONLY) as handle:
            free = _flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB, path)
    except FileNotFoundError:
        return False
    except (OSError, InputRejected, Transient):
        return True
    if free is None:
        leases = _leases(path)
        return bool(leases) and _is_alive(leases[-1][1], watch_s=0)
    return not free


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A lock file that is a file, and not a link to one."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR}:
            raise InputRejected(f"{path}: is no file, as a lock has to be; remove it") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InputRejected(f"{path}: is no file, as a lock has to be; remove it")
        yield handle
    finally:
        os.close(handle)


def _flock(handle: int, how: int, path: Path) -> bool | None:
    """Ask the kernel; None where the file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _UNSUPPORTED:
            return None
        raise Transient(f"{path}: cannot be locked ({error.strerror}); run again") from error
    return True


def _require_in_place(handle: int, path: Path, told: str) -> None:
    """Refuse the lock of a folder that its holder removed between opening and locking: another may hold the new one."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), os.fstat(handle)):
            return
    raise Busy(f"{told} (which has just ended); run again")


def _holder(handle: int) -> str:
    return os.pread(handle, _TOLD, 0).decode(errors="replace").strip()


def _sign(handle: int) -> None:
    """Write who holds the lock, unless the file has another name too and may be somebody's data."""
    if os.fstat(handle).st_nlink <= 1:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


@contextmanager
def _leased(path: Path, told: str, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold a folder by a lease file beside the lock file."""
    lease, waited = _take(path), False
    while lease is None:
        if on_wait is None:
            raise Busy(f"{told} ({_told(_leases(path))}); wait for it")
        if not waited:
            on_wait()
            waited = True
        time.sleep(_POLL_S)
        lease = _take(path)
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(lease, path, over), name="lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        # Gone with its folder, or taken over.
        with suppress(FileNotFoundError):
            _write(lease, {"released": True}, os.O_TRUNC)


def _take(path: Path) -> Path | None:
    """The lease of the next number, made by this process; None if another holds one that is alive."""
    while True:
        before = _leases(path)
        if before and _is_alive(before[-1][1], watch_s=_WATCH_S):
            return None
        number = before[-1][0] + 1 if before else 1
        lease = path.with_name(f".{path.name.lstrip('.')}.{number:06d}.lease")
        try:
            _write(lease, _myself(), os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        # Who read the listing long ago may create a number that is over: the highest is the one that counts.
        if _leases(path)[-1][0] != number:
            lease.unlink(missing_ok=True)
            continue
        for _, old in before:
            old.unlink(missing_ok=True)
        return lease


def _leases(path: Path) -> list[tuple[int, Path]]:
    """Lease files of a lock by their numbers."""
    pattern = re.compile(rf"\.{re.escape(path.name.lstrip('.'))}\.(\d+)\.lease")
    found = ((pattern.fullmatch(name), name) for name in os.listdir(path.parent))  # noqa: PTH208 (names, not paths)
    return sorted((int(match[1]), path.with_name(name)) for match, name in found if match)


def _is_alive(lease: Path, *, watch_s: float) -> bool:
    """Whether the holder of a lease lives, as far as can be known from here."""
    record, mine = _read(lease), _myself()
    if record.get("released"):
        return False
    if mine["boot"] and all(record.get(key) == mine[key] for key in ("host", "boot", "namespace")):
        started = _started(record.get("pid"))
        return started is not None and started == record.get("started")
    touched = _touched(lease)
    if touched is None:
        return False
    if _clock(lease.parent) - touched < _LEASE_S:
        return True
    if watch_s:
        time.sleep(watch_s)
        return _touched(lease) not in {touched, None}
    return False


def _beat(lease: Path, path: Path, over: threading.Event) -> None:
    """Touch a lease until it is over."""
    while not over.wait(_BEAT_S):
        try:
            os.utime(lease, follow_symlinks=False)
        except FileNotFoundError:
            if path.exists():
                log.critical("%s: another process has taken over what this one holds; stop one of them", path)
            return
        except OSError as error:
            log.warning("%s: could not be touched (%s)", lease, error)


def _touched(lease: Path) -> float | None:
    """When a lease was touched last, s; opened, because network file systems look at their server only then."""
    try:
        with _opened(lease, os.O_RDONLY) as handle:
            return os.fstat(handle).st_mtime
    except (FileNotFoundError, InputRejected):
        return None


def _clock(folder: Path) -> float:
    """Time (s) by the clock of a file system, which is that of its server."""
    with tempfile.NamedTemporaryFile(prefix=".clock-", dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _myself() -> dict[str, Any]:
    """What tells this process from all others."""
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())  # containers number their processes anew
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "namespace": namespace,
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: object) -> int | None:
    """When a process of this machine was started, in ticks of its kernel; None if it runs no more."""
    try:
        fields = (
            Path(f"/proc/{int(str(pid))}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (OSError, ValueError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _told(leases: list[tuple[int, Path]]) -> str:
    record = _read(leases[-1][1]) if leases else {}
    return f"process {record.get('pid', 'unknown')} on {record.get('host', 'another host')}"


def _read(lease: Path) -> dict[str, Any]:
    """A lease; nothing of one that is being written."""
    try:
        with _opened(lease, os.O_RDONLY) as handle:
            record = json.loads(os.read(handle, 4096))
    except (OSError, ValueError, InputRejected):
        return {}
    return record if isinstance(record, dict) else {}


def _write(lease: Path, record: dict[str, Any], how: int) -> None:
    handle = os.open(lease, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | how, 0o666)
    try:
        os.write(handle, json.dumps(record).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
