"""`hyperfuse demo`: a synthetic pair with known truth, fused and scored."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from hyperfuse.flows.commands import product
from hyperfuse.flows.commands.options import add_method, known_method
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="DIR", help="product folder (default: demo)"
    )
    add_method(parser, default="map_subspace")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the product, and scores against the truth by method."""
    from hyperfuse.pipeline.demo import demonstrate  # noqa: PLC0415 (torch takes seconds, --help must not)

    shown = demonstrate(options.output, method=known_method(options.method), progress=display.progress)
    scores = {name: scores.to_json() for name, scores in shown.scores.items()}
    return product.product_record(shown.product) | {"scores": scores}


def show(display: Display, record: dict[str, Any]) -> None:
    """The product and its scores."""
    product.show(display, record)
    table = Table("method", "PSNR (dB)", "SAM (deg)", "ERGAS", box=None, pad_edge=False)
    for name, scores in record["scores"].items():
        table.add_row(name, f"{scores['psnr_db']:.2f}", f"{scores['sam_deg']:.3f}", f"{scores['ergas']:.3f}")
    display.show_table(table)
