"""`hyperfuse init`: a commented settings file to begin with; `hyperfuse settings --write` with the scenes filled in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.flows.commands import settings
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("hsi", nargs="?", metavar="HSI", help="hyperspectral scene, to be filled in")
    parser.add_argument("msi", nargs="?", metavar="MSI", help="multispectral scene, to be filled in")
    parser.add_argument("--output", metavar="DIR", help="product folder, to be filled in")
    parser.add_argument(
        "--file",
        type=Path,
        default=Path("hyperfuse.yaml"),
        metavar="FILE",
        help="file to write; must not exist (default: hyperfuse.yaml)",
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """Where the file is, and which required settings are still empty.

    Raises
    ------
    UsageError
        If the file exists, or its folder does not.
    """
    from hyperfuse.pipeline.config import RunConfig  # noqa: PLC0415 (torch takes seconds, --help must not)

    given = {"hsi.uri": options.hsi, "msi.uri": options.msi, "output": options.output}
    rows = settings.rows_of(settings.described(RunConfig))
    for row in rows:
        if given.get(row["name"]) is not None:
            row["given"] = given[row["name"]]
    settings.write_commented(options.file, rows)
    missing = [row["name"] for row in rows if row["required"] and "given" not in row]
    return {"written": str(options.file), "missing": missing}


def show(display: Display, record: dict[str, Any]) -> None:
    """The file, and what to do next."""
    display.row("settings", record["written"])
    if record["missing"]:
        display.row("to fill in", ", ".join(record["missing"]))
    display.row("then", f"hyperfuse plan --config {record['written']}")
