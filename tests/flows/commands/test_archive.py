"""The command `archive`: real child processes, what they leave, and what is printed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.flows.child import Children
from hyperfuse.flows.cli import main
from hyperfuse.pipeline.archive.night import work_off
from hyperfuse.pipeline.archive.outcome import Outcome
from hyperfuse.pipeline.archive.settings import ArchiveConfig, open_catalog
from hyperfuse.pipeline.products.publish import verify
from tests import ROOT
from tests.pipeline.archives import QUICK, archive, both, item, look, pretend, states

pytestmark = pytest.mark.usefixtures("own_devices")


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def options(config: ArchiveConfig) -> list[str]:
    """The same archive on the command line."""
    settings = [f"--set={key}={json.dumps(value)}" for key, value in QUICK.items()]
    roots = [f"--root={root}" for root in config.roots]
    return [config.catalog, "--output", str(config.output), "--device", "cpu", *roots, *settings]


@pytest.mark.timeout(240)
def test_a_night_in_child_processes(tmp_path: Path, capsys, caplog) -> None:
    (tmp_path / "junk.tif").write_bytes(b"no image")
    config = archive(tmp_path, [*both(0), item("h1", "hsi", 1, uri=str(tmp_path / "junk.tif")), item("m1", "msi", 1)])
    code, out, _ = call(capsys, "archive", *options(config), "--dry-run")
    assert code == 0
    assert "2 new" in out
    assert "million samples per second assumed" in out
    assert not config.folder.exists()
    code, out, err = call(capsys, "archive", *options(config), "--json", "--verbose")
    assert code == 0, err
    record = json.loads(out)
    assert record["counts"] == dict.fromkeys(record["counts"], 0) | {"done": 1, "refused": 1}
    assert record["night"]["started"] == ["h0", "h1"]
    assert verify(config.folder / "h0").name == "h0"
    assert "h0: INFO fuse 1/1" in caplog.text, "the child's log lines are ours"
    code, out, _ = call(capsys, "archive", *options(config))
    assert code == 0
    assert "0 scenes, 0 hours" in out
    assert "junk.tif: is plain text" in out
    code, _, err = call(capsys, "archive", *options(config), "--retry", "h7")
    assert code == 2
    assert "holds no record of h7" in err


@pytest.mark.timeout(240)
def test_the_record_of_a_scene_has_the_figure_and_its_limit(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0), settings={"tiles.memory_gb": 0.001})
    children = Children(timeout_hours=1.0)
    work_off(config, children.fuse)
    letter = json.loads((config.folder / "deadletter" / "h0.json").read_text())
    assert (letter["reason"], letter["state"], letter["attempts"]) == ("resources", "failed", 1)
    assert letter["observed"] > letter["allowed"] == 1e6
    assert [path.name for path in (config.folder / ".archive").iterdir()] == ["lock"]


@pytest.mark.timeout(240)
def test_a_crash_ends_the_scene_and_not_the_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that kill themselves as the kernel does when memory runs out, or fail as a bug does."""
    config = archive(tmp_path, [*both(0), *both(1)])
    children = Children(timeout_hours=1.0)
    kill = [
        sys.executable,
        "-c",
        "import os; print('last words', file=os.sys.stderr, flush=True); os.kill(os.getpid(), 9)",
    ]
    bug = [sys.executable, "-c", "raise ValueError('x')"]
    real = children._run

    def run(command: list[str], output: int, scene: str, last):
        return real(kill if scene == "h0" else bug, output, scene, last)

    monkeypatch.setattr(children, "_run", run)
    found = work_off(config, children.fuse, stop=children.stop)
    assert states(config) == {"h0": "failed killed", "h1": "quarantined bug"}
    by_id = {entry.id: entry.reason for entry in found.after.entries}
    assert "SIGKILL" in by_id["h0"]
    assert by_id["h1"] == "ValueError: x"
    letter = json.loads((config.folder / "deadletter" / "h0.json").read_text())
    assert letter["log"] == ["last words"]


def test_a_scene_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archive(tmp_path, both(0))
    children = Children(timeout_hours=0.5 / 3600)
    real, sleep = children._run, [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(children, "_run", lambda _, *rest: real(sleep, *rest))
    [task] = look(config).due
    outcome = children.fuse(task)
    assert outcome.reason == "transient"
    assert "was stopped" in outcome.message


@pytest.mark.slow
def test_a_killed_night_leaves_no_child_and_is_resumed(tmp_path: Path) -> None:
    """kill -9 of the night: the kernel ends its child, the locks are free, and the next night goes on."""
    config = archive(tmp_path, both(0))
    command = [str(Path(sys.executable).with_name("hyperfuse")), "archive", *options(config), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (found := _children(process.pid)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < deadline, "a child outlived its night"
        time.sleep(0.02)
    subprocess.run(command, check=True, capture_output=True)
    assert states(config) == {"h0": "done"}
    assert [product.id for product in open_catalog(config).products] == ["h0"]


def _children(pid: int) -> list[int]:
    """Fusions that a night has started."""
    try:
        found = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        return [child for child in found if b"hyperfuse.flows.leash" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


@pytest.mark.filterwarnings("default")
def test_the_flow_gives_each_scene_a_run_of_its_own(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    from hyperfuse.flows.prefect.fuse_archive import fuse_archive

    ends = {"h1": Outcome.of(InputRejected("h1: no bands")), "h2": Outcome.of_signal(9, ["last words"])}
    monkeypatch.setattr(Children, "fuse", lambda _, task: ends.get(task.id) or pretend(task))
    config = archive(tmp_path, [*both(0), *both(1), *both(2)], devices=["cpu", "cuda:1"])
    record = fuse_archive(config)
    assert {name: count for name, count in record["counts"].items() if count} == {"done": 1, "refused": 1, "failed": 1}
    with get_client(sync_client=True) as client:
        runs = {run.name: run for run in client.read_flow_runs() if run.parent_task_run_id is not None}
        artifacts = {artifact.key for artifact in client.read_artifacts()}
    assert {name: run.state_name for name, run in runs.items()} == {"h0": "Completed", "h1": "Refused", "h2": "Failed"}
    assert "SIGKILL" in runs["h2"].state.message
    assert runs["h1"].parameters == {"scene": "h1", "partner": "m1"}
    assert {"fuse-archive-states", "fuse-archive-backlog"} <= artifacts


def test_the_deployment_is_declared() -> None:
    import yaml

    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    [nightly] = [d for d in declared["deployments"] if d["name"] == "nightly"]
    assert nightly["entrypoint"] == "hyperfuse.flows.prefect.fuse_archive.fuse_archive"
    assert nightly["schedules"][0]["cron"] == "0 22 * * *"
    ArchiveConfig.model_validate(nightly["parameters"]["config"])
