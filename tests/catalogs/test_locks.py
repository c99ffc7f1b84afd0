"""One holder at a time, none after death, and nothing of the user's is touched: with locks of the kernel and without."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyperfuse.catalogs import locks
from hyperfuse.catalogs.errors import Busy, InputRejected, Transient
from hyperfuse.catalogs.locks import is_held, locked

NO_LOCKS = sorted({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def without_locks(patch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    """A file system without `flock`."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    patch.setattr(fcntl, "flock", refuse)


def leases(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.lease"))


@pytest.fixture(params=["flock", *NO_LOCKS], ids=lambda code: code if isinstance(code, str) else errno.errorcode[code])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "flock":
        without_locks(monkeypatch, request.param)


@pytest.mark.usefixtures("any_system")
def test_one_holder_at_a_time_and_again_after_it(tmp_path):
    for _ in range(3):
        assert not is_held(tmp_path)
        with locked(tmp_path):
            assert is_held(tmp_path)
            with pytest.raises(Busy, match=f"process {os.getpid()} on "), locked(tmp_path):
                pass
            assert is_held(tmp_path), "who was refused took nothing away"
    assert not is_held(tmp_path)
    assert len(leases(tmp_path)) <= 1


@pytest.mark.usefixtures("any_system")
def test_who_waits_gets_it_next(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_POLL_S", 0.01)
    order, waiting = [], threading.Event()

    def second() -> None:
        with locked(tmp_path, on_wait=waiting.set):
            order.append("second")

    with ThreadPoolExecutor(1) as threads, locked(tmp_path):
        done = threads.submit(second)
        assert waiting.wait(20)
        order.append("first")
    done.result()
    assert order == ["first", "second"]


@pytest.mark.usefixtures("any_system")
def test_links_are_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name, make in (("soft", Path.symlink_to), ("folder", None)):
        folder = tmp_path / name
        folder.mkdir()
        if make is None:
            (folder / "lock").mkdir()
        else:
            make(folder / "lock", precious)
        with pytest.raises(InputRejected, match="is no file, as a lock has to be"), locked(folder):
            pass
        assert is_held(folder), "what cannot be locked is not removed either"
    assert precious.read_text() == "precious"


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(InputRejected, match="is no file"), locked(tmp_path):
        pass


def test_a_second_name_of_a_file_is_not_written(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "lock").hardlink_to(precious)
    with locked(tmp_path):
        assert is_held(tmp_path)
    assert precious.read_text() == "precious"


def test_a_planted_lease_is_not_followed(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".lock.000001.lease").symlink_to(precious)
    with locked(tmp_path):
        assert is_held(tmp_path)
    assert precious.read_text() == "precious"


def test_a_disk_that_fails_is_no_holder(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(Transient, match="cannot be locked"), locked(tmp_path):
        pass


HOLD = """
import errno, fcntl, os, sys, time
from pathlib import Path
if sys.argv[2] == "lease":
    def refuse(*_): raise OSError(errno.ENOLCK, "")
    fcntl.flock = refuse
from hyperfuse.catalogs.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_a_lock_dies_with_its_holder(tmp_path, monkeypatch, kind):
    if kind == "lease":
        without_locks(monkeypatch)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(Busy, match=f"process {holder.pid}"), locked(tmp_path):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    assert not is_held(tmp_path)
    with locked(tmp_path):
        assert is_held(tmp_path)


def foreign(folder: Path, *, silent_s: float, **changes: object) -> Path:
    """The lease of a process on another host, touched so long ago."""
    (folder / "lock").touch()
    lease = folder / ".lock.000007.lease"
    lease.write_text(json.dumps({**locks._myself(), "host": "elsewhere", "pid": 1, **changes}))
    then = lease.stat().st_mtime - silent_s
    os.utime(lease, (then, then))
    return lease


def test_a_lease_of_another_host_lives_while_it_is_touched(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    foreign(tmp_path, silent_s=30)
    assert is_held(tmp_path)
    with pytest.raises(Busy, match="process 1 on elsewhere"), locked(tmp_path):
        pass


def test_a_silent_lease_of_another_host_is_watched_and_then_taken_over(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    lease, watched = foreign(tmp_path, silent_s=3600), []
    monkeypatch.setattr(locks.time, "sleep", watched.append)
    with locked(tmp_path):
        assert [path.name for path in leases(tmp_path)] == [".lock.000008.lease"]
    assert watched == [locks._WATCH_S]
    assert not lease.exists()


def test_a_lease_that_is_touched_while_it_is_watched_is_left(tmp_path, monkeypatch):
    """A clock that jumped makes every lease old; a touch shows that its holder lives."""
    without_locks(monkeypatch)
    lease = foreign(tmp_path, silent_s=3600)
    monkeypatch.setattr(locks.time, "sleep", lambda _: os.utime(lease))
    with pytest.raises(Busy, match="elsewhere"), locked(tmp_path):
        pass


def test_another_container_of_this_machine_is_another_machine(tmp_path, monkeypatch):
    """Its processes have numbers of their own: that ours has none of that number says nothing."""
    without_locks(monkeypatch)
    foreign(tmp_path, silent_s=0, host=locks._myself()["host"], namespace="pid:[1]", pid=2**22 + 1)
    assert is_held(tmp_path)


def test_a_number_that_was_given_again_is_another_process(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    foreign(tmp_path, silent_s=0, host=locks._myself()["host"], pid=os.getpid(), started=1)
    assert not is_held(tmp_path)


def test_a_holder_touches_its_lease(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    monkeypatch.setattr(locks, "_BEAT_S", 0.01)
    touched = threading.Event()
    real = os.utime

    def utime(path: Path, **options: object) -> None:
        real(path, **options)
        touched.set()

    monkeypatch.setattr(os, "utime", utime)
    with locked(tmp_path):
        assert touched.wait(20)


def test_of_many_that_find_a_dead_holder_one_takes_over(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    for round_ in range(20):
        folder = tmp_path / str(round_)
        folder.mkdir()
        foreign(folder, silent_s=0, host=locks._myself()["host"], pid=2**22 + 1)
        start, tried = threading.Barrier(8), threading.Barrier(8)

        def compete(folder: Path = folder, start: threading.Barrier = start, tried: threading.Barrier = tried) -> bool:
            start.wait(30)
            try:
                with locked(folder):
                    tried.wait(30)
                    return True
            except Busy:
                tried.wait(30)
                return False

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(lambda _: compete(), range(8))) == 1


def test_the_lock_of_a_removed_folder_is_none(tmp_path, monkeypatch):
    """Whoever opened the lock before its holder removed the folder would hold a file that nobody sees."""
    folder = tmp_path / "job"
    folder.mkdir()
    real = fcntl.flock

    def removed_meanwhile(handle: int, how: int) -> None:
        (folder / "lock").unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with pytest.raises(Busy, match="has just ended"), locked(folder):
        pass
