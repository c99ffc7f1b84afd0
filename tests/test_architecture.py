"""What the layout promises: imports run one way, narrow fronts, rooms of a readable size, one name for one thing, no pickle."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict

import pytest

from docs.draw_map import draw
from tests import ROOT

PACKAGES = ("catalogs", "models", "pipeline", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ROOMS = sorted(path.parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py"))
FRONTS = sorted(path for package in (*PACKAGES, "hyperfuse") for path in (ROOT / package).rglob("__init__.pyi"))
_READABLE = 500
"""Lines of a module; a longer one is one idea, and its docstring says so with the words `one idea`."""
_ROOM = 15
"""Modules of a room."""


def test_imports_keep_their_direction():
    # In a process of its own: it switches off the loggers of whoever calls it.
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_map_has_no_arrow_up_and_no_cycle(tmp_path):
    assert draw(tmp_path / "map.svg") == []
    assert "<svg" in (tmp_path / "map.svg").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_is_readable_and_loads_nothing_it_should_not(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= _READABLE or "one idea" in (ast.get_docstring(tree) or "")
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "marshal"} & set(names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}


@pytest.mark.parametrize("path", FRONTS, ids=lambda path: path.parent.relative_to(ROOT).as_posix())
def test_front_is_narrow_and_every_name_is_there(path):
    package = importlib.import_module(
        f"hyperfuse.{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}".replace(".hyperfuse", "")
    )
    assert 0 < len(package.__all__) <= 10
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_room_is_of_a_readable_size(room):
    # Methods, sensors and commands are one file each, as many as there are.
    if room.name not in {"models", "sensors", "commands"}:
        assert len([path for path in room.glob("*.py") if path.stem != "__init__"]) <= _ROOM


def test_no_two_modules_of_the_pipeline_share_a_public_name():
    homes: dict[str, set[str]] = defaultdict(set)
    for path in (path for path in SOURCES if path.parts[len(ROOT.parts)] == "pipeline" and "writers" not in path.parts):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(path.relative_to(ROOT).as_posix())
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_module_is_a_drawer():
    assert not [path for path in SOURCES if path.stem in {"utils", "common", "helpers", "misc"}]


def test_importing_the_front_loads_neither_torch_nor_prefect(tmp_path):
    """In a folder with a `models` of its own, which is not ours."""
    (tmp_path / "models.py").write_text("MINE = True\n")
    code = (
        "import sys, hyperfuse, models; from hyperfuse import RunConfig, models as ours; "
        "assert models.MINE and ours.available; assert not {'torch', 'prefect'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
