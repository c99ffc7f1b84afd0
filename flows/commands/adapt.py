"""`hyperfuse adapt`: weights of a universal network fitted to one scene, where blocks of it that were held back agree."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, UsageError
from hyperfuse.flows.display import Display

if TYPE_CHECKING:
    from hyperfuse.pipeline.config import RunConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("hsi", metavar="HSI", help="low-resolution hyperspectral scene")
    parser.add_argument("msi", metavar="MSI", help="high-resolution multispectral scene")
    parser.add_argument("--network", required=True, metavar="NAME", help="universal network; see `hyperfuse methods`")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights to begin with (default: those that come with the network, if any)",
    )
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="time to learn in (default: 10)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="weight file; must not exist")
    parser.add_argument(
        "--ratio", type=int, metavar="N", help="fine pixels per coarse pixel (default: rounded GSD ratio)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the adaptation, and the weight file where it is kept."""
    from hyperfuse.catalogs.sensors import Source  # noqa: PLC0415
    from hyperfuse.pipeline.training.adapt.run import adapt_to_scene  # noqa: PLC0415 (torch takes seconds, --help must not)

    _refuse_odd(options.minutes, "--minutes")
    if options.output.exists():
        raise InputRejected(f"{options.output}: exists; choose another name")
    made = adapt_to_scene(
        Source(uri=options.hsi),
        Source(uri=options.msi),
        network=options.network,
        weights=options.weights,
        minutes=options.minutes,
        output=options.output,
        ratio=options.ratio,
        device=options.device,
        progress=display.progress,
    )
    record = made.to_json()
    # Nothing is wrong, and yet there is no file: whoever calls should see that without reading.
    return record | ({"weights": str(options.output)} if made.kept else {"exit_code": ExpectedSkip.exit_code})


def adapted(config: RunConfig, minutes: float, display: Display) -> RunConfig:
    """A fusion with weights that are first fitted to its scene, for `fuse --adapt`."""
    from hyperfuse.pipeline.training.adapt.run import adapted_run  # noqa: PLC0415

    _refuse_odd(minutes, "--adapt")
    return adapted_run(config, minutes=minutes, progress=display.progress)


def _refuse_odd(minutes: float, option: str) -> None:
    if not 0 < minutes <= 10_000:
        raise UsageError(f"{option} {minutes:g}: expected more than 0 minutes, up to 10,000")


def show(display: Display, record: dict[str, Any]) -> None:
    """The decision in a few lines."""
    display.show_rows([("weights", record.get("weights", "none written")), ("adaptation", record["reason"])])
