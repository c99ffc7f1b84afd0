"""How often the truth lies within 90 % intervals: `python -m tests.benchmarks.uncertainty`.

    split     fitted and calibrated against the truth on three quadrants of the scene, tested on the fourth: worst and best
    reduced   the same at reduced resolution, where the HSI is the truth: what a product records as its coverage
    full      calibrated at reduced resolution, scaled by the gap, tested against the truth: what users get

The mean of `split` and of `reduced` over the quadrants is 90 % but for chance, their range is how unlike the quadrants are; `full` is as good as errors at one scale tell of those at the other.
Scenes that are too small for a trial at reduced resolution have the guessed scale, and are marked with a question mark.
The cubes of shared/data are simulated as in the preset real-R with noise of 35 dB (HSI) and 40 dB (MSI).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from catalogs.errors import HyperFuseError
from catalogs.sensors import Source, open_scene, sigma_from_mtf
from models import Observed
from pipeline.evaluate import fuse_whole
from pipeline.presets import CUBES, cube_trials, within
from pipeline.simulate import Protocol, SimulatedPair
from pipeline.uncertainty import (
    Calibration,
    NotCalibrated,
    Z,
    activity,
    calibrate,
    filled,
    guessed,
    sparsification,
    standard_error,
)
from pipeline.wald import OWN_BANDS, degraded_pair
from tests.synthetic import DATA, scene, whole

RECIPES = ("size=384&ratio=4&bands=60&seed=5", "size=384&ratio=4&bands=60&seed=9&msi=6&snr_hsi=35&snr_msi=40")
RATIOS = (2, 4)
NOISE_DB = (35.0, 40.0)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of one method on one scene."""

    split: tuple[float, float]
    """Against the truth, on the quadrants that fare worst and best by a fit to the others."""
    reduced: tuple[float, float] | None
    """The same at reduced resolution; None if the scene is too small."""
    gap: float
    """Factor from errors at reduced to those at full resolution that was taken."""
    found_gap: float | None
    """The factor that would have been right: of the root mean square errors."""
    full: float
    """Against the truth, calibrated at reduced resolution."""
    groups: tuple[float, float]
    """The same of the groups of bands that fare worst and best."""
    width: float
    """Mean width of the intervals over the root mean square of the truth."""
    ause: float
    """Area between the sparsification curves at full resolution."""


def synthetic(recipe: str) -> SimulatedPair:
    """A synthetic pair with its truth, whole."""
    hsi, msi, truth = (whole(scene(role, recipe)) for role in ("hsi", "msi", "truth"))
    scenes = [open_scene(Source(uri=f"synthetic:{role}?{recipe}")) for role in ("hsi", "msi")]
    weights, _ = scenes[0].bands.srf(scenes[1].bands)
    ratio = truth.shape[1] // hsi.shape[1]
    return SimulatedPair(
        name="synthetic", truth=truth, hsi=hsi, msi=msi,
        observed=Observed(
            hsi_bands=len(hsi), msi_bands=len(msi), ratio=ratio, psf_sigma_px=sigma_from_mtf(0.3, ratio),
            srf=tuple(tuple(float(w) for w in row) for row in weights),
        ),
    )  # fmt: skip


def reduced(pair: SimulatedPair) -> SimulatedPair:
    """The pair degraded by its own ratio."""
    ratio = pair.observed.ratio
    rows, cols = (size // ratio * ratio for size in pair.hsi.shape[1:])
    protocol = Protocol(ratio=ratio, msi=OWN_BANDS, hsi_snr_db=None, msi_snr_db=None)
    hsi, msi = pair.hsi[:, :rows, :cols].copy(), pair.msi[:, : rows * ratio, : cols * ratio].copy()
    return degraded_pair(hsi, msi, protocol, name=pair.name, srf=np.array(pair.observed.srf))


def coverage(pair: SimulatedPair, name: str) -> Coverage:
    """Calibrate on the pair as a product does, and hold the intervals against the truth."""
    seen = pair.observed
    fused = fuse_whole(name, pair).image
    rim = pair.rim_px * seen.ratio
    inside = (..., slice(rim, -rim), slice(rim, -rim))
    error = np.abs(fused - pair.truth)[inside]
    shown = np.isfinite(error).all(axis=0)
    found_gap: float | None = None
    try:
        trial = reduced(pair)
        small = fuse_whole(name, trial).image
        rows, cols = (size * seen.ratio for size in trial.truth.shape[1:])
        used: Calibration = calibrate(trial, small, pair.msi[:, :rows, :cols])
        low = (small - trial.truth)[inside] * trial.unit
        found_gap = float(np.sqrt(np.mean(error[:, shown] ** 2) / np.nanmean(low**2)))
    except (NotCalibrated, HyperFuseError) as why:
        used = guessed(pair.hsi, pair.msi, fused, ratio=seen.ratio, psf_sigma_px=seen.psf_sigma_px, reason=str(why))
    active = activity(filled(pair.msi), used.energy, seen.ratio, seen.psf_sigma_px)
    scale = standard_error(used, active)[inside][:, shown]
    error = error[:, shown]
    within = error <= Z * scale
    groups = [float(within[group.first : group.last].mean()) for group in used.groups]
    return Coverage(
        split=calibrate(pair, fused, pair.msi).coverage_range or (0.0, 0.0),
        reduced=used.coverage_range,
        gap=used.gap,
        found_gap=found_gap,
        full=float(within.mean()),
        groups=(min(groups), max(groups)),
        width=float(2 * Z * scale.mean() / np.sqrt(np.nanmean(pair.truth**2))),
        ause=sparsification(np.sqrt((scale**2).mean(axis=0)), np.sqrt((error**2).mean(axis=0))),
    )


def scenes(data: Path) -> Iterator[tuple[str, SimulatedPair]]:
    """Every scene with its name."""
    for recipe in RECIPES:
        yield f"x4 synthetic {recipe.split('seed=')[1]}", synthetic(recipe)
    if not data.is_dir():
        print(f"{data}: no such folder, so no cubes")
        return
    for ratio in RATIOS:
        # Ratio 2 is no preset of its own; there every cube is large enough to be degraded twice.
        protocol = Protocol(ratio=ratio, hsi_snr_db=NOISE_DB[0], msi_snr_db=NOISE_DB[1])
        for name, source in CUBES.items():
            if (data / source.uri).parent.is_dir():
                (trial,) = cube_trials(within(data, source), [protocol], name=name)
                yield f"x{ratio} {name}", trial.make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["bicubic", "gsa", "map_subspace"], metavar="METHOD")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{'scene':<42} {'method':<13} {'split':>12} {'reduced':>12} {'full':>5} {'by groups':>12} {'gap':>5} {'found':>6} "
        f"{'width':>6} {'AUSE':>5}"
    )
    found: dict[str, list[Coverage]] = {}
    for name, pair in scenes(options.data):
        for method in options.methods:
            one = coverage(pair, method)
            kind = "synthetic" if "synthetic" in name else "guessed for" if one.reduced is None else "calibrated for"
            found.setdefault(f"{method}, {kind}", []).append(one)
            gap = "?" if one.found_gap is None else f"{one.found_gap:.2f}"
            print(
                f"{name:<42} {method:<13} {_span(one.split):>12} {_span(one.reduced):>12} {100 * one.full:5.1f} "
                f"{_span(one.groups):>12} {one.gap:5.2f} {gap:>6} {one.width:6.3f} {one.ause:5.2f}",
                flush=True,
            )
    for kind, rows in sorted(found.items()):
        full = [100 * one.full for one in rows]
        print(f"{kind} {len(rows)} scenes: full {np.mean(full):.1f} ({min(full):.1f} to {max(full):.1f})")


def _span(shares: tuple[float, float] | None) -> str:
    return "?" if shares is None else f"{100 * shares[0]:.1f} to {100 * shares[1]:.1f}"


if __name__ == "__main__":
    main()
