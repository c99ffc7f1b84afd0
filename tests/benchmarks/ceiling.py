"""How much of what the default leaves can be learnt at all: `python -m tests.benchmarks.ceiling --data DIR`.

A learnt residual is a guess from the surroundings of a pixel in both images. Here the guess is taught by what no user has,
the truth of the very scene: whole blocks of it are held back, the rest is learnt from, and so for each fourth of the blocks in
turn. What this brings on the blocks held back tells how much of the residual such a learner can know where it has seen the
scene. It is no proof of what others could, since a cube is little to learn from: two learners, both small for that reason:

    filter   3 x 3 linear filters of the MSI, all bands to each plane: what displaced and less sharp bands ask for
    core     `universal-plain`, going on from its shipped weights

Beside them: the shipped weights as they are, which have seen no such truth, and the default with its first planes' residual
known exactly, which no learner reaches because sensors have noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.models import ModelSpec, method, universal
from hyperfuse.models.weights_io import load_weights
from hyperfuse.pipeline.evaluation.presets import CUBES, cube_trials, within
from hyperfuse.pipeline.fusion.weights import shipped_weights
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.trials import fuse_whole, score
from hyperfuse.pipeline.training.adapt.fit import CHOOSING, DECIDING, LEARNT, AdaptSettings, Fitting
from hyperfuse.pipeline.training.planes import Exercise, exercise

NETWORK = "universal-plain"
FOLDS = 4
_BLOCK_COARSE_PX = 3
_RIDGE = 1e-8
"""Of the filters' normal equations, relative to their mean diagonal."""

Planes = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cube: PSNR (dB) and spectral angle (degrees) of each."""

    cube: str
    scores: dict[str, tuple[float, float]]


def folds(pair: SimulatedPair) -> NDArray[np.int64]:
    """To which fourth each fine pixel belongs, shape (y, x): whole blocks, no two neighbors alike."""
    height, width = pair.truth.shape[1:]
    edge = _BLOCK_COARSE_PX * pair.observed.ratio
    down, right = np.arange(height) // edge, np.arange(width) // edge
    # Steps of 2 down and 1 to the right reach all fourths, and differ for neighbors, diagonal ones too.
    return (2 * down[:, None] + right[None, :]) % FOLDS


def by_filters(msi: NDArray[np.float32], residual: Planes, fold: NDArray[np.int64]) -> Planes:
    """Residuals guessed by 3 x 3 filters, each fourth of the blocks by those of the others.

    Parameters
    ----------
    msi : ndarray, shape (c, y, x)
    residual : ndarray, shape (P, y, x)
    fold : ndarray, shape (y, x)
    """
    even = (msi - msi.mean(axis=(1, 2), keepdims=True)) / msi.std(axis=(1, 2), keepdims=True)
    wide = np.pad(even, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    height, width = fold.shape
    seen = [wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    around = np.concatenate([*seen, np.ones((1, height, width))]).astype(np.float64)  # (9 c + 1, y, x)
    guess = np.zeros_like(residual)
    for k in range(FOLDS):
        x, y = around[:, fold != k], residual[:, fold != k].astype(np.float64)
        normal = x @ x.T
        normal += _RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
        guess[:, fold == k] = np.linalg.solve(normal, x @ y.T).T @ around[:, fold == k]
    return guess


def by_core(
    pair: SimulatedPair,
    spec: ModelSpec,
    shown: Exercise,
    fold: NDArray[np.int64],
    start: dict[str, torch.Tensor],
    *,
    steps: int,
) -> Planes:
    """Residuals guessed by the core, each fourth of the blocks by what it learnt of the others."""
    guess = np.zeros(shown.residual.shape, np.float32)
    settings = AdaptSettings(minutes=1e3, most_steps=steps, patch=_patch(pair))
    for k in range(FOLDS):
        part = np.full(fold.shape, LEARNT, np.int8)
        part[fold == k] = DECIDING
        edge = _BLOCK_COARSE_PX * pair.observed.ratio
        # Every second row of blocks of the next fourth chooses among the steps.
        part[(fold == (k + 1) % FOLDS) & (np.arange(len(fold)) // edge % 2 == 0)[:, None]] = CHOOSING
        learner = Fitting(shown, part, spec=spec, start=start, settings=settings, device="cpu")
        for _ in learner.steps():
            pass
        found = guessed(spec, shown, learner.best)
        guess[:, fold == k] = found[:, fold == k]
    return guess


@torch.inference_mode()
def guessed(spec: ModelSpec, shown: Exercise, weights: dict[str, torch.Tensor]) -> Planes:
    """The core's residuals of a whole pair."""
    core = universal.build_core(spec, weights)
    found: Planes = core(shown.coarse.float()[None], shown.fine.float()[None])[0].numpy()
    return found


def row(name: str, pair: SimulatedPair, *, steps: int) -> Row:
    """All of one cube."""
    spec, start = method(NETWORK).specify(pair.observed), load_weights(cast("Path", shipped_weights(NETWORK)))
    shown = exercise(pair, spec, _patch(pair))
    residual, fold = shown.residual.float().numpy(), folds(pair)
    spectra = shown.spectra.numpy()  # (C, P)
    estimate = fuse_whole("map_subspace", pair).image

    def of(guess: Planes) -> tuple[float, float]:
        found = score((estimate + np.einsum("cp,pyx->cyx", spectra[:, : len(guess)], guess)).astype(np.float32), pair)
        return found.psnr_db, found.sam_deg

    asked = score(estimate, pair)
    return Row(
        cube=name,
        scores={
            "map_subspace": (asked.psnr_db, asked.sam_deg),
            NETWORK: of(guessed(spec, shown, start)),
            "filter": of(by_filters(pair.msi, residual, fold)),
            "core": of(by_core(pair, spec, shown, fold, start, steps=steps)),
            "1 plane known": of(residual[:1]),
            f"{len(residual)} planes known": of(residual),
        },
    )


def _patch(pair: SimulatedPair) -> int:
    """Edge of a patch in coarse pixels: no more than the scene."""
    return min(8, *pair.hsi.shape[1:])


def rows(data: Path, cubes: Sequence[str], *, ratio: int, steps: int) -> Iterator[Row]:
    """One cube after the other."""
    protocol = Protocol(ratio=ratio, msi="s2-4", hsi_snr_db=35.0, msi_snr_db=40.0)
    for name in cubes:
        (trial,) = cube_trials(within(data, CUBES[name]), [protocol], name=name)
        yield row(name, trial.make(), steps=steps)


def mean(found: Sequence[Row]) -> Row:
    """Of all cubes."""
    scores = {
        key: cast("tuple[float, float]", tuple(np.mean([each.scores[key] for each in found], axis=0).tolist()))
        for key in found[0].scores
    }
    return Row(cube="mean", scores=scores)


def shown(each: Row) -> str:
    """A cube's line: the default as it is, and what the others bring."""
    (psnr_db, sam_deg), *others = each.scores.values()
    cells = "".join(f"  {db - psnr_db:+7.2f} {deg - sam_deg:+7.3f}" for db, deg in others)
    return f"{each.cube:18}{psnr_db:8.2f} {sam_deg:6.3f}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the cubes")
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help="batches that the core learns from, for each fourth")
    parser.add_argument("--only", metavar="A,B", help="cubes (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*CUBES]
    if unknown := [name for name in names if name not in CUBES]:
        parser.error(f"no cube {unknown[0]!r}; choose of {', '.join(CUBES)}")
    torch.set_num_threads(1)
    found: list[Row] = []
    try:
        for each in rows(options.data, names, ratio=options.ratio, steps=options.steps):
            if not found:
                print(f"{'cube':18}" + "".join(f"{key:>17}" for key in each.scores) + "   (dB, deg)")
            found.append(each)
            print(shown(each), flush=True)
    except HyperFuseError as error:
        raise SystemExit(f"ceiling: {error}") from error
    print(shown(mean(found)))
    if options.json is not None:
        write_atomic(options.json, json.dumps([vars(each) for each in found], indent=2))


if __name__ == "__main__":
    main()
