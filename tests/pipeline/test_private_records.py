"""Records of a job are their owner's: nobody else reads them, from the first byte."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_IMODE

import pytest

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.archive.dead_letters import DeadLetters
from hyperfuse.pipeline.run import open_run
from tests.pipeline.archives import archive, item, night
from tests.synthetic import config


def test_the_record_of_a_job_is_its_owners(tmp_path: Path) -> None:
    with open_run(config(tmp_path / "p", "size=96&bands=12", method="bicubic")) as held:
        assert S_IMODE((held.job.folder / "job.json").stat().st_mode) == 0o600


@pytest.mark.usefixtures("own_devices")
def test_the_replay_of_a_scene_is_its_owners(tmp_path: Path) -> None:
    (tmp_path / "junk.tif").write_bytes(b"no image")
    found = archive(tmp_path, [item("h0", "hsi", 0, uri=str(tmp_path / "junk.tif")), item("m0", "msi", 0)])
    night(found)
    folder = DeadLetters(found.folder).folder
    assert S_IMODE((folder / "replay" / "h0.json").stat().st_mode) == 0o600


def test_a_file_is_private_before_anything_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(S_IMODE(os.fstat(handle).st_mode)), fsync(handle)))
    path = tmp_path / "r.json"
    path.write_text("old")
    write_atomic(path, "new ü", private=True)
    assert seen == [0o600]
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [one.name for one in tmp_path.iterdir()] == ["r.json"]


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_handle: int) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk"):
        write_atomic(tmp_path / "r.json", "new", private=True)
    assert list(tmp_path.iterdir()) == []
