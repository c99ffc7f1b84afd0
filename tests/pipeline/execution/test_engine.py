"""Batches on clusters that grow, shrink, lose workers and never had any; all in this process but where it says so."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest

from hyperfuse.catalogs.errors import HyperFuseError, OutOfResources, Poisoned
from hyperfuse.pipeline.execution import cluster, engine
from hyperfuse.pipeline.execution.exchange import SharedFolder
from hyperfuse.pipeline.execution.quarantine import Lethal, clear_marks, marked, quarantined
from hyperfuse.pipeline.run import run
from tests.synthetic import SMALL, config

SETTINGS = {
    "publish__formats": "[zarr]",
    "tiles__core": 64,
    "tiles__chunk": 32,
    "tiles__batch": 3,
    "quality__gate": "off",
}


@pytest.fixture
def start():
    """Starts clusters in this process; `scale` and `adapt` change them while a run goes on."""
    from distributed import LocalCluster

    started = []

    def start(n_workers: int = 1, **options) -> LocalCluster:
        made = LocalCluster(n_workers=n_workers, processes=False, dashboard_address="127.0.0.1:0", **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.close()


def staging(folder):
    return next(folder.glob(".out.*.staging"))


def test_a_cluster_that_grows_on_demand(tmp_path, start):
    workers = start(0, threads_per_worker=1)
    workers.adapt(minimum=0, maximum=1, interval="100ms")
    product = run(config(tmp_path / "out", SMALL, **SETTINGS, dask=workers.scheduler_address))
    assert product.provenance["tiles"]["finished"] == 9


def test_a_scheduler_file(tmp_path, start):
    file = tmp_path / "scheduler.json"
    with pytest.raises(OutOfResources, match="no scheduler file"):
        run(config(tmp_path / "out", SMALL, **SETTINGS, dask=str(file)))
    file.write_text(json.dumps({"address": start(1, threads_per_worker=1).scheduler_address}))
    run(config(tmp_path / "out", SMALL, **SETTINGS, dask=str(file)))


def test_no_worker_is_said_in_time(tmp_path, start):
    settings = config(tmp_path / "out", SMALL, **SETTINGS, dask=start(0).scheduler_address, dask_wait_s=0.5)
    with pytest.raises(OutOfResources, match=r"no worker joined the Dask scheduler within 0\.5 s"):
        run(settings)


def test_all_workers_gone_is_said_in_time(tmp_path, start, monkeypatch):
    monkeypatch.setattr(engine, "_LOOK_SECONDS", 0.2)
    workers = start(1, threads_per_worker=1)
    settings = config(tmp_path / "out", SMALL, **SETTINGS, dask=workers.scheduler_address, dask_wait_s=0.5)

    def leave(stage: str, done: int, total: int, pace: object = None) -> None:
        if stage == "fuse" and done == 3:
            workers.scale(0)

    with pytest.raises(OutOfResources, match=r"no worker for 0\.5 s; finished tiles are kept"):
        run(settings, progress=leave)
    assert run(settings.model_copy(update={"dask": None})).provenance["tiles"]["resumed"] >= 3


def test_a_device_has_one_batch_at_a_time(tmp_path, start, monkeypatch):
    """Workers with four threads and one device; without a device, the same worker runs several batches at once."""
    at_once = []
    alone, busy = threading.Lock(), []
    sound = engine.fuse_batch

    def watched(folder, tiles):
        busy.append(tiles)
        at_once.append(len(busy))
        time.sleep(0.2)
        with alone:
            done = sound(folder, tiles)
        busy.remove(tiles)
        return done

    monkeypatch.setattr(engine, "fuse_batch", watched)
    for resources, most in (({"GPU": 1}, {1}), ({}, {1, 2, 3})):
        at_once.clear()
        workers = start(1, threads_per_worker=4, resources=resources)
        settings = config(tmp_path / f"out{len(resources)}", SMALL, **SETTINGS, dask=workers.scheduler_address)
        run(settings)
        assert set(at_once) == most


def test_a_batch_that_fails_is_run_tile_by_tile(tmp_path, start, monkeypatch):
    sound = engine.fuse_batch

    def faulty(folder, tiles):
        if (1, 1) in map(tuple, tiles):
            raise RuntimeError("fault")
        return sound(folder, tiles)

    monkeypatch.setattr(engine, "fuse_batch", faulty)
    settings = config(tmp_path / "out", SMALL, **SETTINGS, dask=start(1, threads_per_worker=1).scheduler_address)
    with pytest.raises(HyperFuseError, match=r"1 tiles failed, first \(1, 1\): fault"):
        run(settings)
    assert len(list((staging(tmp_path) / "tiles").glob("*.json"))) == 8


def test_a_tile_that_kills_is_set_aside_and_named(tmp_path, start, monkeypatch):
    """What a death leaves behind is made by hand here; `test_faults` has processes that really die."""
    from distributed import KilledWorker

    sound, deaths = engine.fuse_batch, []

    def deadly(folder, tiles):
        if (1, 1) in map(tuple, tiles):
            deaths.append(len(tiles))
            marks = next((staging(tmp_path) / "running").glob("1.*"))
            (marks / f"elsewhere-{len(deaths)}").write_bytes(b"")
            raise KilledWorker("task", SimpleNamespace(address="elsewhere"), 0)
        return sound(folder, tiles)

    monkeypatch.setattr(engine, "fuse_batch", deadly)
    settings = config(tmp_path / "out", SMALL, **SETTINGS, dask=start(1, threads_per_worker=1).scheduler_address)
    with pytest.raises(Poisoned, match=r"tile \(1, 1\) set aside: 2 processes died .* nothing is published"):
        run(settings)
    assert set(deaths) == {3, 1}
    assert not (tmp_path / "out").exists()
    assert [tile.tile for tile in quarantined(staging(tmp_path))] == [(1, 1)]
    assert len(list((staging(tmp_path) / "tiles").glob("*.json"))) == 8

    monkeypatch.setattr(engine, "fuse_batch", sound)
    for dask in (settings.dask, None):
        with pytest.raises(Poisoned, match=r"tile \(1, 1\)"):
            run(settings.model_copy(update={"dask": dask}))
    again = settings.model_copy(update={"tiles": settings.tiles.model_copy(update={"retry_quarantined": True})})
    assert run(again).provenance["tiles"]["resumed"] == 8


def test_another_version_is_refused(tmp_path, start, monkeypatch):
    """A worker whose code is another would make other pixels."""
    monkeypatch.setattr(engine, "code_version", iter(["1", "2"] * 50).__next__)
    settings = config(tmp_path / "out", SMALL, **SETTINGS, dask=start(1, threads_per_worker=1).scheduler_address)
    with pytest.raises(OutOfResources, match="install the same version everywhere"):
        run(settings)


def test_marks_tell_who_died(tmp_path):
    place = SharedFolder(str(tmp_path))
    for tiles, allowed in (([(0, 0), (0, 1)], 1), ([(0, 0)], 2)):
        for death in range(allowed):
            with marked(place, tiles):
                pass
            with pytest.raises(RuntimeError), marked(place, tiles):
                raise RuntimeError
            left = tmp_path / "running" / ("0.0" if len(tiles) == 1 else "0.0+1") / f"host-{death}"
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(b"")
        with pytest.raises(Lethal, match=f"{allowed} processes died"), marked(place, tiles):
            pass
    clear_marks(place)
    with marked(place, [(0, 0)]):
        pass


@pytest.mark.parametrize(("asked", "found", "used"), [("auto", 2, 2), ("cuda:1", 2, 1), ("cpu", 2, 0), ("auto", 0, 0)])
def test_processes_follow_devices(monkeypatch, asked, found, used):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert cluster._n_devices(asked) == used


@pytest.mark.slow
def test_each_process_sees_its_own_device(monkeypatch):
    import os

    from distributed import Client

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with cluster._cuda_cluster(2, {"threads_per_worker": 1}) as made, Client(made) as client:
        client.wait_for_workers(2, timeout=60)
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        resources = [worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    assert sorted(seen.values()) == ["3", "5"]
    assert resources == [{"GPU": 1}] * 2
