"""The command `hyperfuse evaluate`: methods against the truth, on cubes, on scene pairs, or by a preset."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.flows.display import Display

if TYPE_CHECKING:
    from hyperfuse.pipeline.observation.protocol import Protocol
    from hyperfuse.pipeline.quality.trials import Trial

_PROTOCOL_OPTIONS = ("ratio", "msi", "noise", "seed")
_CUBE_OPTIONS = ("variable", "axes", "rows", "wavelengths", "crs")
_NOISE = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)|none")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "cubes", nargs="*", metavar="CUBE",
        help="scene or MATLAB file that is the truth, or HSI,MSI: two scenes, scored at reduced resolution",
    )  # fmt: skip
    parser.add_argument("--preset", metavar="NAME", help="real-3, real-4, real-6, gsd or aviris-172, with --data")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the cubes of the preset")
    parser.add_argument(
        "--networks", metavar="A,B", help="methods (default: all that need no weights, and those with --weights)"
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="trained weights of a method (safetensors); default: those that come with HyperFuse",
    )
    parser.add_argument("--ratio", metavar="N,N", help="fine pixels per coarse pixel (default: 4; pairs: their own)")
    parser.add_argument("--msi", metavar="SET,SET", help="bands of the simulated MSI, such as s2-4, s2-10 or landsat-6 "
                        "(default: s2-4)")  # fmt: skip
    parser.add_argument(
        "--noise", metavar="H/M,none", help="signal-to-noise ratios of HSI and MSI in dB, or none (default: 35/40)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--variable", metavar="NAME", help="array of a file that holds several")
    parser.add_argument(
        "--axes",
        metavar="AXES",
        help="axes of a MATLAB array: yxb (default), byx ..., or of a matrix: b(xy), (yx)b ...",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="rows of the image in a matrix (default: square)")
    parser.add_argument(
        "--wavelengths", metavar="TABLE", help="CSV with center_nm, or numbers separated by commas, in file order"
    )
    parser.add_argument("--crs", metavar="CRS", help="CRS of a scene whose file has none, such as EPSG:32633")
    parser.add_argument("--device", default="cpu", metavar="D", help="auto, cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--strict", action="store_true",
        help="score each method in strict mode as well, and say how far it disagrees with the HSI",
    )  # fmt: skip
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw PSNR and SAM as bars")


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    """Score the methods; the record holds a row for each, their means, and the protocols.

    Raises
    ------
    UsageError
        If an option is unknown or missing.
    InputRejected
        If nothing could be scored.
    """
    from hyperfuse.models import available  # noqa: PLC0415 (torch takes seconds, --help must not)
    from hyperfuse.pipeline.evaluation.means import means  # noqa: PLC0415
    from hyperfuse.pipeline.fusion.device import pick_device  # noqa: PLC0415
    from hyperfuse.pipeline.fusion.weights import shipped_weights  # noqa: PLC0415
    from hyperfuse.pipeline.quality.trials import evaluate, methods_without_weights  # noqa: PLC0415

    if options.figure is not None and not options.figure.absolute().parent.is_dir():
        raise UsageError(f"--figure {options.figure}: its folder does not exist; create it first")
    weights = _weights(options.weights)
    named = _split(options.networks) or [*methods_without_weights(), *weights]
    weights |= {name: path for name in named if name not in weights and (path := shipped_weights(name)) is not None}
    if unknown := [name for name in (*named, *weights) if name not in available()]:
        raise UsageError(f"there is no network {unknown[0]!r}; choose from {', '.join(available())}")
    device = str(pick_device(options.device))
    trials = _trials(options)
    rows = evaluate(
        trials,
        list(dict.fromkeys(named)),
        weights=weights,
        device=device,
        strict=options.strict,
        progress=display.progress,
    )
    if all(row.scores is None for row in rows):
        raise InputRejected(rows[0].error or "nothing was scored")
    if options.figure is not None:
        from hyperfuse.pipeline.reports.evaluation_figure import draw  # noqa: PLC0415

        draw(rows, options.figure)
    protocols = list(dict.fromkeys(trial.protocol for trial in trials))
    return {
        "rows": [row.to_json() for row in rows],
        "means": means(rows),
        "protocols": [protocol.to_json() for protocol in protocols],
        "device": device,
        "figure": None if options.figure is None else str(options.figure),
    }


def _trials(options: argparse.Namespace) -> list[Trial]:
    from hyperfuse.catalogs.references.cubes import CubeSource  # noqa: PLC0415 (h5py and xarray, likewise)
    from hyperfuse.pipeline.evaluation.presets import cube_trials, preset_trials  # noqa: PLC0415
    from hyperfuse.pipeline.quality.reduced_resolution import pair_trial  # noqa: PLC0415

    like = CubeSource(
        uri="",
        variable=options.variable,
        axes=options.axes,
        rows=options.rows,
        wavelengths=options.wavelengths,
        crs=options.crs,
    )
    if options.preset is not None:
        if options.data is None or options.cubes:
            raise UsageError(f"--preset {options.preset} wants the folder of its cubes, --data DIR, and no other cubes")
        fixed = _PROTOCOL_OPTIONS if options.preset == "aviris-172" else _PROTOCOL_OPTIONS + _CUBE_OPTIONS
        if given := [key for key in fixed if getattr(options, key) is not None]:
            raise UsageError(
                f"--{given[0]} is fixed by --preset {options.preset}; leave it out, or name the cubes instead"
            )
        return preset_trials(options.preset, options.data, like=like)
    if not options.cubes:
        raise UsageError("name cubes or HSI,MSI pairs, or a preset with --preset NAME --data DIR")
    protocols = _protocols(options)
    # A real pair has its own bands and noise, and unless it is told its own ratio.
    ratios = [None] if options.ratio is None else list(dict.fromkeys(protocol.ratio for protocol in protocols))
    trials: list[Trial] = []
    for address, label in zip(options.cubes, _labels(options.cubes), strict=True):
        hsi, comma, msi = address.partition(",")
        if comma and not Path(address).exists():
            trials += [pair_trial(hsi, msi, ratio=ratio) for ratio in ratios]
        else:
            trials += cube_trials(replace(like, uri=address), protocols, name=label)
    return trials


def _labels(addresses: list[str]) -> list[str]:
    """The stem of each file, its whole address where two share it; of a glob, the folder."""
    stems = [Path(a).parent.name if "*" in a and Path(a).parent.name else Path(a).stem for a in addresses]
    return [a if stems.count(stem) > 1 else stem for a, stem in zip(addresses, stems, strict=True)]


def _protocols(options: argparse.Namespace) -> list[Protocol]:
    from hyperfuse.catalogs.references.responses import band_set  # noqa: PLC0415
    from hyperfuse.pipeline.observation.protocol import Protocol  # noqa: PLC0415

    noises = []
    for text in _split(options.noise) or ["35/40"]:
        if (found := _NOISE.fullmatch(text)) is None:
            raise UsageError(f"--noise {text}: expected HSI/MSI in dB such as 35/40, or none")
        noises.append(tuple(None if value is None else float(value) for value in found.groups()))
    ratios = _split(options.ratio) or ["4"]
    if wrong := [text for text in ratios if not text.isdigit() or not 2 <= int(text) <= 20]:
        raise UsageError(f"--ratio {wrong[0]}: expected whole numbers from 2 to 20, separated by commas")
    return [
        Protocol(ratio=int(ratio), msi=band_set(msi).name, hsi_snr_db=hsi, msi_snr_db=msi_db, seed=options.seed or 0)
        for ratio in ratios
        for msi in _split(options.msi) or ["s2-4"]
        for hsi, msi_db in noises
    ]


def _weights(pairs: list[str]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not file:
            raise UsageError(f"--weights {pair}: expected NAME=FILE, for example csakd-teacher=teacher.safetensors")
        found[name] = Path(file)
    return found


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
