"""What each part of a training brings: `python -m tests.benchmarks.ablations --data DIR --output DIR --steps N`.

Every variant is a set of settings laid over one recipe, trained with the same seed for the same steps, and scored on scenes
that none has learnt from: as the images lie, and with the HSI half a fine pixel off. The first one is the recipe itself, and
the others are told against it; methods without weights stand beside them. The table is also `ablations.json`.

Without --recipe, networks learn from generated scenes with bands of the Berlin EnMAP cube, and are scored on that cube, whose
city, materials and sensor none of the generated scenes is made of. Bands that the MSI does not see are thinned out, and patches
are half as wide as a scene: the widths of a network go with its bands, and on a CPU the time with their square, but a patch must not be
smaller. Networks that learnt from patches of 4 coarse pixels, all border, were lost on the whole scene (down to -54 dB). A
variant is a training folder of its own: the same command goes on where it was killed, and with more steps it goes further.

    --only "student; teacher"     some variants
    --list                      what there is
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from hyperfuse.catalogs.errors import ExpectedSkip, HyperFuseError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.catalogs.references.cubes import CubeSource, open_cube
from hyperfuse.catalogs.references.responses import band_set
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.metrics import Scores
from hyperfuse.pipeline.quality.trials import fuse_whole, score
from hyperfuse.pipeline.training import TrainConfig, train
from hyperfuse.pipeline.training.pairs import open_ground
from hyperfuse.pipeline.training.patches import white_noise
from hyperfuse.pipeline.training.planes import displaced
from tests import sources

Settings = dict[str, Any]

_STUDENT: Settings = {"teacher": "csakd-teacher"}
_UNIVERSAL: Settings = {
    "network": "universal-csakd-student",
    "losses": {"absolute": 1.0},
    "samples": {"shift_px": 0.0, "gain": 0.0, "msi_gain": 0.0, "batch": 4},
}
VARIANTS: dict[str, Settings] = {
    # The first is the recipe itself: a student by itself.
    "student": {},
    "taught": _STUDENT,
    "taught, response alone": _STUDENT | {"distill": {"response": 0.1}},
    "taught, feature alone": _STUDENT | {"distill": {"feature": 0.1}},
    "teacher": {"network": "csakd-teacher"},
    "channel attention": {"options": {"attention": "channel"}},
    "loss: pixel": {"losses": {"pixel": 1.0}},
    "loss: pixel, sam": {"losses": {"pixel": 1.0, "sam": 0.1}},
    "loss: pixel, beba": {"losses": {"pixel": 1.0, "beba": 0.1}},
    "displaced by up to 0.5 px": {"samples": {"shift_px": 0.5}},
    "displaced by up to 1 px": {"samples": {"shift_px": 1.0}},
    "jitter": {"samples": {"gain": 0.1, "msi_gain": 0.02}},
    "no turns": {"samples": {"turns": False}},
    "universal": _UNIVERSAL,
    "universal, taught": _UNIVERSAL | {"teacher": "universal-csakd-teacher"},
    "universal, teacher": _UNIVERSAL | {"network": "universal-csakd-teacher"},
    "universal, 8 planes": _UNIVERSAL | {"options": {"components": 8}},
    "universal, 32 planes": _UNIVERSAL | {"options": {"components": 32}},
    "universal, displaced by up to 1 px": _UNIVERSAL | {"variations": {"shift_px": 1.0}},
}
"""Settings laid over the recipe. Tables of settings are merged; terms of losses and options are taken as a whole."""
METHODS = ("bicubic", "gsa-regressed", "map_subspace")
APART_PX = (0.35, 0.35)
"""Displacement of the HSI down and right in fine pixels, half a pixel in all."""
_WHOLE = {"losses", "distill", "options"}
_MSI = "s2-4"
_SEEN, _THINNED = 0.3, 16
"""Share of a response's largest weight from which a band counts as seen, and of how many unseen ones one is kept."""
_BERLIN = "berlin_urban_gradient/pairA/EnMAP_BerlinUrbanGradient.bsq"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant, or a method without weights, on the scenes held out."""

    name: str
    steps: int
    """Batches learnt from; 0 where nothing is learnt."""
    best_step: int
    """After which of them the weights are."""
    seconds: float
    """Of training in this run."""
    lying: Mapping[str, float]
    """Mean scores as the images lie."""
    apart: Mapping[str, float]
    """Mean scores with the HSI displaced."""


def laid_over(base: Settings, changes: Settings) -> Settings:
    """The settings with changes: tables merged, terms and options replaced."""
    made = dict(base)
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(made.get(key), dict) and key not in _WHOLE
        made[key] = laid_over(made[key], value) if merged else value
    return made


def base_recipe(data: Path, folder: Path) -> Settings:
    """Generated scenes with the bands of the Berlin EnMAP cube, which is held out.

    Parameters
    ----------
    data : Path
        Folder of images, libraries and the cube.
    folder : Path
        The table of bands is written there.
    """
    bands = open_cube(CubeSource(uri=str(data / _BERLIN))).bands
    responses, _ = band_set(_MSI).weights(bands)
    seen = (responses > _SEEN * responses.max(axis=1, keepdims=True)).any(axis=0)
    unseen = np.flatnonzero(bands.good & ~seen)
    kept = np.sort(np.concatenate([np.flatnonzero(bands.good & seen), unseen[::_THINNED]]))
    table = folder / "bands.csv"
    rows = [f"{nm},{fwhm}" for nm, fwhm in zip(bands.center_nm[kept], bands.width_nm()[kept], strict=True)]
    table.write_text("center_nm,fwhm_nm\n" + "\n".join(rows) + "\n")
    bad = ",".join(str(k + 1) for k in np.setdiff1d(np.arange(len(bands)), kept))
    return {
        "network": "csakd-student",
        "held_out": [{"uri": str(data / _BERLIN), "license": "CC-BY-SA-4.0", "bad": bad}],
        "generated": {
            "images": [sources.sentinel2(data), sources.harvard_forest(data)],
            "libraries": [sources.ecostress_library(data)],
            "bands": str(table),
            "count": 12,
            "size_px": 96,
        },
        "simulation": {"ratio": 4, "msi": _MSI, "hsi_snr_db": 35.0, "msi_snr_db": 40.0},
        "variations": {"ratios": [4], "msis": [_MSI], "least_bands": 4, "noise_free": 0.0},
        "samples": {"patch": 12, "batch": 1},
        "rate": 1e-3,
    }


def trained(config: TrainConfig) -> tuple[Path, float]:
    """The weights of a variant and the seconds that they took in this run; one that has learnt its steps is left as it is."""
    started = time.monotonic()
    try:
        return train(config).weights["network"], time.monotonic() - started
    except ExpectedSkip:
        return config.output / f"{config.network}.safetensors", 0.0


def pairs_of(config: TrainConfig) -> tuple[list[SimulatedPair], list[SimulatedPair]]:
    """The scenes held out as pairs, as they lie and with the HSI displaced."""
    lying, apart = [], []
    for k, source in enumerate(config.held_out):
        lying.append(open_ground(source, config.simulation, noise_seed=k).pair)
        moved = displaced(open_ground(source, config.simulation).pair, np.array(APART_PX))
        power = np.nanmean(moved.hsi.astype(np.float64) ** 2, axis=(1, 2))
        noise = white_noise(
            moved.hsi.shape, power, config.simulation.hsi_snr_db, (1,) * len(moved.hsi), np.random.default_rng(k)
        )
        # The MSI and its noise are the same: only the displacement differs.
        apart.append(replace(moved, hsi=(moved.hsi + noise).astype(np.float32), msi=lying[-1].msi))
    return lying, apart


def scored(name: str, pairs: Sequence[SimulatedPair], weights: Path | None, device: str) -> dict[str, float]:
    """Mean scores of a method."""
    found: list[Scores] = [score(fuse_whole(name, pair, weights=weights, device=device).image, pair) for pair in pairs]
    keys = ("psnr_db", "sam_deg", "ergas")
    return {key: float(np.mean([getattr(each, key) for each in found])) for key in keys}


def rows(base: Settings, output: Path, names: Sequence[str], *, steps: int, device: str) -> Iterator[Row]:
    """Methods without weights, then every variant as soon as it is trained."""
    common = laid_over(base, {"steps": steps, "every": max(1, steps // 8), "device": device})
    first = TrainConfig.model_validate(common | {"output": output / "student"})
    lying, apart = pairs_of(first)
    for name in METHODS:
        yield Row(
            name=name, steps=0, best_step=0, seconds=0.0,
            lying=scored(name, lying, None, device), apart=scored(name, apart, None, device),
        )  # fmt: skip
    for name in names:
        folder = "".join(letter if letter.isalnum() else "-" for letter in name)
        config = TrainConfig.model_validate(laid_over(common, VARIANTS[name]) | {"output": output / folder})
        weights, seconds = trained(config)
        yield Row(
            name=name,
            steps=steps,
            best_step=int(read_card(weights).training["best_step"]),
            seconds=seconds,
            lying=scored(config.network, lying, weights, device),
            apart=scored(config.network, apart, weights, device),
        )


def shown(found: Sequence[Row]) -> str:
    """The table so far; scores of variants with what they differ from the first."""
    base = next((row for row in found if row.steps), None)
    lines = [f"{'variant':36}{'best':>7}{'s':>7}   {'as they lie: dB, deg':^34}{'half a pixel off: dB, deg':^34}"]
    for row in found:
        cells = []
        for place in ("lying", "apart"):
            here, there = getattr(row, place), None if base is None else getattr(base, place)
            for key, digits in (("psnr_db", 2), ("sam_deg", 3)):
                apart = "" if there is None or not row.steps else f"{here[key] - there[key]:+.{digits}f}"
                cells.append(f"{here[key]:8.{digits}f} {apart:>7}")
        lines.append(f"{row.name:36}{row.best_step or '':>7}{row.seconds:7.0f}   {' '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the images, libraries and cubes")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="settings of a training to lay the variants over")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the trainings")
    parser.add_argument("--steps", type=int, default=2000, metavar="N")
    parser.add_argument("--only", metavar="A;B", help="variants, separated by semicolons (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the variants and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {json.dumps(changes)}" for name, changes in VARIANTS.items()))
        return
    if options.output is None or (options.data is None and options.recipe is None):
        parser.error("--output, and --data or --recipe, are needed")
    names = [name.strip() for name in options.only.split(";")] if options.only else [*VARIANTS]
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"no variant {unknown[0]!r}; --list tells them")
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    base = yaml.safe_load(options.recipe.read_text()) if options.recipe else base_recipe(options.data, options.output)
    found: list[Row] = []
    try:
        for row in rows(base, options.output, names, steps=options.steps, device=options.device):
            found.append(row)
            record = {
                "recipe": base,
                "variants": {name: VARIANTS[name] for name in names},
                "rows": [vars(r) for r in found],
            }
            write_atomic(options.output / "ablations.json", json.dumps(record, indent=2))
            print(f"{row.name}: {row.lying['psnr_db']:.2f} dB, {row.lying['sam_deg']:.3f} deg", flush=True)
    except HyperFuseError as error:
        raise SystemExit(f"ablations: {error}") from error
    print(shown(found))


if __name__ == "__main__":
    main()
