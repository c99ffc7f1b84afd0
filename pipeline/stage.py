"""Staging: both images once through the warp onto their grids, into Zarr; the sources are not opened again.

On the way every sample is looked at: dead bands are found on the overlap itself, holes are counted, and the scene's
mean and range are taken, because whatever is computed from one tile's content becomes a seam.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from safetensors.torch import load_file

from catalogs.errors import InputRejected, QualityRefused
from catalogs.files import write_atomic
from catalogs.networks import read_card
from catalogs.pairs import ScenePair
from catalogs.scene import Scene
from models import FusionModel, TwoRateModel, method
from models._spec import merge_sums
from models._weights import load_weights
from pipeline import store
from pipeline.blind import blind
from pipeline.conveyor import convey
from pipeline.coregister import estimate
from pipeline.coregister.report import write_report
from pipeline.displacement import NO_DISPLACEMENT, Displacement
from pipeline.harmonize import harmonize
from pipeline.job import ImageSums, Job, StagedRecord
from pipeline.learned import admitted
from pipeline.observe import NotEstimable, Observation, Sample, assess, sampled_blocks
from pipeline.progress import Progress
from pipeline.staged import PairWindow, StagedPair
from pipeline.tiles import Box, aligned, stage_edge
from pipeline.warp import warp
from pipeline.weights import WEIGHTS, shipped_weights, write_tensors

HSI_CHUNK = 64
MSI_CHUNK = 256
COARSE_EDGE = 256
"""Coarse pixels along the edge of a window of the coarse pass, a multiple of `HSI_CHUNK`."""
REFLECTANCE_SCALE = 1e-4
"""Physical value of one count of an int16 reflectance product."""
_DEAD_SHARE = 0.02
"""A band with less than this share of the best band's valid samples is taken for dead."""


def stage(job: Job, pair: ScenePair, progress: Progress) -> None:
    """Co-register and stage both images of a job, and find how they were observed; does nothing if that is done.

    Raises
    ------
    InputRejected
        If a source cannot be read, or an image has no valid sample in the overlap.
    QualityRefused
        If no displacement can be believed and the settings do not say to go on without one, or if they require an MSI that
        agrees with the HSI and it does not.
    """
    if job.is_staged:
        return
    align = job.config.align
    # Workers that need a store for the job cannot be taken to see its sources.
    dask = job.config.dask if job.config.store is None else None
    found = estimate(pair, job.grids, align, job.record.psf_sigma_px, dask=dask)
    registration, move = found.registration, found.registration.displacement
    if registration.decision == "refuse" and align.on_refuse == "refuse":
        raise QualityRefused(
            f"{pair.msi.name} could not be registered to {pair.hsi.name}: {registration.reason}; look at it with "
            "`hyperfuse register`, give a known move as align.east_m and align.north_m, or trust the geometry as it is with "
            "align.on_refuse=keep"
        )
    write_report(found, job.folder)
    hsi_move, msi_move = (move, NO_DISPLACEMENT) if align.reference == "msi" else (NO_DISPLACEMENT, -move)
    (job.folder / "stage").mkdir(exist_ok=True)
    hsi = _stage_image(
        pair.hsi, job.grids.coarse, hsi_move, path=job.folder / "stage/hsi.zarr", chunk=HSI_CHUNK, progress=progress
    )
    msi = _stage_image(
        pair.msi, job.grids.fine, msi_move, path=job.folder / "stage/msi.zarr", chunk=MSI_CHUNK, progress=progress
    )
    observation = _observe(job, hsi, msi)
    scale = REFLECTANCE_SCALE if pair.hsi.quantity == "reflectance" else _scale(hsi)
    harmony = harmonize(job.config, observation, (pair.hsi.quantity, pair.msi.quantity), pair.msi.name)
    record = StagedRecord(
        registration=registration, hsi=hsi, msi=msi, observation=observation, scale=scale, harmony=harmony
    )
    write_atomic(job.folder / "staged.json", record.model_dump_json(indent=1))


def keep_weights(job: Job) -> None:
    """Copy the weights into the job's folder, which then is all that a worker on another machine needs.

    Raises
    ------
    InputRejected
        If the file has changed since the job began.
    """
    weights = job.config.weights or shipped_weights(job.config.network)
    if weights is None or job.record.weights is None:
        return
    kept = job.folder / WEIGHTS
    if not kept.is_file():
        temporary = kept.with_suffix(".partial")
        shutil.copyfile(weights, temporary)
        temporary.replace(kept)
    if read_card(kept).sha256 != job.record.weights["sha256"]:
        kept.unlink()
        raise InputRejected(f"{weights}: has changed while this job began; run it again")


def load_job_weights(job: Job) -> dict[str, torch.Tensor] | None:
    """Trained weights of the job's network, None if it was given none, or if the gate leaves them out.

    Raises
    ------
    InputRejected
        If the job's copy of them is damaged.
    """
    if job.record.weights is None or not admitted(job):
        return None
    try:
        return load_weights(job.folder / WEIGHTS)
    except ValueError as error:
        raise InputRejected(f"{job.config.weights or WEIGHTS}: {error}") from error


def build_model(job: Job, device: torch.device) -> FusionModel:
    """The job's method with its sums and weights, on a device.

    Raises
    ------
    InputRejected
        If the weights do not fit the network.
    """
    try:
        model = method(job.config.network).build(job.spec, load_sums(job), load_job_weights(job))
    except ValueError as error:
        raise InputRejected(f"{job.config.weights or job.config.network}: {error}") from error
    if isinstance(model, torch.nn.Module):
        model.to(device)
    return model


def in_precision(job: Job, device: torch.device) -> torch.autocast:
    """The arithmetic that the job asks for; classical methods always compute in single precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision(job, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def precision(job: Job, device: torch.device) -> str:
    """Name of the arithmetic in which the job's method computes on a device."""
    if not job.spec.needs_weights:
        return "fp32"
    if job.config.precision == "auto":
        # Half precision pays where the hardware has it, and bf16 has the range of fp32.
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return job.config.precision


def first_pass(job: Job, progress: Progress) -> None:
    """Sum up what the method wants to know of the scene before its first tile; does nothing if that is done."""
    path = job.folder / "sums.safetensors"
    if not job.spec.needs_first_pass or path.is_file():
        return
    summed = method(job.config.network).first_pass(job.spec, load_job_weights(job))
    pair, ratio, step = StagedPair(job), job.grids.ratio, job.spec.multiple_of
    lattice = getattr(summed, "lattice", step)
    # Not as large as tiles: what is summed must not depend on how the scene is tiled.
    blocks = list(_blocks(job.grids.coarse_shape, max(HSI_CHUNK // lattice, 1) * lattice))
    total: dict[str, torch.Tensor] = {}

    def load(block: Box) -> tuple[Box, Box, PairWindow]:
        # The last block of a row may end anywhere; its window goes on, beyond the rim if need be, to whole multiples.
        height, width = (-(-n // step) * step for n in block.shape)
        around = Box(y0=block.y0, y1=block.y0 + height, x0=block.x0, x1=block.x0 + width).grown(summed.margin)
        return block, around, pair.read(around)

    def sums(loaded: tuple[Box, Box, PairWindow]) -> dict[str, torch.Tensor]:
        block, around, window = loaded
        whole = torch.nn.functional.max_pool2d((~window.msi_valid).float(), ratio) == 0
        valid = window.hsi_valid.all(dim=1) & whole[:, 0]
        counted = torch.zeros_like(valid)
        height, width = block.shape
        counted[:, summed.margin : summed.margin + height, summed.margin : summed.margin + width] = True
        return summed.sums(window.hsi, window.msi, valid & counted, (around.y0, around.x0))

    for done, part in enumerate(convey(blocks, load=load, work=sums, store=lambda part: part), start=1):
        total = merge_sums(summed, total, part) if total else part
        progress("first pass", done, len(blocks))
    write_tensors(path, total)


def coarse_pass(job: Job, device: torch.device, progress: Progress) -> None:
    """Run the coarse part of a two-rate method over the scene, window by window; does nothing if that is done."""
    rates, path = job.spec.two_rate, job.folder / "stage/features.zarr"
    done_marker = job.folder / "features.json"
    if rates is None or done_marker.is_file():
        return
    model = build_model(job, device)
    if not isinstance(model, TwoRateModel):
        raise TypeError(f"{job.spec.name} declares two rates, but has no coarse and fine part")
    pair, step = StagedPair(job), job.spec.multiple_of
    # Tiles may reach beyond the rim to keep the multiple, and so must the features.
    height, width = (-(-n // step) * step for n in job.grids.coarse_shape)
    array = store.create_cube(path, (rates.channels, height * rates.rate, width * rates.rate), HSI_CHUNK * rates.rate)
    blocks = list(_blocks((height, width), COARSE_EDGE))

    def load(block: Box) -> tuple[Box, Box, PairWindow]:
        rows = aligned(block.y0, block.y1, rates.coarse_halo, step, height)
        cols = aligned(block.x0, block.x1, rates.coarse_halo, step, width)
        around = Box(y0=rows[0], y1=rows[1], x0=cols[0], x1=cols[1])
        return block, around, pair.read(around)

    @torch.inference_mode()
    def coarse(loaded: tuple[Box, Box, PairWindow]) -> tuple[Box, torch.Tensor]:
        block, around, window = loaded
        with in_precision(job, device):
            features = model.coarse(window.hsi.to(device), window.msi.to(device))
        inner = block.within(around).times(rates.rate)
        return block, features[0][(slice(None), *inner.slices)].float().cpu()

    def save(done: tuple[Box, torch.Tensor]) -> None:
        block, features = done
        store.write(array, block.times(rates.rate), features.numpy())

    for done, _ in enumerate(convey(blocks, load=load, work=coarse, store=save), start=1):
        progress("coarse pass", done, len(blocks))
    write_atomic(done_marker, "{}")


def load_sums(job: Job) -> dict[str, torch.Tensor] | None:
    """Result of `first_pass`, None if the method wants none."""
    return dict(load_file(job.folder / "sums.safetensors")) if job.spec.needs_first_pass else None


def _stage_image(
    scene: Scene, grid: GeoBox, move: Displacement, *, path: Path, chunk: int, progress: Progress
) -> ImageSums:
    bands = scene.good_bands
    array = store.create_cube(path, (len(bands), *grid.shape), chunk)
    sums = _Sums(len(bands))
    blocks = list(_blocks(tuple(grid.shape), stage_edge(len(bands), chunk)))
    for done, block in enumerate(blocks, start=1):
        cube = warp(scene, grid, block.slices, bands=bands, displacement=move)
        store.write(array, block, cube)
        sums.add(cube)
        progress(f"stage {path.stem}", done, len(blocks))
    return sums.finish(scene)


def _observe(job: Job, hsi: ImageSums, msi: ImageSums) -> Observation:
    """The observation model of the staged images, tested or estimated on a sample of them."""
    hsi_bands, msi_bands = (bands[sums.kept] for bands, sums in zip(job.staged_bands, (hsi, msi), strict=True))
    tables, ratio = job.tables(hsi_bands, msi_bands), job.grids.ratio
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
    if job.config.observe == "tables":
        return assess(tables, sample)
    try:
        return blind(tables, sample, hsi_bands, msi_bands)
    except NotEstimable as why:
        note = f"no blind estimate, the tables of the sensors are used: {why}"
        return assess(tables, sample).model_copy(update={"note": note})


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


def _blocks(shape: tuple[int, ...], edge: int) -> Iterator[Box]:
    for y in range(0, shape[0], edge):
        for x in range(0, shape[1], edge):
            yield Box(y0=y, y1=min(y + edge, shape[0]), x0=x, x1=min(x + edge, shape[1]))


def _scale(sums: ImageSums) -> float:
    """A round step (1, 2 or 5 times a power of ten) with which 1.5 times the image's range fits int16."""
    step = 1.5 * max(abs(sums.low), abs(sums.high), 1e-12) / 32767
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(f * power for f in (1, 2, 5, 10) if f * power >= step))
