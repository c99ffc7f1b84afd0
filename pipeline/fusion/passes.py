"""The passes of a method over the whole scene before its tiles: first pass (statistics) and coarse pass (features)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hyperfuse.catalogs.formats.files import file_sha256, write_atomic
from hyperfuse.models import TwoRateModel, method
from hyperfuse.pipeline.fusion.method import build_model, in_precision, load_job_weights, precision
from hyperfuse.pipeline.fusion.weights import write_tensors
from hyperfuse.pipeline.fusion.windows import FILL, PairWindow, StagedPair, scene_sums
from hyperfuse.pipeline.geometry.box import Box, blocks_of
from hyperfuse.pipeline.geometry.tiling import aligned
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.seals import changed, seal
from hyperfuse.pipeline.job.stage import HSI_CHUNK
from hyperfuse.pipeline.pipelining import convey
from hyperfuse.pipeline.progress import Progress

COARSE_EDGE = 256
"""Coarse pixels along the edge of a window of the coarse pass, a multiple of `HSI_CHUNK`."""


def first_pass(job: StagedJob, progress: Progress) -> None:
    """Sum up what the method wants to know of the scene before its first tile; does nothing if that is done."""
    _fill_pass(job, progress)
    path = job.folder / "sums.safetensors"
    if not job.spec.needs_first_pass or _is_as_it_was(path):
        return
    summed = method(job.config.method).first_pass(job.spec, load_job_weights(job))
    write_tensors(path, scene_sums(StagedPair(job), summed, progress))
    write_atomic(path.with_suffix(".json"), json.dumps({"sha256": file_sha256(path)}))


def _fill_pass(job: StagedJob, progress: Progress) -> None:
    """Sum up what holes are filled from, where there are any and the method does not leave them out itself."""
    path = job.folder / FILL
    whole = all(image.valid_fraction == 1.0 for image in (job.staged.hsi, job.staged.msi))
    if whole or not job.spec.is_filled or _is_as_it_was(path):
        return
    path.unlink(missing_ok=True)  # a damaged one would fill what its successor is made of
    write_tensors(path, StagedPair(job).fill_sums(progress))
    write_atomic(path.with_suffix(".json"), json.dumps({"sha256": file_sha256(path)}))


def _is_as_it_was(path: Path) -> bool:
    """Whether a file has the digest that was written after it."""
    return path.is_file() and _noted(path.with_suffix(".json")) == file_sha256(path)


def _noted(note: Path) -> str | None:
    try:
        return str(json.loads(note.read_bytes())["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def coarse_pass(job: StagedJob, device: torch.device, progress: Progress) -> None:
    """Run the coarse part of a two-rate method over the scene, window by window; does nothing if that is done."""
    rates, path = job.spec.two_rate, job.folder / "stage/features.zarr"
    done_marker = job.folder / "features.json"
    listing = job.folder / "features_files.json"
    if rates is None or not changed(listing, _noted(done_marker) or "", [path]):
        return
    done_marker.unlink(missing_ok=True)
    model = build_model(job, device)
    if not isinstance(model, TwoRateModel):
        raise TypeError(f"{job.spec.name} declares two rates, but has no coarse and fine part")
    pair, step, arithmetic = StagedPair(job), job.spec.multiple_of, precision(job, device)
    # Tiles may reach beyond the rim to keep the multiple, and so must the features.
    height, width = (-(-n // step) * step for n in job.grids.coarse_shape)
    array = store.create_cube(path, (rates.channels, height * rates.rate, width * rates.rate), HSI_CHUNK * rates.rate)
    blocks = list(blocks_of((height, width), COARSE_EDGE))

    def load(block: Box) -> tuple[Box, Box, PairWindow]:
        rows = aligned(block.y0, block.y1, rates.coarse_halo, step, height)
        cols = aligned(block.x0, block.x1, rates.coarse_halo, step, width)
        around = Box(y0=rows[0], y1=rows[1], x0=cols[0], x1=cols[1])
        return block, around, pair.read(around)

    @torch.inference_mode()
    def coarse(loaded: tuple[Box, Box, PairWindow]) -> tuple[Box, torch.Tensor]:
        block, around, window = loaded
        with in_precision(arithmetic, device):
            features = model.coarse(window.hsi.to(device), window.msi.to(device))
        inner = block.within(around).times(rates.rate)
        return block, features[0][(slice(None), *inner.slices)].float().cpu()

    def save(done: tuple[Box, torch.Tensor]) -> None:
        block, features = done
        store.write(array, block.times(rates.rate), features.numpy())

    for done, _ in enumerate(convey(blocks, load=load, work=coarse, store=save), start=1):
        progress("coarse pass", done, len(blocks))
    write_atomic(done_marker, json.dumps({"sha256": seal(listing, [path])}))
