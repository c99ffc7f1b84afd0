"""What universal networks learn from: scenes as many pairs, the estimate of each, and what it is short of.

    scene  ->  pair by draws of ratio, MSI, noise, displacement  ->  estimate  ->  planes and residual, kept in memory
    number ->  patch of one of them, turned

Every draw follows from a seed and a number, so that who resumes gets the same pairs and the same patches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.models import ModelSpec, method
from hyperfuse.models.operators import blur_reach
from hyperfuse.models.universal import Universal
from hyperfuse.pipeline.fusion.windows import PairInMemory, scene_sums
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import Cube, SimulatedPair, simulate
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.training.generated.structure import turned
from hyperfuse.pipeline.training.pairs import Ground
from hyperfuse.pipeline.training.patches import TrainingSample, displaced_psf, white_noise, whole_corners
from hyperfuse.pipeline.training.settings import SampleConfig, VariationConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Exercise:
    """A pair, with what the estimate makes of it."""

    name: str
    """Of the scene."""
    ratio: int
    coarse: torch.Tensor
    """`models.universal.Planes.coarse`, shape (P, h, w), float16."""
    fine: torch.Tensor
    """`models.universal.Planes.fine`, shape (3 P, H, W), float16."""
    residual: torch.Tensor
    """What a network should give, shape (P, H, W), float16; 0 where it is not known."""
    spectra: torch.Tensor
    """Of a residual of 1 in each plane, in the HSI's unit, shape (C, P)."""
    corners: NDArray[np.int64]
    """First coarse pixels (row, column) of patches without a hole, shape (n, 2)."""


class Residuals(Dataset[TrainingSample]):
    """All patches of some exercises by number, without end; those of one batch have one ratio.

    Parameters
    ----------
    exercises : sequence of Exercise
    config : SampleConfig
    seed : int

    Raises
    ------
    InputRejected
        If no exercise holds a patch without a hole.
    """

    def __init__(self, exercises: Sequence[Exercise], config: SampleConfig, *, seed: int) -> None:
        self._config, self._seed = config, seed
        self._exercises = [exercise for exercise in exercises if len(exercise.corners)]
        if not self._exercises:
            raise InputRejected(
                f"no scene holds a patch of {config.patch} x {config.patch} coarse pixels without a hole at any of the "
                "ratios; choose a smaller samples.patch, smaller ratios or larger scenes"
            )
        self._places = np.array([len(exercise.corners) for exercise in self._exercises])
        self._ratios = np.array([exercise.ratio for exercise in self._exercises])

    def __getitem__(self, number: int) -> TrainingSample:
        """The patch of a number, from 0 on."""
        # The ratio is the batch's own draw, since patches of two ratios do not stack.
        batch = np.random.default_rng((self._seed, 1, number // self._config.batch))
        ratio = batch.choice(self._ratios, p=self._places / self._places.sum())
        alike = np.flatnonzero(self._ratios == ratio)
        rng = np.random.default_rng((self._seed, 0, number))
        exercise = self._exercises[rng.choice(alike, p=self._places[alike] / self._places[alike].sum())]
        row, col = exercise.corners[rng.integers(len(exercise.corners))]
        turn = int(rng.integers(8)) if self._config.turns else 0

        def cut(image: torch.Tensor, rate: int) -> torch.Tensor:
            rows, cols = (slice(at * rate, (at + self._config.patch) * rate) for at in (row, col))
            patch = turned(image[:, rows, cols].numpy(), turn)
            return torch.from_numpy(np.ascontiguousarray(patch, np.float32))

        coarse, ratio = cut(exercise.coarse, 1), exercise.ratio
        return TrainingSample(coarse, coarse, cut(exercise.fine, ratio), cut(exercise.residual, ratio))


def exercises(
    grounds: Sequence[Ground],
    network: str,
    config: VariationConfig,
    samples: SampleConfig,
    *,
    seed: int,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[Exercise]:
    """Several pairs of each scene, with their estimates; one that cannot be made is told and left out.

    Parameters
    ----------
    grounds : sequence of Ground
        Free of noise.
    network : str
        Universal network, which says how many planes there are.
    config : VariationConfig
    samples : SampleConfig
    seed : int
    options : mapping, optional
        Of the network's architecture.
    progress : Progress
    """
    found = []
    for index, ground in enumerate(grounds):
        for draw in range(config.pairs):
            try:
                pair = drawn(ground, config, np.random.default_rng((seed, 2, index, draw)))
                spec = method(network).specify(pair.observed, **(options or {}))
                found.append(exercise(pair, spec, samples.patch))
            except (InputRejected, ExpectedSkip, ValueError) as error:
                log.warning("%s: nothing is learnt from pair %d of it: %s", ground.pair.name, draw + 1, error)
            progress("pairs", index * config.pairs + draw + 1, len(grounds) * config.pairs)
    return found


@torch.inference_mode()
def exercise(pair: SimulatedPair, spec: ModelSpec, patch: int) -> Exercise:
    """The estimate of a whole pair, as a core sees it, and what it is short of.

    Raises
    ------
    ValueError
        If the scene has too few valid pixels.
    """
    chosen = method(spec.name)
    windows = PairInMemory(pair, spec)
    window = windows.read(windows.whole)
    hsi, msi, masks = window.hsi, window.msi, window.masks
    model = chosen.build(spec, scene_sums(windows, chosen.first_pass(spec)))
    assert isinstance(model, Universal)  # noqa: S101 (the caller's choice)
    parts = model.base.parts(hsi, msi, *masks)
    seen = model.planes(parts, *masks)
    height, width = pair.truth.shape[1:]
    short = torch.from_numpy(pair.truth)[None] - model.base.spectra(hsi, parts, masks[0])[..., :height, :width]
    rows, cols = pair.hsi.shape[1:]
    return Exercise(
        name=pair.name,
        ratio=pair.observed.ratio,
        coarse=seen.coarse[0, :, :rows, :cols].half(),
        fine=seen.fine[0, :, :height, :width].half(),
        residual=model.residual(short.nan_to_num())[0].half(),
        spectra=model.scale * model.axes,
        corners=whole_corners(pair, patch),
    )


def drawn(ground: Ground, config: VariationConfig, rng: np.random.Generator) -> SimulatedPair:
    """A pair of a scene: another ratio, MSI, displacement and noise each time; a real MSI loses bands at most.

    Raises
    ------
    InputRejected
        If no such pair can be made of the scene.
    """
    # All draws are made whatever the settings, so that to switch one off does not change the others.
    ratio, msi = int(rng.choice(config.ratios)), str(rng.choice(config.msis))
    move = config.shift_px * rng.uniform(-1, 1, 2)
    clean = rng.uniform() < config.noise_free
    hsi_snr_db, msi_snr_db = (float(rng.uniform(*ends)) for ends in (config.hsi_snr_db, config.msi_snr_db))
    gains = 1.0 + config.msi_gain * rng.uniform(-1, 1, 64)
    share, order = rng.uniform(), rng.permutation(64)
    pair = ground.pair
    if not ground.real:
        assert ground.cube is not None  # noqa: S101 (simulated from it)
        protocol = Protocol(ratio=ratio, msi=msi, hsi_snr_db=None, msi_snr_db=None, mtf_nyquist=config.mtf_nyquist)
        pair = simulate(ground.cube, protocol)
        noise = (None, None) if clean else (hsi_snr_db, msi_snr_db)
        pair = _noisy(displaced(pair, move), gains, noise, rng)
    n_bands = pair.observed.msi_bands
    n_kept = n_bands - int(share * max(n_bands - config.least_bands + 1, 1))
    return _with_bands(pair, sorted(int(k) for k in order[order < n_bands][:n_kept]))


def displaced(pair: SimulatedPair, move: NDArray[np.float64]) -> SimulatedPair:
    """The HSI's centers moved down and right by fractions of fine pixels; its holes stay."""
    if not move.any():
        return pair
    ratio, sigma_px = pair.observed.ratio, pair.observed.psf_sigma_px
    margin = blur_reach(ratio, sigma_px) + 1
    mean = np.nan_to_num(np.nanmean(pair.truth, axis=(1, 2), keepdims=True))
    filled = np.where(np.isnan(pair.truth), mean, pair.truth).astype(np.float32)
    wide = np.pad(filled, ((0, 0), *2 * ((margin, margin),)), mode="symmetric")
    down, right = (
        displaced_psf(size, ratio, sigma_px, margin, float(by))
        for size, by in zip(pair.hsi.shape[1:], move, strict=True)
    )
    moved = np.where(np.isnan(pair.hsi), np.float32(np.nan), down @ wide @ right.T)
    return replace(pair, hsi=np.asarray(moved, np.float32))


def _noisy(
    pair: SimulatedPair,
    gains: NDArray[np.float64],
    snr_db: tuple[float | None, float | None],
    rng: np.random.Generator,
) -> SimulatedPair:
    """Gains of the MSI's bands, and noise on both images."""

    def add(image: Cube, level: float | None, steps: Sequence[int]) -> Cube:
        power = np.nanmean(image.astype(np.float64) ** 2, axis=(1, 2))
        return np.asarray(image + white_noise(image.shape, power, level, steps, rng), np.float32)

    hsi = add(pair.hsi, snr_db[0], (1,) * len(pair.hsi))
    msi = pair.msi * gains[: len(pair.msi), None, None].astype(np.float32)
    return replace(pair, hsi=hsi, msi=add(msi, snr_db[1], pair.observed.steps))


def _with_bands(pair: SimulatedPair, bands: list[int]) -> SimulatedPair:
    """The pair with these bands of its MSI alone."""
    seen = pair.observed
    observed = replace(
        seen,
        msi_bands=len(bands),
        srf=tuple(seen.srf[k] for k in bands if seen.srf),
        msi_steps=tuple(seen.msi_steps[k] for k in bands if seen.msi_steps),
        msi_sigma_px=tuple(seen.msi_sigma_px[k] for k in bands if seen.msi_sigma_px),
    )
    return replace(pair, msi=np.ascontiguousarray(pair.msi[bands]), observed=observed)
