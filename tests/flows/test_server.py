"""The README's deployment, word for word: a real server, a process work pool, a worker, `prefect deployment run`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from catalogs.errors import Busy
from pipeline.job import locked
from pipeline.publish import verify
from tests.synthetic import SMALL

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))

pytestmark = pytest.mark.server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prefect(tmp_path):
    """A server and a worker of their own; yields a function that runs a prefect command against them."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    environment.pop("PYTHONWARNINGS", None)
    log = (tmp_path / "server.log").open("w")
    running = []

    def start(*arguments: str) -> None:
        running.append(
            subprocess.Popen(
                [PREFECT, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PREFECT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    start("server", "start", "--host", "127.0.0.1", "--port", str(port))
    deadline = time.monotonic() + 120
    while True:
        try:
            with urlopen(f"{api}/health", timeout=5):  # noqa: S310 (our own loopback address)
                break
        except (URLError, OSError):
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-3000:]
            time.sleep(0.5)
    assert call("work-pool", "create", "local", "--type", "process").returncode == 0
    deployed = call("--no-prompt", "deploy", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    start("worker", "start", "--pool", "local")
    yield call
    for process in reversed(running):
        os.killpg(process.pid, signal.SIGTERM)
    for process in running:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    log.close()


def test_a_deployment_run_publishes_a_product(prefect, tmp_path):
    settings = {
        "hsi": {"uri": f"synthetic:hsi?{SMALL}"},
        "msi": {"uri": f"synthetic:msi?{SMALL}"},
        "output": str(tmp_path / "product"),
    }
    run = prefect("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(settings)}", "--watch")
    assert run.returncode == 0, run.stdout + run.stderr
    assert verify(tmp_path / "product").name == "product"
    bad = settings | {"network": "nope", "output": str(tmp_path / "other")}
    refused = prefect("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(bad)}", "--watch")
    assert refused.returncode != 0
    assert not (tmp_path / "other").exists()


def test_a_cancelled_run_stops_and_resumes(prefect, tmp_path):
    recipe = "size=1100&ratio=4&bands=40&seed=2"
    settings = {
        "hsi": {"uri": f"synthetic:hsi?{recipe}"},
        "msi": {"uri": f"synthetic:msi?{recipe}"},
        "output": str(tmp_path / "product"),
        "tiles": {"core": 128, "chunk": 128, "batch": 1},
        "publish": {"formats": ["zarr"]},
        "dask": "local",
    }
    start = ("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(settings)}")
    (run,) = re.findall(r"UUID: ([0-9a-f-]{36})", prefect(*start).stdout)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob(".product.*.staging/tiles/*.json"))) < 5:
        assert time.monotonic() < deadline, prefect("flow-run", "inspect", run).stdout
        time.sleep(0.05)
    prefect("flow-run", "cancel", run)
    (staging,) = tmp_path.glob(".product.*.staging")
    cancelled = time.monotonic()
    while True:
        try:
            with locked(staging):
                break
        except Busy:
            assert time.monotonic() < cancelled + 40  # Prefect's worker asks for cancelled runs every few seconds
            time.sleep(0.1)
    assert not (tmp_path / "product").exists()
    done = len(list(staging.glob("tiles/*.json")))
    assert 5 <= done < 81
    again = prefect(*start, "--watch")
    assert again.returncode == 0, again.stdout + again.stderr
    assert verify(tmp_path / "product").provenance["tiles"]["resumed"] == done
