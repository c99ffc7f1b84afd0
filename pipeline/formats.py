"""Names of the formats in which products are written; their modules are listed, none is imported."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib.util import find_spec

WRITERS = "hyperfuse.pipeline.products.writers"
"""Package with one module per format."""


@cache
def available() -> tuple[str, ...]:
    """Names of all formats, sorted: the public modules of the package of writers."""
    package = find_spec(WRITERS)
    folders = package.submodule_search_locations if package is not None else None
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")))
