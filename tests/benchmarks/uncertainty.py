"""How often the truth lies within 90 % intervals: `python -m tests.benchmarks.uncertainty`.

    split     fitted and calibrated against the truth on three quadrants of the scene, tested on the fourth: worst and best
    reduced   the same at reduced resolution, where the HSI is the truth: what a product records as its coverage
    full      calibrated at reduced resolution, scaled by the gap, tested against the truth: what users get

The mean of `split` and of `reduced` over the quadrants is 90 % but for chance, their range is how unlike the quadrants are;
`full` is as good as errors at one scale tell of those at the other. Nothing is learned from one scene for another, so no scene
was used for the intervals of any but itself, and its truth for none. Scenes that are too small for a trial at their ratio are
calibrated at a smaller one (`at`); where even 2 is too much they have a guessed scale, and a question mark.

The cubes of shared/data are simulated as in the preset real-R with noise of 35 dB (HSI) and 40 dB (MSI). They were measured
themselves, so the truth has noise that no method can know of: `full` holds the errors against the standard error and that
noise, by a factor analysis of the truth, in quadrature; `raw` against the standard error alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.sensors import Source, open_scene, sigma_from_mtf
from hyperfuse.models import Observed
from hyperfuse.pipeline.evaluation.presets import CUBES, cube_trials, within
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.msi_detail import F32, activity, filled
from hyperfuse.pipeline.quality.reduced_resolution import OWN_BANDS, degraded_pair
from hyperfuse.pipeline.quality.rehearsal import Rehearsal, rehearse, without_noise
from hyperfuse.pipeline.quality.trials import fuse_whole
from hyperfuse.pipeline.quality.uncertainty import (
    Calibration,
    FullResolution,
    Z,
    calibrate,
    guessed,
    sparsification,
    standard_error,
)
from tests import DATA
from tests.synthetic import scene, whole

RECIPES = ("size=384&ratio=4&bands=60&seed=5", "size=384&ratio=4&bands=60&seed=9&msi=6&snr_hsi=35&snr_msi=40")
RATIOS = (2, 3, 4)
NOISE_DB = (35.0, 40.0)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of one method on one scene."""

    split: tuple[float, float]
    """Against the truth, on the quadrants that fare worst and best by a fit to the others."""
    reduced: tuple[float, float] | None
    """The same at reduced resolution; None if the scene is too small."""
    ratio: int | None
    """That of what was fused at reduced resolution."""
    gap: float
    """Factor from errors at reduced to those at full resolution that was taken, mean over bands, where noise has no part in them ..."""
    noise_share: float
    """... and the part that it has."""
    full: float
    """Against the truth, calibrated at reduced resolution; the noise that the truth has itself is allowed for."""
    measured: float
    """The same as if the truth had none."""
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


def calibrated(pair: SimulatedPair, name: str, fused: F32) -> Calibration:
    """The calibration that a product of the pair would have."""
    full, reason = FullResolution.of(pair.hsi, pair.msi, [fused], pair.observed), ""
    for ratio in range(pair.observed.ratio, 1, -1):
        try:
            used = rehearse(reduced(pair, ratio), pair.msi, pair.observed, lambda trial: fuse_whole(name, trial).image)
            return calibrate(used, full)
        except (HyperFuseError, ValueError) as error:
            reason = reason or str(error)
    return guessed(full, reason=reason)


def reduced(pair: SimulatedPair, ratio: int) -> SimulatedPair:
    """The pair with its HSI degraded by a ratio, and its MSI brought to the HSI's pixels."""
    step = pair.observed.ratio
    rows, cols = (size // ratio * ratio for size in pair.hsi.shape[1:])
    protocol = Protocol(ratio=ratio, msi=OWN_BANDS, hsi_snr_db=None, msi_snr_db=None)
    hsi, msi = pair.hsi[:, :rows, :cols].copy(), pair.msi[:, : rows * step, : cols * step].copy()
    return degraded_pair(hsi, msi, protocol, name=pair.name, srf=np.array(pair.observed.srf), step=step)


def coverage(pair: SimulatedPair, name: str) -> Coverage:
    """Calibrate on the pair as a product does, and hold the intervals against the truth."""
    seen = pair.observed
    fused = fuse_whole(name, pair).image
    used = calibrated(pair, name, fused)
    against = Rehearsal.of(pair, fused)
    inside = (..., *against.inside)
    error = np.abs(fused - pair.truth)[inside]
    shown = np.isfinite(error).all(axis=0)
    active = activity(filled(pair.msi), used.energy, seen.ratio, seen.psf_sigma_px)
    scale, error = standard_error(used, active)[inside][:, shown], error[:, shown]
    _, noise = without_noise(pair.truth)
    within = error <= Z * np.hypot(scale, noise[:, None])
    groups = [float(within[group.first : group.last].mean()) for group in used.groups]
    split = calibrate(against, FullResolution.of(pair.hsi, pair.msi, [fused], seen))
    return Coverage(
        split=split.coverage_range or (0.0, 0.0),
        reduced=used.coverage_range,
        ratio=used.ratio,
        gap=float(np.mean(used.gap)),
        noise_share=float(np.mean(used.noise_share)),
        full=float(within.mean()),
        measured=float((error <= Z * scale).mean()),
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
        # Ratio 2 is no preset of its own; there every cube is large enough to be degraded twice, at 4 two are.
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
        f"{'scene':<42} {'method':<13} {'split':>12} {'at':>2} {'reduced':>12} {'full':>5} {'raw':>5} {'by groups':>12} "
        f"{'gap':>5} {'noise':>5} {'width':>6} {'AUSE':>5}"
    )
    found: dict[str, list[Coverage]] = {}
    for name, pair in scenes(options.data):
        for method in options.methods:
            one = coverage(pair, method)
            kind = "synthetic" if "synthetic" in name else f"cubes at {name[:2]}"
            found.setdefault(f"{method}, {kind}", []).append(one)
            print(
                f"{name:<42} {method:<13} {_span(one.split):>12} {one.ratio or '?':>2} {_span(one.reduced):>12} "
                f"{100 * one.full:5.1f} {100 * one.measured:5.1f} {_span(one.groups):>12} {one.gap:5.2f} "
                f"{one.noise_share:5.2f} {one.width:6.3f} {one.ause:5.2f}",
                flush=True,
            )
    for kind, rows in sorted(found.items()):
        full, raw = (
            [100 * share for share in shares] for shares in zip(*((r.full, r.measured) for r in rows), strict=True)
        )
        print(
            f"{kind}, {len(rows)}: full {np.mean(full):.1f} ({min(full):.1f} to {max(full):.1f}), "
            f"{sum(88 <= share <= 92 for share in full)} within 88 to 92; raw {np.mean(raw):.1f} ({min(raw):.1f} to {max(raw):.1f})"
        )


def _span(shares: tuple[float, float] | None) -> str:
    return "?" if shares is None else f"{100 * shares[0]:.1f} to {100 * shares[1]:.1f}"


if __name__ == "__main__":
    main()
