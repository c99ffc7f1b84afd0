"""`hyperfuse train`: scenes and a configuration to the weights of a network; the same command goes on after a kill."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import ExpectedSkip
from hyperfuse.flows.commands.options import assigned
from hyperfuse.flows.display import Display


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="settings of the training as YAML, TOML or JSON")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the training; one that was interrupted there goes on"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="batches to learn from; more of them go on from the last"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder to which relative addresses of scenes refer (default: the current one)",
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--devices",
        metavar="N",
        help="devices that share every batch, a number or auto (default: one); the curve stays the same",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", default=None, help="write the curves for TensorBoard as well"
    )
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="any setting, for example samples.patch=16")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="time the first steps and one validation, say what all will take, and write nothing",
    )
    parser.add_argument(
        "--prefect", action="store_true", help="run as a Prefect flow, on PREFECT_API_URL or a temporary server"
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of the training: weight files, and the scores of each on the scenes held out."""
    from hyperfuse.pipeline.training.settings import load_training  # noqa: PLC0415 (torch takes seconds, --help must not)

    given = {key: getattr(options, key) for key in ("output", "steps", "device", "devices", "tensorboard")}
    settings = assigned(options.set, example="samples.patch=16")
    settings |= {key: value for key, value in given.items() if value is not None}
    config = load_training(options.config, settings, data=options.data)
    if options.dry_run:
        from hyperfuse.pipeline.training.run import rehearse_training  # noqa: PLC0415

        return {"expected": asdict(rehearse_training(config, progress=display.progress))}
    if options.prefect:
        from hyperfuse.flows.prefect.server import served  # noqa: PLC0415
        from hyperfuse.flows.prefect.train_network import train_network  # noqa: PLC0415

        with served():
            record = train_network(config)
        return record | ({"exit_code": ExpectedSkip.exit_code} if "skipped" in record else {})
    from hyperfuse.pipeline.training.run import train  # noqa: PLC0415

    return train(config, progress=display.progress).to_json()


def show(display: Display, record: dict[str, Any]) -> None:
    """Weight files and scores in a few lines."""
    if "expected" in record:
        told = record["expected"]
        sizes = ", ".join(f"{role} {number:,}" for role, number in told["parameters"].items())
        device = "" if told["device_gb"] is None else f", {told['device_gb']:.2f} GB on the device"
        display.show_rows(
            [
                ("parameters", sizes),
                ("a step", f"{told['step_s']:.3g} s"),
                ("a validation", f"{told['validation_s']:.3g} s"),
                ("all", f"about {told['hours']:.2g} h"),
                ("memory", f"{told['peak_gb']:.2f} GB{device}"),
            ]
        )
        return
    if "skipped" in record:
        display.show_rows([("skipped", record["skipped"])])
        return
    begun = f", of which {record['resumed_at']} before" if record["resumed_at"] else ""
    display.show_rows([("training", record["output"]), ("steps", f"{record['steps']}{begun}")])
    for role, path in record["weights"].items():
        best = record["best"][role]
        scores = f"SAM {best['sam_deg']:.3f} deg, PSNR {best['psnr_db']:.2f} dB"
        display.show_rows([(role, path), ("", f"{scores} on the scenes held out, best at step {best['step']}")])
