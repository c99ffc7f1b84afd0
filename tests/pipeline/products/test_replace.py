"""A new version takes the place of a product without a moment in which the path is absent or partial."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

import hyperfuse.pipeline.products.publish as publishing
from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.pipeline.execution.exchange import drop_abandoned
from hyperfuse.pipeline.products import commit as placing
from hyperfuse.pipeline.products.draft import Draft
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish, verify
from tests.pipeline.conftest import build_job

OLD, NEW = "ab" * 32, "cd" * 32


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def next_version(parent: Path, *, replaces: bool = True) -> Draft:
    """The same product by another job: `build_job` makes the folder, this gives it another key."""
    draft = build_job(parent)
    config = draft.job.config
    config = config.model_copy(update={"publish": config.publish.model_copy(update={"replace": replaces})})
    record = draft.job.record.model_copy(update={"key": NEW, "config": config})
    job = replace(draft.job, record=record)
    return replace(draft, job=job, provenance=draft.provenance.model_copy(update={"job_key": NEW}))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return publish(build_job(tmp_path)).path


def test_the_path_is_never_absent(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = next_version(old.parent)
    seen, over, before = set(), threading.Event(), old.stat().st_ino
    inside = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add(old.stat().st_ino if old.exists() else None)
            inside.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert inside.wait(10)
        publish(draft)
    finally:
        over.set()
        watcher.join()
    assert None not in seen
    assert before in seen
    assert old.stat().st_ino != before
    assert verify(old).job_key == NEW
    assert [path.name for path in old.parent.iterdir()] == ["fused"]


def test_without_the_setting_nothing_is_replaced(old: Path) -> None:
    with pytest.raises(InputRejected, match="exists and is not this product"):
        publish(next_version(old.parent, replaces=False))
    assert Product.load(old).job_key == OLD


def test_only_products_are_replaced(tmp_path: Path) -> None:
    draft = next_version(tmp_path)
    output = draft.job.config.output
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(InputRejected, match="is no product"):
        publish(draft)
    assert (output / "mine.txt").read_text() == "mine"


def test_where_nothing_stands_it_is_put(tmp_path: Path) -> None:
    assert verify(publish(next_version(tmp_path)).path).job_key == NEW


@pytest.mark.parametrize("step", ["_seal", "_sync", "_exchange"])
def test_a_kill_before_the_exchange_leaves_the_old_version(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    draft = next_version(old.parent)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(placing if hasattr(placing, step) else publishing, step, die)
        with pytest.raises(Killed):
            publish(draft)
    assert verify(old).job_key == OLD
    publish(draft)
    assert verify(old).job_key == NEW


def test_a_kill_after_the_exchange_leaves_the_new_version_and_litter(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = next_version(old.parent)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_discard", die)
        with pytest.raises(Killed):
            publish(draft)
    assert verify(old).job_key == NEW
    with pytest.raises(ExpectedSkip, match="already published"):
        publish(draft)
    drop_abandoned(old)
    assert [path.name for path in old.parent.iterdir()] == ["fused"]


def test_a_file_system_that_cannot_exchange_is_told(
    old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placing, "_renameat2", lambda *_: False)
    with caplog.at_level("WARNING"):
        publish(next_version(old.parent))
    assert "cannot exchange" in caplog.text
    assert verify(old).job_key == NEW
    assert [path.name for path in old.parent.iterdir()] == ["fused"]
