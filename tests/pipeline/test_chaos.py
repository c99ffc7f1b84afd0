"""`make chaos` in short: killed at random moments, a product is absent or whole, and in the end it is there."""

from __future__ import annotations

import pytest

from tests.benchmarks.chaos import Toll, Watch, kill_runs, kill_workers, settings_of

SMALL = "size=150&ratio=4&bands=6&seed=2&east_m=9"
ZARR = {"publish__formats": "[zarr]"}


def test_a_few_kills(tmp_path):
    toll = kill_runs(tmp_path, settings_of(tmp_path / "product", SMALL, **ZARR), kills=4)
    assert toll.kills.total() == 4
    assert toll.products >= 1
    assert toll.looks > toll.seen


def test_the_watch_sees_a_part(tmp_path):
    """A checker that cannot fail proves nothing."""
    import time

    with Watch(tmp_path / "product", Toll()) as watch:
        (tmp_path / "product").mkdir()
        deadline = time.monotonic() + 30
        while not watch.broken:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "manifest.json is missing" in watch.broken[0]


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    toll = kill_runs(tmp_path, settings_of(tmp_path / "product"), kills=20, seed=1)
    assert {"staging", "fusing", "publishing"} <= set(toll.kills)


@pytest.mark.slow
def test_killed_workers(tmp_path):
    settings = settings_of(tmp_path / "product", "size=600&ratio=4&bands=10&seed=2", **ZARR)
    assert kill_workers(tmp_path, settings, kills=4).kills.total() == 4
