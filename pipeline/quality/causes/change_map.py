"""Which coarse pixels show something else in the two images: what changed between their dates, wherever it lies.

The same judgment as that of the default method on what it fuses (`models._change`), for the whole scene and whatever fused it:

    sample of the scene -> components of the HSI -> relation of each MSI band to them -> what misses it, block by block
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.models._change import REACH, Change
from hyperfuse.models.subspace.basis import Subspace
from hyperfuse.pipeline.geometry.box import Box, blocks_of
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.psf import psf_reach
from hyperfuse.pipeline.observation.sample import NotEstimable, Sample
from hyperfuse.pipeline.quality.causes.limits import staged_sample

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

CHANGED = "changed.npy"
"""The job's map of what changed."""
_EDGE = 256
"""Coarse pixels along the edge of a block that is looked at at once."""
_FEWEST_SPECTRA = 200


def find_changes(job: StagedJob) -> Mask:
    """The map of a job, which is kept in its folder for whoever works on tiles.

    Returns
    -------
    ndarray, shape (y, x), bool
        Coarse pixels that show something else in the HSI than in the MSI; none where the pair cannot tell.
    """
    found = _changes(job)
    path = job.folder / CHANGED
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        np.save(file, found, allow_pickle=False)
    aside.replace(path)
    return found


def load_changes(job: StagedJob) -> Mask:
    """The same as it was kept; nothing changed where there is no map."""
    path = Path(job.folder) / CHANGED
    if not path.is_file():
        return np.zeros(job.grids.coarse_shape, bool)
    found: Mask = np.load(path, allow_pickle=False)
    return found


def of_product(job: StagedJob, changes: Mask, core: Box) -> Mask:
    """The map on fine pixels of a window of the product, shape (y, x), bool."""
    ratio, (lead_y, lead_x) = job.grids.ratio, job.grids.lead
    rows = (np.arange(core.y0, core.y1) + lead_y) // ratio
    cols = (np.arange(core.x0, core.x1) + lead_x) // ratio
    return changes[np.ix_(rows, cols)]


def _changes(job: StagedJob) -> Mask:
    changed = np.zeros(job.grids.coarse_shape, bool)
    spectra, sample = staged_sample(job)
    if sample is None or spectra.shape[1] < _FEWEST_SPECTRA:
        return changed
    subspace = Subspace.of(torch.as_tensor(spectra, dtype=torch.float64))
    components, guides, valid = _seen(job, sample, subspace)
    change = Change.of(components, guides, valid).if_minor(components, guides, valid)
    if not torch.isfinite(change.scale).any():
        return changed
    margin = REACH + 1 + psf_reach(job.grids.ratio, job.observation.psf_sigma_px)
    whole = Box(y0=0, y1=changed.shape[0], x0=0, x1=changed.shape[1])
    for block in blocks_of(changed.shape, _EDGE):
        window = block.grown(margin)
        inside = Box(
            y0=max(window.y0, 0), y1=min(window.y1, whole.y1), x0=max(window.x0, 0), x1=min(window.x1, whole.x1)
        )
        try:
            around = _sampled(job, inside)
        except NotEstimable:  # next to nothing is seen by both
            continue
        components, guides, valid = _seen(job, around, subspace)
        _, own = change(components, guides, valid[:, None])
        y, x = block.y0 - inside.y0, block.x0 - inside.x0
        changed[block.slices] = own[0, 0].numpy()[y : y + block.shape[0], x : x + block.shape[1]]
    return changed


def _sampled(job: StagedJob, block: Box) -> Sample:
    ratio, staged = job.grids.ratio, job.staged
    coarse, fine = (store.open_array(job.folder / f"stage/{role}.zarr") for role in ("hsi", "msi"))
    hsi = store.read(coarse, block, np.array(staged.hsi.kept))
    msi = store.read(fine, block.times(ratio), np.array(staged.msi.kept))
    return Sample.of(hsi[None], msi[None], ratio, job.own_blur_px(staged.msi.kept))


def _seen(job: StagedJob, sample: Sample, subspace: Subspace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Components (block, K, h, w), the MSI as the HSI's sensor sees it (block, c, h, w), and where both are valid (block, h, w)."""
    hsi = torch.from_numpy(sample.hsi).double() - subspace.mean[:, None, None, None]
    components = torch.einsum("kc,cnhw->nkhw", subspace.analysis, hsi).float()
    guides = sample.degraded(job.observation.hsi_psf) + sample.msi_mean.astype(np.float32)[:, None, None, None]
    return components, torch.from_numpy(guides).movedim(0, 1), torch.from_numpy(sample.valid)
