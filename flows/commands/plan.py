"""`hyperfuse plan`: what a fusion would do, from the headers alone."""

from __future__ import annotations

import argparse
from typing import Any

from hyperfuse.flows.commands.options import add_run_options, run_config
from hyperfuse.flows.display import Display

add_options = add_run_options


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """The record of `pipeline.plan.plan_report`."""
    from hyperfuse.pipeline.plan import plan_report  # noqa: PLC0415 (torch takes seconds, --help must not)

    return plan_report(run_config(options))


def show(display: Display, record: dict[str, Any]) -> None:
    """The plan in a few lines."""
    for role in ("hsi", "msi"):
        scene = record[role]
        bands, rows, columns = scene["shape"]
        display.row(
            role,
            f"{scene['name']}: {rows} x {columns} px at {scene['gsd_m']:g} m, {scene['good_bands']} of {bands} bands good, "
            f"{scene['bands_nm'][0]:g}-{scene['bands_nm'][1]:g} nm, {scene['crs']}",
        )
        for note in scene["notes"]:
            display.row("", note, style="yellow")
    product, tiles = record["product"], record["tiles"]
    size = f"{product['shape'][0]} x {product['shape'][1]} px of {product['gsd']:g}"
    display.show_rows(
        [
            ("ratio", f"{record['ratio']} (ground sampling distances: {record['gsd_ratio']:g})"),
            ("product", f"{size}, {product['bands']} bands, {product['crs']}"),
            ("coverage", ", ".join(f"{band}: {share:.0%}" for band, share in record["srf_coverage"].items())),
            ("method", record["method"]),
            (
                "tiles",
                f"{tiles['number']} of {tiles['core']} px, halo {tiles['halo']}, redundancy {tiles['redundancy']}",
            ),
            ("needs", f"{record['memory_gb']:g} GB memory, at most {record['disk_gb']:g} GB disk"),
        ]
    )
