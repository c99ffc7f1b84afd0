"""A fusion rehearsed at reduced resolution, under the noise that it has at full resolution.

    truth     the HSI, less its noise
    images    both inputs degraded, and the noise given back that the averaging took from them

Wald's protocol alone does neither: its truth is noisy, which hides how well a method does that takes noise out, and its
images are almost free of noise, which hides how badly one does that lets it through. Both shift the errors at one
resolution against those at the other by a factor that differs from method to method.

What the noise makes of a method's error is found by fusing the images as the averaging left them as well. It matters,
because noise does not grow with the detail that there is between the two resolutions, and all else does.

References
----------
Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699. The
noise of both images: see `models.subspace.basis` and `models.subspace.noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.models import Observed
from hyperfuse.models.subspace.basis import Subspace
from hyperfuse.models.subspace.noise import noise_level
from hyperfuse.pipeline.observation.psf import coarse_pixel
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.msi_detail import F32, F64, filled

Fuse = Callable[[SimulatedPair], F32]
"""A method: pair to fused image, shape (C, h * ratio, w * ratio)."""
_SHARED_BY_NEIGHBORS = 0.5
"""Share of its variance that a field as smooth as a PSF makes it has in common with its neighbor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rehearsal:
    """A method's image of a pair whose truth is known."""

    pair: SimulatedPair
    """What was fused, and the truth."""
    fused: F32
    """Shape (C, h * ratio, w * ratio), in the truth's unit."""
    noise_share: F64
    """Share of each band's mean square error that is due to the noise of the images, shape (C,)."""

    @classmethod
    def of(cls, pair: SimulatedPair, fused: F32) -> Rehearsal:
        """Of a pair as it is, with nothing said of noise."""
        return cls(pair=pair, fused=fused, noise_share=np.zeros(len(fused)))

    @property
    def inside(self) -> tuple[slice, slice]:
        """Fine pixels that count: all but the rim."""
        rim = self.pair.rim_px * self.pair.observed.ratio
        return slice(rim, -rim or None), slice(rim, -rim or None)


def rehearse(trial: SimulatedPair, msi: F32, seen: Observed, fuse: Fuse) -> Rehearsal:
    """Rehearse a fusion.

    Parameters
    ----------
    trial : SimulatedPair
        From `pipeline.quality.reduced_resolution.degraded_pair`: its truth is the HSI.
    msi : ndarray, shape (c, H, W), float32
        The MSI at full resolution, in its own unit; NaN is a hole.
    seen : Observed
        The pair at full resolution.
    fuse : callable
        Called twice.

    Returns
    -------
    Rehearsal
        The same for the same input: the noise that is given back has a seed of its own.
    """
    noisy = noisy_as_full(trial, msi, seen)
    truth, left = noisy.truth, kept_by_averaging(trial.observed.ratio, trial.observed.psf_sigma_px)
    rehearsal = Rehearsal.of(noisy, fuse(noisy))
    shown = _valid(truth)[rehearsal.inside]
    error, quiet = (
        ((image - truth)[:, *rehearsal.inside][:, shown].astype(np.float64) ** 2).sum(axis=1)
        for image in (rehearsal.fused, fuse(replace(trial, truth=truth)))
    )
    # Averaging leaves the quiet images some noise, by whose share the difference of both errors falls short.
    share = (error - quiet) / np.maximum((1.0 - left) * error, 1e-30)
    return replace(rehearsal, noise_share=np.clip(share, 0.0, 1.0))


def noisy_as_full(trial: SimulatedPair, msi: F32, seen: Observed) -> SimulatedPair:
    """A pair at reduced resolution whose images are as noisy as at full resolution, and whose truth is not.

    Parameters
    ----------
    trial, msi, seen
        As for `rehearse`.

    Returns
    -------
    SimulatedPair
        The same for the same input: the noise that is given back has a seed of its own.
    """
    truth, of_hsi = without_noise(trial.truth)
    of_msi = msi_noise(msi, seen.steps) / np.float32(trial.unit)
    # The HSI was averaged by the trial's ratio, the MSI by the one between the two resolutions.
    left, left_of_msi = (kept_by_averaging(of.ratio, of.psf_sigma_px) for of in (trial.observed, seen))
    rng = np.random.default_rng(0)
    return replace(
        trial,
        truth=truth,
        hsi=_with_noise(trial.hsi, np.sqrt(1.0 - left) * of_hsi, rng),
        msi=_with_noise(trial.msi, np.sqrt(1.0 - left_of_msi) * of_msi, rng),
    )


def without_noise(image: F32) -> tuple[F32, F64]:
    """An image less its noise, and the standard deviation of that per band.

    Parameters
    ----------
    image : ndarray, shape (C, y, x), float32
        NaN in any band is a hole, and stays one.

    Returns
    -------
    signal : ndarray, shape (C, y, x), float32
        What lies in the spectral subspace, and of the rest the share that neighbors have in common, which noise has not.
    noise : ndarray, shape (C,), float64
    """
    shown = _valid(image)
    if not shown.any():
        return image, np.zeros(len(image))
    spectra = torch.from_numpy(image[:, shown]).double()
    subspace = Subspace.of(spectra)
    centered = spectra - subspace.mean[:, None]
    inside = subspace.synthesis @ (subspace.analysis @ centered)
    outside = np.zeros(image.shape)
    outside[:, shown] = (centered - inside).numpy()
    kept = _common(outside, shown)
    signal = np.full_like(image, np.nan)
    signal[:, shown] = (inside + subspace.mean[:, None]).numpy() + kept[:, None] * outside[:, shown]
    return signal, subspace.noise.numpy() * np.sqrt(1.0 - kept)


def msi_noise(msi: F32, steps: Sequence[int]) -> F64:
    """Standard deviation of the noise of each MSI band, shape (c,), its own unit.

    0 for bands of a step above 1, whose blocks tell nothing, and where fewer than three bands are left.
    """
    finest = [k for k, step in enumerate(steps) if step == 1]
    shown = _valid(msi)
    noise = np.zeros(len(msi))
    if finest and shown.any():
        guides = torch.from_numpy(filled(msi))[None]
        level = noise_level(guides[:, finest], torch.from_numpy(shown)[None])
        noise[finest] = np.sqrt(level * (msi[finest][:, shown].astype(np.float64) ** 2).mean(axis=1))
    return noise


def kept_by_averaging(ratio: int, psf_sigma_px: float) -> float:
    """Share of the variance of white noise that `models.operators.degrade` leaves."""
    return float((coarse_pixel(ratio, psf_sigma_px).astype(np.float64) ** 2).sum() ** 2)


def _with_noise(image: F32, noise: NDArray[np.floating], rng: np.random.Generator) -> F32:
    noisy: F32 = image + noise.astype(np.float32)[:, None, None] * rng.standard_normal(image.shape, np.float32)
    return noisy


def _valid(image: F32) -> NDArray[np.bool_]:
    """Where all bands are valid, shape (y, x)."""
    return np.asarray(np.isfinite(image).all(axis=0))


def _common(field: F64, shown: NDArray[np.bool_]) -> F64:
    """Share of signal in a field per band, by its covariance between neighbors; holes are 0."""
    pairs = (shown[1:] & shown[:-1]).sum() + (shown[:, 1:] & shown[:, :-1]).sum()
    products = (field[:, 1:] * field[:, :-1]).sum(axis=(1, 2)) + (field[..., 1:] * field[..., :-1]).sum(axis=(1, 2))
    variance = (field**2).sum(axis=(1, 2)) / shown.sum()
    share: F64 = products / max(int(pairs), 1) / np.maximum(variance, 1e-30) / _SHARED_BY_NEIGHBORS
    return np.clip(share, 0.0, 1.0)
