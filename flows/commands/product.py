"""A product as the record and the lines that the commands `fuse`, `demo` and `verify` end with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperfuse.flows.display import Display

if TYPE_CHECKING:
    from hyperfuse.pipeline.products.product import Product


def product_record(product: Product) -> dict[str, Any]:
    """Where a product is, and what is in it."""
    provenance = product.provenance
    return {
        "product": str(product.path),
        "files": {name: str(path) for name, path in product.files.items()},
        "job_key": product.job_key,
        "registration": provenance.get("registration"),
        "grid": {key: provenance["product"][key] for key in ("shape", "transform", "valid_fraction")},
        "bands": len(provenance["product"]["wavelength_nm"]),
        "tiles": provenance["tiles"],
        "quality": provenance.get("quality"),
    }


def show(display: Display, record: dict[str, Any]) -> None:
    """A product in a few lines."""
    grid, registration, quality = record["grid"], record["registration"], record["quality"]
    valid = f"{100 * grid['valid_fraction']:.2f} % valid"
    display.row("product", f"{record['product']}{' (verified)' if record.get('verified') else ''}")
    display.show_rows(record["files"].items())
    display.row("grid", f"{grid['shape'][0]} x {grid['shape'][1]} px, {record['bands']} bands, {valid}")
    if registration is not None:
        display.row("registration", f"{registration['decision']}: {registration['reason']}")
    display.row("tiles", f"{record['tiles']['finished']}, of which {record['tiles']['resumed']} resumed")
    if quality is not None:
        display.row("quality", quality["state"])
        for warning in quality["warnings"]:
            display.row("", warning, style="yellow")
