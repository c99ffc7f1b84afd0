"""What a run will do, decided from headers alone: the pair, the job's record, its tiles, and whether there is room for it."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import InputRejected, MetadataMissing, OutOfResources
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.pairs import RATIOS, ScenePair
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, image_beside, sensor_module, sigma_from_mtf
from hyperfuse.catalogs.sensors._lacking import told
from hyperfuse.catalogs.weight_cards import WeightCard
from hyperfuse.models import Observed, method
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.fusion.device import pick_device
from hyperfuse.pipeline.fusion.weights import checked_card, require_fitting, shipped_weights, with_bands_of
from hyperfuse.pipeline.geometry.grids import GridRecord, NestedGrids, nest, on_lattice
from hyperfuse.pipeline.geometry.tiling import TilePlan
from hyperfuse.pipeline.job.folder import Job
from hyperfuse.pipeline.job.records import InputRecord, JobRecord, code_version, job_key, samples_code
from hyperfuse.pipeline.products.commit import require_disk
from hyperfuse.pipeline.products.publish import require_free

log = logging.getLogger(__name__)

_MIN_COVERAGE = 0.5
"""An MSI band of whose response less than this lies inside the good HSI bands is named in the log."""


def open_pair(config: RunConfig, *, ratios: tuple[int, int] = RATIOS) -> ScenePair:
    """Open and check both scenes; reads headers, and the bytes once for their digests.

    Raises
    ------
    InputRejected
        If a scene cannot be used; the message says what both lack.
    """
    hsi, msi = _both(config)
    for scene in (hsi, msi):
        for note in scene.notes:
            log.warning("%s: %s", scene.name, note)
    pair = ScenePair(hsi=hsi, msi=msi, ratios=ratios)
    weights = _weights(config)
    return pair if weights is None else with_bands_of(weights, pair)


def _weights(config: RunConfig) -> Path | None:
    return config.weights or shipped_weights(config.method)


def _both(config: RunConfig) -> list[Scene]:
    """HSI and MSI; if neither can be used, one message says why, so that nobody mends them one after the other."""
    scenes: list[Scene] = []
    refused: list[InputRejected] = []
    missing: list[tuple[str, MetadataMissing]] = []
    for role, source in (("hsi.", config.hsi.source()), ("msi.", config.msi.source())):
        try:
            scenes.append(open_source(_of_its_own(source, scenes), config.fetch.fetching()))
        except InputRejected as error:
            refused.append(error)
            if isinstance(error, MetadataMissing):
                missing.append((role, error))
    if missing and len(missing) == len(refused):
        # One command supplies what both lack.
        settings = [(one, role) for role, error in missing for one in error.settings]
        lacks = "; and ".join(error.lacks for _, error in missing)
        raise InputRejected(told(lacks, settings, [error.todo for _, error in missing])) from refused[0]
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise InputRejected(f"{refused[0]}; and {refused[1]}") from refused[0]
    return scenes


def _of_its_own(source: Source, opened: list[Scene]) -> Source:
    """The source of the MSI; of an address that is given for both images, the other image in it."""
    if source.sensor is not None or not opened or source.uri != opened[0].uri:
        return source
    beside = image_beside(opened[0].sensor)
    if beside is None:
        raise InputRejected(
            f"{source.uri}: is given for both images, and a scene of {opened[0].sensor} holds one; give a multispectral scene of "
            "the same place"
        )
    return replace(source, sensor=beside)


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
    sigma = psf_sigma_px(config, pair, grids)
    samples = job_key(
        {
            "config": config.decides_samples(),
            "grid": grid.model_dump(mode="json"),
            "psf_sigma_px": sigma,
            "inputs": {role: scene.sha256 for role, scene in inputs.items()},
            # Tables beside the images are no part of their digests.
            "bands": {role: scene.bands for role, scene in inputs.items()},
            "code": samples_code(),
            "weights": None if card is None else card.sha256,
        }
    )
    key = job_key({"samples": samples, "publication": config.decides_publication(), "code": code_version()})
    weights = None if card is None else asdict(card)
    return JobRecord(key=key, samples=samples, config=config, grid=grid, psf_sigma_px=sigma, weights=weights, **inputs)


def _checked_card(config: RunConfig, pair: ScenePair, ratio: int) -> WeightCard | None:
    """The card of the weights, if they are for this network and this pair."""
    observed = Observed(
        hsi_bands=len(pair.hsi.good_bands), msi_bands=len(pair.msi.good_bands), ratio=ratio, psf_sigma_px=1.0
    )
    weights = _weights(config)
    if weights is None:
        if method(config.method).specify(observed).needs_weights:
            raise InputRejected(
                f"{config.method} means nothing without trained weights; give a file with --weights, or choose a method that "
                "needs none (see `hyperfuse methods`)"
            )
        return None
    card = checked_card(weights, config.method, observed)
    require_fitting(weights, card, observed)
    return card


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
    plan, grids = require_resources(job), job.grids
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
        "method": config.method,
        "tiles": {
            "number": plan.n_tiles,
            "core": plan.core,
            "halo": plan.halo,
            "redundancy": round(plan.redundancy, 3),
        },
        "memory_gb": round(plan.peak_bytes / 1e9, 2),
        "disk_gb": round(plan.disk_bytes(uncertain=config.publish.uncertainty) / 1e9, 2),
        "job_key": job.record.key,
        "samples_key": job.record.samples,
    }


def require_resources(job: Job) -> TilePlan:
    """The tiles that the headers let expect, if memory and disk suffice for them.

    Raises
    ------
    OutOfResources
        With what is needed, what there is, and the setting to change.
    """
    plan, budget = job.expected_plan, job.config.tiles.memory_gb * 1e9
    if plan.peak_bytes > budget:
        smaller = "tiles.core" if job.config.tiles.core else "tiles.chunk"
        raise OutOfResources(
            f"tiles of {plan.core} px with {plan.spec.observed.hsi_bands} bands need {plan.peak_bytes / 1e9:.3g} GB, the "
            f"budget is {budget / 1e9:.3g} GB; lower {smaller} or raise --memory",
            observed=plan.peak_bytes,
            allowed=budget,
        )
    require_disk(job.config.output, plan.disk_bytes(uncertain=job.config.publish.uncertainty))
    return plan


def warn_coverage(pair: ScenePair) -> None:
    """Name the MSI bands that the HSI hardly sees in the log."""
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
