"""Settings that hold for all tests."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest

# Small tensors gain nothing from threads, and threads that wait actively for each other cost minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What imports have made stays to the end: no collection of garbage, of which a run asks for some, looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def own_devices(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of devices that no other test, and no archive on this machine, waits for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("devices")))
    monkeypatch.setattr(tempfile, "tempdir", None)
