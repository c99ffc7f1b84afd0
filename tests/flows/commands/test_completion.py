"""Completion, asked of the shell itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hyperfuse.flows.cli import main
from hyperfuse.models import available

BASH = shutil.which("bash")
ASK = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_hyperfuse
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("met", {"methods"}),
        ("catalog p", {"pairs"}),
        ("fuse --uncert", {"--uncertainty"}),
        ("fuse --method ", set(available())),
        ("settings tiles.co", {"tiles.core"}),
        ("fuse scene.tif sce", {"scene.tif"}),
        ("verify --js", {"--json"}),
    ],
)
def test_bash_offers(script: Path, typed: str, offered: set[str]) -> None:
    (script.parent / "scene.tif").touch()
    asked = subprocess.run(
        [str(BASH), "-c", ASK, "bash", script.name, "hyperfuse", *typed.split(" ")],
        cwd=script.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(asked.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["shell"] == shell
    assert all(word in record["script"] for word in ("import-weights", "map_subspace", "tiles.core"))
