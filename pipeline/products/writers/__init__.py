"""One file per format, found by its module name.

A writer module defines

- `write(draft) -> list[Asset]`: builds its files inside `draft.folder` from the finished mosaic,
- `check(folder, expected) -> None`: reads them back, as a stranger would, and raises `BadProduct` if they differ.

The working array of the mosaic already lies in the layout of the `zarr` writer; the STAC item is built by
`pipeline.products.publish`, last, because it describes all the others.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.products.draft import Asset, Draft


class Writer(Protocol):
    """The names that a writer module defines."""

    def write(self, draft: Draft) -> list[Asset]:
        """Build the files."""

    def check(self, folder: Path, expected: dict[str, Any]) -> None:
        """Read them back; `expected` is the `product` part of the provenance record."""


def writer(name: str) -> Writer:
    """The writer of that name.

    Raises
    ------
    LookupError
        If there is none; the message lists those that exist.
    """
    if name not in available():
        raise LookupError(f"there is no format {name!r}; choose one of {', '.join(available())}")
    return cast("Writer", importlib.import_module(f"{__name__}.{name}"))
