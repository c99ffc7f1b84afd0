"""`hyperfuse archive`: the backlog of a catalogue, and a night that works it off."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.pairing.ranking import PairingRules
from hyperfuse.flows.commands.catalog import add_rule_options, rules
from hyperfuse.flows.commands.options import add_method, assigned
from hyperfuse.flows.display import Display

_MAX_ROWS = 200


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "catalog", nargs="?", metavar="CATALOG", help="folder of a static STAC catalogue, or URL of a STAC API"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the products, one for each hyperspectral scene"
    )
    parser.add_argument("--dry-run", action="store_true", help="only the backlog: states, reasons, hours, gigabytes")
    parser.add_argument("--max-scenes", type=int, metavar="N", help="scenes that are started at most")
    parser.add_argument(
        "--until", metavar="TIME", help="start nothing that is not expected to end by this time, for example 06:00"
    )
    add_method(parser)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="trained weights of a network (safetensors)")
    parser.add_argument(
        "--device",
        action="append",
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default: auto); repeat to work on several scenes at a time",
    )
    parser.add_argument(
        "--root",
        action="append",
        type=Path,
        metavar="DIR",
        help="folder, besides the catalogue's own, in which its scenes may lie; repeat for more",
    )
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="any setting of every fusion, as for `hyperfuse fuse`"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="the archive as YAML, TOML or JSON, with settings for each sensor; options overrule it",
    )  # fmt: skip
    add_rule_options(parser)
    parser.add_argument("--retry", action="append", metavar="ID", help="try this scene again whatever its record says")
    parser.add_argument(
        "--retry-dead", action="store_true", help="try all refused, failed and quarantined scenes again"
    )
    parser.add_argument(
        "--prefect", action="store_true", help="run as a Prefect flow, on PREFECT_API_URL or a temporary server"
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of `pipeline.archive.night.Night`, or with --dry-run that of `pipeline.archive.backlog.Backlog`."""
    from hyperfuse.pipeline.archive.settings import load_archive  # noqa: PLC0415 (torch takes seconds, --help must not)

    archive = load_archive(options.config, _settings(options))
    again = options.retry_dead or bool(options.retry)
    if options.dry_run:
        if again:
            raise UsageError("--dry-run changes nothing, so it does not go with --retry; leave one of them out")
        from hyperfuse.pipeline.archive.backlog import take_stock  # noqa: PLC0415
        from hyperfuse.pipeline.archive.settings import open_catalog  # noqa: PLC0415

        return take_stock(archive, open_catalog(archive).read()).to_json()
    from hyperfuse.pipeline.archive.night import forget, work_off  # noqa: PLC0415

    if again:
        forget(archive, None if options.retry_dead else options.retry)
    if options.prefect:
        from hyperfuse.flows.prefect.fuse_archive import fuse_archive  # noqa: PLC0415
        from hyperfuse.flows.prefect.server import served  # noqa: PLC0415

        with served():
            record: dict[str, Any] = fuse_archive(archive)
        return record
    from hyperfuse.flows.child import Children  # noqa: PLC0415

    children = Children(timeout_hours=archive.timeout_hours)
    return work_off(archive, children.fuse, stop=children.stop, progress=display.progress).to_json()


def show(display: Display, record: dict[str, Any]) -> None:
    """Counts, what is due, and a line for each scene that is not done."""
    due, counts = record["due"], record["counts"]
    rows = [("scenes", ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none")]
    if "night" in record:
        rows.append(("started", str(len(record["night"]["started"]))))
    rows.append(("due", f"{due['scenes']} scenes, {due['hours']:g} hours, {due['gigabytes']:g} GB ({due['estimate']})"))
    display.show_rows(rows)
    left = record.get("night", {}).get("left", {})
    display.show_backlog(
        [
            scene | {"reason": left.get(scene["id"], scene["reason"])}
            for scene in record["scenes"]
            if scene["state"] != "done"
        ],
        most=_MAX_ROWS,
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = assigned(options.set, example="quality.gate=refuse")
    for key, given in (("method", options.method), ("weights", options.weights)):
        if given is not None:
            settings[key] = str(given)
    named = {
        "catalog": options.catalog,
        "output": options.output,
        "max_scenes": options.max_scenes,
        "until": options.until,
        "devices": options.device,
        "roots": options.root,
    }
    default = vars(PairingRules())
    asked = {key: value for key, value in vars(rules(options)).items() if value != default[key]}
    given = {key: value for key, value in named.items() if value is not None}
    return given | {"settings": settings, "rules": asked}
