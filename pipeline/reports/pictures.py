"""Pictures and sampled spectra of a finished job, small enough to be carried inside a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import decoded
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.quality.accumulators import F32
from hyperfuse.pipeline.quality.consistency import radiometry
from hyperfuse.pipeline.reports.color_maps import (
    EDGE_PX,
    choices,
    colored,
    mapped,
    packed,
    packing,
    png,
    presets,
    scale_colors,
    stretch,
)

POINTS = 40
"""Rows and columns of spectra that are carried, at most."""
MAX_SAMPLES = 300_000
"""Samples of the carried spectra of one cube, at most."""
_CHUNKS = 8
"""Rows and columns of chunks that spectra are taken from: all of a large product would have to be read otherwise."""


@dataclass(frozen=True, kw_only=True)
class Composite:
    """One choice of bands, before and after fusion, with the same stretch."""

    title: str
    """Name in words, with the wavelengths."""
    before: str
    """The HSI on the product's pixels, data URI of a PNG."""
    after: str
    """The product, likewise."""
    size: tuple[int, int]
    """Width and height in the picture's pixels."""


@dataclass(frozen=True, kw_only=True)
class Map:
    """A map of disagreement as a picture."""

    title: str
    unit: str
    image: str
    """Data URI of a PNG; transparent where nothing was compared."""
    high: float
    """Value of the last color; the first is 0."""
    colors: tuple[str, ...]
    """Colors from 0 to `high`, for a scale."""


def composites(job: StagedJob) -> list[Composite]:
    """True and false color of HSI and product, as far as the bands allow; at least one."""
    height, width = job.grids.product.shape
    step = -(-max(height, width) // EDGE_PX)
    rows, cols = np.arange(0, height, step), np.arange(0, width, step)
    found = []
    for title, bands in choices(job.bands).items():
        after, before = _product(job, bands, rows, cols), _hsi(job, bands, rows, cols)
        # The product's own range: fine pixels reach farther than what the coarse ones average.
        ranges = [stretch(band) for band in after]
        size = (len(cols), len(rows))
        uris = [png(colored(image, ranges)) for image in (before, after)]
        found.append(Composite(title=title, before=uris[0], after=uris[1], size=size))
    return found


def disagreement(title: str, values: F32, unit: str) -> Map | None:
    """A map as a picture, from 0 to its 98th percentile; None if nothing was compared."""
    found = mapped(values)
    if found is None:
        return None
    image, high = found
    return Map(title=title, unit=unit, image=image, high=high, colors=scale_colors())


def spectra(job: StagedJob) -> dict[str, Any]:
    """Spectra of HSI, MSI and product at a lattice of points, as the report's script reads them.

    Returns
    -------
    dict
        `rows` and `cols` (product pixels) of the lattice; `fused`, `hsi`, `msi`: little-endian int16 counts of `scale` in
        base64, shape (row, col, band), -32768 where invalid; their wavelengths; `presets`, points worth a look. The script
        draws a band around the product where `error`, its standard error in the same form, is there too.
    """
    height, width = job.grids.product.shape
    _, chunk_rows, chunk_cols = store.open_array(job.fused).chunks
    edge = max(min(POINTS, int((MAX_SAMPLES / len(job.bands)) ** 0.5)), 2)
    rows, cols = _spread(height, chunk_rows, edge), _spread(width, chunk_cols, edge)
    every = range(len(job.bands))
    fused, hsi = _product(job, every, rows, cols), _hsi(job, every, rows, cols)
    lead = job.grids.lead
    array = store.open_array(job.folder / "stage" / "msi.zarr")
    msi = store.gather(array, job.staged.msi.kept, rows + lead[0], cols + lead[1]).astype(np.float32)
    gain, offset = radiometry(job)
    msi = (msi - offset) / gain  # beside the others in their unit
    scale = packing(fused, hsi, msi)
    return {
        "rows": rows.tolist(),
        "cols": cols.tolist(),
        "scale": scale,
        "fused": packed(fused, scale),
        "hsi": packed(hsi, scale),
        "msi": packed(msi, scale),
        **({"error": packed(_errors(job, rows, cols), scale)} if job.config.publish.uncertainty else {}),
        "wavelength_nm": [float(nm) for nm in job.bands.center_nm],
        "msi_nm": [float(nm) for nm in job.staged_bands[1][job.staged.msi.kept].center_nm],
        "presets": presets(job.bands, fused),
    }


def _product(job: StagedJob, bands: Any, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    stored = store.gather(store.open_array(job.fused), bands, rows, cols)
    return decoded(stored, job.staged.scale)


def _errors(job: StagedJob, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    """Standard errors of all bands."""
    return decoded(store.gather(store.open_array(job.errors), range(len(job.bands)), rows, cols), job.error_scale)


def _hsi(job: StagedJob, bands: Any, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    """The coarse pixel under each product pixel."""
    kept, (lead_y, lead_x), ratio = np.array(job.staged.hsi.kept), job.grids.lead, job.grids.ratio
    array = store.open_array(job.folder / "stage" / "hsi.zarr")
    coarse_rows, back_y = np.unique((rows + lead_y) // ratio, return_inverse=True)
    coarse_cols, back_x = np.unique((cols + lead_x) // ratio, return_inverse=True)
    samples = store.gather(array, kept[np.array(bands)], coarse_rows, coarse_cols)
    return np.asarray(samples[:, back_y][:, :, back_x], np.float32)


def _spread(size: int, chunk: int, most: int) -> NDArray[np.int64]:
    """Up to `most` positions along an axis, evenly over few enough chunks."""
    n_chunks = -(-size // chunk)
    if n_chunks <= _CHUNKS:
        return np.unique(((np.arange(most) + 0.5) * size / most).astype(np.int64))
    each = most // _CHUNKS
    first = (np.arange(_CHUNKS) * (n_chunks - 1) // (_CHUNKS - 1)) * chunk
    inside = first[:, None] + ((np.arange(each) + 0.5) * chunk / each).astype(np.int64)
    return np.unique(inside[inside < size])
