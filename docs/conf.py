"""Sphinx: the pages in `docs/` and what they link to, as a site.

The source directory is the root of the repository, so that a link means the same here and where the pages are read as files.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "HyperFuse"
author = "The HyperFuse developers"
version = release = installed("hyperfuse")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_argparse_cli",
    "docs.directives",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "examples/*.md",
    "examples/first_fusion.ipynb",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
# Whole folders, so that they are not even listed; `hyperfuse` is links to the others.
exclude_patterns = [".*", "build", "demo", "hyperfuse", "catalogs", "models", "pipeline", "flows", "tests", "shared"]

html_theme = "furo"
html_title = f"HyperFuse {version}"
html_extra_path = ["site/root"]
html_static_path = ["site/static"]
html_css_files = ["wide.css"]
html_copy_source = False
highlight_language = "text"

myst_heading_anchors = 4
# The notebook was saved after it had run, and the tests run it.
nb_execution_mode = "off"

# In docstrings a name between single backticks is code.
default_role = "code"
numpydoc_show_class_members = False
autodoc_preserve_defaults = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
