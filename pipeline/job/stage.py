"""Staging: both images once through the warp onto their grids, into Zarr; the sources are not opened again.

On the way every sample is looked at: dead bands are found on the overlap itself, holes are counted, and the scene's
mean and range are taken, because whatever is computed from one tile's content becomes a seam.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pydantic import ValidationError

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, QualityRefused
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.scene import Scene
from hyperfuse.models import method
from hyperfuse.pipeline.geometry.box import Box, blocks_of
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement
from hyperfuse.pipeline.geometry.resample import Measured, as_measured, is_copied, warp
from hyperfuse.pipeline.geometry.tiling import stage_edge
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import STAGED, STAGED_FILES, Job, StagedJob
from hyperfuse.pipeline.job.records import ImageSums, StagedRecord
from hyperfuse.pipeline.job.sampled_anew import SampledAnew
from hyperfuse.pipeline.job.seals import changed, seal, write_record
from hyperfuse.pipeline.observation.blind import blind, measured_psf
from hyperfuse.pipeline.observation.column_gains import gains_of_sample
from hyperfuse.pipeline.observation.harmonize import harmonize
from hyperfuse.pipeline.observation.sample import NotEstimable, Sample, sampled_blocks
from hyperfuse.pipeline.observation.sensor_model import Observation, with_misfit
from hyperfuse.pipeline.observation.stripes import stripes
from hyperfuse.pipeline.pipelining import Workers, in_this_process
from hyperfuse.pipeline.progress import Progress
from hyperfuse.pipeline.registration.estimate import Estimate, estimate
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.registration.report import FIGURE, TABLE, write_registration
from hyperfuse.pipeline.stage_times import timed

log = logging.getLogger(__name__)

_ROLES = ("hsi", "msi")
_MADE_OF_STAGED = (
    *("stage", "tiles", "errors", "product", "errors.txt"),
    *(
        "sums.safetensors",
        "sums.json",
        "changed.npy",
        "fill.safetensors",
        "fill.json",
        "features.json",
        "features_files.json",
        "gate.json",
        "strict.json",
        "calibration.json",
        "method.json",
    ),
)
"""Files and folders of a job that follow from its staged images."""
HSI_CHUNK = 64
MSI_CHUNK = 256
REFLECTANCE_SCALE = 1e-4
"""Physical value of one count of an int16 reflectance product."""
_LOOKED_AT = 3
"""Bands, spread over the spectrum, that tell where an image has data."""
_STRIPED_SAMPLES = 1 << 23
"""Samples of both images that are looked at for stripes."""
_STRIPS, _LEAST_ROWS = 3, 12
"""Strips of whole rows in which they lie, and the fewest rows of each."""
_DEAD_SHARE = 0.02
"""A band with less than this share of the best band's valid samples is taken for dead."""


def stage(job: Job, pair: ScenePair, progress: Progress, workers: Workers = in_this_process) -> StagedJob:
    """Co-register and stage both images of a job, and find how they were observed; does nothing if that is done.

    Raises
    ------
    InputRejected
        If a source cannot be read, or an image has no valid sample in the overlap.
    ExpectedSkip
        If the scenes meet only where one of them has no data.
    QualityRefused
        If no displacement can be believed and the settings do not say to go on without one, or if they require an MSI that
        agrees with the HSI and it does not.
    """
    if job.is_staged and (resumed := _resumed(job, pair, progress, workers)) is not None:
        return resumed
    align = job.config.align
    with timed(job.folder, "register"):
        found = _estimated(job, pair, workers)
    registration = found.registration
    if registration.decision == "refuse" and align.on_refuse == "refuse":
        _require_common(pair, job.grids.coarse)
        raise QualityRefused(
            f"{pair.msi.name} could not be registered to {pair.hsi.name}: {registration.reason}; look at it with "
            "`hyperfuse register`, give a known move as align.east_m and align.north_m, or trust the geometry as it is with "
            "align.on_refuse=keep"
        )
    with timed(job.folder, "stage"):
        return _staged(job, pair, found, progress)


def _staged(job: Job, pair: ScenePair, found: Estimate, progress: Progress) -> StagedJob:
    """Stage both images as they were registered, and find how they were observed."""
    registration, move = found.registration, found.registration.displacement
    write_registration(found, job.folder)
    (job.folder / "stage").mkdir(exist_ok=True)
    msi = _stage_msi(job, pair, move, progress)
    hsi = _stage_hsi(job, pair, move, msi, progress)
    measured = _as_measured(job, pair, move)
    observation = _observe(job, hsi, msi, registration, measured)
    gains, amplitudes = _column_gains(job, hsi, msi, observation)
    _destripe(job, gains)
    scale = REFLECTANCE_SCALE if pair.hsi.quantity == "reflectance" else _scale(hsi)
    harmony = harmonize(job.config, observation, (pair.hsi.quantity, pair.msi.quantity), pair.msi.name)
    # The record says that the images are there: it comes after them on the disk, too.
    record = StagedRecord(
        registration=registration,
        hsi=hsi,
        msi=msi,
        observation=observation,
        scale=scale,
        samples_beside_px=None if measured is None else _fine(measured, job.grids.ratio),
        harmony=harmony,
        column_gains=gains,
        stripes=amplitudes,
        seal=seal(job.folder / STAGED_FILES, _sealed(job)),
    )
    write_record(job.folder / STAGED, record.model_dump_json(indent=1))
    return job.as_staged()


def _require_common(pair: ScenePair, grid: GeoBox) -> None:
    """Refuse a pair without a pixel that both images show; looked at where registration failed, and until one is found."""
    for block in blocks_of(tuple(grid.shape), stage_edge(_LOOKED_AT, HSI_CHUNK)):
        seen = []
        for scene in (pair.hsi, pair.msi):
            spread = np.linspace(0, len(scene.good_bands) - 1, _LOOKED_AT).round().astype(int)
            bands = [scene.good_bands[number] for number in dict.fromkeys(spread.tolist())]
            seen.append(
                np.isfinite(warp(scene, grid, block.slices, bands=bands, displacement=NO_DISPLACEMENT)).any(axis=0)
            )
        if (seen[0] & seen[1]).any():
            return
    raise ExpectedSkip(
        f"{pair.hsi.name} and {pair.msi.name} overlap only where one of them has no data; there is nothing to fuse"
    )


def _as_measured(job: Job, pair: ScenePair, move: Displacement) -> Measured | None:
    """How the HSI's own samples lie on the coarse grid, if they need no resampling and the method can do with that.

    A resampled image has lost detail and has correlated noise: on real cubes a displacement of a quarter of a coarse pixel
    that was known exactly cost 3 to 8 dB by that alone.
    """
    # Strict mode compares with samples at the centers of their pixels.
    if job.config.strict or job.config.align.reference != "msi" or not method(job.config.method).takes_displacement:
        return None
    return as_measured(pair.hsi.geobox, job.grids.coarse, move)


def _fine(measured: Measured, ratio: int) -> tuple[float, float]:
    """Where the samples lie, in fine pixels."""
    row, col = measured.offset_px
    return row * ratio, col * ratio


def _arrays(job: Job) -> list[Path]:
    return [job.folder / "stage" / f"{role}.zarr" for role in _ROLES]


def _sealed(job: Job) -> list[Path]:
    """What staging leaves beside its record."""
    return [*_arrays(job), *(job.folder / name for name in (TABLE, FIGURE))]


def _estimated(job: Job, pair: ScenePair, workers: Workers) -> Estimate:
    return estimate(pair, job.grids, job.config.align, job.record.psf_sigma_px, workers=workers)


def _resumed(job: Job, pair: ScenePair, progress: Progress, workers: Workers) -> StagedJob | None:
    """The job as an earlier run staged it, with images that were lost or damaged since staged anew; None if that failed."""
    try:
        staged = job.as_staged()
    except (FileNotFoundError, ValidationError):
        log.warning("%s: %s is damaged; both images are staged anew", job.folder, STAGED)
        _forget(job)
        return None
    listing, expected = job.folder / STAGED_FILES, staged.staged.seal
    lost = changed(listing, expected, _sealed(job))
    if not lost:
        return staged
    log.warning("%s: files of %s are lost or damaged; staged anew", job.folder, " and ".join(p.name for p in lost))
    move = staged.staged.registration.displacement
    names = {path.stem for path in lost}
    if not set(lost) <= set(_arrays(job)):
        write_registration(_estimated(job, pair, workers), job.folder)
    if "msi" in names:
        _stage_msi(job, pair, move, progress)
    if "hsi" in names:
        _stage_hsi(job, pair, move, staged.staged.msi, progress)
        _destripe(job, staged.staged.column_gains)
    if seal(listing, _sealed(job)) != expected:
        log.warning("%s: what is staged anew differs from before; all tiles are fused anew", job.folder)
        _forget(job)
        return None
    return staged


def _forget(job: Job) -> None:
    """Remove all that was made of the staged images."""
    for name in (STAGED, STAGED_FILES, *_MADE_OF_STAGED):
        path = job.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _stage_msi(job: Job, pair: ScenePair, move: Displacement, progress: Progress) -> ImageSums:
    """Stage the MSI, which is moved where the HSI is the reference."""
    own = NO_DISPLACEMENT if job.config.align.reference == "msi" else -move
    grid, bands = job.grids.fine, pair.msi.good_bands
    return _stage_image(
        job.folder / "stage/msi.zarr", pair.msi, grid, progress,
        lambda block: warp(pair.msi, grid, block.slices, bands=bands, displacement=own),
    )  # fmt: skip


def _stage_hsi(job: Job, pair: ScenePair, move: Displacement, msi: ImageSums, progress: Progress) -> ImageSums:
    """Stage the HSI: its own samples where they lie on the coarse lattice or one offset beside it, else as well as they can be resampled."""
    own = move if job.config.align.reference == "msi" else NO_DISPLACEMENT
    if (measured := _as_measured(job, pair, move)) is not None:
        own = measured.displacement
    grid, bands = job.grids.coarse, pair.hsi.good_bands

    def copied(block: Box) -> NDArray[np.float32]:
        return warp(pair.hsi, grid, block.slices, bands=bands, displacement=own)

    read: Callable[[Box], NDArray[np.float32]] = copied
    if not is_copied(pair.hsi.geobox, grid, own):
        anew = SampledAnew(
            scene=pair.hsi, grid=grid, displacement=own, bands=bands, fine=job.grids.fine, msi=job.folder / "stage/msi.zarr",
            msi_bands=msi.kept, ratio=job.grids.ratio, psf_sigma_px=job.record.psf_sigma_px,
        )  # fmt: skip
        anew.learn(
            sampled_blocks(job.grids.coarse_shape, n_hsi=len(bands), n_msi=len(msi.kept), ratio=job.grids.ratio),
            is_psf_known=job.config.sensor_model == "tables",
        )
        read = anew
    return _stage_image(job.folder / "stage/hsi.zarr", pair.hsi, grid, progress, read)


def _stage_image(
    path: Path, scene: Scene, grid: GeoBox, progress: Progress, read: Callable[[Box], NDArray[np.float32]]
) -> ImageSums:
    chunk = HSI_CHUNK if path.stem == "hsi" else MSI_CHUNK
    n_bands = len(scene.good_bands)
    array = store.create_cube(path, (n_bands, *grid.shape), chunk)
    sums = _Sums(n_bands)
    blocks = list(blocks_of(tuple(grid.shape), stage_edge(n_bands, chunk)))
    for done, block in enumerate(blocks, start=1):
        cube = read(block)
        store.write(array, block, cube)
        sums.add(cube)
        progress(f"stage {path.stem}", done, len(blocks))
    return sums.finish(scene)


def _observe(
    job: Job, hsi: ImageSums, msi: ImageSums, registration: Registration, measured: Measured | None
) -> Observation:
    """The observation model of the staged images, tested or estimated on a sample of them."""
    hsi_bands, msi_bands = (bands[sums.kept] for bands, sums in zip(job.staged_bands, (hsi, msi), strict=True))
    tables, ratio = job.tables(hsi_bands, msi_bands), job.grids.ratio
    if measured is not None:
        tables = tables.model_copy(update={"psf_center_px": _fine(measured, ratio)})
    if (beside := registration.beside(hsi_bands.center_nm)).any() and job.config.align.reference == "msi":
        # The record tells where a band of the HSI shows the same ground, rows and columns where its samples lie for that.
        shifts = zip((beside[1] * ratio).tolist(), (-beside[0] * ratio).tolist(), strict=True)
        tables = tables.model_copy(update={"band_shifts_px": tuple(shifts)})
    blocks = sampled_blocks(job.grids.coarse_shape, n_hsi=len(hsi_bands), n_msi=len(msi_bands), ratio=ratio)
    coarse, fine = (store.open_array(job.folder / f"stage/{role}.zarr") for role in ("hsi", "msi"))
    try:
        sample = Sample.of(
            np.stack([store.read(coarse, block, np.array(hsi.kept)) for block in blocks]),
            np.stack([store.read(fine, block.times(ratio), np.array(msi.kept)) for block in blocks]),
            ratio,
            job.own_blur_px(msi.kept),
        )
    except NotEstimable as why:
        return tables.model_copy(update={"note": f"the tables of the sensors are used untested: {why}"})
    if job.config.sensor_model == "tables":
        return with_misfit(tables, sample)
    align = job.config.align
    # Who gives a displacement, or wants none sought, knows where the samples lie.
    known = not align.estimate or align.east_m is not None or align.north_m is not None
    try:
        if job.config.sensor_model == "auto":
            return measured_psf(tables, sample, hsi_bands, msi_bands, is_centered=known)
        return blind(tables, sample, hsi_bands, msi_bands)
    except NotEstimable as why:
        log.info("the PSF is that of the %s: %s", tables.psf_origin, why)
        asked = f"no blind estimate, the tables of the sensors are used: {why}"
        return with_misfit(tables, sample).model_copy(
            update={"note": asked if job.config.sensor_model == "blind" else ""}
        )


def _column_gains(
    job: Job, hsi: ImageSums, msi: ImageSums, observation: Observation
) -> tuple[tuple[tuple[float, ...], ...], tuple[float | None, ...]]:
    """Gains of the HSI's columns by detector, from whole rows of the staged images, and their standard deviations.

    The gains are what is believed of them, less than their spread. Both are empty where the images show no stripes.
    """
    if job.config.harmonize.stripes == "off":
        return (), ()
    (height, width), ratio = job.grids.coarse_shape, job.grids.ratio
    per_row = width * (len(hsi.kept) + len(msi.kept) * ratio**2)
    # The rim of a strip tells nothing: one, unless the scene is too large for that.
    n_strips = 1 if height * per_row <= _STRIPED_SAMPLES else _STRIPS
    rows = min(max(_STRIPED_SAMPLES // per_row // n_strips, _LEAST_ROWS), height // n_strips)
    if rows < 1:
        return (), ()
    starts = [(height - rows) * (2 * k + 1) // (2 * n_strips) for k in range(n_strips)]
    strips = [Box(y0=y, y1=y + rows, x0=0, x1=width) for y in starts]
    coarse, fine = (store.open_array(job.folder / f"stage/{role}.zarr") for role in _ROLES)
    try:
        sample = Sample.of(
            np.stack([store.read(coarse, strip, np.array(hsi.kept)) for strip in strips]),
            np.stack([store.read(fine, strip.times(ratio), np.array(msi.kept)) for strip in strips]),
            ratio,
            job.own_blur_px(msi.kept),
        )
    except NotEstimable:
        return (), ()
    center_nm = job.staged_bands[0][hsi.kept].center_nm
    gains = gains_of_sample(sample, observation.hsi_psf, center_nm)
    if gains is None:
        return (), ()
    of = detector_of(center_nm)
    found = [gains[np.flatnonzero(of == number)[0]] if (of == number).any() else np.ones(width) for number in (0, 1)]
    log.warning(
        "%s: its columns differ by gains of %s, which are taken out (harmonize.stripes=off leaves them)",
        job.record.hsi.name,
        " and ".join(f"{100 * one.std():.2f} %" for one in found),
    )
    measured = [stripes(sample, observation.hsi_psf, np.flatnonzero(of == number)) for number in (0, 1)]
    return (
        tuple(tuple(round(float(gain), 6) for gain in one) for one in found),
        tuple(None if one is None else one.amplitude for one in measured),
    )


def _destripe(job: Job, gains: tuple[tuple[float, ...], ...]) -> None:
    """Divide the staged HSI by the gains of its columns."""
    if not gains:
        return
    array = store.open_array(job.folder / "stage" / "hsi.zarr", write=True)
    of = detector_of(job.staged_bands[0].center_nm)
    every = np.array(gains, np.float32)[of]  # (band, column)
    for block in blocks_of(tuple(job.grids.coarse_shape), stage_edge(len(of), HSI_CHUNK)):
        cube = store.read(array, block)
        store.write(array, block, cube / every[:, None, block.x0 : block.x1])


class _Sums:
    """Running per-band statistics."""

    def __init__(self, n_bands: int) -> None:
        self.n = np.zeros(n_bands, np.int64)
        self.total = np.zeros(n_bands)
        self.low = np.full(n_bands, np.inf)
        self.high = np.full(n_bands, -np.inf)
        self.pixels = 0

    def add(self, cube: NDArray[np.float32]) -> None:
        flat = cube.reshape(cube.shape[0], -1)
        valid = np.isfinite(flat)
        self.n += valid.sum(axis=1)
        self.total += np.where(valid, flat, 0.0).sum(axis=1, dtype=np.float64)
        self.low = np.minimum(self.low, np.where(valid, flat, np.inf).min(axis=1))
        self.high = np.maximum(self.high, np.where(valid, flat, -np.inf).max(axis=1))
        self.pixels += flat.shape[1]

    def finish(self, scene: Scene) -> ImageSums:
        if self.n.max() == 0:
            raise InputRejected(
                f"{scene.name}: no valid sample in the overlap of the scenes; check its nodata value and its footprint"
            )
        if np.all(self.high[self.n > 0] <= self.low[self.n > 0]):
            raise InputRejected(
                f"{scene.name}: every sample in the overlap is {self.low[self.n > 0][0]:g}, as in a file that was never "
                "finished; fetch it again"
            )
        kept = np.flatnonzero((self.n >= _DEAD_SHARE * self.n.max()) & (self.high > self.low))
        return ImageSums(
            kept=[int(k) for k in kept],
            mean=[float(v) for v in self.total[kept] / self.n[kept]],
            low=float(self.low[kept].min()),
            high=float(self.high[kept].max()),
            valid_fraction=float(self.n[kept].min() / self.pixels),
        )


def _scale(sums: ImageSums) -> float:
    """A round step (1, 2 or 5 times a power of ten) with which 1.5 times the image's range fits int16."""
    step = 1.5 * max(abs(sums.low), abs(sums.high), 1e-12) / 32767
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(f * power for f in (1, 2, 5, 10) if f * power >= step))
