"""`hyperfuse index`: one page for a folder of products."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder whose subfolders are products")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """Write the page; the record counts the states.

    Raises
    ------
    InputRejected
        If there is no such folder, or no product in it.
    """
    from hyperfuse.pipeline.reports.index_page import index_record, product_entries, write_index  # noqa: PLC0415 (xarray takes seconds, --help must not)

    folder = options.folder
    found = product_entries(folder) if folder.is_dir() else []
    if not found:
        raise InputRejected(
            f"{folder}: no product in any of its subfolders; name the folder that holds product folders"
        )
    return {"index": str(write_index(folder, found)), "states": index_record(found)}


def show(display: Display, record: dict[str, Any]) -> None:
    """Where the page is, and how many products are in which state."""
    display.show_rows(
        [("index", record["index"]), *(("state", f"{n} {state}") for state, n in record["states"].items())]
    )
