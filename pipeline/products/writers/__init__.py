"""One file per format, found by its module name; nothing else has to know of it.

A writer module defines

- `SUFFIX`: end of the name of what a reader opens, `<product><SUFFIX>`, a file or a folder,
- `write(cube) -> list[Asset]`: builds its files inside `cube.folder` from the finished cube,
- `check(folder, expected) -> None`: reads them back, as a stranger would, and raises `BadProduct` if they differ,

and, if the format holds samples,

- `open_cube(path) -> xr.Dataset`: opens them lazily, in physical units, as variable `reflectance`,
- `HOLDS_ERRORS = True`: if the standard errors are in it too, for products that have them.

Fused products and area mosaics come to a writer alike, as a `FinishedCube`. Its array already lies in the layout of the
`zarr` writer; the STAC item is built by `pipeline.products.publish`, last, because it describes all the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.products.draft import Asset, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What a writer module defines."""

    name: str
    """Name of the format."""
    suffix: str
    """End of the name of what a reader opens."""
    write: Callable[[FinishedCube], list[Asset]]
    """Build the files."""
    check: Callable[[Path, ProductFacts], None]
    """Read them back, in the folder of a product, against the product's record."""
    open_cube: Callable[[Path], xr.Dataset] | None
    """Open the samples; None of a format without samples."""
    holds_errors: bool
    """Whether the standard errors are in it too."""

    def path(self, folder: Path, product: str) -> Path:
        """What a reader opens, in the folder of a product of that name."""
        return folder / f"{product}{self.suffix}"


def writer(name: str) -> Writer:
    """The writer of that name.

    Raises
    ------
    LookupError
        If there is none; the message lists those that exist.
    """
    if name not in available():
        raise LookupError(f"there is no format {name!r}; choose one of {', '.join(available())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return Writer(
        name=name,
        suffix=module.SUFFIX,
        write=module.write,
        check=module.check,
        open_cube=getattr(module, "open_cube", None),
        holds_errors=getattr(module, "HOLDS_ERRORS", False),
    )
