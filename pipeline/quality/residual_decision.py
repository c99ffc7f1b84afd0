"""Whether a network's residual is applied on this scene: asked of the scene itself, at reduced resolution, once per job.

    staged pair -> window, both images degraded by the ratio -> fused with the residual and without -> PSNR and SAM of both

The HSI of the window is the truth. The network has seen nothing of the scene, so that all of it is held back; a residual
that makes either score worse is left out, and the product is that of the method without weights.
"""

from __future__ import annotations

import logging

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.fusion.device import pick_device
from hyperfuse.pipeline.fusion.residual import FILE, GateRecord
from hyperfuse.pipeline.fusion.weights import WEIGHTS
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.seals import read_record, write_record
from hyperfuse.pipeline.quality.job_trial import central_window, job_trial
from hyperfuse.pipeline.quality.metrics import Scores
from hyperfuse.pipeline.quality.trials import evaluate

log = logging.getLogger(__name__)

EDGE_PX = (64, 256)
"""Coarse pixels along the edge of the window, least and most: more than the assessment's trial has, since a decision hangs on it."""
_LEAST_PX = 16
"""Pixels of the trial's HSI along an edge below which its scores say nothing of the scene."""


def decide_residual(job: StagedJob) -> None:
    """Decide, and keep the decision in the job's folder; does nothing if that is done, or if there is nothing to decide."""
    path = job.folder / FILE
    if job.spec.base is None or read_record(path) is not None:
        return
    record = _decision(job)
    log.info("residual of %s %s", job.config.method, record.sentence)
    write_record(path, record.model_dump_json(indent=1))


def _decision(job: StagedJob) -> GateRecord:
    network, base = job.config.method, job.spec.base
    if job.record.weights is None:
        return GateRecord(applied=False, reason=f"there are no weights, and without them {network} is {base}")
    if job.config.residual != "auto":
        return GateRecord(
            applied=job.config.residual == "always", reason=f"residual={job.config.residual} was asked for"
        )
    if (fitted := _fitted_here(job)) is not None:
        return fitted
    window = central_window(job, EDGE_PX)
    extent = (window.y0, window.y1, window.x0, window.x1)
    edge = min(window.shape) // job.grids.ratio
    if edge < _LEAST_PX:
        return GateRecord(
            applied=False,
            reason=f"the scene is too small to try it, {edge} pixels at reduced resolution, at least {_LEAST_PX} wanted",
        )
    tried = _tried(job, window)
    if isinstance(tried, str):
        return GateRecord(applied=False, reason=f"it could not be tried: {tried}", window_px=extent)
    ours, theirs = tried
    psnr_db, sam_deg = (ours.psnr_db, theirs.psnr_db), (ours.sam_deg, theirs.sam_deg)
    return _compared("at reduced resolution", psnr_db, sam_deg).model_copy(update={"window_px": extent})


def _compared(where: str, psnr_db: tuple[float, float], sam_deg: tuple[float, float]) -> GateRecord:
    """The decision by both scores, each with the residual and without: neither may be worse."""
    return GateRecord(
        applied=psnr_db[0] >= psnr_db[1] and sam_deg[0] <= sam_deg[1],
        reason=f"{where} PSNR {psnr_db[0]:.2f} dB with it, {psnr_db[1]:.2f} dB without, SAM {sam_deg[0]:.3f} deg with it, "
        f"{sam_deg[1]:.3f} deg without",
        psnr_db=psnr_db,
        sam_deg=sam_deg,
    )


def _fitted_here(job: StagedJob) -> GateRecord | None:
    """The decision on weights that were fitted to this very scene: they have seen all of it but the blocks held back then."""
    told = read_card(job.folder / WEIGHTS).training.get("adapted")
    if told is None or told["inputs"] != [job.record.hsi.sha256, job.record.msi.sha256]:
        return None
    psnr_db, sam_deg = ((told[key][0], told["estimate"][k]) for k, key in enumerate(("psnr_db", "sam_deg")))
    return _compared("fitted to this scene; on blocks held back", psnr_db, sam_deg)


def _tried(job: StagedJob, window: Box) -> tuple[Scores, Scores] | str:
    """Scores with the residual and without, or why there are none."""
    network, base = job.config.method, job.spec.base or ""
    device = str(pick_device(job.config.device))
    try:
        rows = evaluate(
            [job_trial(job, window)], [network, base], weights={network: job.folder / WEIGHTS}, device=device
        )
    except HyperFuseError as error:
        return str(error)
    ours, theirs = (row.scores for row in rows)
    if ours is None or theirs is None:
        return next(row.error for row in rows if row.error) or "no score"
    return ours, theirs
