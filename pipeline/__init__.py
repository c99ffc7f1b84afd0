"""The work: two scenes in, one published product out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# OpenMP reads this when torch loads it. Threads that spin while they wait for each other take the cores from those that read
# and write: a fusion then takes 1.2 to 1.5 times its forward instead of 1.1 (`make bench`).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from hyperfuse.pipeline.config import RunConfig, load_config
    from hyperfuse.pipeline.products.product import Product
    from hyperfuse.pipeline.products.publish import verify
    from hyperfuse.pipeline.run import run

__all__ = ["Product", "RunConfig", "load_config", "run", "verify"]

_HOME = {
    "RunConfig": "config",
    "load_config": "config",
    "Product": "products.product",
    "verify": "products.publish",
    "run": "run",
}


def __getattr__(name: str) -> Any:  # torch takes seconds to import, and `pipeline.config` does not need it
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
