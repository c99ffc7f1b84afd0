"""Files are there whole or not at all, and leave nothing beside them."""

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyperfuse.catalogs.formats.files import file_sha256, flush, write_atomic


def test_writers_of_one_file_do_not_tear_it(tmp_path: Path) -> None:
    path, texts = tmp_path / "told.json", [str(k) * 50_000 for k in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: write_atomic(path, text), texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "told.json"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 250}.json"
    write_atomic(path, "told")
    assert path.read_text() == "told"


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x00\xff" * 100_000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_flushed_is_left_to_the_file_system(tmp_path, monkeypatch, code):
    """As on CIFS and FUSE; a file that cannot be flushed is lost, and so is a disk that fails."""

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", refuse)
    flush(tmp_path)
    (tmp_path / "file").write_text("samples")
    with pytest.raises(OSError, match=os.strerror(code)):
        flush(tmp_path / "file")
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(code)):
        flush(tmp_path)
