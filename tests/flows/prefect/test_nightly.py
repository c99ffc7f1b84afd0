"""A night of 30 pairs through a real server, worker and deployment, killed three times: `make archive-test`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from hyperfuse.pipeline.archive.dead_letters import DeadLetters
from hyperfuse.pipeline.archive.settings import ArchiveConfig, load_archive, open_catalog
from hyperfuse.pipeline.products.publish import verify
from tests.flows.nightly import EXPECTED, NETWORK, WEIGHTS, build
from tests.pipeline.archives import states
from tests.pipeline.fusion.test_weights import weight_file

pytestmark = [pytest.mark.archive, pytest.mark.usefixtures("own_devices")]

KILLS = 3


def ended(config: ArchiveConfig) -> int:
    """Scenes that are done with, by what lies in the folder."""
    return len(list(config.folder.glob("[!.]*/provenance.json"))) + len(list(config.folder.glob("deadletter/*.json")))


def flow_process(worker: int) -> psutil.Process | None:
    """The process of the flow that a worker runs."""
    for process in psutil.Process(worker).children(recursive=True):
        try:
            if any("hyperfuse.flows.leash" in part for part in process.cmdline()):
                return process.parent()
        except psutil.Error:
            continue
    return None


def kill_somewhere(worker: int, config: ArchiveConfig, rng: np.random.Generator) -> int:
    """Wait until a few more scenes have ended, and a moment more; kill -9 the flow. Gives the scenes that had ended."""
    goal, deadline = ended(config) + int(rng.integers(2, 5)), time.monotonic() + 600
    while ended(config) < goal or (flow := flow_process(worker)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(float(rng.uniform(0, 8)))
    flow = flow_process(worker) or flow
    children = flow.children(recursive=True)
    os.kill(flow.pid, signal.SIGKILL)
    psutil.wait_procs(children, timeout=30)
    assert not [child for child in children if child.is_running()], "a fusion outlived its night"
    return ended(config)


def check(config: ArchiveConfig) -> None:
    """Every scene in the one state that it must have, and the folder holds what the states say and nothing else."""
    assert states(config) == EXPECTED
    done = {name for name, state in EXPECTED.items() if state == "done"}
    for name in done:
        assert verify(config.folder / name).name == name
    assert {path.name for path in config.folder.iterdir()} == done | {".archive", "deadletter", "index.html"}
    letters = DeadLetters(config.folder)
    assert set(letters.scenes()) == set(EXPECTED) - done
    for scene in letters.scenes():
        letter = letters.read(scene)
        assert letter is not None
        assert letter.message
        assert letter.replay.startswith("hyperfuse ")
    products = open_catalog(config).products
    assert {product.id for product in products} == done


def test_thirty_pairs_and_three_kills(prefect, tmp_path: Path) -> None:
    settings = build(tmp_path / "archive")
    config = load_archive(None, settings)
    parameter = f"config={json.dumps(settings)}"

    def night() -> list[str]:
        """One night to its end; the scenes that it fused."""
        before = {path: path.stat().st_mtime_ns for path in config.folder.glob("[!.]*/provenance.json")}
        run = prefect("deployment", "run", "fuse-archive/nightly", "--param", parameter, "--watch")
        assert run.returncode == 0, run.stdout + run.stderr
        after = {path: path.stat().st_mtime_ns for path in config.folder.glob("[!.]*/provenance.json")}
        return sorted(path.parent.name for path, changed in after.items() if before.get(path) != changed)

    rng, before = np.random.default_rng(8), 0
    for _ in range(KILLS):
        started = prefect("deployment", "run", "fuse-archive/nightly", "--param", parameter)
        assert started.returncode == 0, started.stderr
        now = kill_somewhere(prefect.worker, config, rng)
        assert now > before, "a night goes on where the one before was killed"
        before = now
    night()
    check(config)
    assert night() == [], "the second night fuses nothing"
    check(config)
    weight_file(tmp_path / "archive" / WEIGHTS, "csakd-student", bands=8, scale=1.01)
    stale = {name for name, state in states(config).items() if state == "stale weights"}
    assert stale == set(NETWORK)
    assert night() == sorted(NETWORK)
    assert {name for name, state in states(config).items() if state == "done"} == {
        name for name, state in EXPECTED.items() if state == "done"
    }
