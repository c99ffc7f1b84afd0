"""`hyperfuse info`: what a reader understands of a product, as text, JSON and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.stac.fused_products import is_product_folder
from hyperfuse.flows.commands import product
from hyperfuse.flows.commands.options import assigned
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "product",
        metavar="PRODUCT",
        help="file, folder, archive, quoted glob of tiles, address (https, s3) of a file or STAC item",
    )
    parser.add_argument(
        "--quicklook", type=Path, metavar="FILE", help="write a PNG: true color, or three bands of the spectrum"
    )
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE",
        help="what the file does not tell, or which masks and bands are used, for example crs=EPSG:32633, mask=none, "
        "bands=B02,B03,B04",
    )  # fmt: skip


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """The record of `pipeline.reports.describe.describe`; of a fused product, that of `hyperfuse verify`, unchecked."""
    if is_product_folder(Path(options.product)):
        from hyperfuse.pipeline.products.product import Product  # noqa: PLC0415 (xarray takes seconds, --help must not)

        return product.product_record(Product.load(Path(options.product)))
    from hyperfuse.pipeline.config import load_scene  # noqa: PLC0415 (torch takes seconds, --help must not)
    from hyperfuse.pipeline.reports.describe import describe  # noqa: PLC0415

    settings = assigned(options.set, example="mask=none")
    return describe(load_scene(options.product, settings).source(), quicklook=options.quicklook)


def show(display: Display, record: dict[str, Any]) -> None:
    """The record in a few lines."""
    if "product" in record:
        product.show(display, record)
        return
    bands, grid = record["bands"], record["grid"]
    good = [nm for nm, is_good in zip(bands["center_nm"], bands["good"], strict=True) if is_good]
    left, bottom, right, top = record["bounds_lonlat"]
    rows = [
        ("product", record["name"]),
        ("sensor", f"{record['sensor']} ({record['title']})"),
        ("time", record["time"] or "unknown"),
        ("samples", f"{record['quantity']} ({record['unit']})"),
        ("grid", f"{grid['shape'][0]} x {grid['shape'][1]} px of {record['gsd_m']:.4g} m, {grid['crs']}"),
        ("corner", f"{grid['transform'][2]:.12g}, {grid['transform'][5]:.12g} (upper left, outer)"),
        ("bounds", f"{left:.4f} to {right:.4f} E, {bottom:.4f} to {top:.4f} N"),
        ("bands", f"{len(good)} of {len(bands['good'])} good, {min(good):g}-{max(good):g} nm"),
        ("MTF", f"{_range(record['mtf_nyquist'])} at the Nyquist frequency"),
        ("sha256", record["sha256"]),
        *(("", note) for note in record["notes"]),
    ]
    if "quicklook" in record:
        rows.append(("quicklook", f"{record['quicklook']}, {100 * record['valid_fraction']:.1f} % valid"))
    display.show_rows(rows)


def _range(values: list[float]) -> str:
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low} to {high}"
