"""Scenes on disks that fail: told from damaged files, and nothing is opened that is no file."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from hyperfuse.catalogs import opening
from hyperfuse.catalogs.errors import InputRejected, OutOfResources, Transient
from hyperfuse.catalogs.opening import open_source, reads_named
from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.weight_cards import read_card


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every reader meet an error."""

    def broken(_source: Source) -> None:
        raise error

    monkeypatch.setattr(opening, "open_scene", broken)


def rejected(cause: BaseException) -> InputRejected:
    """A reader's rejection of what it could not read."""
    error = InputRejected("a.tif: GDAL cannot open it; fetch it again")
    error.__cause__ = cause
    return error


def test_a_file_that_the_kernel_does_not_give_is_tried_again(tmp_path: Path) -> None:
    """Address 0 of a process's memory is a file that ends every read in EIO."""
    (tmp_path / "eio.tif").symlink_to("/proc/self/mem")
    with pytest.raises(Transient, match=r"eio\.tif: .*disk or network did not answer"):
        open_source(Source(uri=str(tmp_path / "eio.tif")))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ESTALE, os.strerror(errno.ESTALE), "a.tif"),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        rejected(OSError(errno.EIO, "Input/output error")),
        # What HDF5 and GDAL say has no number of the system.
        rejected(
            OSError("Can't synchronously read data (file read failed: errno = 5, error message = 'Input/output error')")
        ),
        rejected(RuntimeError("Stale file handle")),
    ],
)
def test_what_may_answer_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    failing(monkeypatch, error)
    with pytest.raises(Transient, match=r"a\.tif: .*did not answer, run again") as told:
        open_source(Source(uri=str(tmp_path / "a.tif")))
    assert "fetch it again" not in str(told.value)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "a.tif"),
        rejected(OSError("not recognized as being in a supported file format")),
        rejected(ValueError("bad header")),
        InputRejected("a.tif: no CRS in the file; give one"),
    ],
)
def test_what_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    failing(monkeypatch, error)
    with pytest.raises(InputRejected, match=r"a\.tif"):
        open_source(Source(uri=str(tmp_path / "a.tif")))


def test_a_library_that_does_not_say_why_is_checked_by_reading_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eio.nc").symlink_to("/proc/self/mem")
    failing(monkeypatch, rejected(OSError(-101, "NetCDF: HDF error")))
    with pytest.raises(Transient, match=r"eio\.nc"):
        open_source(Source(uri=str(tmp_path / "eio.nc")))


def test_a_full_disk_is_no_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    failing(monkeypatch, rejected(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutOfResources):
        open_source(Source(uri=str(tmp_path / "a.zip")))


def test_a_disk_that_fails_while_windows_are_read() -> None:
    with pytest.raises(Transient), reads_named():
        raise rejected(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputRejected), reads_named():
        raise InputRejected("a.tif: damaged; fetch it again")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "link to a pipe", "pipe in a folder", "pipe in a glob"])
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    """Opening a pipe would wait for a writer for ever; the suite's own timeout tells a hang."""
    name = tmp_path / "scene" / "a.tif"
    name.parent.mkdir()
    if kind == "device":
        name.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(name))
    else:
        os.mkfifo(name)
    address = {"pipe in a folder": name.parent, "pipe in a glob": name.parent / "*.tif"}.get(kind, name)
    if kind == "link to a pipe":
        address = tmp_path / "link.tif"
        address.symlink_to(name)
    with pytest.raises(InputRejected, match="is a pipe, a socket or a device"):
        open_source(Source(uri=str(address)))


def test_other_files_that_are_named_may_be_no_pipes_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(InputRejected, match="is no file"):
        read_card(tmp_path / "w.safetensors")
    os.mkfifo(tmp_path / "item.json")
    links = '[{"rel": "item", "href": "./item.json"}]'
    (tmp_path / "catalog.json").write_text(f'{{"type": "Catalog", "links": {links}}}')
    [refusal] = Catalog.open(tmp_path).read().refused
    assert "is no file" in refusal.reason
