"""`hyperfuse card`: what a weight file says of itself, and the same as a STAC item of a machine learning model."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("weights", type=Path, metavar="FILE", help="safetensors weight file with a card")
    parser.add_argument(
        "--stac", type=Path, metavar="ITEM", help="write the card as a STAC item (MLM extension) to this JSON file"
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """The card, and where the item is."""
    card = read_card(options.weights)
    record = asdict(card)
    if options.stac is not None:
        from hyperfuse.catalogs.formats.files import write_atomic  # noqa: PLC0415
        from hyperfuse.pipeline.training.model_item import model_item  # noqa: PLC0415 (torch takes seconds, --help must not)

        if not options.stac.absolute().parent.is_dir():
            raise InputRejected(f"{options.stac}: its folder does not exist; create it first")
        beside = options.stac.absolute().parent == options.weights.absolute().parent
        try:
            item = model_item(options.weights, href=f"./{options.weights.name}" if beside else None)
        except LookupError as error:
            raise InputRejected(f"{options.weights}: {error}; its item needs what the method says of itself") from error
        write_atomic(options.stac, json.dumps(item, indent=2, allow_nan=False) + "\n")
        record["stac"] = str(options.stac)
    return record


def show(display: Display, record: dict[str, Any]) -> None:
    """The card in a few lines."""
    bands = f"{record['hsi_bands']} HSI and {record['msi_bands']} MSI bands, ratio {record['ratio']}"
    served = bands if record["hsi_bands"] else f"any bands, learnt at ratios {', '.join(map(str, record['ratios']))}"
    rows = [
        ("network", record["network"]),
        ("serves", served),
        ("license", record["license"]),
        ("source", record["source"] or "unknown"),
        ("SHA-256", record["sha256"]),
    ]
    training = record["training"]
    if scores := training.get("scores"):
        told = [
            f"{title} {scores[key]:.{digits}f} {unit}"
            for key, title, digits, unit in (("sam_deg", "SAM", 3, "deg"), ("psnr_db", "PSNR", 2, "dB"))
            if scores.get(key) is not None
        ]
        rows.append(("scores", f"{', '.join(told)}, best at step {training['best_step']} of {training['steps']}"))
    rows += [(data["part"], f"{data['name']} ({data['license']})") for data in training.get("data", [])]
    display.show_rows([*rows, *([("item", record["stac"])] if "stac" in record else [])])
