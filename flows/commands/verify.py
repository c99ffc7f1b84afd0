"""`hyperfuse verify`: a product checked against its manifest, offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.flows.commands.product import product_record, show
from hyperfuse.flows.display import Display

__all__ = ["add_options", "run", "show"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("product", type=Path, metavar="PRODUCT", help="product folder")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the product, and the files beside it that viewers left."""
    from hyperfuse.pipeline.products.publish import side_files, verify  # noqa: PLC0415 (xarray takes seconds, --help must not)

    record = product_record(verify(options.product, progress=display.progress))
    return record | {"verified": True, "side_files": side_files(options.product)}
