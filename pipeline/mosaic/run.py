"""Several products, one area: check, stage what is valid, blend block by block, publish.

Nothing of a block depends on another, and each writes its own chunks: a run that was killed is started again and skips
the blocks that are finished, and memory holds one block, whatever the size and the number of products.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, UsageError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.times import now
from hyperfuse.pipeline.execution.exchange import drop_abandoned
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.completeness import summarize
from hyperfuse.pipeline.job.ledger import TileRecord
from hyperfuse.pipeline.job.product_files import PROVENANCE, THUMBNAIL
from hyperfuse.pipeline.job.staging_folder import AREA_SCHEMA, RECORD, claim, require_same_job
from hyperfuse.pipeline.mosaic.blend import Block, blend_block
from hyperfuse.pipeline.mosaic.feather import reach, stage_validity
from hyperfuse.pipeline.mosaic.inputs import extents, open_inputs
from hyperfuse.pipeline.mosaic.record import (
    Area,
    area_provenance,
    create_area,
    encoded_samples,
    finished_cube,
    item_properties,
)
from hyperfuse.pipeline.mosaic.seams import JoinSums, joined, seam_record
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.products.commit import put_in_place, require_disk, require_parent, resources_named
from hyperfuse.pipeline.products.draft import Asset
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import COMMON_ASSETS, plain_asset, require_vacant, write_manifest
from hyperfuse.pipeline.products.thumbnail import cube_picture
from hyperfuse.pipeline.products.writers import writer
from hyperfuse.pipeline.products.writers.stac import assemble, band_entries
from hyperfuse.pipeline.products.writers.zarr import MEDIA_TYPE as ZARR
from hyperfuse.pipeline.progress import Progress, Steps, silent

log = logging.getLogger(__name__)

SEAMS = "seams.json"
"""Differences of the products where they overlap, per pair and band, and steps of the mosaic."""


@dataclass(frozen=True, kw_only=True)
class AreaRun:
    """An area that this process holds."""

    area: Area
    progress: Progress
    started: datetime
    """UTC."""


def mosaic_products(config: AreaConfig, *, progress: Progress = silent) -> Product:
    """Blend several fused products into one area product and publish it.

    Parameters
    ----------
    config : AreaConfig
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
    with open_area(config, progress=progress) as held:
        blend_area(held)
        return publish_area(held)


@contextmanager
def open_area(config: AreaConfig, *, progress: Progress = silent) -> Iterator[AreaRun]:
    """Check the products, make or find the staging folder, and lock it.

    Raises
    ------
    UsageError, InputRejected, ExpectedSkip, OutOfResources
        Before anything is written.
    Busy
        If another process works on the same area.
    """
    started = now()
    require_parent(config.output)
    area = Area.of(config, open_inputs(config))
    _require_some_product(area)
    with resources_named(config.output):
        require_vacant(config.output, area.key)
        require_disk(config.output, area.bytes)
        for name, left_out in zip(area.inputs.names, area.inputs.left_out, strict=True):
            if left_out:
                log.warning("%s: %d bands are not in every product and are left out", name, len(left_out))
        claim(area.folder)
        with locked(area.folder):
            require_same_job(area.folder, area.key, AREA_SCHEMA)
            drop_abandoned(config.output, keep=area.folder)
            write_atomic(area.folder / RECORD, json.dumps({"job_schema": AREA_SCHEMA, "samples": area.key}))
            try:
                yield AreaRun(area=area, progress=progress, started=started)
            except (InputRejected, ExpectedSkip):
                # Trying again with the same products is pointless; finished blocks are kept all the same.
                if not area.ledger.records():
                    shutil.rmtree(area.folder, ignore_errors=True)
                raise


def blend_area(held: AreaRun) -> int:
    """Blend the blocks that are not in the ledger; returns how many were there already."""
    area, config = held.area, held.area.config
    if not area.source.is_dir() or not area.fused.is_dir():
        create_area(area)
    validity = _staged_validity(held)
    cube, layer = (store.open_array(path, write=True) for path in (area.fused, area.source))
    done = finished_blocks(area)
    boxes = list(store.chunk_boxes(cube.shape, cube.chunks))
    step = Steps(held.progress, "blend", len(boxes) - len(done))
    where, budget = extents(area.inputs), config.memory_gb * 1e9
    for box in boxes:
        if _key(box) in done:
            continue
        began = time.monotonic()
        near = [number for number, extent in enumerate(where) if _meet(extent, box.grown(reach(config.feather_px)))]
        block = blend_block(area.inputs, validity, box, among=near, feather_px=config.feather_px, budget=budget)
        stored, clipped = encoded_samples(block.samples, area)
        store.write(cube, box, stored)
        store.write(layer, box, block.source)
        _keep(area, box, block, cube=cube, layer=layer, clipped=clipped, seconds=time.monotonic() - began)
        step()
    write_atomic(area.folder / "resumed.json", json.dumps({"tiles": len(done)}))
    return len(done)


def finished_blocks(area: Area) -> dict[str, TileRecord]:
    """Records of the blocks whose chunks are stored as they were written."""
    cube, layer = store.open_array(area.fused), store.open_array(area.source)
    boxes = {_key(box): box for box in store.chunk_boxes(cube.shape, cube.chunks)}

    def intact(record: TileRecord) -> bool:
        box = boxes.get(record.key)
        return (
            box is not None
            and (area.folder / "seams" / f"{record.key}.json").is_file()
            and _digest(area, box, cube=cube, layer=layer) == record.sha256
        )

    return area.ledger.records(intact)


def publish_area(held: AreaRun) -> Product:
    """Prove that all blocks are there, write the records, read everything back, and rename the product into place."""
    area = held.area
    records = finished_blocks(area)
    boxes = list(store.chunk_boxes(area.inputs.target.shape, store.open_array(area.source).chunks))
    if len(records) != len(boxes):
        raise RuntimeError(f"{area.name}: {len(records)} of {len(boxes)} blocks are finished; blend them first")
    summary = summarize(list(records.values()))
    ended = now()
    sums = joined(
        JoinSums.model_validate_json((area.folder / "seams" / f"{key}.json").read_bytes()) for key in sorted(records)
    )
    seams = seam_record(sums, area.inputs.names)
    resumed = json.loads((area.folder / "resumed.json").read_text())["tiles"]
    facts = area_provenance(area, summary, seams, started=held.started, ended=ended, resumed=resumed)
    step = Steps(held.progress, "publish", 5)
    for entry in area.product.iterdir():
        # What a run left that died while it published.
        if entry not in {area.fused.parent, area.source.parent}:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    cube = finished_cube(area, started=held.started, ended=ended, summary=summary)
    write_atomic(area.product / PROVENANCE, json.dumps(facts.model_dump(mode="json"), indent=1, allow_nan=False))
    write_atomic(area.product / SEAMS, json.dumps(seams, allow_nan=False))
    cube_picture(area.fused, area.inputs.bands, area.product / THUMBNAIL)
    step()
    writers = [writer(name) for name in area.config.formats if name != "stac"]
    assets = [asset for one in writers for asset in one.write(cube)]
    store.consolidate(area.source.parent)
    step()
    for one in writers:
        one.check(area.product, facts.product)
    step()
    described, checksum = write_manifest(
        area.product,
        name=area.name,
        key=area.key,
        arrays={
            path.relative_to(area.product).as_posix(): {"chunks": store.n_chunk_files(path, store.open_array(path))[0]}
            for path in (area.fused, area.source)
        },
        assets=(*assets, *_layers(area), *COMMON_ASSETS),
    )
    record = assemble(
        area.name,
        area.inputs.target,
        properties=item_properties(area, facts, ended),
        links=[
            {"rel": "derived_from", "href": (p.item or p.path).absolute().as_uri(), "title": f"{name}, fused product"}
            for name, p in zip(area.inputs.names, area.inputs.products, strict=True)
        ],
        assets=described,
        bands=band_entries(area.inputs.bands, summary, facts.product),
        manifest_sha256=checksum,
    )
    write_atomic(area.product / f"{area.name}.json", json.dumps(record, indent=1, allow_nan=False))
    writer("stac").check(area.product, facts.product)
    step()
    put_in_place(area.product, area.config.output)
    shutil.rmtree(area.folder, ignore_errors=True)
    step()
    return Product.load(area.config.output)


def _require_some_product(area: Area) -> None:
    height, width = area.inputs.target.shape
    whole = Box(y0=0, y1=height, x0=0, x1=width)
    if not any(_meet(extent, whole) for extent in extents(area.inputs)):
        raise UsageError(
            f"setting bounds: no product lies within {area.config.bounds}; give left, bottom, right, top in the CRS of the area, "
            f"{area.inputs.target.crs}"
        )


def _staged_validity(held: AreaRun) -> list[store.Array]:
    """Maps of what is valid in each product; those that an earlier run has finished are taken over."""
    area = held.area
    group, inputs = area.folder / "valid.zarr", area.inputs
    if not group.is_dir():
        store.create_group(group, {})
    names = [f"p{number}" for number in range(len(inputs.scenes))]
    missing = [number for number, name in enumerate(names) if not (area.folder / f"{name}.whole").is_file()]
    n_blocks = sum(
        -(-inputs.scenes[n].geobox.shape[0] // inputs.scenes[n].cube.block[0])
        * -(-inputs.scenes[n].geobox.shape[1] // inputs.scenes[n].cube.block[1])
        for n in missing
    )
    step = Steps(held.progress, "stage", n_blocks)
    for number in missing:
        stage_validity(inputs.scenes[number], inputs.picked[number], group, names[number], step)
        (area.folder / f"{names[number]}.whole").touch()
    return [store.open_array(group / name) for name in names]


def _keep(
    area: Area, box: Box, block: Block, *, cube: store.Array, layer: store.Array, clipped: int, seconds: float
) -> None:
    """Put a block into the ledger, after what can be seen of its joins."""
    seams = area.folder / "seams"
    seams.mkdir(exist_ok=True)
    write_atomic(seams / f"{_key(box)}.json", block.seams.model_dump_json())
    valid = np.isfinite(block.samples)
    n_valid = valid.sum(axis=(1, 2))

    def where_any(values: Any) -> list[float | None]:
        return [float(v) if n else None for v, n in zip(values, n_valid, strict=True)]

    area.ledger.add(
        TileRecord(
            key=_key(box),
            sha256=_digest(area, box, cube=cube, layer=layer) or "",
            pixels=box.shape[0] * box.shape[1],
            valid=n_valid.tolist(),
            total=np.where(valid, block.samples, 0.0).sum(axis=(1, 2), dtype=np.float64).tolist(),
            low=where_any(np.where(valid, block.samples, np.inf).min(axis=(1, 2))),
            high=where_any(np.where(valid, block.samples, -np.inf).max(axis=(1, 2))),
            clipped=clipped,
            seconds=round(seconds, 4),
            device="cpu",
        )
    )


def _digest(area: Area, box: Box, *, cube: store.Array, layer: store.Array) -> str | None:
    """SHA-256 over the stored chunks of a block in both arrays; None if one is missing."""
    parts = store.chunks_digest(area.fused, cube, box), store.chunks_digest(area.source, layer, box)
    if None in parts:
        return None
    return hashlib.sha256("".join(map(str, parts)).encode()).hexdigest()


def _key(box: Box) -> str:
    return f"{box.y0}.{box.x0}"


def _meet(first: Box, second: Box) -> bool:
    return first.y0 < second.y1 and second.y0 < first.y1 and first.x0 < second.x1 and second.x0 < first.x1


def _layers(area: Area) -> tuple[Asset, ...]:
    """What an area has beside its cube."""
    source = plain_asset(
        "source", area.source.parent.name, ZARR, "Number of the product with the largest weight", "metadata"
    )
    return (
        replace(source, is_folder=True),
        plain_asset("seams", SEAMS, "application/json", "Differences where products overlap", "metadata"),
    )
