"""`hyperfuse methods`: the fusion methods that can be chosen, and what each needs for a pair of sensors."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--hsi-bands", type=int, default=172, metavar="N", help="HSI bands to specify for (default: 172)"
    )
    parser.add_argument("--msi-bands", type=int, default=4, metavar="N", help="MSI bands to specify for (default: 4)")
    parser.add_argument("--ratio", type=int, default=4, metavar="N", help="ratio to specify for (default: 4)")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """A row for each method.

    Raises
    ------
    UsageError
        If a method cannot be specified for such a pair.
    """
    from hyperfuse.models import Observed, available  # noqa: PLC0415 (torch takes seconds, --help must not)

    try:
        observed = Observed(
            hsi_bands=options.hsi_bands,
            msi_bands=options.msi_bands,
            ratio=options.ratio,
            psf_sigma_px=options.ratio / 2,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return {"methods": [_row(name, observed) for name in available()]}


def _row(name: str, observed: Any) -> dict[str, Any]:
    from hyperfuse.models import method  # noqa: PLC0415
    from hyperfuse.models.multiply_adds import macs  # noqa: PLC0415

    chosen = method(name)
    card = chosen.card
    try:
        spec = chosen.specify(observed)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    return {
        "name": name,
        "title": card.title,
        "parameters": spec.parameters,
        "gmacs_256": round(macs(spec) / 1e9, 2),
        "ratio": observed.ratio,
        "bands": [observed.hsi_bands, observed.msi_bands],
        "halo": spec.tile_halo,
        "two_rate": spec.two_rate is not None,
        "tiling": "exact" if spec.exact else "approximate",
        "first_pass": spec.needs_first_pass,
        "weights": card.weights or ("--weights FILE" if spec.needs_weights or spec.base else None),
        "paper": card.paper,
        "code": card.code,
    }


def show(display: Display, record: dict[str, Any]) -> None:
    """All methods, a line each."""
    table = Table(
        "name", "title", "parameters", "GMAC @256", "halo", "tiling", "weights", "paper", box=None, pad_edge=False
    )
    for row in record["methods"]:
        table.add_row(
            row["name"],
            row["title"],
            f"{row['parameters']:,}",
            f"{row['gmacs_256']:g}",
            str(row["halo"]),
            row["tiling"],
            row["weights"] or "none needed",
            row["paper"],
        )
    display.show_table(table)
