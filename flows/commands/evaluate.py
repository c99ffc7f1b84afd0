"""The command `hyperfuse evaluate`: methods against the truth, on cubes, on scene pairs, or by a preset."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.flows.commands.options import add_old_name, assigned
from hyperfuse.flows.display import Display

if TYPE_CHECKING:
    from hyperfuse.pipeline.config import RunConfig
    from hyperfuse.pipeline.observation.protocol import Protocol
    from hyperfuse.pipeline.quality.trials import Trial

_PROTOCOL_OPTIONS = ("ratio", "msi", "noise", "seed")
_CUBE_OPTIONS = ("variable", "axes", "rows", "wavelengths", "crs")
_PAIR_SETTINGS = ("hsi", "msi", "align", "psf_mtf", "ratio")
_NOISE = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)|none")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "cubes", nargs="*", metavar="CUBE",
        help="scene or MATLAB file that is the truth, or HSI,MSI: two scenes, scored at reduced resolution",
    )  # fmt: skip
    parser.add_argument("--preset", metavar="NAME", help="real-3, real-4, real-6, field-3, field-4, field-6, "
                        "field-10, gsd, real-pairs or aviris-172, with --data")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the cubes of the preset")
    parser.add_argument(
        "--methods", metavar="A,B", help="methods (default: all that need no weights, and those with --weights)"
    )
    add_old_name(parser, "--networks", "--methods")
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
    parser.add_argument(
        "--plant", metavar="ROW,ROW",
        help="plant what real pairs suffer from, such as mix or shift-0.25 (default: nothing; field presets: all rows)",
    )  # fmt: skip
    parser.add_argument(
        "--pipeline", action="store_true",
        help="hand the simulated pairs to the whole pipeline as files: registration and PSF are its own affair",
    )  # fmt: skip
    parser.add_argument("--window", type=int, metavar="N", help="take N x N pixels in the middle of each cube")
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
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE",
        help="with --pipeline: any setting that `fuse` has; of pairs: one of hsi, msi or align, psf_mtf, or ratio (of the two grids), "
        "for example hsi.wavelengths=bands.csv",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="of pairs: settings as YAML, TOML or JSON")
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
    from hyperfuse.pipeline.evaluation.field_files import PipelineFuser  # noqa: PLC0415
    from hyperfuse.pipeline.evaluation.field_table import field_summary  # noqa: PLC0415
    from hyperfuse.pipeline.evaluation.means import means  # noqa: PLC0415
    from hyperfuse.pipeline.fusion.device import pick_device  # noqa: PLC0415
    from hyperfuse.pipeline.fusion.weights import shipped_weights  # noqa: PLC0415
    from hyperfuse.pipeline.quality.trials import evaluate, fuse_whole, methods_without_weights  # noqa: PLC0415

    if options.figure is not None and not options.figure.absolute().parent.is_dir():
        raise UsageError(f"--figure {options.figure}: its folder does not exist; create it first")
    weights = _weights(options.weights)
    named = _split(options.methods) or [*methods_without_weights(), *weights]
    weights |= {name: path for name in named if name not in weights and (path := shipped_weights(name)) is not None}
    if unknown := [name for name in (*named, *weights) if name not in available()]:
        raise UsageError(f"there is no method {unknown[0]!r}; choose from {', '.join(available())}")
    device = str(pick_device(options.device))
    trials = _trials(options)
    _check_pipeline(options, trials)
    rows = evaluate(
        trials,
        list(dict.fromkeys(named)),
        weights=weights,
        device=device,
        strict=options.strict,
        fuse=PipelineFuser(assigned(options.set, example="sensor_model=blind")) if options.pipeline else fuse_whole,
        progress=display.progress,
    )
    if all(row.scores is None for row in rows):
        raise InputRejected(rows[0].error or "nothing was scored")
    if options.figure is not None:
        from hyperfuse.pipeline.reports.evaluation_figure import draw  # noqa: PLC0415

        draw(rows, options.figure)
    protocols = list(dict.fromkeys(trial.protocol for trial in trials))
    compared = options.preset == "real-pairs" or any("planted" in row.to_json() for row in rows)
    return {
        "rows": [row.to_json() for row in rows],
        **(field_summary(rows) if compared else {}),
        "means": means(rows),
        "protocols": [protocol.to_json() for protocol in protocols],
        "device": device,
        "figure": None if options.figure is None else str(options.figure),
    }


def _check_pipeline(options: argparse.Namespace, trials: list[Trial]) -> None:
    """Refuse what a whole pipeline cannot do, and what only it can.

    Raises
    ------
    UsageError
        If there is something.
    """
    if not options.pipeline:
        if files := next((t.protocol.planted for t in trials if t.protocol.planted.needs_files), None):
            raise UsageError(f"row {files.name} is one of files with a georeference; add --pipeline")
        return
    if options.strict:
        raise UsageError("--strict scores methods alone; with --pipeline use --set strict=true")
    if options.config is not None:
        raise UsageError("--config is for pairs that you name; with --pipeline use --set")
    if options.preset in {"real-pairs", "aviris-172"} or any(_is_pair(address) for address in options.cubes):
        raise UsageError(
            "--pipeline is for simulated pairs of cubes; fuse the files of a real pair with `hyperfuse fuse`"
        )


def _trials(options: argparse.Namespace) -> list[Trial]:
    from hyperfuse.catalogs.references.cubes import CubeSource  # noqa: PLC0415 (h5py and xarray, likewise)
    from hyperfuse.pipeline.evaluation.presets import cube_trials, is_field, preset_trials  # noqa: PLC0415
    from hyperfuse.pipeline.observation.field import FILE_ROWS, planting  # noqa: PLC0415
    from hyperfuse.pipeline.quality.reduced_resolution import pair_trial  # noqa: PLC0415

    like = CubeSource(
        uri="",
        variable=options.variable,
        axes=options.axes,
        rows=options.rows,
        wavelengths=options.wavelengths,
        crs=options.crs,
    )
    if options.window is not None and options.window < 1:
        raise UsageError(f"--window {options.window}: expected the edge of a square in pixels, 1 or more")
    if options.preset is not None:
        if options.set or options.config is not None:
            raise UsageError(
                f"--set and --config are for pairs that you name, and --preset {options.preset} names its own"
            )
        if options.data is None or options.cubes:
            raise UsageError(f"--preset {options.preset} wants the folder of its cubes, --data DIR, and no other cubes")
        fixed = _fixed(options.preset)
        if given := [key for key in sorted(fixed) if getattr(options, key) is not None]:
            raise UsageError(
                f"--{given[0]} is fixed by --preset {options.preset}; leave it out, or name the cubes instead"
            )
        rows = FILE_ROWS if options.pipeline and is_field(options.preset) else ()
        return preset_trials(
            options.preset,
            options.data,
            like=like,
            sets=_split(options.msi),
            rows=[planting(row) for row in _split(options.plant) or rows],
            window=options.window,
        )
    if not options.cubes:
        raise UsageError("name cubes or HSI,MSI pairs, or a preset with --preset NAME --data DIR")
    protocols = _protocols(options)
    pairs = [_is_pair(address) for address in options.cubes]
    _refuse_without_effect(options, n_pairs=sum(pairs))
    # A real pair has its own bands and noise, and unless it is told its own ratio.
    ratios = [None] if options.ratio is None else list(dict.fromkeys(protocol.ratio for protocol in protocols))
    trials: list[Trial] = []
    for address, label, is_pair in zip(options.cubes, _labels(options.cubes), pairs, strict=True):
        if is_pair:
            config = _pair_config(address, options)
            trials += [pair_trial(config, ratio=ratio) for ratio in ratios]
        else:
            trials += cube_trials(replace(like, uri=address), protocols, name=label, window=options.window)
    return trials


def _is_pair(address: str) -> bool:
    return "," in address and not Path(address).exists()


def _refuse_without_effect(options: argparse.Namespace, *, n_pairs: int) -> None:
    """Refuse an option that none of the cubes and pairs would heed.

    Raises
    ------
    UsageError
        If there is one.
    """
    if not n_pairs and ((options.set and not options.pipeline) or options.config is not None):
        raise UsageError("--set and --config are for HSI,MSI pairs; of a cube use --wavelengths, --crs and the like")
    if n_pairs < len(options.cubes):
        return
    for key in ("wavelengths", "crs", "variable"):
        if (value := getattr(options, key)) is not None:
            raise UsageError(
                f"--{key} does not say of which image of a pair; use --set hsi.{key}={value} or --set msi.{key}={value}"
            )
    for key in ("msi", "noise", "seed", "plant", "window", "axes", "rows"):
        if getattr(options, key) is not None:
            raise UsageError(f"--{key} is for cubes, and a pair is taken as it is; leave it out")


def _pair_config(address: str, options: argparse.Namespace) -> RunConfig:
    from hyperfuse.pipeline.config import current_names, lay_over, load_config, read_mapping  # noqa: PLC0415

    record: dict[str, Any] = {} if options.config is None else current_names(read_mapping(options.config))
    lay_over(record, current_names(assigned(options.set, example="hsi.crs=EPSG:32633")))
    for key in record:
        if key not in _PAIR_SETTINGS:
            raise UsageError(
                f"setting {key} has no effect on the evaluation of a pair; those of {', '.join(_PAIR_SETTINGS)} have"
            )
    hsi, _, msi = address.partition(",")
    lay_over(record, {"hsi.uri": hsi, "msi.uri": msi, "output": "unused"})
    return load_config(None, record)


def _fixed(preset: str) -> set[str]:
    """Options that a preset decides itself."""
    from hyperfuse.pipeline.evaluation.presets import is_field  # noqa: PLC0415

    if preset == "aviris-172":
        return {*_PROTOCOL_OPTIONS, "plant", "window"}
    fixed = {*_PROTOCOL_OPTIONS, *_CUBE_OPTIONS, "plant"}
    return fixed - {"msi", "plant"} if is_field(preset) else fixed


def _labels(addresses: list[str]) -> list[str]:
    """The stem of each file, its whole address where two share it; of a glob, the folder."""
    stems = [Path(a).parent.name if "*" in a and Path(a).parent.name else Path(a).stem for a in addresses]
    return [a if stems.count(stem) > 1 else stem for a, stem in zip(addresses, stems, strict=True)]


def _protocols(options: argparse.Namespace) -> list[Protocol]:
    from hyperfuse.catalogs.references.responses import band_set  # noqa: PLC0415
    from hyperfuse.pipeline.observation.field import planting  # noqa: PLC0415
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
        Protocol(
            ratio=int(ratio),
            msi=band_set(msi).name,
            hsi_snr_db=hsi,
            msi_snr_db=msi_db,
            seed=options.seed or 0,
            planted=planting(row),
        )
        for ratio in ratios
        for msi in _split(options.msi) or ["s2-4"]
        for row in _split(options.plant) or ["nothing"]
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


def show(display: Display, record: dict[str, Any]) -> None:
    """Scores as a table."""
    display.show_evaluation(record)
