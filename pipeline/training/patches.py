"""Patches of pairs, each a function of the seed and its number alone: whoever resumes gets the same ones.

    truth  ->  window, gain, turn                                                  target
    truth  ->  Gaussian PSF about displaced centers, gain, turn, noise             HSI (drawn twice: see `TrainingSample.again`)
    MSI    ->  window, gain, gain of each band, turn, noise                        MSI

The HSI is displaced within its own blur, by moving the centers of its pixels, so that nothing is interpolated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.models.operators import blur_reach
from hyperfuse.pipeline.observation.psf import gaussian_taps
from hyperfuse.pipeline.observation.simulate import Cube, SimulatedPair
from hyperfuse.pipeline.training.generated.structure import turned
from hyperfuse.pipeline.training.pairs import Ground
from hyperfuse.pipeline.training.settings import SampleConfig, SimulationConfig

log = logging.getLogger(__name__)


class TrainingSample(NamedTuple):
    """A patch, or a batch of them with a first axis more, float32 in the range that networks are trained in."""

    hsi: torch.Tensor
    """Shape (C, h, w)."""
    again: torch.Tensor
    """The same with another draw of the noise, for a student beside its teacher."""
    msi: torch.Tensor
    """Shape (c, h * ratio, w * ratio)."""
    truth: torch.Tensor
    """Shape (C, h * ratio, w * ratio)."""


class Samples(Dataset[TrainingSample]):
    """All patches of some scenes by number, without end.

    Parameters
    ----------
    grounds : sequence of Ground
        Free of noise.
    config : SampleConfig
    simulation : SimulationConfig
        Ratio and noise.
    seed : int

    Raises
    ------
    InputRejected
        If no scene holds a patch without a hole.
    """

    def __init__(
        self, grounds: Sequence[Ground], config: SampleConfig, simulation: SimulationConfig, *, seed: int
    ) -> None:
        self._config, self._simulation, self._seed = config, simulation, seed
        self._fields = [_Field(ground, config) for ground in grounds]
        for ground, field in zip(grounds, self._fields, strict=True):
            if not len(field.corners):
                log.warning("%s: holds no whole patch; nothing is learnt from it", ground.pair.name)
        # Every place is as likely as any other, so that a large scene counts for more than a small one.
        self._ends = np.cumsum([len(field.corners) for field in self._fields])
        if self._ends[-1] == 0:
            sizes = ", ".join(f"{g.pair.name} {g.pair.hsi.shape[1]} x {g.pair.hsi.shape[2]}" for g in grounds)
            raise InputRejected(
                f"no scene holds a patch of {config.patch} x {config.patch} coarse pixels without a hole (coarse pixels: "
                f"{sizes}); choose a smaller samples.patch or larger scenes"
            )

    def __getitem__(self, number: int) -> TrainingSample:
        """The patch of a number, from 0 on."""
        rng = np.random.default_rng((self._seed, number))
        place = int(rng.integers(self._ends[-1]))
        which = int(np.searchsorted(self._ends, place, side="right"))
        field = self._fields[which]
        row, col = (int(at) for at in field.corners[place - self._ends[which]])
        # These draws are made whatever the settings, so that to switch one off does not change the others.
        turn, gain = int(rng.integers(8)), 1.0 + self._config.gain * rng.uniform(-1, 1)
        move = self._config.shift_px * rng.uniform(-1, 1, 2)
        msi_gain = (1.0 + self._config.msi_gain * rng.uniform(-1, 1, (field.msi_bands, 1, 1))).astype(np.float32)
        truth, hsi, msi = field.cut(row, col, move)
        truth, hsi, msi = (
            turned(image, turn if self._config.turns else 0) * np.float32(gain)
            for image in (truth, hsi, msi * msi_gain)
        )
        noise = self._simulation
        hsi_snr_db, msi_snr_db = (None, None) if field.real else (noise.hsi_snr_db, noise.msi_snr_db)
        once, again = (
            hsi + white_noise(hsi.shape, field.hsi_power, hsi_snr_db, (1,) * len(hsi), rng) for _ in range(2)
        )
        noisy = msi + white_noise(msi.shape, field.msi_power, msi_snr_db, field.steps, rng)
        return TrainingSample(*(field.scaled(image) for image in (once, again, noisy, truth)))


class _Field:
    """A scene, ready to be cut."""

    def __init__(self, ground: Ground, config: SampleConfig) -> None:
        pair = ground.pair
        self.real = ground.real
        self.ratio, self.sigma_px, self.steps = pair.observed.ratio, pair.observed.psf_sigma_px, pair.observed.steps
        self.msi_bands = pair.observed.msi_bands
        self._pair, self._patch, self._span = pair, config.patch, ground.span
        # Noise is measured against the whole scene, as `simulate` does: a dark patch has less signal, not less noise.
        self.hsi_power, self.msi_power = (
            np.nanmean(image.astype(np.float64) ** 2, axis=(1, 2)) for image in (pair.hsi, pair.msi)
        )
        self._margin = blur_reach(self.ratio, self.sigma_px) + 1
        self._wide: Cube | None = None
        if config.shift_px > 0:
            mean = np.nan_to_num(np.nanmean(pair.truth, axis=(1, 2), keepdims=True))
            filled = np.where(np.isnan(pair.truth), mean, pair.truth).astype(np.float32)
            self._wide = np.pad(filled, ((0, 0), *2 * ((self._margin, self._margin),)), mode="symmetric")
        self.corners = whole_corners(pair, config.patch)

    def cut(self, row: int, col: int, move: NDArray[np.float64]) -> tuple[Cube, Cube, Cube]:
        """Truth, HSI and MSI of the patch whose first coarse pixel that is; `move` is down and right in fine pixels."""
        size, ratio = self._patch, self.ratio
        fine = slice(row * ratio, (row + size) * ratio), slice(col * ratio, (col + size) * ratio)
        truth, msi = self._pair.truth[:, *fine], self._pair.msi[:, *fine]
        if self._wide is None:
            return truth, self._pair.hsi[:, row : row + size, col : col + size], msi
        reach = size * ratio + 2 * self._margin
        window = self._wide[:, row * ratio : row * ratio + reach, col * ratio : col * ratio + reach]
        down, right = (displaced_psf(size, ratio, self.sigma_px, self._margin, float(by)) for by in move)
        hsi: Cube = np.asarray(down @ window @ right.T, np.float32)
        return truth, hsi, msi

    def scaled(self, image: NDArray[np.floating]) -> torch.Tensor:
        """The image in [-1, 1] by the scene's own HSI, as a fusion scales it."""
        low, high = self._span
        return torch.from_numpy(np.ascontiguousarray((image - low) * (2.0 / (high - low)) - 1.0, dtype=np.float32))


def whole_corners(pair: SimulatedPair, size: int) -> NDArray[np.int64]:
    """First coarse pixels (row, column) of all patches without a hole, on the lattice of the MSI's blocks, shape (n, 2)."""
    ratio, step = pair.observed.ratio, pair.observed.whole_blocks
    height, width = pair.hsi.shape[1:]
    hole = np.isnan(pair.hsi).any(axis=0)
    for fine in (pair.truth, pair.msi):
        blocks = np.isnan(fine).any(axis=0).reshape(height, ratio, width, ratio)
        hole |= blocks.any(axis=(1, 3))
    if min(height, width) < size:
        return np.empty((0, 2), np.int64)
    summed = np.pad(hole.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    holes = summed[size:, size:] - summed[:-size, size:] - summed[size:, :-size] + summed[:-size, :-size]
    corners: NDArray[np.int64] = np.argwhere(holes[::step, ::step] == 0) * step
    return corners


def displaced_psf(n_coarse: int, ratio: int, sigma_px: float, margin: int, move_px: float) -> NDArray[np.float32]:
    """Weights of fine pixels in coarse ones along one axis, whose centers are displaced.

    Parameters
    ----------
    n_coarse : int
    ratio : int
    sigma_px : float
        Standard deviation of the Gaussian PSF in fine pixels.
    margin : int
        Fine pixels before the first coarse pixel and after the last.
    move_px : float
        Displacement of the centers in fine pixels.

    Returns
    -------
    ndarray, shape (n_coarse, n_coarse * ratio + 2 * margin), float32
        Rows sum to 1.
    """
    center = margin + (np.arange(n_coarse) + 0.5) * ratio - 0.5 + move_px
    distance = np.arange(n_coarse * ratio + 2 * margin) - center[:, None]
    # Cut where the margin ends for any center, so that no displacement sees less than another.
    return gaussian_taps(distance, sigma_px, cut=margin + ratio / 2).astype(np.float32)


def white_noise(
    shape: tuple[int, ...],
    power: NDArray[np.float64],
    snr_db: float | None,
    steps: Sequence[int],
    rng: np.random.Generator,
) -> NDArray[np.float64] | float:
    """White noise of each band, shape (band, y, x); that of a band of coarser sampling is the same within a block."""
    if snr_db is None:
        return 0.0
    deviation = np.sqrt(power / 10 ** (snr_db / 10))
    planes = [
        rng.standard_normal((shape[1] // s, shape[2] // s)).repeat(s, axis=0).repeat(s, axis=1) * sigma
        for s, sigma in zip(steps, deviation, strict=True)
    ]
    return np.stack(planes)
