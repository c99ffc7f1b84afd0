"""`hyperfuse import-weights`: a published checkpoint to safetensors with a card."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperfuse.flows.commands.options import known_method
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="checkpoint as its authors published it")
    parser.add_argument("--network", required=True, metavar="NAME", help="network that it was trained for")
    parser.add_argument("--ratio", type=int, default=4, metavar="N", help="ratio that it was trained for (default: 4)")
    parser.add_argument("--license", default="unknown", metavar="SPDX", help="license of the weights")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="safetensors file; must not exist")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """Where the weights are, and their card."""
    from hyperfuse.pipeline.fusion.weights import import_weights  # noqa: PLC0415 (torch takes seconds, --help must not)

    card = import_weights(
        options.checkpoint,
        network=known_method(options.network),
        ratio=options.ratio,
        license_id=options.license,
        output=options.output,
    )
    return {"weights": str(options.output), "card": asdict(card)}


def show(display: Display, record: dict[str, Any]) -> None:
    """A converted weight file in a few lines."""
    card = record["card"]
    display.row("weights", record["weights"])
    display.row("network", f"{card['network']}, {card['hsi_bands']} + {card['msi_bands']} bands, ratio {card['ratio']}")
    display.row("options", str(card["options"]))
    display.row("sha256", card["sha256"])
