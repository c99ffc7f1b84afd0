"""`hyperfuse catalog`: products into a catalogue, what is in it, and which scenes of it go together."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.pairing.ranking import Candidate, Pairing, PairingRules, pair
from hyperfuse.catalogs.stac.catalog import Catalog, Contents
from hyperfuse.catalogs.stac.items import SceneItem
from hyperfuse.flows.commands.options import assigned
from hyperfuse.flows.display import Display

_DEFAULT = PairingRules()
_SHOWN = 20
"""Unusable items that are printed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, about: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=about, description=about)
        for flag, told in (("--json", "print a JSON record instead of text"), ("--verbose", "log every step")):
            made.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=told)
        return made

    add = action("add", "make items from products; what is known and unchanged is not opened again")
    add.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="product, image, quoted glob of tiles, address of a file or STAC item, or fused product",
    )
    add.add_argument("--catalog", required=True, metavar="DIR", help="folder of the catalogue; made if needed")
    add.add_argument("--role", choices=("hsi", "msi"), help="part in a pair (default: by sensor, or number of bands)")
    add.add_argument(
        "--set", action="append", metavar="KEY=VALUE",
        help="what the files do not tell, the same for all, for example crs=EPSG:32633, mask=none",
    )  # fmt: skip
    listing = action("list", "print the scenes and products, and the items that cannot be used")
    listing.add_argument("--role", choices=("hsi", "msi"), help="scenes of one part only")
    pairs = action("pairs", "rank the MSI scenes for each HSI scene, and say why")
    pairs.add_argument("--hsi", metavar="ID", help="this HSI only")
    pairs.add_argument("--all", action="store_true", help="print every candidate, not only the one that is chosen")
    add_rule_options(pairs)
    for made in (listing, pairs):
        made.add_argument("catalog", metavar="CATALOG", help="folder, or URL of a STAC API with its search")
        made.add_argument(
            "--root", action="append", default=[], type=Path, metavar="DIR",
            help="folder, besides the catalogue's own, in which products may lie; repeat for more",
        )  # fmt: skip


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rules`."""
    parser.add_argument(
        "--max-gap-days", type=float, default=_DEFAULT.max_gap / timedelta(days=1), metavar="N",
        help="longest time between the acquisitions (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--min-overlap", type=float, default=_DEFAULT.min_overlap, metavar="SHARE",
        help="share of the HSI that an MSI must cover (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-cloud", type=float, default=_DEFAULT.max_cloud, metavar="SHARE",
        help="share of the overlap that may be clouded or masked (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--choose", action="append", default=[], metavar="HSI=MSI",
        help="this partner for this HSI, whatever the limits say; HSI= for none; repeat for more",
    )  # fmt: skip


def rules(options: argparse.Namespace) -> PairingRules:
    """The rules that the options of `add_rule_options` give.

    Raises
    ------
    UsageError
        If one is out of range.
    """
    overrides = {}
    for choice in options.choose:
        hsi, equals, msi = choice.partition("=")
        if not equals or not hsi:
            raise UsageError(f"--choose {choice}: expected HSI=MSI with identifiers of `hyperfuse catalog list`")
        overrides[hsi] = msi
    try:
        return PairingRules(
            min_overlap=options.min_overlap,
            max_gap=timedelta(days=options.max_gap_days),
            max_cloud=options.max_cloud,
            overrides=overrides,
        )
    except (ValueError, OverflowError) as error:
        raise UsageError(f"the rules of pairing: {error}") from error


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """The record of one action."""
    if options.action == "add":
        return _add(options, display)
    contents = Catalog.open(options.catalog, roots=options.root).read()
    if options.action == "list":
        return _listed(contents, options.role)
    chosen = rules(options)
    pairings = pair(contents.scenes, chosen)
    if unknown := sorted(set(chosen.overrides) - {pairing.hsi.id for pairing in pairings}):
        raise UsageError(f"--choose {unknown[0]}: is no HSI of {options.catalog}; see `hyperfuse catalog list`")
    if options.hsi is not None:
        pairings = [pairing for pairing in pairings if pairing.hsi.id == options.hsi]
        if not pairings:
            raise UsageError(f"--hsi {options.hsi}: is no HSI of {options.catalog}; see `hyperfuse catalog list`")
    return {
        "pairs": [_pair_record(pairing) for pairing in pairings],
        "refused": _refusals(contents),
        "all": options.all,
    }


def show(display: Display, record: dict[str, Any]) -> None:
    """The record as lines."""
    rows = [
        (one["state"], one["reason"] if one["id"] is None else f"{one['id']} {one['reason']}")
        for one in record.get("gathered", ())
    ]
    for scene in record.get("scenes", ()):
        cloud = "" if scene["cloud_cover"] is None else f", {scene['cloud_cover']:.0%} cloud"
        told = f"{scene['time'] or 'time unknown'}, {scene['gsd_m']:g} m, {scene['n_bands']} bands{cloud}"
        rows.append((scene["role"], f"{scene['id']} ({scene['sensor'] or 'sensor unknown'}; {told})"))
    rows += [
        ("product", f"{p['id']} ({p['method']}, of {p['hsi'] or 'another HSI'} and {p['msi'] or 'another MSI'})")
        for p in record.get("products", ())
    ]
    for one in record.get("pairs", ()):
        rows.append(("no pair" if one["msi"] is None else "pair", f"{one['hsi']}: {one['reason']}"))
        if record["all"]:
            rows += [("", f"{c['score']:.2f} {c['msi']}: {', '.join(c['reasons'])}") for c in one["candidates"]]
    if record.get("pairs") == []:
        rows.append(
            ("no pair", "no HSI is in the catalogue; `hyperfuse catalog add --role hsi` tells that a scene is one")
        )
    refused = record.get("refused", ())
    rows += [("not used", f"{one['href']}: {one['reason']}") for one in refused[:_SHOWN]]
    if len(refused) > _SHOWN:
        rows.append(("", f"and {len(refused) - _SHOWN} more, see --json"))
    if record.get("roots_to_name"):
        roots = " ".join(f"--root {root}" for root in record["roots_to_name"])
        rows.append(("note", f"products lie outside of the catalogue's folder: read it with {roots}"))
    if record.get("buckets_to_name"):
        named = ",".join(record["buckets_to_name"])
        rows.append(("note", f"products lie in buckets: read the catalogue with HYPERFUSE_HOSTS={named}"))
    display.show_rows(rows or [("catalogue", "nothing in it")])


def _add(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    from hyperfuse.catalogs.stac.gather import gather  # noqa: PLC0415 (readers take a second, listing needs none)
    from hyperfuse.pipeline.config import load_scene  # noqa: PLC0415 (torch takes seconds, --help must not)

    settings = assigned(options.set, example="mask=none")
    sources = [load_scene(path, settings).source() for path in options.paths]
    catalog = Catalog.open(options.catalog)
    gathered = gather(catalog, sources, role=options.role, progress=display.progress)
    # Whoever adds a product means it; who reads the catalogue later has to say where products may lie.
    places = {Path(one.uri).resolve().parent for one in gathered if one.id is not None and one.uri.startswith("/")}
    outside = sorted(str(place) for place in places if not place.is_relative_to(catalog.folder))
    failed = all(one.state == "refused" for one in gathered)
    return {
        "catalog": str(catalog.folder),
        "gathered": [asdict(one) for one in gathered],
        "roots_to_name": outside,
        "buckets_to_name": sorted(_buckets(one.uri for one in gathered if one.id is not None) - catalog.trust.hosts),
        "exit_code": InputRejected.exit_code if failed else 0,
    }


def _buckets(addresses: Iterable[str]) -> set[str]:
    """Buckets of some addresses, as `HYPERFUSE_HOSTS` names them."""
    return {"/".join(address.lower().split("/")[:3]) for address in addresses if address.startswith("s3://")}


def _listed(contents: Contents, role: str | None) -> dict[str, Any]:
    return {
        "scenes": [_scene_record(scene) for scene in contents.scenes if role in (None, scene.role)],
        "products": [
            {"id": p.id, "folder": str(p.folder), "hsi": p.hsi, "msi": p.msi, "job_key": p.job_key, "method": p.method}
            for p in contents.products
        ],
        "refused": _refusals(contents),
    }


def _scene_record(scene: SceneItem) -> dict[str, Any]:
    return {
        "id": scene.id,
        "role": scene.role,
        "sensor": scene.sensor,
        "uri": scene.uri,
        "time": None if scene.time is None else scene.time.isoformat(),
        "gsd_m": scene.gsd_m,
        "n_bands": scene.n_bands,
        "bounds_lonlat": list(scene.footprint.bounds),
        **asdict(scene.conditions),
        "sha256": None if scene.fingerprint is None else scene.fingerprint.sha256,
    }


def _pair_record(pairing: Pairing) -> dict[str, Any]:
    return {
        "hsi": pairing.hsi.id,
        "msi": None if pairing.chosen is None else pairing.chosen.msi.id,
        "reason": pairing.reason,
        "candidates": [_candidate_record(candidate) for candidate in pairing.candidates],
    }


def _candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {
        "msi": candidate.msi.id,
        "score": candidate.score,
        "overlap": candidate.overlap,
        "gap_days": None if candidate.gap is None else candidate.gap / timedelta(days=1),
        "cloud": candidate.cloud,
        "sun_difference_deg": candidate.sun_difference,
        "view_difference_deg": candidate.view_difference,
        "season_difference_days": candidate.season_difference,
        "reasons": list(candidate.reasons),
    }


def _refusals(contents: Contents) -> list[dict[str, str]]:
    return [asdict(refusal) for refusal in contents.refused]
