"""The command `hyperfuse`. Every expected end is one sentence on stderr and an exit code; `--json` gives a record."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.addresses import without_user
from hyperfuse.catalogs.errors import HyperFuseError, QualityRefused, UsageError, singular_is_rejected
from hyperfuse.flows.commands import adapt, archive, card, catalog, compare, evaluate, index, info, mosaic, train
from hyperfuse.flows.commands.options import assigned
from hyperfuse.flows.display import Display
from hyperfuse.flows.stopping import Terminated, stopped_by_sigterm

EXIT_CODES = """exit codes:
  0 done   2 usage   3 input rejected   4 expected skip   5 busy   6 resources   7 refused by a quality gate
  8 tiles set aside that kill workers   9 a disk or a network did not answer
  130 interrupted   143 terminated: run again to resume   1 a bug"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("hyperfuse").setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        with stopped_by_sigterm(), singular_is_rejected(), Display(quiet=options.json) as display:
            command: Callable[[argparse.Namespace, Display], dict[str, Any]] = options.command
            record = command(options, display)
    except HyperFuseError as error:
        if options.json:
            told = {"error": without_user(str(error)), "reason": error.reason, "exit_code": error.exit_code}
            figures = {"observed": error.observed, "allowed": error.allowed}
            print(json.dumps(told | {key: value for key, value in figures.items() if value is not None}))  # noqa: T201
        # The last door: a library's error may quote an address as it was given.
        print(f"hyperfuse: {without_user(str(error))}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("hyperfuse: interrupted; run the same command again to resume", file=sys.stderr)  # noqa: T201
        return 130
    except Terminated:
        print("hyperfuse: terminated; run the same command again to resume", file=sys.stderr)  # noqa: T201
        return Terminated.exit_code
    if options.json:
        print(json.dumps(record, indent=2))  # noqa: T201
    else:
        options.show(display, record)
    return int(record.get("exit_code", 0))


def _demo(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    from hyperfuse.pipeline.demo import demonstrate  # noqa: PLC0415 (torch takes seconds, --help must not)

    shown = demonstrate(options.output, network=_known(options.network), progress=display.progress)
    return _product_record(shown.product) | {
        "scores": {name: scores.to_json() for name, scores in shown.scores.items()}
    }


def _fuse(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    config = _config(options)
    if options.adapt is not None:
        config = adapt.adapted(config, options.adapt, display)
    if options.prefect:
        from hyperfuse.flows.prefect.fuse_scene import fuse_scene  # noqa: PLC0415
        from hyperfuse.pipeline.products.publish import verify  # noqa: PLC0415

        return _product_record(verify(Path(fuse_scene(config))))
    from hyperfuse.pipeline.run import run  # noqa: PLC0415

    return _product_record(run(config, progress=display.progress))


def _plan(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    from hyperfuse.pipeline.plan import plan_report  # noqa: PLC0415

    return plan_report(_config(options))


def _register(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    from hyperfuse.pipeline.register import register_alone  # noqa: PLC0415

    record = register_alone(
        _config(options),
        table=options.tie_points,
        figure=options.figure,
        moved=options.apply,
        progress=display.progress,
    )
    return record | {"exit_code": QualityRefused.exit_code if record["decision"] == "refuse" else 0}


def _verify(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    from hyperfuse.pipeline.products.publish import side_files, verify  # noqa: PLC0415

    record = _product_record(verify(options.product, progress=display.progress))
    return record | {"verified": True, "side_files": side_files(options.product)}


def _networks(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    from hyperfuse.models import Observed, available, method  # noqa: PLC0415
    from hyperfuse.models.multiply_adds import macs  # noqa: PLC0415

    try:
        observed = Observed(
            hsi_bands=options.hsi_bands,
            msi_bands=options.msi_bands,
            ratio=options.ratio,
            psf_sigma_px=options.ratio / 2,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = []
    for name in available():
        chosen = method(name)
        card = chosen.card
        try:
            spec = chosen.specify(observed)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        rows.append(
            {
                "name": name,
                "title": card.title,
                "parameters": spec.parameters,
                "gmacs_256": round(macs(spec) / 1e9, 2),
                "ratio": options.ratio,
                "bands": [options.hsi_bands, options.msi_bands],
                "halo": spec.tile_halo,
                "two_rate": spec.two_rate is not None,
                "tiling": "exact" if spec.exact else "approximate",
                "first_pass": spec.needs_first_pass,
                "weights": card.weights or ("--weights FILE" if spec.needs_weights or spec.base else None),
                "paper": card.paper,
                "code": card.code,
            }
        )
    return {"networks": rows}


def _import_weights(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    from hyperfuse.pipeline.fusion.weights import import_weights  # noqa: PLC0415

    card = import_weights(
        options.checkpoint,
        network=_known(options.network),
        ratio=options.ratio,
        license_id=options.license,
        output=options.output,
    )
    return {"weights": str(options.output), "card": asdict(card)}


def _config(options: argparse.Namespace) -> Any:
    from hyperfuse.pipeline.config import load_config  # noqa: PLC0415

    settings: dict[str, Any] = assigned(options.set, example="hsi.crs=EPSG:32633")
    named = {
        "hsi.uri": options.hsi,
        "msi.uri": options.msi,
        "output": None if options.output is None else str(options.output),
        "network": options.network,
        "weights": None if options.weights is None else str(options.weights),
        "ratio": options.ratio,
        "device": options.device,
        "tiles.memory_gb": options.memory,
        "dask": options.dask,
        "strict": options.strict or None,
        "publish.uncertainty": options.uncertainty,
    }
    return load_config(options.config, settings | {key: value for key, value in named.items() if value is not None})


def _known(network: str) -> str:
    from hyperfuse.models import available  # noqa: PLC0415

    if network not in available():
        raise UsageError(f"there is no network {network!r}; choose one of {', '.join(available())}")
    return network


def _product_record(product: Any) -> dict[str, Any]:
    return {
        "product": str(product.path),
        "files": {name: str(path) for name, path in product.files.items()},
        "job_key": product.job_key,
        "registration": product.provenance.get("registration"),
        "grid": {key: product.provenance["product"][key] for key in ("shape", "transform", "valid_fraction")},
        "bands": len(product.provenance["product"]["wavelength_nm"]),
        "tiles": product.provenance["tiles"],
        "quality": product.provenance.get("quality"),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hyperfuse",
        description="Fuse a low-resolution hyperspectral and a high-resolution multispectral scene into one published product.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print a JSON record instead of text")
    common.add_argument("--verbose", action="store_true", help="log every step")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, work: Callable[..., Any], show: Callable[..., None], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=about, parents=[common], epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.set_defaults(command=work, show=show)
        return made

    demo = command("demo", _demo, Display.show_demo, "fuse a synthetic pair with known truth, and score it")
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="product folder (default: demo)")
    demo.add_argument("--network", default="map_subspace", metavar="NAME", help="method (default: map_subspace)")

    fuse = command("fuse", _fuse, Display.show_product, "fuse two scenes into one product")
    fuse.add_argument(
        "--prefect", action="store_true", help="run as a Prefect flow, on PREFECT_API_URL or a temporary server"
    )
    fuse.add_argument(
        "--adapt",
        type=float,
        metavar="MINUTES",
        help="first fit the universal network to the scene; see `hyperfuse adapt`",
    )
    plan = command("plan", _plan, Display.show_plan, "dry run: grids, checks, tiles, memory; writes nothing")
    for made in (fuse, plan):
        _add_run_options(made)

    register = command(
        "register",
        _register,
        Display.show_registration,
        "only the co-registration: the displacement, and whether to believe it",
    )
    _add_register_options(register)
    catalog.add_options(command("catalog", catalog.run, catalog.show, "scenes of an archive: add, list, find pairs"))
    info.add_options(command("info", info.run, info.show, "print what a reader understands of a product or image"))

    mosaic.add_options(command("mosaic", mosaic.run, mosaic.show, "blend several fused products into one area product"))
    compare.add_options(
        command(
            "compare", compare.run, compare.show, "lay products of one scene beside each other: scores and differences"
        )
    )
    index.add_options(command("index", index.run, index.show, "write index.html for a folder of products"))

    verify = command(
        "verify", _verify, Display.show_product, "check a product: manifest, checksums, grid, bands, STAC; offline"
    )
    verify.add_argument("product", type=Path, metavar="PRODUCT", help="product folder")

    imported = command(
        "import-weights",
        _import_weights,
        Display.show_weights,
        "convert a published checkpoint to safetensors with a card",
    )
    imported.add_argument("checkpoint", type=Path, metavar="FILE", help="checkpoint as its authors published it")
    imported.add_argument("--network", required=True, metavar="NAME", help="network that it was trained for")
    imported.add_argument(
        "--ratio", type=int, default=4, metavar="N", help="ratio that it was trained for (default: 4)"
    )
    imported.add_argument("--license", default="unknown", metavar="SPDX", help="license of the weights")
    imported.add_argument("--output", type=Path, required=True, metavar="FILE", help="safetensors file; must not exist")

    card.add_options(command("card", card.run, card.show, "what a weight file says of itself; export as a STAC item"))

    evaluated = command(
        "evaluate",
        evaluate.run,
        Display.show_evaluation,
        "compare methods on cubes whose truth is known, or on real pairs",
    )
    evaluate.add_options(evaluated)
    train.add_options(
        command("train", train.run, train.show, "train a network on scenes; safe to kill and start again")
    )

    adapt.add_options(
        command(
            "adapt", adapt.run, adapt.show, "fit a universal network to one scene, where held-back blocks of it agree"
        )
    )

    archive.add_options(
        command("archive", archive.run, archive.show, "fuse every suitable pair of a catalogue; safe to start again")
    )

    networks = command("networks", _networks, Display.show_networks, "list the methods that can be chosen")
    networks.add_argument(
        "--hsi-bands", type=int, default=172, metavar="N", help="HSI bands to specify for (default: 172)"
    )
    networks.add_argument("--msi-bands", type=int, default=4, metavar="N", help="MSI bands to specify for (default: 4)")
    networks.add_argument("--ratio", type=int, default=4, metavar="N", help="ratio to specify for (default: 4)")
    return parser


def _add_register_options(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="local, or a Dask scheduler's address or JSON file (default: this process)"
    )
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="any setting, for example align.max_shift_px=20"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings as YAML, TOML or JSON; options overrule it"
    )
    # A run's other options mean nothing here; its configuration wants a place for a product that is not made.
    parser.set_defaults(
        output=Path("registration"),
        network=None,
        weights=None,
        ratio=None,
        device=None,
        memory=None,
        strict=False,
        uncertainty=None,
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "hsi", nargs="?", metavar="HSI", help="low-resolution hyperspectral scene: file, folder or quoted glob of tiles"
    )
    parser.add_argument("msi", nargs="?", metavar="MSI", help="high-resolution multispectral scene")
    parser.add_argument("--output", type=Path, metavar="DIR", help="product folder; must not exist, its parent must")
    parser.add_argument("--network", metavar="NAME", help="method (default: map_subspace); see `hyperfuse networks`")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="trained weights of the network (safetensors)")
    parser.add_argument(
        "--ratio", type=int, metavar="N", help="fine pixels per coarse pixel (default: rounded GSD ratio)"
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--strict", action="store_true", help="make the product agree with the HSI within the HSI's noise"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="memory of a process; tiles are cut to fit (default: 8)"
    )
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="local, or a Dask scheduler's address or JSON file (default: this process)"
    )
    parser.add_argument(
        "--uncertainty", action="store_true", default=None, help="publish a standard error for every sample"
    )
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE",
        help="any setting, for example hsi.crs=EPSG:32633, hsi.wavelengths=bands.csv, align.reference=hsi, tiles.core=1024",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings as YAML, TOML or JSON; options overrule it"
    )


if __name__ == "__main__":
    sys.exit(main())
