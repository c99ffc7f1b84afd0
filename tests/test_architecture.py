"""What the layout promises: the direction of imports, narrow fronts, no pickle, modules of a readable size."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

from tests import ROOT

PACKAGES = ("catalogs", "models", "pipeline", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_imports_keep_their_direction():
    # In a process of its own: it switches off the loggers of whoever calls it.
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_is_readable_and_loads_nothing_it_should_not(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 410
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "marshal"} & set(names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}


@pytest.mark.parametrize("package", PACKAGES)
def test_front_is_narrow(package):
    assert len(getattr(importlib.import_module(package), "__all__", ())) <= 10


def test_no_module_is_a_drawer():
    assert not [path for path in SOURCES if path.stem in {"utils", "common", "helpers", "misc"}]
