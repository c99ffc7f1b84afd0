"""The pages: links that lead somewhere, every error explained, and the site built without a warning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
import yaml

from hyperfuse.catalogs import errors
from hyperfuse.pipeline.config import RunConfig
from tests import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
FAMILIES = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if issubclass(one, errors.HyperFuseError) and one is not errors.HyperFuseError
]
SITE = ("sphinx", "furo", "myst_nb", "numpydoc", "sphinx_argparse_cli")


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_error_says_what_to_do(family):
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    own = "exit_code" in vars(family)
    assert f"`{family.__name__}`" in text or own
    assert not own or f"\n## {family.__name__}: exit code {family.exit_code}\n" in text
    assert f"\n| {family.exit_code} |" in (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")


def test_settings_that_pages_name_exist():
    groups = {
        name: field.annotation
        for name, field in RunConfig.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    for name in ("troubleshooting", "concepts", "usage", "products"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        for group, setting in re.findall(rf"\b({'|'.join(groups)})\.([a-z][a-z_0-9]+)(?![\w(/])", text):
            if setting not in {"tif", "json", "md"}:
                assert setting in groups[group].model_fields, f"{name}: {group}.{setting}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert f"Version {project['version']}," in (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    missing := [name for name in SITE if find_spec(name) is None],
    reason=f"needs pip install '.[docs]': {', '.join(missing)} not installed",
)
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-d", str(tmp_path / "state"), ".", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site" / "docs"
    assert (tmp_path / "site" / "index.html").is_file()
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert all(
        name in settings for name in ("align.max_shift_px", "publish.uncertainty", "simulation.msi", "feather_px")
    )
    assert "8.0" not in settings.partition("tiles.memory_gb")[2].partition("</tr>")[0], "the budget is of this machine"
    commands = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert all(f"hyperfuse {name}" in commands for name in ("fuse", "catalog add", "evaluate"))
    assert "--max-shift" not in commands
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert all(
        f'id="hyperfuse.{name}"' in python for name in ("fuse", "register", "open_scene", "open", "Product.open")
    )
