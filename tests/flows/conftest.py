"""Prefect's own test server, started once for all flows; and a real one with a worker, for the tests that want it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests import ROOT

PREFECT = str(Path(sys.executable).with_name("prefect"))


@pytest.fixture(scope="session")
def server():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Served:
    """A server and a worker of their own."""

    environment: dict[str, str]
    worker: int
    """Process of the worker; the flows that it runs are its children."""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a prefect command against them."""
        return call(arguments, self.environment)


def call(arguments: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PREFECT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture
def prefect(tmp_path):
    """The README's server, process work pool, deployments and worker; ended after the test."""
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

    try:
        start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        deadline = time.monotonic() + 120
        while True:
            try:
                with urlopen(f"{api}/health", timeout=5):  # noqa: S310 (our own loopback address)
                    break
            except (URLError, OSError):
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-3000:]
                time.sleep(0.5)
        assert call(("work-pool", "create", "local", "--type", "process"), environment).returncode == 0
        deployed = call(("--no-prompt", "deploy", "--all"), environment)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        start("worker", "start", "--pool", "local")
        yield Served(environment, running[-1].pid)
    finally:
        for process in reversed(running):
            os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.close()
