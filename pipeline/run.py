"""The way of a scene: one pair in, one published product out. Every step is skipped where an earlier run did it.

    RunConfig -> open_run      scenes opened and checked, job folder made or found, and locked     OpenRun
              -> stage_pair    registered, resampled once, observation measured, method prepared   StagedJob
              -> fuse_tiles    tiles that are not in the ledger, here or on a cluster
              -> publish_product  proven complete, assessed, written, read back, renamed           Product

A Prefect flow makes these steps its tasks, and a notebook may do the same.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, QualityRefused, singular_is_rejected
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.opening import reads_named
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.times import now
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.execution.cluster import spread_over
from hyperfuse.pipeline.execution.engine import run_batches
from hyperfuse.pipeline.execution.exchange import drop_abandoned, place_of
from hyperfuse.pipeline.fusion.device import give_back_memory, pick_device, share_heaps
from hyperfuse.pipeline.fusion.passes import coarse_pass, first_pass
from hyperfuse.pipeline.fusion.strict import strict_pass
from hyperfuse.pipeline.fusion.weights import keep_weights
from hyperfuse.pipeline.job.completeness import finished, mosaic
from hyperfuse.pipeline.job.folder import Job, StagedJob
from hyperfuse.pipeline.job.notices import tell_harmony, tell_observation
from hyperfuse.pipeline.job.records import JobRecord
from hyperfuse.pipeline.job.stage import stage
from hyperfuse.pipeline.job.staging_folder import claim, require_same_job, staging_folder
from hyperfuse.pipeline.job.template import prepare
from hyperfuse.pipeline.plan import job_record, open_pair, require_resources, warn_coverage
from hyperfuse.pipeline.products.commit import require_parent, resources_named
from hyperfuse.pipeline.products.draft import Draft
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.provenance import provenance
from hyperfuse.pipeline.products.publish import holds_product, publish, require_free
from hyperfuse.pipeline.progress import Meter, Progress, silent
from hyperfuse.pipeline.quality.assessment import assess, require_passed, require_some_valid
from hyperfuse.pipeline.quality.causes.change_map import find_changes
from hyperfuse.pipeline.quality.residual_decision import decide_residual
from hyperfuse.pipeline.quality.standard_error import estimate_errors
from hyperfuse.pipeline.reports.product_page import write_product_page
from hyperfuse.pipeline.stage_times import Clock, timed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A job that this process holds, with its opened scenes."""

    job: Job
    pair: ScenePair
    progress: Progress
    started: datetime
    """UTC."""


@singular_is_rejected()
def run(config: RunConfig, *, progress: Progress = silent) -> Product:
    """Fuse a pair of scenes and publish the product.

    Parameters
    ----------
    config : RunConfig
    progress : callable
        Called with a stage's name, the steps done, and all steps.

    Returns
    -------
    Product
        Complete and verified.

    Raises
    ------
    hyperfuse.catalogs.errors.HyperFuseError
        Every expected end, with its exit code; nothing is left at `config.output`.
    """
    with open_run(config, progress=progress) as opened:
        staged = stage_pair(opened)
        fuse_tiles(staged, progress)
        return publish_product(staged, started=opened.started, progress=progress)


@contextmanager
def open_run(config: RunConfig, *, progress: Progress = silent) -> Iterator[OpenRun]:
    """Hold the job of a configuration: check it whole, make or find its staging folder, and lock it.

    Raises
    ------
    InputRejected, ExpectedSkip, OutOfResources
        Before anything is written.
    Busy
        If another process works on the same job.
    """
    started, clock = now(), Clock()
    share_heaps()
    require_parent(config.output)
    pair = open_pair(config)
    record = job_record(config, pair)
    planned = Job(Path(), record)
    with resources_named(config.output):
        try:
            require_free(planned)
        except (ExpectedSkip, InputRejected):
            if holds_product(config.output):
                # The run that published may have been killed before it cleared its place, and one that lost to it too.
                place_of(planned).remove()
                drop_abandoned(config.output)
            raise
        require_resources(planned)
        warn_coverage(pair)
        with _held(record) as job, reads_named():
            keep_weights(job)
            clock.note(job.folder, "open")
            yield OpenRun(job=job, pair=pair, progress=progress, started=started)


@contextmanager
def _held(record: JobRecord) -> Iterator[Job]:
    """The staging folder of a job, made or found, and locked."""
    output = record.config.output
    folder = staging_folder(output, record.samples)
    claim(folder)
    with locked(folder):
        require_same_job(folder, record.samples, record.job_schema)
        drop_abandoned(output, keep=folder)
        # Written anew when resuming: device, dask and batch may differ from those of the run that was killed.
        write_atomic(folder / "job.json", record.model_dump_json(indent=1), private=True)
        try:
            yield Job(folder, record)
        except (InputRejected, ExpectedSkip, QualityRefused):
            # Trying again with the same input is pointless; but fused tiles are not thrown away, whatever went wrong later, unless
            # another run has published at their output meanwhile: nobody would come back for them.
            lost = holds_product(output) and not record.config.publish.replace
            if lost:
                log.warning("%s: another run has published there; the tiles of this one are removed", output)
            if lost or not Job(folder, record).ledger.records():
                place_of(Job(folder, record)).remove()
                shutil.rmtree(folder, ignore_errors=True)
            raise


def stage_pair(opened: OpenRun) -> StagedJob:
    """Register and stage the pair, take what the method wants to know of the whole scene, and lay out the product."""
    config, progress = opened.job.config, opened.progress
    # Workers that need a store for the job cannot be taken to see its sources.
    dask = config.dask if config.store is None else None
    job = stage(opened.job, opened.pair, progress, workers=partial(spread_over, dask))
    give_back_memory()  # what registration looked at, before fusing fetches its own
    registration = job.staged.registration
    (log.info if registration.decision == "accept" else log.warning)("registration: %s", registration.reason)
    tell_observation(job)
    tell_harmony(job)
    device = pick_device(config.device)
    with timed(job.folder, "learn"):
        first_pass(job, progress)
        decide_residual(job)
        coarse_pass(job, device, progress)
        strict_pass(job, device, progress)
        prepare(job)
    return job


def fuse_tiles(job: StagedJob, progress: Progress = silent) -> int:
    """Fuse the tiles that are not in the ledger; returns how many were there already."""
    plan = job.plan
    place_of(job).collect(job)
    already = finished(job)
    if already:
        log.info("resuming: %d of %d tiles are finished", len(already), plan.n_tiles)
    count = len(already)
    progress("fuse", count, plan.n_tiles)
    left = math.prod(job.grids.product.shape) - sum(record.pixels for record in already.values())
    meter = Meter(left)

    def done(keys: Sequence[str]) -> None:
        nonlocal count
        count += len(keys)
        records = [record for key in keys if (record := job.ledger.record(key)) is not None]
        pace = meter.add(sum(r.pixels for r in records), sum(r.busy_s for r in records))
        progress("fuse", count, plan.n_tiles, pace)

    batches = plan.batches(job.config.tiles.batch, done=already.keys())
    with timed(job.folder, "fuse"):
        run_batches(job, batches, done=done)
    told = {"tiles": len(already), **meter.to_json()}
    write_atomic(job.folder / "fused.json", json.dumps(told))
    return len(already)


def publish_product(job: StagedJob, *, started: datetime, progress: Progress = silent) -> Product:
    """Prove the mosaic complete, assess it, write all formats, read them back, and rename the product into place."""
    with timed(job.folder, "check"):
        summary = mosaic(job)
        require_some_valid(job, summary)
        find_changes(job)
    effort = json.loads((job.folder / "fused.json").read_text())
    if job.config.publish.uncertainty:
        with timed(job.folder, "standard error"):
            estimate_errors(job, progress)
    ended = now()
    with timed(job.folder, "judge"):
        assessment = assess(job, summary, progress)
    for warning in assessment.qa.warnings:
        log.warning("quality: %s", warning)
    record = provenance(job, summary, started=started, ended=ended, effort=effort, quality=assessment.qa.summary)
    with timed(job.folder, "report"):
        write_product_page(job, assessment, record.model_dump(mode="json"))
    require_passed(job, assessment)
    product = publish(Draft(job=job, summary=summary, provenance=record, created=ended), progress=progress)
    place_of(job).remove()
    drop_abandoned(job.config.output)  # of runs with other settings that were killed while this one went on
    return product
