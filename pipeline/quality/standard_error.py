"""The standard error of a finished mosaic, tile by tile, beside it in the same group.

It needs the mosaic only for its holes: how wrong a pixel may be follows from the calibration and the MSI around it, so
any tile, in any order and on any worker, gives the same. What is done is in a ledger of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.models.operators import upsample
from hyperfuse.pipeline.execution.cluster import spread_over
from hyperfuse.pipeline.fusion.device import pick_device
from hyperfuse.pipeline.fusion.residual import weights_of
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.tiling import Tile
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.completeness import intact
from hyperfuse.pipeline.job.encoding import decoded, encoded, valid_samples
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.ledger import Ledger, TileRecord
from hyperfuse.pipeline.job.records import code_version
from hyperfuse.pipeline.job.seals import read_record, write_record
from hyperfuse.pipeline.job.template import create_errors
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.causes.change_map import load_changes, of_product
from hyperfuse.pipeline.quality.job_trial import central_window, job_trial
from hyperfuse.pipeline.quality.msi_detail import F32, activity, activity_reach
from hyperfuse.pipeline.quality.records import ErrorGroup, UncertaintyRecord
from hyperfuse.pipeline.quality.rehearsal import rehearse
from hyperfuse.pipeline.quality.trials import fuse_whole
from hyperfuse.pipeline.quality.uncertainty import (
    CAVEAT,
    NOMINAL,
    Calibration,
    FullResolution,
    calibrate,
    guessed,
    standard_error,
)

CALIBRATION = "calibration.json"
"""The job's calibration."""
_MADE_BY = "errors.txt"
"""Version of the code that made the standard errors."""
WINDOW_PX = (96, 120)
"""Coarse pixels along the edge of the calibration window, least and most."""
_CUBIC_PX = 3
"""Coarse pixels that cubic convolution reaches, displaced samples included."""
_STRIP_PX = 8  # coarse pixels of the product's rows that are held at once


def estimate_errors(job: StagedJob, progress: Progress = silent) -> None:
    """Calibrate, and write the standard error of every tile; what an earlier run did is kept.

    Parameters
    ----------
    job : StagedJob
        Staged and fused, with `publish.uncertainty`.
    progress : callable, optional
    """
    _forget_other_code(job)
    calibration(job)
    if not job.errors.is_dir():
        create_errors(job)
    done = _finished(job)
    todo = job.plan.batches(job.config.tiles.batch, done=done.keys())
    progress("standard error", len(done), job.plan.n_tiles)
    work = [[(tile.row, tile.col) for tile in batch] for batch in todo]
    if not work:
        return
    count = len(done)
    # Workers that meet in a store do not see this folder.
    with spread_over(job.config.dask if job.config.store is None else None) as spread:
        for keys in spread(partial(_error_batch, str(job.folder.resolve())), work):
            count += len(keys)
            progress("standard error", count, job.plan.n_tiles)


def _forget_other_code(job: StagedJob) -> None:
    """Remove errors that other code made: the key of the job's folder is that of the samples, and errors are none."""
    mark, code = job.folder / _MADE_BY, code_version()
    if mark.is_file() and mark.read_bytes() == code.encode():
        return
    (job.folder / CALIBRATION).unlink(missing_ok=True)
    for folder in (_ledger(job).folder, job.errors):
        shutil.rmtree(folder, ignore_errors=True)
    write_atomic(mark, code)


def calibration(job: StagedJob) -> Calibration:
    """The job's calibration, made if it is not there yet."""
    path = job.folder / CALIBRATION
    if (found := read_record(path)) is None:
        made = _calibrated(job)
        write_record(path, made.model_dump_json(indent=1))
        return made
    return Calibration.model_validate_json(found)


def uncertainty_record(job: StagedJob) -> UncertaintyRecord | None:
    """What `qa.json` says of the standard errors; None if they were not asked for.

    Raises
    ------
    HyperFuseError
        If a tile has none.
    """
    if not job.config.publish.uncertainty:
        return None
    found, records, nm = calibration(job), _finished(job), job.bands.center_nm
    if missing := [tile.key for tile in job.plan if tile.key not in records]:
        raise HyperFuseError(
            f"{job.name}: {len(missing)} of {job.plan.n_tiles} tiles have no standard error (first: {missing[0]}); run again to resume"
        )
    n_valid, total = (np.sum([getattr(r, name) for r in records.values()], axis=0) for name in ("valid", "total"))
    mean = [float(t / n) if n else None for t, n in zip(total, n_valid, strict=True)]
    return UncertaintyRecord(
        calibrated=found.calibrated,
        reason=found.reason,
        nominal=NOMINAL,
        coverage=found.coverage,
        coverage_range=found.coverage_range,
        mean_width=found.mean_width,
        ause=found.ause,
        scale_gap=float(np.mean(found.gap)),
        noise_share=float(np.mean(found.noise_share)),
        trial_ratio=found.ratio,
        calibration_pixels=found.pixels,
        mean_standard_error=float(total.sum() / n_valid.sum()) if n_valid.sum() else None,
        band_standard_error=mean,
        wavelength_nm=nm.tolist(),
        clipped_samples=sum(record.clipped for record in records.values()),
        groups=[
            ErrorGroup(
                low_nm=float(nm[group.first]),
                high_nm=float(nm[group.last - 1]),
                factor=group.factor,
                coverage=group.coverage,
            )
            for group in found.groups
        ],
        caveat=CAVEAT,
    )


def error_map(job: StagedJob, edge: int) -> F32 | None:
    """Root mean square standard error over the bands, thinned to at most `edge` pixels a side; None without errors."""
    if not job.config.publish.uncertainty:
        return None
    array = store.open_array(job.errors)
    height, width = array.shape[-2:]
    step = -(-max(height, width) // edge)
    image = np.full((-(-height // step), -(-width // step)), np.nan, np.float32)
    # Rows of chunks one at a time: a thinned read of the whole would hold every band of the scene.
    for y0 in range(0, height, -(-array.chunks[1] // step) * step):
        y1 = min(y0 + -(-array.chunks[1] // step) * step, height)
        stored = store.thin(array, Box(y0=y0, y1=y1, x0=0, x1=width), range(array.shape[0]), step)
        part = decoded(stored, job.error_scale)
        image[y0 // step : y0 // step + part.shape[1]] = np.sqrt((part**2).mean(axis=0))
    return image


def _calibrated(job: StagedJob) -> Calibration:
    reasons = []
    # A scene too small for its own ratio may be large enough for a smaller one, which is more like it than a guess.
    for ratio in range(job.grids.ratio, 1, -1):
        try:
            return _calibrated_at(job, ratio)
        # A method may refuse such a window in its own words; the product is as good as without.
        except (HyperFuseError, ValueError) as error:
            reasons.append(str(error))
    height, width = job.grids.coarse_shape
    most = max(WINDOW_PX)
    whole = Box(y0=0, y1=min(height, most), x0=0, x1=min(width, most))
    return guessed(_full(job, _inside_product(job, whole, step=1)), reason=reasons[0])


def _calibrated_at(job: StagedJob, ratio: int) -> Calibration:
    """By a rehearsal at a ratio."""
    window = _inside_product(job, central_window(job, WINDOW_PX, ratio=ratio), step=ratio)
    trial = job_trial(job, window, ratio=ratio).make()
    name, weights, device = job.config.method, weights_of(job), str(pick_device(job.config.device))

    def fuse(pair: SimulatedPair) -> F32:
        return fuse_whole(name, pair, weights=weights.get(name), device=device).image

    msi = _staged(job, "msi", window.times(job.grids.ratio))
    return calibrate(rehearse(trial, msi, job.spec.observed, fuse), _full(job, window))


def _full(job: StagedJob, window: Box) -> FullResolution:
    """A window in coarse pixels of a fused job."""
    hsi, msi = _staged(job, "hsi", window), _staged(job, "msi", window.times(job.grids.ratio))
    rows = range(window.y0, window.y1, _STRIP_PX)
    strips = (Box(y0=y, y1=min(y + _STRIP_PX, window.y1), x0=window.x0, x1=window.x1) for y in rows)
    return FullResolution.of(hsi, msi, (_product(job, strip) for strip in strips), job.spec.observed)


def _inside_product(job: StagedJob, window: Box, *, step: int) -> Box:
    """The part of a window in coarse pixels that the product covers, in multiples of `step` pixels."""
    ratio, edges = job.grids.ratio, []
    for first, last, lead, size in zip(
        (window.y0, window.x0), (window.y1, window.x1), job.grids.lead, job.grids.product.shape, strict=True
    ):
        start = max(first, -(-lead // ratio))
        stop = min(last, (lead + size) // ratio)
        edges.append((start, start + max(stop - start, 0) // step * step))
    (y0, y1), (x0, x1) = edges
    return Box(y0=y0, y1=y1, x0=x0, x1=x1)


def _staged(job: StagedJob, role: Literal["hsi", "msi"], box: Box) -> F32:
    """The bands of a staged image that carry signal, in the radiometry in which methods see it."""
    sums = job.staged.hsi if role == "hsi" else job.staged.msi
    array = store.open_array(job.folder / "stage" / f"{role}.zarr")
    image = np.asarray(store.read(array, box, np.array(sums.kept)), np.float32)
    return image if role == "hsi" else job.staged.as_fused(image)


def _product(job: StagedJob, window: Box) -> F32:
    """The fused samples of a window in coarse pixels, NaN where they are not valid."""
    fine, (lead_y, lead_x) = window.times(job.grids.ratio), job.grids.lead
    box = Box(y0=fine.y0 - lead_y, y1=fine.y1 - lead_y, x0=fine.x0 - lead_x, x1=fine.x1 - lead_x)
    return decoded(store.read(store.open_array(job.fused), box), job.staged.scale)


def _finished(job: StagedJob) -> dict[str, TileRecord]:
    """Records of the tiles whose standard errors are stored as they were written."""
    return intact(job, _ledger(job), job.errors)


def _ledger(job: StagedJob) -> Ledger:
    return Ledger(job.folder / "errors")


def _error_batch(folder: str, tiles: Sequence[tuple[int, int]]) -> list[str]:
    """The standard errors of some tiles of the job in a staging folder; the work of one Dask task."""
    job = StagedJob.load(Path(folder))
    found, ledger = calibration(job), _ledger(job)
    arrays = store.open_array(job.fused), store.open_array(job.errors, write=True)
    done = []
    for row, col in tiles:
        record = _write_tile(job, found, job.plan.tile(row, col), *arrays)
        ledger.add(record)
        done.append(record.key)
    return done


def _write_tile(
    job: StagedJob, found: Calibration, tile: Tile, product: store.Array, errors: store.Array
) -> TileRecord:
    started = time.monotonic()
    changed = of_product(job, load_changes(job), tile.core)
    error, samples = standard_error(found, _activity(job, found, tile.core), changed), store.read(product, tile.core)
    if changed.any():
        error[:, changed] = np.hypot(error, _injected(job, tile.core, samples))[:, changed]
    valid, clipped = valid_samples(samples), 0
    stored: NDArray[np.int16] | F32 = np.where(valid, error, np.float32(np.nan))
    if errors.dtype == np.int16:
        stored, clipped = encoded(error, job.error_scale, valid)
    store.write(errors, tile.core, stored)
    shown = valid.any(axis=(1, 2))
    return TileRecord(
        key=tile.key,
        sha256=store.chunks_digest(job.errors, errors, tile.core) or "",
        pixels=int(np.prod(tile.core.shape)),
        valid=valid.sum(axis=(1, 2)).tolist(),
        total=np.where(valid, error, 0.0).sum(axis=(1, 2), dtype=np.float64).tolist(),
        low=_ends(np.where(valid, error, np.inf).min(axis=(1, 2)), shown),
        high=_ends(np.where(valid, error, -np.inf).max(axis=(1, 2)), shown),
        clipped=clipped,
        seconds=round(time.monotonic() - started, 4),
        device="cpu",
    )


def _injected(job: StagedJob, core: Box, samples: NDArray[np.generic]) -> F32:
    """How far the product lies from the HSI alone: in what changed, detail of the MSI is none of the HSI's date."""
    coarse, fine = _coarse_of(job, core)
    around = coarse.grown(_CUBIC_PX)
    height, width = job.grids.coarse_shape
    inside = Box(y0=max(around.y0, 0), y1=min(around.y1, height), x0=max(around.x0, 0), x1=min(around.x1, width))
    hsi = _staged(job, "hsi", inside)
    ratio, shift = job.grids.ratio, job.spec.observed.shift_px
    alone = upsample(torch.from_numpy(hsi), ratio, shift).numpy()
    y, x = fine.y0 - inside.y0 * ratio, fine.x0 - inside.x0 * ratio
    apart: F32 = np.abs(
        decoded(samples, job.staged.scale) - alone[:, y : y + core.shape[0], x : x + core.shape[1]]
    ).astype(np.float32)
    return np.nan_to_num(apart)


def _coarse_of(job: StagedJob, core: Box) -> tuple[Box, Box]:
    """The coarse pixels that a window of the product meets, and the window on the fine grid."""
    ratio, (lead_y, lead_x) = job.grids.ratio, job.grids.lead
    fine = Box(y0=core.y0 + lead_y, y1=core.y1 + lead_y, x0=core.x0 + lead_x, x1=core.x1 + lead_x)
    return Box(y0=fine.y0 // ratio, y1=-(-fine.y1 // ratio), x0=fine.x0 // ratio, x1=-(-fine.x1 // ratio)), fine


def _ends(values: F32, shown: Any) -> list[float | None]:
    return [float(value) if there else None for value, there in zip(values, shown, strict=True)]


def _activity(job: StagedJob, found: Calibration, core: Box) -> F32:
    """Activity of a tile's core, from whole coarse pixels and all that it depends on around them."""
    ratio = job.grids.ratio
    coarse, fine = _coarse_of(job, core)
    window = coarse.grown(activity_reach(job.spec.observed)).times(ratio)
    array = store.open_array(job.folder / "stage" / "msi.zarr")
    height, width = array.shape[-2:]
    inside = Box(y0=max(window.y0, 0), y1=min(window.y1, height), x0=max(window.x0, 0), x1=min(window.x1, width))
    msi = store.read(array, inside, np.array(job.staged.msi.kept))
    # The scene's mean, the same in every tile that sees the hole.
    msi = job.staged.as_fused(np.where(np.isnan(msi), np.array(job.staged.msi.mean, np.float32)[:, None, None], msi))
    rim = ((0, 0), (inside.y0 - window.y0, window.y1 - inside.y1), (inside.x0 - window.x0, window.x1 - inside.x1))
    whole = activity(np.pad(msi, rim, mode="edge"), found.energy, ratio, job.observation.psf_sigma_px)
    y, x = fine.y0 - window.y0, fine.x0 - window.x0
    return whole[y : y + core.shape[0], x : x + core.shape[1]]
