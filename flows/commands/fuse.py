"""`hyperfuse fuse`: two scenes to one product, here, on a Dask cluster or as a Prefect flow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.flows.commands import adapt
from hyperfuse.flows.commands.options import add_run_options, run_config
from hyperfuse.flows.commands.product import product_record, show
from hyperfuse.flows.display import Display

__all__ = ["add_options", "run", "show"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--prefect", action="store_true", help="run as a Prefect flow, on PREFECT_API_URL or a temporary server"
    )
    parser.add_argument(
        "--adapt",
        type=float,
        metavar="MINUTES",
        help="first fit the universal network to the scene; see `hyperfuse adapt`",
    )
    add_run_options(parser)


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the product."""
    config = run_config(options)
    if options.adapt is not None:
        config = adapt.adapted(config, options.adapt, display)
    if options.prefect:
        from hyperfuse.flows.prefect.fuse_scene import fuse_scene  # noqa: PLC0415 (torch takes seconds, --help must not)
        from hyperfuse.flows.prefect.server import served  # noqa: PLC0415
        from hyperfuse.pipeline.products.publish import verify  # noqa: PLC0415

        with served():
            published = fuse_scene(config)
        return product_record(verify(Path(published)))
    from hyperfuse.pipeline.run import run as run_pipeline  # noqa: PLC0415

    return product_record(run_pipeline(config, progress=display.progress))
