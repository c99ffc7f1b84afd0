"""`hyperfuse methods`: the fusion methods that can be chosen, and what each needs for a pair of sensors."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.flows.display import Display

_GIVEN = "--weights FILE"
"""Of methods whose weights nobody has published."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--hsi-bands", type=int, default=172, metavar="N", help="HSI bands to specify for (default: 172)"
    )
    parser.add_argument("--msi-bands", type=int, default=4, metavar="N", help="MSI bands to specify for (default: 4)")
    parser.add_argument("--ratio", type=int, default=4, metavar="N", help="ratio to specify for (default: 4)")
    parser.add_argument(
        "--long",
        action="store_const",
        dest="show",
        const=show_long,
        default=argparse.SUPPRESS,
        help="all that is known of each: paper, code, multiply-adds, halo, tiling",
    )


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
    from hyperfuse.pipeline.fusion.weights import is_published, shipped_weights  # noqa: PLC0415

    chosen = method(name)
    card, shipped = chosen.card, shipped_weights(name)
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
        "weights": (card.weights if is_published(name) else None)
        or (_GIVEN if spec.needs_weights or spec.base else None),
        "weights_shipped": shipped is not None,
        "weights_license": None if shipped is None else read_card(shipped).license,
        "paper": card.paper,
        "code": card.code,
    }


def show(display: Display, record: dict[str, Any]) -> None:
    """All methods, a line or two each."""
    table = Table(box=None, pad_edge=False)
    for name, most in (("name", None), ("title", _TITLE), ("parameters", None), ("weights", None)):
        table.add_column(name, max_width=most)
    for row in record["methods"]:
        table.add_row(row["name"], row["title"], f"{row['parameters']:,}", _weights(row))
    display.show_table(table)
    display.show_rows([("", ""), *_LEGEND])


_TITLE = 50
"""Characters of a title in a line: the table fits 100 columns."""
_LEGEND = (
    ("shipped", "with HyperFuse; taken unless --weights FILE gives others"),
    ("published", "by the authors (--long tells where); `hyperfuse import-weights`, then --weights FILE"),
    ("your own", "from `hyperfuse train`, with --weights FILE"),
    ("more", "--long: paper, code, multiply-adds, halo, tiling"),
)


def _weights(row: dict[str, Any]) -> str:
    """Where the weights of a method come from, in two words."""
    if row["weights"] is None:
        return "none needed"
    if row["weights_shipped"]:
        return "shipped"
    return "your own" if row["weights"] == _GIVEN else "published"


def show_long(display: Display, record: dict[str, Any]) -> None:
    """All methods, a paragraph each."""
    for row in record["methods"]:
        shipped = f"shipped ({row['weights_license']})" if row["weights_shipped"] else row["weights"]
        display.show_rows(
            [
                ("", ""),
                ("method", row["name"]),
                ("title", row["title"]),
                ("parameters", f"{row['parameters']:,}"),
                ("GMAC @256", f"{row['gmacs_256']:g}"),
                ("halo", f"{row['halo']} coarse px"),
                ("tiling", row["tiling"]),
                ("weights", shipped or "none needed"),
                ("paper", row["paper"]),
                ("code", row["code"]),
            ]
        )
