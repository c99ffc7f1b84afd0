"""Strict mode: the product is back-projected until it agrees with the HSI within the HSI's noise, by any method.

How strong the noise is, and how far a method's own image disagrees, is found once for the scene on a sample of windows,
before any tile is fused; from it follows one lambda per band, see `pipeline.fusion.back_projection`. More agreement than noise
allows would write the noise of the HSI into the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.models.subspace.basis import Subspace
from hyperfuse.pipeline.fusion.back_projection import (
    F32,
    F64,
    BackProjection,
    ResidualSpectrum,
    residual,
)
from hyperfuse.pipeline.fusion.method import job_fuser
from hyperfuse.pipeline.fusion.windows import StagedPair
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.tiling import aligned
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.seals import read_record, write_record
from hyperfuse.pipeline.observation.psf import psf_reach
from hyperfuse.pipeline.observation.psf_overlap import projection_reach
from hyperfuse.pipeline.observation.sample import sampled_blocks
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.progress import Progress, silent

STRICT = "strict.json"
"""File of the record in the job's folder."""
TARGET = 0.98
"""Residual that is left, over the noise, where the whole scene was looked at."""
_SHARE = 1 / 8
"""Share of the scene that is fused for the sample, about; four windows at least."""
_FEWEST = 16
"""Fewer pixels than these tell nothing of the noise."""


class StrictRecord(BaseModel):
    """What back-projection was decided on, per band and in the HSI's unit."""

    model_config = ConfigDict(frozen=True)

    noise: tuple[float, ...]
    """Standard deviation of the HSI's noise."""
    residual: tuple[float, ...]
    """Root mean square of HSI less degraded image on the sample, before the correction."""
    lambdas: tuple[float | None, ...]
    """Regularization, in units of what blur and its transpose do to a constant image; None where a band agrees anyway."""
    pixels: int
    """Coarse pixels that were compared."""
    reach: int
    """Coarse pixels around a tile that decide its correction."""

    @property
    def projection_lambdas(self) -> F64:
        """The lambdas, infinite where there is nothing to correct."""
        return np.array([np.inf if value is None else value for value in self.lambdas])


def noise(spectra: F32) -> F64 | None:
    """Standard deviation of each band's noise, by a factor analysis of spectra of shape (C, pixel).

    None if there are too few pixels to tell.
    """
    if spectra.shape[1] < _FEWEST:
        return None
    sigma: F64 = Subspace.of(torch.from_numpy(spectra).double()).noise.numpy()
    return sigma


def regularize(
    spectrum: ResidualSpectrum, sigma: F64, *, ratio: int, sigma_px: float, share: float = 1.0
) -> StrictRecord:
    """The lambdas for what a sample told; no correction where nothing could be compared.

    Parameters
    ----------
    spectrum : ResidualSpectrum
    sigma : ndarray, shape (C,)
        Noise, in the unit of the residuals.
    ratio : int
    sigma_px : float
        Of the HSI's PSF.
    share : float
        Share of the scene that was looked at. The less it is, the more the rest may differ, and the less is left.
    """
    doubt = math.sqrt(max(1.0 - share, 0.0)) * spectrum.doubt()
    lambdas = spectrum.lambdas(TARGET * sigma / (1.0 + doubt))
    return StrictRecord(
        noise=tuple(map(float, sigma)),
        residual=tuple(map(float, spectrum.rms())),
        lambdas=tuple(float(value) if math.isfinite(value) else None for value in lambdas),
        pixels=spectrum.pixels,
        reach=projection_reach(ratio, sigma_px),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Projected:
    """A whole fused image, corrected."""

    image: F32
    """Shape (C, y, x)."""
    before: float
    """Root mean square of HSI less degraded image, over the noise, of the worst band: of the image as it came ..."""
    after: float
    """... and as it is now."""


def project_whole(fused: F32, pair: SimulatedPair) -> Projected:
    """A fused image of a whole pair in strict mode.

    Parameters
    ----------
    fused : ndarray, shape (C, y, x)
        Finite everywhere; left as it is.
    pair : SimulatedPair

    Raises
    ------
    InputRejected
        If the HSI has too few valid pixels to tell its noise, or none whose whole PSF lies in the image.
    """
    ratio, sigma_px = pair.observed.ratio, pair.observed.psf_sigma_px
    shown = np.isfinite(pair.hsi).all(axis=0)
    valid = np.isfinite(pair.msi).all(axis=0) & shown.repeat(ratio, axis=0).repeat(ratio, axis=1)
    sigma = noise(pair.hsi[:, shown])
    image, hsi = torch.from_numpy(fused.copy()), torch.from_numpy(np.nan_to_num(pair.hsi))
    masks = torch.from_numpy(shown), torch.from_numpy(valid)
    left, known = residual(image, hsi, *masks, ratio=ratio, sigma_px=sigma_px)
    if sigma is None or not known.any():
        raise InputRejected(f"{pair.name}: is too small for strict mode; give a larger image or a smaller ratio")
    spectrum = ResidualSpectrum(len(fused), ratio=ratio, sigma_px=sigma_px)
    spectrum.add(left, known)
    record = regularize(spectrum, sigma, ratio=ratio, sigma_px=sigma_px)
    BackProjection(record.projection_lambdas, ratio=ratio, sigma_px=sigma_px)(image, hsi, *masks)
    remaining, _ = residual(image, hsi, *masks, ratio=ratio, sigma_px=sigma_px)

    def worst(of: torch.Tensor) -> float:
        mean_square = of.double().square().sum(dim=(1, 2)).numpy() / int(known.sum())
        return float((np.sqrt(mean_square) / sigma).max())

    return Projected(image=image.numpy(), before=worst(left), after=worst(remaining))


@torch.inference_mode()
def strict_pass(job: StagedJob, device: torch.device, progress: Progress = silent) -> None:
    """Find noise and lambdas of a staged job, if it is strict, and write them into its folder; does it once.

    Raises
    ------
    InputRejected
        If the HSI has too few valid pixels to tell its noise.
    """
    if not job.config.strict or read_record(job.folder / STRICT) is not None:
        return
    ratio, sigma_px, observed = job.grids.ratio, job.observation.psf_sigma_px, job.spec.observed
    blocks = sampled_blocks(job.grids.coarse_shape, n_hsi=observed.hsi_bands, n_msi=observed.msi_bands, ratio=ratio)
    pair = StagedPair(job)
    fuse = job_fuser(job, pair, device)
    sigma = noise(np.concatenate([_spectra(pair, block) for block in blocks], axis=1))
    if sigma is None:
        raise InputRejected(
            f"{job.record.hsi.name}: has too few valid pixels in the overlap to tell its noise, which strict mode needs; leave "
            "out --strict"
        )
    spectrum = ResidualSpectrum(observed.hsi_bands, ratio=ratio, sigma_px=sigma_px)
    chosen = _thinned(job, blocks)
    for done, block in enumerate(chosen, start=1):
        around = _around(job, block)
        window, fused = pair.read(around), fuse(around)[0].float().cpu()
        shown, valid = window.hsi_valid[0].all(dim=0), pair.valid_under(around)
        left, known = residual(fused, window.hsi[0], shown, valid, ratio=ratio, sigma_px=sigma_px)
        inner = (slice(block.y0 - around.y0, block.y1 - around.y0), slice(block.x0 - around.x0, block.x1 - around.x0))
        spectrum.add(left[:, *inner] * pair.unscaling[0], known[inner])
        progress("strict pass", done, len(chosen))
    share = sum(math.prod(block.shape) for block in chosen) / math.prod(job.grids.coarse_shape)
    record = regularize(spectrum, sigma, ratio=ratio, sigma_px=sigma_px, share=share)
    write_record(job.folder / STRICT, record.model_dump_json(indent=1))


def load_record(job: StagedJob) -> StrictRecord | None:
    """What `strict_pass` found; None if the job is not strict."""
    if not job.config.strict:
        return None
    found = read_record(job.folder / STRICT)
    if found is None:
        raise FileNotFoundError(f"{job.folder / STRICT}: is not there as it was written")
    return StrictRecord.model_validate_json(found)


def load_projection(job: StagedJob) -> BackProjection | None:
    """The correction of a job's windows; None if the job is not strict."""
    record = load_record(job)
    if record is None:
        return None
    return BackProjection(record.projection_lambdas, ratio=job.grids.ratio, sigma_px=job.observation.psf_sigma_px)


def _spectra(pair: StagedPair, block: Box) -> F32:
    """Valid spectra of a block in the HSI's unit, shape (C, pixel)."""
    window, (gain, offset) = pair.read(block), pair.unscaling
    spectra: F32 = (window.hsi[0][:, window.hsi_valid[0].all(dim=0)] * gain + offset).numpy()
    return spectra


def _around(job: StagedJob, block: Box) -> Box:
    """What must be fused so that the whole PSF of a block's pixels is right."""
    margin = job.spec.tile_halo + psf_reach(job.grids.ratio, job.observation.psf_sigma_px)
    (height, width), step = job.grids.coarse_shape, job.spec.multiple_of
    y0, y1 = aligned(block.y0, block.y1, margin, step, height)
    x0, x1 = aligned(block.x0, block.x1, margin, step, width)
    return Box(y0=y0, y1=y1, x0=x0, x1=x1)


def _thinned(job: StagedJob, blocks: list[Box]) -> list[Box]:
    """So many of the blocks, evenly, that fusing them costs about `_SHARE` of fusing the scene."""
    cost = math.prod(_around(job, blocks[len(blocks) // 2]).shape)
    wanted = max(4, round(_SHARE * math.prod(job.grids.coarse_shape) / cost))
    return blocks[:: max(len(blocks) // wanted, 1)]
