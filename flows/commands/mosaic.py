"""`hyperfuse mosaic`: several fused products to one area product."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "products", nargs="+", type=Path, metavar="PRODUCT", help="product folder, published with Zarr; any UTM zones"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="product folder; must not exist")
    parser.add_argument("--crs", metavar="CRS", help="CRS of the area (default: that of the first product)")
    parser.add_argument(
        "--gsd", type=float, metavar="SIZE", help="pixel size in units of the CRS (default: that of a product in it)"
    )
    parser.add_argument(
        "--bounds", type=float, nargs=4, metavar=("LEFT", "BOTTOM", "RIGHT", "TOP"),
        help="extent in the CRS of the area (default: all products)",
    )  # fmt: skip
    parser.add_argument(
        "--feather",
        type=int,
        metavar="PX",
        help="pixels over which a product's weight rises from its edge (default: 50)",
    )
    parser.add_argument(
        "--tolerance-nm",
        type=float,
        metavar="NM",
        help="bands whose centers differ by no more are one band (default: 1)",
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--no-cog", action="store_true", help="leave out the cloud-optimized GeoTIFF")
    written.add_argument(
        "--formats",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="formats of the area, zarr and stac among them (default: zarr,cog,stac)",
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="memory of the samples that are blended at once (default: 1)"
    )
    parser.add_argument(
        "--prefect", action="store_true", help="run as a Prefect flow, on PREFECT_API_URL or a temporary server"
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the area product."""
    from hyperfuse.pipeline.mosaic.settings import area_config  # noqa: PLC0415 (torch takes seconds, --help must not)
    from hyperfuse.pipeline.products.publish import verify  # noqa: PLC0415

    config = area_config(
        products=tuple(options.products),
        output=options.output,
        crs=options.crs,
        gsd=options.gsd,
        bounds=options.bounds,
        feather_px=options.feather,
        tolerance_nm=options.tolerance_nm,
        memory_gb=options.memory,
        formats=("zarr", "stac") if options.no_cog else options.formats,
    )
    if options.prefect:
        from hyperfuse.flows.prefect.mosaic_scenes import mosaic_scenes  # noqa: PLC0415
        from hyperfuse.flows.prefect.server import served  # noqa: PLC0415

        with served():
            published = mosaic_scenes(config)
        return _record(verify(Path(published)))
    from hyperfuse.pipeline.mosaic.run import mosaic_products  # noqa: PLC0415

    return _record(mosaic_products(config, progress=display.progress))


def show(display: Display, record: dict[str, Any]) -> None:
    """The area in a few lines."""
    grid, steps = record["grid"], record["seams"]["steps"]
    size = f"{grid['shape'][0]} x {grid['shape'][1]} px, {record['bands']} bands, {grid['crs']}"
    rows = [
        ("product", record["product"]),
        *record["files"].items(),
        ("grid", f"{size}, {100 * grid['valid_fraction']:.2f} % valid"),
    ]
    for entry in record["inputs"]:
        how = "copied" if entry["copied"] else "resampled once"
        rows.append(("input", f"{entry['id']}: {how} from {entry['crs']}"))
    for pair in record["seams"]["pairs"]:
        names, most = f"{pair['first']} and {pair['second']}", f"{pair['largest_mean']:.4g}"
        rows.append(("overlap", f"{names}: {pair['pixels']} px, bands differ by up to {most} in the mean"))
    if told := ", ".join(f"{name} {value:.4g}" for name, value in steps.items() if value is not None):
        rows.append(("steps", told))
    rows.append(("blocks", f"{record['tiles']['finished']}, of which {record['tiles']['resumed']} resumed"))
    display.show_rows(rows)


def _record(product: Any) -> dict[str, Any]:
    facts = product.provenance["product"]
    return {
        "product": str(product.path),
        "files": {name: str(path) for name, path in product.files.items()},
        "job_key": product.job_key,
        "inputs": product.provenance["inputs"],
        "grid": {key: facts[key] for key in ("crs", "shape", "transform", "valid_fraction")},
        "bands": len(facts["wavelength_nm"]),
        "seams": product.provenance["seams"],
        "tiles": product.provenance["tiles"],
    }
