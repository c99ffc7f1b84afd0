"""The flow on Prefect's own test server: it publishes, reports, skips what is done, and fails with the sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hyperfuse.catalogs.errors import InputRejected, Transient
from hyperfuse.pipeline.products.publish import verify
from tests import ROOT
from tests.synthetic import config


@pytest.mark.filterwarnings("default")
def test_the_flow_publishes_reports_and_skips(server, tmp_path):
    from prefect.client.orchestration import get_client

    from hyperfuse.flows.prefect.fuse_scene import fuse_scene

    settings = config(tmp_path / "out")
    assert fuse_scene(settings) == str(tmp_path / "out")
    assert verify(tmp_path / "out").name == "out"
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
        (ran,) = [one for one in client.read_flow_runs() if one.name == "out"]
    assert {"fuse-scene-out-tiles", "fuse-scene-out-product", "fuse-scene-out-quicklook"} <= set(artifacts)
    assert float(artifacts["fuse-scene-out-tiles"].data) == 100.0
    assert "data:image/png;base64" in str(artifacts["fuse-scene-out-quicklook"].data)
    assert ran.state.message.startswith("published")
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert fuse_scene(settings) == str(tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    with get_client(sync_client=True) as client:
        messages = [one.state.message for one in client.read_flow_runs() if one.name == "out"]
    assert any(message.startswith("nothing to do: ") and "already published" in message for message in messages)


@pytest.mark.filterwarnings("default")
def test_a_rejected_scene_fails_the_flow_with_its_sentence(server, tmp_path):
    from hyperfuse.flows.prefect.fuse_scene import fuse_scene

    settings = config(tmp_path / "out")
    swapped = settings.model_copy(update={"hsi": settings.msi, "msi": settings.hsi})
    with pytest.raises(InputRejected, match="look swapped"):
        fuse_scene(swapped)
    assert list(tmp_path.iterdir()) == []


def test_the_deployment_is_declared():
    import yaml

    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    entry = {d["name"]: d["entrypoint"] for d in declared["deployments"]}
    assert entry["fuse-scene"] == "hyperfuse.flows.prefect.fuse_scene.fuse_scene"


def test_a_temporary_server_ends_with_the_command_however_that_ends(tmp_path):
    """Prefect's own outlived a command that was killed, one more of them each time."""
    script = (
        "import os, signal, sys\n"
        "from hyperfuse.flows.prefect.server import served\n"
        "from prefect.settings import PREFECT_API_URL\n"
        "with served():\n"
        "    print(PREFECT_API_URL.value(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == 'killed' else None\n"
    )
    own = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | own
    for how, code in (("killed", -signal.SIGKILL), ("ended", 0)):
        run = subprocess.run(
            [sys.executable, "-c", script, how], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == code, run.stderr
        port = int(run.stdout.rpartition(":")[2].partition("/")[0])
        deadline = time.monotonic() + 30
        while listens(port):
            assert time.monotonic() < deadline, "the server outlived its command"
            time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_that_is_lost_is_one_sentence(monkeypatch):
    import httpx
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from hyperfuse.flows.prefect.server import served

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(
            Transient, match=r"server at http://127\.0\.0\.1:9/api was lost \(ConnectError.*run again to resume"
        ),
        served(),
    ):
        httpx.get("http://127.0.0.1:9/api/health")
