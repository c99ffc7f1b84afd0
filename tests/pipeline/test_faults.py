"""Processes that are really killed: the product is absent or complete, and what was done is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline.publish import verify

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


def test_sigterm_leaves_a_resumable_state(tmp_path, undisturbed):
    output = tmp_path / "product"
    with subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(finished_tiles(tmp_path)) < 10:
            assert process.poll() is None
            time.sleep(0.005)
        process.terminate()
        process.wait(30)
    assert not output.exists()
    subprocess.run(command(output), check=True, capture_output=True)
    assert np.array_equal(data(output), undisturbed)
