"""Zarr v3: the group that tiles write, laid out by `pipeline.job.template`; here it is closed, read back and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import ERRORS
from hyperfuse.pipeline.job.template import TITLES
from hyperfuse.pipeline.products.draft import Asset, BadProduct, Draft
from hyperfuse.pipeline.products.writers import _overviews
from hyperfuse.pipeline.products.writers._read_back import n_valid, require_dataset, require_valid, variables

MEDIA_TYPE = _overviews.MEDIA_TYPE


def write(draft: Draft) -> list[Asset]:
    """Add what is known only at the end; the samples are there already."""
    group = draft.job.fused.parent
    store.update_attributes(group, closing_attributes(draft))
    store.consolidate(group)
    quantity = draft.job.record.hsi.quantity
    cube = Asset(
        key="zarr",
        href=group.name,
        media_type=MEDIA_TYPE,
        title=f"{TITLES[quantity]} cube, Zarr v3 group",
        roles=("data", quantity),
    )
    overviews = [_overviews.create(draft.job, group.parent)] if draft.job.config.publish.overviews else []
    if not draft.job.config.publish.uncertainty:
        return [cube, *overviews]
    errors = Asset(
        key="standard-error",
        href=f"{group.name}/{ERRORS}",
        media_type=MEDIA_TYPE,
        title=f"Standard error (k = 1) of the {TITLES[quantity].lower()}, Zarr v3 array",
        roles=("uncertainty",),
        extra={"raster:scale": draft.provenance["product"]["error_scale"]},
    )
    return [cube, errors, *overviews]


def closing_attributes(draft: Draft) -> dict[str, Any]:
    """Attributes of the group that only the finished mosaic knows: its history, and how much of it is valid."""
    job, summary, facts = draft.job, draft.summary, draft.provenance
    created, code = rfc3339(draft.created), facts["software"]["code_version"]
    record = store.attributes(job.fused.parent)["hrhsi"] | {
        "code_version": code,
        "weights_sha256": facts["method"]["weights_sha256"],
        "valid_fraction": summary.valid_fraction,
        "clipped_samples": summary.clipped,
    }
    inputs = " and ".join(f"{scene.name} ({scene.sensor})" for scene in (job.record.hsi, job.record.msi))
    history = (
        f"{facts['started']} HyperFuse {code}: last run started, "
        f"{facts['tiles']['resumed']} of {summary.n_tiles} tiles taken over from earlier runs\n"
        f"{facts['ended']} HyperFuse {code}: {inputs} fused with {job.config.network}\n"
        f"{created} HyperFuse {code}: published"
    )
    return {"history": history, "date_created": created, "hrhsi": record}


def check(folder: Path, expected: dict[str, Any]) -> None:
    """Read the group as a stranger would, and every chunk.

    Raises
    ------
    BadProduct
        With the file or property that is wrong.
    """
    path = folder / f"{expected['name']}.zarr"
    try:
        with xr.open_zarr(path) as dataset:
            require_dataset(dataset, expected, path.name)
        for name in variables(expected):
            _check_chunks(path / name, expected)
    except HyperFuseError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise BadProduct(f"{path.name}: cannot be read ({error})") from error
    if expected.get("overviews"):
        _overviews.check(folder, expected)


def _check_chunks(path: Path, expected: dict[str, Any]) -> None:
    """Every chunk is there and decodes, and together they hold as many valid samples as the record says."""
    array = store.open_array(path)
    of = f"{path.parent.name}/{path.name}"
    fill = array.fill_value
    if not (fill == expected["nodata"] or (expected["nodata"] is None and np.isnan(fill))):
        raise BadProduct(f"{of}: its fill value is {fill}, expected {expected['nodata'] or 'NaN'}")
    try:
        valid = sum(n_valid(chunk, expected) for chunk in store.chunks(path, array))
    except ValueError as error:
        raise BadProduct(str(error)) from error
    n_found, n_expected = store.n_chunk_files(path, array)
    if n_found != n_expected:
        raise BadProduct(f"{path}: {n_found} chunk files, expected {n_expected}")
    require_valid(valid, array.size, expected, of)
