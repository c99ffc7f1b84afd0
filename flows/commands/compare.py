"""`hyperfuse compare`: products of one scene beside each other, as a page and as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "products", nargs="+", type=Path, metavar="PRODUCT",
        help="product folders on one grid; the first is the one that the others are compared with",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write a page to look at in any browser, such as comparison.html"
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of `pipeline.reports.compare.Comparison`, and where the page is.

    Raises
    ------
    UsageError
        If the page's folder does not exist.
    """
    from hyperfuse.pipeline.reports.compare import compare  # noqa: PLC0415 (xarray takes seconds, --help must not)
    from hyperfuse.pipeline.reports.comparison_page import write_page  # noqa: PLC0415

    output = options.output
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: its folder does not exist; create it first")
    found = compare(options.products, progress=display.progress)
    if output is not None:
        write_page(found, output)
    return found.to_json() | {"output": None if output is None else str(output)}


def show(display: Display, record: dict[str, Any]) -> None:
    """Scores and differences in a few lines."""
    height, width = record["grid"]["shape"]
    rows = [("grid", f"{height} x {width} px, {len(record['wavelength_nm'])} common bands")]
    rows += [("product", f"{product['label']}: {_scores(product['scores'])}") for product in record["products"]]
    for one in record["differences"]:
        figures = f"RMSE {_shown(one['rmse'])}, mean {_shown(one['bias'])}, SAM {_shown(one['sam_deg'])} deg"
        rows.append(("difference", f"{one['second']} to {one['first']}: {figures}"))
    rows += [("note", note) for note in record["notes"]]
    if record["output"] is not None:
        rows.append(("page", record["output"]))
    display.show_rows(rows)


def _scores(scores: dict[str, Any]) -> str:
    if scores["state"] is None:
        return "not judged"
    return (
        f"{scores['state']}; SAM to the HSI {_shown(scores['consistency.hsi.sam_deg'])} deg, R2 with the MSI "
        f"{_shown(scores['consistency.msi.r2'])}, at reduced resolution PSNR {_shown(scores['reduced.psnr_db'])} dB and SAM "
        f"{_shown(scores['reduced.sam_deg'])} deg"
    )


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
