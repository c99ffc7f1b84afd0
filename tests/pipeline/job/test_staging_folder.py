"""Whose staging folder it is: nothing of another job, another user or another version is touched or read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.pipeline import run as way
from hyperfuse.pipeline.execution.exchange import drop_abandoned
from hyperfuse.pipeline.job import staging_folder as place
from hyperfuse.pipeline.job.folder import Job
from hyperfuse.pipeline.job.staging_folder import staging_folder
from hyperfuse.pipeline.run import run
from tests.synthetic import SMALL, config

KEY = "0123456789ab" * 5 + "cdef"
CUT = {"tiles__core": 64, "tiles__chunk": 32, "publish__formats": "[zarr]", "method": "bicubic"}


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def die(*_: object, **__: object) -> None:
    raise Killed


def killed_run(monkeypatch: pytest.MonkeyPatch, output: Path, **settings: Any) -> Path:
    """The staging folder of a run that died when all tiles were fused."""
    with monkeypatch.context() as patch:
        patch.setattr(way, "assess", die)
        with pytest.raises(Killed):
            run(config(output, SMALL, **CUT | settings))
    return max(output.parent.glob(f".{output.name}.*.staging"), key=lambda path: path.stat().st_mtime_ns)


def abandoned(output: Path, key: str = KEY, **record: Any) -> Path:
    """A folder as a run leaves it, with one finished tile."""
    folder = staging_folder(output, key)
    (folder / "tiles").mkdir(parents=True)
    (folder / "tiles/0.0.json").write_text("{}")
    (folder / "job.json").write_text(json.dumps({"job_schema": "hyperfuse-job/2", "samples": key, "key": key} | record))
    return folder


def test_a_run_removes_what_a_run_of_the_same_name_left(tmp_path):
    folder = abandoned(tmp_path / "scene")
    drop_abandoned(tmp_path / "scene")
    assert not folder.exists()


def test_a_run_of_scene_leaves_the_tiles_of_scene_v2(tmp_path, monkeypatch):
    staging = killed_run(monkeypatch, tmp_path / "scene.v2")
    before = sorted(path.name for path in (staging / "tiles").iterdir())
    run(config(tmp_path / "scene", SMALL, **CUT))
    assert sorted(path.name for path in (staging / "tiles").iterdir()) == before
    assert run(config(tmp_path / "scene.v2", SMALL, **CUT)).provenance["tiles"]["resumed"] == len(before)


@pytest.mark.parametrize("name", ["a[b]", "a.*", "a+b"])
def test_names_are_no_patterns(tmp_path, name):
    mine, other = abandoned(tmp_path / name), abandoned(tmp_path / "a.b")
    drop_abandoned(tmp_path / name)
    assert other.exists()
    assert not mine.exists()


def test_a_folder_whose_record_gives_another_name_is_left(tmp_path, caplog):
    folder = abandoned(tmp_path / "scene", samples="f" * 64)
    drop_abandoned(tmp_path / "scene")
    assert (folder / "tiles/0.0.json").exists()
    assert "no record in it tells a job of that name" in caplog.text


@pytest.mark.parametrize("key", ["a/thesis", "../" * 21 + "x", "F" * 64, "0" * 63, 7, None])
def test_keys_are_those_of_sha256(tmp_path, key):
    folder = abandoned(tmp_path / "scene", samples=key)
    drop_abandoned(tmp_path / "scene")
    assert folder.exists()
    if isinstance(key, str):
        with pytest.raises(ValueError, match="is no key"):
            staging_folder(tmp_path / "scene", key)


def test_a_planted_record_empties_no_folder(tmp_path, monkeypatch):
    """A record that names a store and leads through a link to a folder of the user, as a stranger would plant it."""
    home, attic = tmp_path / "home/thesis", tmp_path / "attic"
    home.mkdir(parents=True)
    (home / "chapter").write_text("one")
    attic.mkdir()
    (attic / "prod.a").symlink_to(tmp_path / "home")
    (tmp_path / "shared").mkdir()
    output = tmp_path / "shared/prod"
    made = killed_run(monkeypatch, output)
    record = json.loads((made / "job.json").read_text())
    shutil.rmtree(made)
    for key in ("a/thesis", KEY):
        record |= {"key": key, "samples": key}
        record["config"] |= {"store": str(attic), "output": "prod"}
        folder = output.parent / f".prod.{KEY[:12]}.staging"
        folder.mkdir(exist_ok=True)
        (folder / "job.json").write_text(json.dumps(record))
        run(config(output, SMALL, **CUT))
        assert (home / "chapter").read_text() == "one"
        shutil.rmtree(output)


def test_links_are_neither_taken_over_nor_removed(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    (tmp_path / f".out.{KEY[:12]}.staging").symlink_to(mine)
    drop_abandoned(tmp_path / "out")
    made = killed_run(monkeypatch, tmp_path / "out")
    made.rename(tmp_path / "moved")
    made.symlink_to(mine)
    with pytest.raises(InputRejected, match="is no folder of this user"):
        run(config(tmp_path / "out", SMALL, **CUT))
    assert [path.name for path in mine.iterdir()] == ["file"]


def test_folders_of_others_are_neither_taken_over_nor_removed(tmp_path, monkeypatch):
    """Who owns what this process makes decides, since some network file systems give all files to one user."""
    folder = abandoned(tmp_path / "out")
    made = killed_run(monkeypatch, tmp_path / "out")
    folder = abandoned(tmp_path / "out")
    monkeypatch.setattr(place, "_own_uid", lambda _: os.getuid() + 1)
    with pytest.raises(InputRejected, match="is no folder of this user"):
        run(config(tmp_path / "out", SMALL, **CUT))
    assert folder.exists()
    assert made.exists()


def test_a_lock_that_is_a_link_truncates_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = abandoned(tmp_path / "out")
    (folder / "lock").symlink_to(precious)
    drop_abandoned(tmp_path / "out")
    assert precious.read_text() == "precious"
    assert folder.exists()


def test_a_folder_of_another_version_is_told_and_not_read(tmp_path, monkeypatch, caplog):
    """Before keys were those of samples, folders had the key of the product, and records no schema."""
    made = killed_run(monkeypatch, tmp_path / "out")
    record = json.loads((made / "job.json").read_text())
    del record["job_schema"], record["samples"]
    old = made.rename(staging_folder(tmp_path / "out", record["key"]))
    (old / "job.json").write_text(json.dumps(record))
    with pytest.raises(InputRejected, match="made by another version of HyperFuse"):
        Job.load(old)
    product = run(config(tmp_path / "out", SMALL, **CUT))
    assert product.provenance["tiles"]["resumed"] == 0
    assert "made by another version of HyperFuse (without a schema, expected hyperfuse-job/2)" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"job_schema": "hyperfuse-job/3"}, r"made by another version of HyperFuse \(hyperfuse-job/3, expected hyperfuse-job/2\)"),
        ({"samples": "f" * 64}, "holds another job than its name says"),
        (None, r"holds files, but no job\.json"),
    ],
    ids=["version", "key", "no record"],
)  # fmt: skip
def test_a_folder_of_the_right_name_with_another_record_is_not_resumed(tmp_path, monkeypatch, change, told):
    made = killed_run(monkeypatch, tmp_path / "out")
    path = made / "job.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    n_tiles = len(list((made / "tiles").iterdir()))
    with pytest.raises(InputRejected, match=told):
        run(config(tmp_path / "out", SMALL, **CUT))
    assert len(list((made / "tiles").iterdir())) == n_tiles
