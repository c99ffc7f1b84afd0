"""Through a store or not, the product is the same; and what is in a store is not believed unseen."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hyperfuse.catalogs.errors import OutOfResources, UsageError
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.execution import engine, exchange
from hyperfuse.pipeline.execution.exchange import Depot, SharedFolder, StoreLost, place_of
from hyperfuse.pipeline.job import stage, store
from hyperfuse.pipeline.run import fuse_tiles, open_run, run, stage_pair
from tests.pipeline.fusion.test_weights import weight_file
from tests.synthetic import config, methods_without_weights

SETTINGS = {
    "publish__formats": "[zarr]",
    "tiles__core": 64,
    "tiles__chunk": 32,
    "tiles__batch": 2,
    "quality__gate": "off",
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Staged chunks so small that a tile looks at a few of many: a chunk that is not fetched would read as a hole."""
    monkeypatch.setattr(stage, "HSI_CHUNK", 8)
    monkeypatch.setattr(stage, "MSI_CHUNK", 32)


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def s3():
    """A bucket on a server of our own."""
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/jobs"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def fused(settings: RunConfig) -> np.ndarray:
    """Stored samples of all tiles, without the way to a product."""
    with open_run(settings) as held:
        job = stage_pair(held)
        fuse_tiles(job)
        return np.asarray(store.open_array(job.fused)[...])


def samples(product) -> np.ndarray:
    with product.open() as data:
        return data["reflectance"].values


def files_in(fs, path: str) -> list[str]:
    return [name for name in fs.find(path) if not name.endswith("/")]


@pytest.mark.parametrize("name", methods_without_weights())
def test_every_method_finds_what_it_looks_at(tmp_path, memory, name):
    recipe = "height=150&width=131&ratio=4&bands=6&seed=3&holes_hsi=0.02&holes_msi=0.001&east_m=7"
    settings = SETTINGS | {"method": name}
    plain = fused(config(tmp_path / "plain", recipe, **settings))
    assert np.array_equal(fused(config(tmp_path / "store", recipe, **settings, store="memory://jobs")), plain)


def test_a_network_finds_its_weights_and_features(tmp_path, memory):
    weights = str(weight_file(tmp_path / "w.safetensors", "csakd-student"))
    settings = SETTINGS | {"method": "csakd-student", "weights": weights}
    plain = fused(config(tmp_path / "plain", **settings))
    assert np.array_equal(fused(config(tmp_path / "store", **settings, store="memory://jobs")), plain)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(config(tmp_path_factory.mktemp("plain") / "plain", **SETTINGS))


@pytest.mark.parametrize("kind", ["file", "memory", "s3"])
def test_a_product_through_a_store_equals_a_plain_one(tmp_path, request, plain, kind):
    address = {
        "file": lambda: f"file://{tmp_path / 'a store'}",
        "memory": lambda: request.getfixturevalue("memory") and "memory://jobs",
        "s3": lambda: request.getfixturevalue("s3"),
    }[kind]()
    product = run(config(tmp_path / "out", **SETTINGS, store=address))
    assert product.job_key == plain.job_key
    assert np.array_equal(samples(product), samples(plain), equal_nan=True)
    assert files_in(*fsspec.url_to_fs(address)) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"a store", "out"}


def test_workers_see_the_store_and_nothing_else(tmp_path, memory):
    """What a worker is given names no folder of the coordinator, and its tiles lie in the store before they are collected."""
    settings = config(tmp_path / "out", **SETTINGS, store="memory://jobs")
    with open_run(settings) as held:
        job = stage_pair(held)
        place = place_of(job)
        assert isinstance(place, Depot)
        assert str(tmp_path) not in place.address
        place.offer(job)
        with place.opened([(0, 0)]) as folder:
            engine.fuse_batch(str(folder), [(0, 0)])
            assert tmp_path not in folder.parents
            fetched = {path.parent.parent.name for path in folder.glob("stage/hsi.zarr/c/*/*/*")}
        assert len(list(job.ledger.folder.glob("*.json"))) == 0
        assert any("/product/" in name for name in files_in(memory, "/jobs"))
        staged = {path.parent.parent.name for path in job.folder.glob("stage/hsi.zarr/c/*/*/*")}
        chunks = len(list(job.folder.glob("stage/hsi.zarr/c/*/*/*")))
        assert fetched <= staged
        assert len(list(folder.glob("stage/hsi.zarr/c/*/*/*"))) < chunks
        assert not list(folder.glob("tiles/*")), "the mirror keeps no tile"
        place.collect(job, [(0, 0)])
        assert [path.name for path in job.ledger.folder.glob("*.json")] == ["0.0.json"]


def test_tiles_that_were_delivered_are_not_done_again(tmp_path, memory):
    """A coordinator that lost its disk resumes from the store."""
    settings = config(tmp_path / "out", **SETTINGS, store="memory://jobs")
    with open_run(settings) as held:
        job = stage_pair(held)
        place = place_of(job)
        place.offer(job)
        with place.opened([(0, 0), (0, 1)]) as folder:
            engine.fuse_batch(str(folder), [(0, 0), (0, 1)])
    assert run(settings).provenance["tiles"]["resumed"] == 2


def test_a_damaged_delivery_counts_as_not_done(tmp_path, memory):
    settings = config(tmp_path / "out", **SETTINGS, store="memory://jobs")
    with open_run(settings) as held:
        job = stage_pair(held)
        place = place_of(job)
        place.offer(job)
        with place.opened([(0, 0)]) as folder:
            engine.fuse_batch(str(folder), [(0, 0)])
        note = next(name for name in memory.find("/jobs") if "/delivered/" in name)
        chunk = next(name for name in memory.find("/jobs") if "/product/" in name and "/c/" in name)
        samples, digests = memory.cat_file(chunk), memory.cat_file(note)
        for name, damaged, sound in (
            (chunk, samples[::-1], samples),
            (note, digests[:-9], digests),
            (note, json.dumps({"tiles/../../../escaped.json": "0" * 64}).encode(), digests),
        ):
            memory.pipe_file(name, damaged)
            place.collect(job)
            assert not list(job.ledger.folder.glob("*.json"))
            memory.pipe_file(name, sound)
        assert sorted(path.name for path in tmp_path.iterdir()) == [job.folder.name]
        place.collect(job)
        assert list(job.ledger.folder.glob("*.json"))


def test_a_tile_that_was_damaged_after_it_was_collected_is_done_again(tmp_path, memory):
    settings = config(tmp_path / "out", **SETTINGS, store="memory://jobs")
    with open_run(settings) as held:
        job = stage_pair(held)
        fuse_tiles(job)
        chunk = job.fused / "c/0/0/0"
        chunk.write_bytes(chunk.read_bytes()[::-1])
    assert run(settings).provenance["tiles"]["resumed"] == 8


def test_other_settings_clear_the_abandoned_place(tmp_path, memory):
    with open_run(config(tmp_path / "out", **SETTINGS, store="memory://jobs")) as held:
        job = stage_pair(held)
        place_of(job).offer(job)
    assert files_in(memory, "/jobs")
    run(config(tmp_path / "out", **SETTINGS, method="bicubic"))
    assert files_in(memory, "/jobs") == []


def test_a_path_is_a_store_too(tmp_path):
    settings = config(tmp_path / "out", **SETTINGS, store=str(tmp_path / "a store"))
    with open_run(settings) as held:
        assert place_of(held.job).address.startswith(f"file://{tmp_path}/a store/out.")


def test_a_store_that_cannot_be_is_said(tmp_path):
    with pytest.raises(UsageError, match="store 'nowhere://x/out"):
        run(config(tmp_path / "out", **SETTINGS, store="nowhere://x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutOfResources, match="the store cannot be read or written"):
        run(config(tmp_path / "out", **SETTINGS, store=str(tmp_path / "file")))


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(OutOfResources, match="--set store=URL"), SharedFolder(str(tmp_path / "x")).opened([(0, 0)]):
        pass


def test_the_store_does_not_decide_the_content(tmp_path):
    plain = config(Path("out"), **SETTINGS)
    assert plain.decisive() == plain.model_copy(update={"store": "s3://b", "dask": "local"}).decisive()


def test_a_store_that_does_not_answer_is_given_up(tmp_path, memory, monkeypatch):
    """Its client would wait, and try again, for as long as it likes."""
    monkeypatch.setattr(exchange, "STORE_SECONDS", 1.0)
    release, real = threading.Event(), type(memory).pipe_file

    def hang(self, path, value, **options):
        release.wait(60)
        return real(self, path, value, **options)

    monkeypatch.setattr(type(memory), "pipe_file", hang)
    settings = config(tmp_path / "out", "size=96&ratio=4&bands=4&seed=3", store="memory://jobs", **SETTINGS)
    with open_run(settings) as held:
        job = stage_pair(held)
        began = time.monotonic()
        with pytest.raises(StoreLost, match=r"memory://jobs/out.* has not answered for 1 s; finished tiles are kept"):
            place_of(job).offer(job)
        assert time.monotonic() - began < 10
        release.set()


def test_a_store_that_moves_files_slowly_is_not_given_up(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(exchange, "STORE_SECONDS", 1.5)
    heard = exchange.Heard()
    assert heard.silent_s < 1
    time.sleep(0.3)
    fsspec.filesystem("memory").pipe_file("/a", b"x")
    fsspec.filesystem("memory").get(["/a"], [str(tmp_path / "a")], callback=heard)
    assert heard.silent_s < 0.2

    def slowly(fs, root, heard):
        for _ in range(4):
            time.sleep(0.7)
            heard.relative_update()
        return "done"

    assert Depot("memory://jobs/slow")._ask(slowly) == "done"


def test_a_lost_store_ends_the_run_before_all_batches_were_tried(tmp_path, memory, monkeypatch):
    """Each of thousands of batches would wait for it in turn."""
    from distributed import LocalCluster

    tried: list[int] = []

    def lost(self, folder, tiles):
        tried.append(1)
        raise StoreLost("memory://jobs: is lost")

    monkeypatch.setattr(Depot, "_fetch", lost)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        pytest.raises(OutOfResources, match="memory://jobs: is lost"),
    ):
        run(
            config(
                tmp_path / "out",
                **SETTINGS | {"tiles__batch": 1},
                store="memory://jobs",
                dask=cluster.scheduler_address,
            )
        )
    # Dask runs each again once; a batch or two were on their way when the third had ended.
    assert 3 <= len(tried) < 2 * 9
