"""One scene, one way through: open, stage, fuse, mosaic, publish. Each step is skipped where an earlier run did it.

    with open_run(config) as run:
        stage_pair(run)
        fuse_tiles(run)
        product = publish_product(run)

is what `run` does, what the Prefect flow does, and what a notebook may do.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, OutOfResources, QualityRefused
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.pairs import RATIOS, ScenePair
from hyperfuse.catalogs.sensors import open_scene, sensor_module, sigma_from_mtf
from hyperfuse.catalogs.times import now
from hyperfuse.catalogs.weight_cards import WeightCard
from hyperfuse.models import Observed, method
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.execution.cluster import spread_over
from hyperfuse.pipeline.execution.engine import run_batches
from hyperfuse.pipeline.execution.exchange import drop_abandoned, place_of
from hyperfuse.pipeline.fusion.device import give_back_memory, pick_device, share_heaps
from hyperfuse.pipeline.fusion.passes import coarse_pass, first_pass
from hyperfuse.pipeline.fusion.strict import strict_pass
from hyperfuse.pipeline.fusion.weights import checked_card, keep_weights, shipped_weights
from hyperfuse.pipeline.geometry.grids import GridRecord, NestedGrids, nest, on_lattice
from hyperfuse.pipeline.job.completeness import finished, mosaic
from hyperfuse.pipeline.job.folder import Job
from hyperfuse.pipeline.job.notices import tell_harmony, tell_observation
from hyperfuse.pipeline.job.records import InputRecord, JobRecord, code_version, job_key
from hyperfuse.pipeline.job.stage import stage
from hyperfuse.pipeline.products.commit import require_disk, require_parent, resources_named, staging_folder
from hyperfuse.pipeline.products.draft import Draft
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.provenance import provenance
from hyperfuse.pipeline.products.publish import publish, require_free
from hyperfuse.pipeline.products.writers import writer
from hyperfuse.pipeline.progress import Meter, Progress, silent
from hyperfuse.pipeline.quality.assessment import judge, require_passed
from hyperfuse.pipeline.quality.residual_decision import decide
from hyperfuse.pipeline.quality.standard_error import estimate_errors
from hyperfuse.pipeline.reports.product_page import write_report

log = logging.getLogger(__name__)

_MIN_COVERAGE = 0.5
"""An MSI band of whose response less than this lies inside the good HSI bands is named in the log."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job that this process holds, with its opened scenes."""

    job: Job
    pair: ScenePair
    progress: Progress
    started: datetime
    """UTC."""


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
    catalogs.errors.HyperFuseError
        Every expected end, with its exit code; nothing is left at `config.output`.
    """
    with open_run(config, progress=progress) as held:
        stage_pair(held)
        fuse_tiles(held)
        return publish_product(held)


def open_pair(config: RunConfig, *, ratios: tuple[int, int] = RATIOS) -> ScenePair:
    """Open and check both scenes; reads headers, and the bytes once for their digests."""
    hsi, msi = open_scene(config.hsi.source()), open_scene(config.msi.source())
    for scene in (hsi, msi):
        for note in scene.notes:
            log.warning("%s: %s", scene.name, note)
    return ScenePair(hsi=hsi, msi=msi, ratios=ratios)


def psf_sigma_px(config: RunConfig, pair: ScenePair, grids: NestedGrids) -> float:
    """Standard deviation of the HSI's Gaussian PSF in fine pixels, from its MTF."""
    # One PSF for all bands: that of the good ones' mean.
    mtf = config.psf_mtf or sensor_module(pair.hsi.sensor).SENSOR.mean_mtf(pair.hsi.bands[pair.hsi.good_bands])
    # The HSI's own ground sampling distance blurs, not the rounded ratio of the grids.
    fine_m = pair.msi.gsd_m if config.align.reference == "msi" else pair.hsi.gsd_m / grids.ratio
    return sigma_from_mtf(mtf, pair.hsi.gsd_m / fine_m)


def job_record(config: RunConfig, pair: ScenePair) -> JobRecord:
    """What is to be done; touches nothing on disk.

    Raises
    ------
    OutOfResources
        If the device is missing, or the plan needs more memory than the budget.
    """
    pick_device(config.device)
    grids = nest(pair, config.align, config.ratio)
    card = _checked_card(config, pair, grids.ratio)
    grid = GridRecord.of(grids)
    inputs = {"hsi": InputRecord.of(pair.hsi), "msi": InputRecord.of(pair.msi)}
    key = job_key(
        {
            "config": config.decisive(),
            "grid": grid.model_dump(mode="json"),
            "inputs": {role: scene.sha256 for role, scene in inputs.items()},
            # Tables beside the images are no part of their digests.
            "bands": {role: scene.bands for role, scene in inputs.items()},
            "code": code_version(),
            "weights": None if card is None else card.sha256,
        }
    )
    weights = None if card is None else asdict(card)
    return JobRecord(
        key=key, config=config, grid=grid, psf_sigma_px=psf_sigma_px(config, pair, grids), weights=weights, **inputs
    )


def _checked_card(config: RunConfig, pair: ScenePair, ratio: int) -> WeightCard | None:
    """The card of the weights, if they are for this network and this pair."""
    observed = Observed(
        hsi_bands=len(pair.hsi.good_bands), msi_bands=len(pair.msi.good_bands), ratio=ratio, psf_sigma_px=1.0
    )
    weights = config.weights or shipped_weights(config.network)
    if weights is None:
        if method(config.network).specify(observed).needs_weights:
            raise InputRejected(
                f"{config.network} means nothing without trained weights; give a file with --weights, or choose a method that "
                "needs none (see `hyperfuse networks`)"
            )
        return None
    return checked_card(weights, config.network, observed)


def plan_report(config: RunConfig) -> dict[str, Any]:
    """What `run` would do: grids, checks, tiles and memory; writes nothing.

    Raises
    ------
    catalogs.errors.HyperFuseError
        As `run` would, before it reads a sample.
    """
    pair = open_pair(config)
    job = Job(Path(), job_record(config, pair))
    require_free(job)
    _check_resources(job)
    plan, grids = job.plan, job.grids
    gap = pair.time_gap
    return {
        "hsi": _scene_report(job.record.hsi),
        "msi": _scene_report(job.record.msi),
        "gsd_ratio": round(pair.gsd_ratio, 4),
        "ratio": grids.ratio,
        "time_gap_hours": None if gap is None else round(gap.total_seconds() / 3600, 2),
        "product": {
            "crs": str(grids.product.crs),
            "shape": list(grids.product.shape),
            "gsd": abs(grids.product.affine.a),
            "bounds": list(grids.product.boundingbox.bbox),
            "bands": plan.spec.observed.hsi_bands,
        },
        "hsi_on_coarse_lattice": on_lattice(pair.hsi.geobox, grids.coarse) is not None,
        "srf_coverage": {
            f"{nm:.0f} nm": round(float(c), 3)
            for nm, c in zip(pair.msi.bands.center_nm, pair.hsi.bands.srf(pair.msi.bands)[1], strict=True)
        },
        "network": config.network,
        "tiles": {
            "number": plan.n_tiles,
            "core": plan.core,
            "halo": plan.halo,
            "redundancy": round(plan.redundancy, 3),
        },
        "memory_gb": round(plan.peak_bytes / 1e9, 2),
        "disk_gb": round(plan.disk_bytes(uncertain=config.publish.uncertainty) / 1e9, 2),
        "job_key": job.record.key,
    }


@contextmanager
def open_run(config: RunConfig, *, progress: Progress = silent) -> Iterator[Run]:
    """Hold the job of a configuration: check it whole, make or find its staging folder, and lock it.

    Raises
    ------
    InputRejected, ExpectedSkip, OutOfResources
        Before anything is written.
    Busy
        If another process works on the same job.
    """
    started = now()
    share_heaps()
    require_parent(config.output)
    pair = open_pair(config)
    record = job_record(config, pair)
    planned = Job(Path(), record)
    try:
        require_free(planned)
    except ExpectedSkip:
        # The run that published may have been killed before it cleared its place.
        place_of(planned).remove()
        raise
    _check_resources(planned)
    _warn_coverage(pair)
    folder = staging_folder(config.output, record.key)
    folder.mkdir(exist_ok=True)
    with locked(folder):
        drop_abandoned(config.output, keep=folder)
        # Written anew when resuming: device, dask and batch may differ from those of the run that was killed.
        write_atomic(folder / "job.json", record.model_dump_json(indent=1))
        try:
            with resources_named(config.output):
                keep_weights(Job(folder, record))
                yield Run(job=Job(folder, record), pair=pair, progress=progress, started=started)
        except (InputRejected, ExpectedSkip, QualityRefused):
            # Trying again with the same input is pointless; but fused tiles are never thrown away, whatever went wrong later.
            if not Job(folder, record).ledger.records():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def stage_pair(held: Run) -> None:
    """Co-register and stage the pair, take the method's sums, and lay out the product."""
    job = held.job
    # Workers that need a store for the job cannot be taken to see its sources.
    dask = job.config.dask if job.config.store is None else None
    stage(job, held.pair, held.progress, workers=partial(spread_over, dask))
    give_back_memory()  # what registration looked at, before fusing fetches its own
    told = job.staged.registration
    (log.info if told.decision == "accept" else log.warning)("registration: %s", told.reason)
    tell_observation(job)
    tell_harmony(job)
    first_pass(job, held.progress)
    decide(job)
    coarse_pass(job, pick_device(job.config.device), held.progress)
    strict_pass(job, pick_device(job.config.device), held.progress)
    if not job.fused.is_dir():
        writer("zarr").create(job)  # type: ignore[attr-defined]


def fuse_tiles(held: Run) -> int:
    """Fuse the tiles that are not in the ledger; returns how many were there already."""
    job, plan = held.job, held.job.plan
    place_of(job).collect(job)
    already = finished(job)
    if already:
        log.info("resuming: %d of %d tiles are finished", len(already), plan.n_tiles)
    count = len(already)
    held.progress("fuse", count, plan.n_tiles)
    left = math.prod(job.grids.product.shape) - sum(record.pixels for record in already.values())
    meter = Meter(left)

    def done(keys: Sequence[str]) -> None:
        nonlocal count
        count += len(keys)
        records = [record for key in keys if (record := job.ledger.record(key)) is not None]
        pace = meter.add(sum(r.pixels for r in records), sum(r.busy_s for r in records))
        held.progress("fuse", count, plan.n_tiles, pace)

    batches = plan.batches(job.config.tiles.batch, done=already.keys())
    run_batches(job, batches, done=done)
    told = {"tiles": len(already), **meter.to_json()}
    write_atomic(job.folder / "fused.json", json.dumps(told))
    return len(already)


def publish_product(held: Run) -> Product:
    """Prove the mosaic complete, judge it, write all formats, read them back, and rename the product into place."""
    job = held.job
    summary = mosaic(job)
    effort = json.loads((job.folder / "fused.json").read_text())
    if job.config.publish.uncertainty:
        estimate_errors(job, held.progress)
    ended = now()
    verdict = judge(job, summary, held.progress)
    for warning in verdict.record["warnings"]:
        log.warning("quality: %s", warning)
    record = provenance(job, summary, started=held.started, ended=ended, effort=effort) | {"quality": verdict.summary}
    write_report(job, verdict, record)
    require_passed(job, verdict)
    product = publish(Draft(job=job, summary=summary, provenance=record, created=ended), progress=held.progress)
    place_of(job).remove()
    return product


def _check_resources(job: Job) -> None:
    budget = job.config.tiles.memory_gb * 1e9
    if job.plan.peak_bytes > budget:
        smaller = "tiles.core" if job.config.tiles.core else "tiles.chunk"
        raise OutOfResources(
            f"tiles of {job.plan.core} px with {job.spec.observed.hsi_bands} bands need {job.plan.peak_bytes / 1e9:.3g} GB, the "
            f"budget is {budget / 1e9:.3g} GB; lower {smaller} or raise --memory",
            observed=job.plan.peak_bytes,
            allowed=budget,
        )
    require_disk(job.config.output, job.plan.disk_bytes(uncertain=job.config.publish.uncertainty))


def _warn_coverage(pair: ScenePair) -> None:
    _, coverage = pair.hsi.bands.srf(pair.msi.bands)
    for nm, share in zip(pair.msi.bands.center_nm, coverage, strict=True):
        if share < _MIN_COVERAGE:
            log.warning("%s: the good HSI bands cover %.0f %% of its band at %.0f nm", pair.msi.name, 100 * share, nm)


def _scene_report(record: InputRecord) -> dict[str, Any]:
    center = record.bands["center_nm"]
    return {
        "name": record.name,
        "sensor": record.sensor,
        "shape": list(record.shape),
        "gsd_m": round(record.gsd_m, 4),
        "crs": record.crs,
        "bands_nm": [round(center[0], 1), round(center[-1], 1)],
        "good_bands": sum(record.bands["good"]),
        "quantity": record.quantity,
        "time": None if record.time is None else record.time.isoformat(),
        "notes": list(record.notes),
    }
