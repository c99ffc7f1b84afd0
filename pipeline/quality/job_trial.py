"""A job's own trial at reduced resolution: a window of the staged pair, degraded by the ratio, where the HSI is the truth."""

from __future__ import annotations

import math

import numpy as np

from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.reduced_resolution import OWN_BANDS, degraded_pair
from hyperfuse.pipeline.quality.trials import Trial

SHARE = 1 / 48
"""Pixels that are fused at reduced resolution per product pixel, about: what they may cost."""
EDGE_PX = (64, 120)
"""Coarse pixels along the edge of the window, least and most; large ratios take eight of their own pixels at least."""


def central_window(job: StagedJob, edge_px: tuple[int, int] = EDGE_PX, *, ratio: int | None = None) -> Box:
    """The window that is fused at reduced resolution, in coarse pixels: whole pixels of the trial's HSI.

    Parameters
    ----------
    job : StagedJob
    edge_px : (int, int)
        Coarse pixels along its edge, least and most, as far as the scene has them.
    ratio : int, optional
        By which the HSI is degraded; the job's unless given.
    """
    ratio, (least, most) = ratio or job.grids.ratio, edge_px
    wanted = max(min(math.isqrt(int(SHARE * math.prod(job.grids.product.shape))), most), least, 8 * ratio)
    edges = []
    for size in job.grids.coarse_shape:
        edge = min(size, wanted) // ratio * ratio
        edges.append(((size - edge) // 2, edge))
    (y0, rows), (x0, cols) = edges
    return Box(y0=y0, y1=y0 + rows, x0=x0, x1=x0 + cols)


def job_trial(job: StagedJob, window: Box, *, ratio: int | None = None) -> Trial:
    """The trial of a staged job on a window in coarse pixels; samples are read when it is made.

    Parameters
    ----------
    job : StagedJob
    window : Box
        Whole pixels of the trial's HSI.
    ratio : int, optional
        By which the HSI is degraded; the job's unless given. The MSI is brought to the HSI's pixels in any case.
    """
    step = job.grids.ratio
    modulation = math.exp(-0.5 * (math.pi * job.observation.psf_sigma_px / step) ** 2)
    protocol = Protocol(ratio=ratio or step, msi=OWN_BANDS, hsi_snr_db=None, msi_snr_db=None, mtf_nyquist=modulation)

    def make() -> SimulatedPair:
        hsi, msi = (store.open_array(job.folder / "stage" / f"{role}.zarr") for role in ("hsi", "msi"))
        return degraded_pair(
            store.read(hsi, window, np.array(job.staged.hsi.kept)),
            job.staged.as_fused(store.read(msi, window.times(step), np.array(job.staged.msi.kept))),
            protocol,
            name=job.name,
            srf=np.array(job.observation.srf),
            step=step,
            shift_px=job.observation.psf_center_px,
        )

    return Trial(cube=job.name, protocol=protocol, make=make)
