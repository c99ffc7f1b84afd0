"""`hyperfuse register`: only the co-registration of two scenes, and whether to believe it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import QualityRefused
from hyperfuse.flows.commands.options import add_dask, add_settings, run_config
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "hsi", nargs="?", metavar="HSI", help="low-resolution hyperspectral scene: the image that stays"
    )
    parser.add_argument(
        "msi", nargs="?", metavar="MSI", help="high-resolution multispectral scene: the image that is moved"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="write a PNG of the tie points' arrows over the HSI"
    )
    parser.add_argument("--tie-points", type=Path, metavar="FILE", help="write the tie points as GeoJSON")
    parser.add_argument(
        "--apply",
        type=Path,
        metavar="OUT",
        help="write the MSI, moved onto the HSI, as a cloud-optimized GeoTIFF; must not exist",
    )
    add_dask(parser)
    add_settings(parser, example="align.max_shift_px=20")
    # A run's configuration wants a place for a product, which is not made here.
    parser.set_defaults(output=Path("registration"))


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the registration; exit code 7 where it is refused."""
    from hyperfuse.pipeline.register import register_alone  # noqa: PLC0415 (torch takes seconds, --help must not)

    record = register_alone(
        run_config(options),
        table=options.tie_points,
        figure=options.figure,
        moved=options.apply,
        progress=display.progress,
    )
    return record | {"exit_code": QualityRefused.exit_code if record["decision"] == "refuse" else 0}


def show(display: Display, record: dict[str, Any]) -> None:
    """A registration in a few lines."""
    display.row("decision", f"{record['decision']}: {record['reason']}")
    display.row("model", record["model"])
    display.row("move", f"{record['east_m']:+.3f} m east, {record['north_m']:+.3f} m north bring the MSI onto the HSI")
    if record["residual_after_px"] is not None:
        display.row(
            "tie points",
            f"{record['tie_points']} of {record['tie_points_tried']} agree; {record['residual_before_px']:.3f} coarse px before, "
            f"{record['residual_after_px']:.3f} after",
        )
