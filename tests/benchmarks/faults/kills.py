"""Processes that end at any moment, and several that want the same: E01 to E05, E08, E09, X30."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.benchmarks import chaos
from tests.benchmarks.faults.commands import (
    N_TILES,
    called,
    ended,
    environment,
    fuse_of,
    killed,
    require_same,
    staging_of,
    started,
    tiles_of,
)
from tests.benchmarks.faults.table import by_tests, experiment

FAULTS = "pipeline/execution/test_faults.py"


@experiment(
    "E01", "`kill -9` at half of the tiles, run again", "output absent; only what is missing again; same samples"
)
def at_half(folder: Path) -> str:
    output = folder / "p"
    killed(fuse_of(output), lambda: tiles_of(output) >= N_TILES // 2)
    assert not output.exists()
    before = tiles_of(output)
    told = called(fuse_of(output)).require(0, f"resuming: {before} of {N_TILES} tiles are finished")
    assert told
    require_same(output)
    return f"{before} of {N_TILES} tiles kept, samples equal"


@experiment(
    "E02", "ten `kill -9` at random moments, output watched", "never a part of a product; the last run publishes"
)
def at_random(folder: Path) -> str:
    toll = chaos.kill_runs(folder, chaos.settings_of(folder / "p", publish__formats="[zarr]"), kills=10, seed=5)
    kinds = ", ".join(f"{n} while {doing}" for doing, n in sorted(toll.kills.items()))
    return f"{kinds}; {toll.looks} looks, {toll.products} products, all whole and equal"


by_tests(
    "E03", "`kill -9` of a Dask worker that fuses", "its tiles run elsewhere; same samples",
    f"{FAULTS}::test_worker_processes_and_a_killed_worker",
)  # fmt: skip
by_tests(
    "E04", "a tile that kills its worker by SIGSEGV", "set aside after two deaths, the others finished; exit 8, tile named",
    f"{FAULTS}::test_a_tile_that_kills_workers_is_set_aside",
)  # fmt: skip
by_tests(
    "E05a", "the Dask scheduler is killed, or hangs", "exit 6 within 60 s (90 s if it hangs); a rerun resumes",
    f"{FAULTS}::test_a_lost_scheduler_ends_the_run_and_a_rerun_resumes",
    f"{FAULTS}::test_a_scheduler_that_hangs_counts_as_lost",
)  # fmt: skip


@experiment("E05b", "the Prefect server is killed with its database", "the run ends or fails; no finished tile is lost")
def without_prefect(folder: Path) -> str:
    output, home = folder / "p", folder / "prefect"
    env = environment(PREFECT_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1")
    env.pop("PREFECT_API_URL", None)
    process = started([*fuse_of(output), "--prefect"], env=env)
    while not tiles_of(output):
        assert process.poll() is None, ended(process).err[-1500:]
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    servers = [pid for pid in descendants(process.pid) if b"uvicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert servers, "no server was found"
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    for path in home.glob("*.db*"):
        path.unlink()
    process.send_signal(signal.SIGCONT)
    end = ended(process)
    before = tiles_of(output)
    if end.code == 0:
        require_same(output)
        return f"the run went on without it and published, {end.seconds:.0f} s"
    assert not output.exists()
    called(fuse_of(output)).require(0, f"resuming: {before} of {N_TILES} tiles are finished")
    require_same(output)
    return f"exit {end.code} after {end.seconds:.0f} s; {before} tiles kept, rerun equal"


def descendants(pid: int) -> list[int]:
    """Processes below one, parents first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


@experiment(
    "E08", "two runs of one job at once; another job for an output that stands", "one publishes, one exits 5; exit 3"
)
def at_once(folder: Path) -> str:
    output = folder / "p"
    first = started(fuse_of(output))
    while not tiles_of(output):
        assert first.poll() is None, ended(first).err[-1500:]
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    second = called(fuse_of(output))
    first.send_signal(signal.SIGCONT)
    second.require(5, f"another run works on this job (process {first.pid}")
    ended(first).require(0)
    require_same(output)
    called(fuse_of(output)).require(4, "already published")
    called(fuse_of(output, method="bicubic")).require(3, "exists and is not this product")
    require_same(output)
    return "exit 5 naming the process, then 4 for the same job and 3 for another; product untouched"


@experiment("E09", "the holder of a lock is killed; a lock file of another host", "the next run takes over at once")
def dead_holder(folder: Path) -> str:
    output = folder / "p"
    killed(fuse_of(output), lambda: tiles_of(output) >= 2)
    (staging_of(output) / "lock").write_text("process 1 on elsewhere")
    end = called(fuse_of(output))
    end.require(0, "resuming")
    require_same(output)
    return "taken over, samples equal"


@experiment(
    "E09b", "the same on a file system without `flock`", "busy while the holder lives; taken over when it is dead"
)
def dead_holder_without_locks(folder: Path) -> str:
    output, env = folder / "p", environment("without_locks")
    first = started(fuse_of(output), env=env)
    while tiles_of(output) < 2:
        assert first.poll() is None, ended(first).err[-1500:]
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    called(fuse_of(output), env=env).require(5, f"process {first.pid}")
    first.kill()
    ended(first)
    assert list(staging_of(output).glob(".lock.*.lease")), "no lease was made: the lock was not refused"
    called(fuse_of(output), env=env).require(0, "resuming")
    require_same(output)
    return "exit 5 while it lived; taken over by lease, samples equal"


by_tests(
    "X30", "SIGTERM in the middle, here and with workers", "exit 143 within 30 s; no process left; a rerun resumes",
    f"{FAULTS}::test_sigterm_leaves_a_resumable_state",
    f"{FAULTS}::test_no_worker_outlives_a_killed_run",
)  # fmt: skip
