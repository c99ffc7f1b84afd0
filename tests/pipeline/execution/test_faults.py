"""Processes that are really killed: the product is absent or complete, and what was done is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from hyperfuse.catalogs.errors import OutOfResources
from hyperfuse.pipeline.execution import engine
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.run import run
from tests.synthetic import config

HYPERFUSE = str(Path(sys.executable).with_name("hyperfuse"))
RECIPE = "size=1100&ratio=4&bands=40&seed=2&east_m=9"

pytestmark = pytest.mark.slow


def command(output: Path, *more: str) -> list[str]:
    scenes = [f"synthetic:{role}?{RECIPE}" for role in ("hsi", "msi")]
    # Small tiles in batches of one, so that there is a middle to be killed in.
    tiles = ["--set", "tiles.core=128", "--set", "tiles.chunk=128", "--set", "tiles.batch=1"]
    return [
        HYPERFUSE,
        "fuse",
        *scenes,
        "--output",
        str(output),
        *tiles,
        "--set",
        "publish.formats=[zarr]",
        "--json",
        *more,
    ]


def finished_tiles(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob(".*.staging/tiles/*.json") if not p.name.startswith(".")}


def data(product: Path) -> np.ndarray:
    with xr.open_zarr(product / f"{product.name}.zarr", mask_and_scale=False) as opened:
        return opened["reflectance"].values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> np.ndarray:
    output = tmp_path_factory.mktemp("undisturbed") / "product"
    subprocess.run(command(output), check=True, capture_output=True)
    return data(output)


def test_kill_at_half_then_resume(tmp_path, undisturbed):
    output = tmp_path / "product"
    with subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(finished_tiles(tmp_path)) < 40:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    before = finished_tiles(tmp_path)
    assert 40 <= len(before) < 81
    run = subprocess.run(command(output), check=True, capture_output=True, text=True)
    tiles = json.loads(run.stdout)["tiles"]
    assert tiles["finished"] == 81
    assert tiles["resumed"] == len(before)
    assert f"resuming: {len(before)} of 81 tiles are finished" in run.stderr
    assert verify(output).name == "product"
    assert np.array_equal(data(output), undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["product"]


def test_kills_at_any_moment_never_leave_a_part(tmp_path, undisturbed):
    """Killed again and again, staging and publishing included; the last run completes."""
    output = tmp_path / "product"
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(8):
        with subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(float(rng.uniform(2.0, 9.0)))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if output.exists():
            verify(output)
            break
    assert kills >= 1
    run = subprocess.run(command(output), capture_output=True, text=True, check=False)
    assert run.returncode in {0, 4}, run.stderr
    assert np.array_equal(data(output), undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["product"]


def test_worker_processes_and_a_killed_worker(tmp_path, undisturbed):
    """`--dask local` gives the same data, also when a worker is killed in the middle."""
    output = tmp_path / "product"
    with subprocess.Popen(
        command(output, "--dask", "local"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(finished_tiles(tmp_path)) < 20:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        workers = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(workers[-1], signal.SIGKILL)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert np.array_equal(data(output), undisturbed)


def children(pid: int) -> list[int]:
    """Descendants of a process, parents first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie is dead, and waits only for its parent."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return [pid for pid in pids if runs(pid)]


@pytest.mark.parametrize("dask", [(), ("--dask", "local")], ids=["here", "local"])
def test_sigterm_leaves_a_resumable_state(tmp_path, undisturbed, dask):
    output = tmp_path / "product"
    with subprocess.Popen(
        command(output, *dask), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(finished_tiles(tmp_path)) < 10:
            assert process.poll() is None
            time.sleep(0.005)
        family = children(process.pid)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "hyperfuse: terminated; run the same command again to resume"
    assert alive(family) == []
    assert not output.exists()
    before = len(finished_tiles(tmp_path))
    run = subprocess.run(command(output), check=True, capture_output=True, text=True)
    assert json.loads(run.stdout)["tiles"]["resumed"] >= before
    assert np.array_equal(data(output), undisturbed)


def test_no_worker_outlives_a_killed_run(tmp_path):
    output = tmp_path / "product"
    with subprocess.Popen(
        command(output, "--dask", "local"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while len(finished_tiles(tmp_path)) < 10:
            assert process.poll() is None
            time.sleep(0.005)
        family = children(process.pid)
        process.kill()
    deadline = time.monotonic() + 30
    while alive(family):
        assert time.monotonic() < deadline, f"{alive(family)} live on"
        time.sleep(0.2)


def test_of_two_runs_of_a_job_one_is_busy(tmp_path, undisturbed):
    output = tmp_path / "product"
    with subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while len(finished_tiles(tmp_path)) < 10:
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)  # it holds the job and does nothing, however long the second takes to start
        second = subprocess.run(command(output), capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
        assert first.wait(240) == 0
    assert second.returncode == 5
    assert f"another run works on this job (process {first.pid} on" in second.stderr
    assert np.array_equal(data(output), undisturbed)


POISON = """
import os, signal, time
from hyperfuse.pipeline.execution import engine
from hyperfuse.pipeline.fusion import tile_fuser as fuse

sound = fuse.fuse_batch  # not the engine's, which is this one when Dask loads the file again

def deadly(folder, tiles):
    if (4, 5) in [tuple(tile) for tile in tiles]:
        time.sleep(2)  # a worker that dies before its nanny has seen it run is not started again
        os.kill(os.getpid(), signal.SIGSEGV)
    return sound(folder, tiles)

engine.fuse_batch = deadly
"""


def test_a_tile_that_kills_workers_is_set_aside(tmp_path, undisturbed):
    """Worker processes really die, of one tile in a batch of nine; the other 80 are finished, and the tile is named."""
    (tmp_path / "poison.py").write_text(POISON)
    (tmp_path / "place").mkdir()
    output = tmp_path / "place" / "product"
    run = command(output, "--dask", "local", "--set", "tiles.batch=9")
    poisoned = os.environ | {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "poison.py")}
    failed = subprocess.run(run, capture_output=True, text=True, check=False, env=poisoned)
    assert failed.returncode == 8, failed.stderr
    assert "tile (4, 5) set aside: 2 processes died while they fused tile (4, 5)" in failed.stderr
    assert not output.exists()
    assert len(finished_tiles(tmp_path / "place")) == 80
    at_once = subprocess.run(run, capture_output=True, text=True, check=False)
    assert at_once.returncode == 8
    again = subprocess.run([*run, "--set", "tiles.retry_quarantined=true"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["tiles"]["resumed"] == 80
    assert np.array_equal(data(output), undisturbed)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A scheduler and a worker, as processes of their own: the scheduler's file, and the scheduler to be killed."""
    dask, file = str(Path(sys.executable).with_name("dask")), folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    worker = [dask, "worker", *common, "--nthreads", "1", "--local-directory", str(folder), "--death-timeout", "60"]
    with ExitStack() as started:
        for command in ([dask, "scheduler", *common, "--host", "127.0.0.1", "--port", "0"], worker):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.callback(
                lambda ended: (ended.send_signal(signal.SIGCONT), ended.terminate(), ended.wait(60)), process
            )
            if command is not worker:
                scheduler = process
                while not file.exists():
                    assert scheduler.poll() is None
                    time.sleep(0.1)
        yield file, scheduler


def test_a_lost_scheduler_ends_the_run_and_a_rerun_resumes(tmp_path, undisturbed):
    (tmp_path / "place").mkdir()
    output = tmp_path / "place" / "product"
    with (
        cluster(tmp_path) as (file, scheduler),
        subprocess.Popen(
            command(output, "--dask", str(file)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        while len(finished_tiles(tmp_path / "place")) < 10:
            assert process.poll() is None
            time.sleep(0.005)
        scheduler.kill()
        lost = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    assert time.monotonic() - lost < 60
    assert "the Dask scheduler was lost; finished tiles are kept" in err.splitlines()[-1]
    assert "Traceback" not in err
    resumed = subprocess.run(command(output), check=True, capture_output=True, text=True)
    assert json.loads(resumed.stdout)["tiles"]["resumed"] >= 10
    assert np.array_equal(data(output), undisturbed)


def test_a_scheduler_that_hangs_counts_as_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SCHEDULER_SECONDS", 20.0)
    with cluster(tmp_path) as (file, scheduler):

        def hang(stage: str, done: int, total: int, pace: object = None) -> None:
            if stage == "fuse" and done == 1:
                scheduler.send_signal(signal.SIGSTOP)
                hung.append(time.monotonic())

        hung: list[float] = []
        settings = config(tmp_path / "product", dask=str(file), tiles__core=32, tiles__chunk=32, tiles__batch=1)
        with pytest.raises(OutOfResources, match="the Dask scheduler was lost"):
            run(settings, progress=hang)
        assert time.monotonic() - hung[0] < 90
