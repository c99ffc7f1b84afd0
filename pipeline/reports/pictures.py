"""Pictures and spectra of a finished job, small enough for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import decoded
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.quality.accumulators import F32
from hyperfuse.pipeline.quality.consistency import radiometry
from hyperfuse.pipeline.reports.color_maps import color_composite, composite_bands, picture_step, stretch
from hyperfuse.pipeline.reports.spectra import SpectrumPreset, count_scale, lattice_size, packed, presets

_CHUNKS = 8
"""Rows and columns of chunks that spectra are taken from: reading all chunks of a large product takes too long."""


@dataclass(frozen=True, kw_only=True)
class Composite:
    """Three bands before and after fusion, with the same stretch."""

    title: str
    """Name in words, with the wavelengths."""
    before: str
    """The HSI on the product's pixels, data URI of a PNG."""
    after: str
    """The product, likewise."""
    size: tuple[int, int]
    """Width and height in the picture's pixels."""


@dataclass(frozen=True, kw_only=True)
class SpectraData:
    """Spectra of HSI, MSI and product at a lattice of points, as `product_page.js` reads them."""

    rows: list[int]
    """Rows of the lattice, in product pixels."""
    cols: list[int]
    scale: float
    """Value of one count."""
    fused: str
    """The product's spectra in the form of `spectra.packed`; likewise `hsi`, `msi` and `error`."""
    hsi: str
    msi: str
    error: str | None
    """Standard errors of the product, which the page draws as a band around it; None if none were published."""
    wavelength_nm: list[float]
    msi_nm: list[float]
    presets: list[SpectrumPreset]


def composites(job: StagedJob) -> list[Composite]:
    """True and false color of HSI and product, as far as the bands allow; at least one."""
    height, width = job.grids.product.shape
    step = picture_step(height, width)
    rows, cols = np.arange(0, height, step), np.arange(0, width, step)
    result = []
    for title, bands in composite_bands(job.bands).items():
        after, before = _product(job, bands, rows, cols), _hsi(job, bands, rows, cols)
        # The product's own range: fine pixels vary more than the coarse ones, which are their means.
        ranges = [stretch(band) for band in after]
        result.append(
            Composite(
                title=title,
                before=color_composite(before, ranges),
                after=color_composite(after, ranges),
                size=(len(cols), len(rows)),
            )
        )
    return result


def job_spectra(job: StagedJob) -> SpectraData:
    """Spectra of HSI, MSI and product at a lattice of points of the product."""
    height, width = job.grids.product.shape
    _, chunk_rows, chunk_cols = store.open_array(job.fused).chunks
    edge = lattice_size(len(job.bands))
    rows, cols = _spread(height, chunk_rows, edge), _spread(width, chunk_cols, edge)
    every = range(len(job.bands))
    fused, hsi = _product(job, every, rows, cols), _hsi(job, every, rows, cols)
    lead = job.grids.lead
    array = store.open_array(job.folder / "stage" / "msi.zarr")
    msi = store.gather(array, job.staged.msi.kept, rows + lead[0], cols + lead[1]).astype(np.float32)
    gain, offset = radiometry(job)
    msi = (msi - offset) / gain  # in the HSI's quantity and unit, to be drawn with it
    scale = count_scale(fused, hsi, msi)
    return SpectraData(
        rows=rows.tolist(),
        cols=cols.tolist(),
        scale=scale,
        fused=packed(fused, scale),
        hsi=packed(hsi, scale),
        msi=packed(msi, scale),
        error=packed(_errors(job, rows, cols), scale) if job.config.publish.uncertainty else None,
        wavelength_nm=[float(nm) for nm in job.bands.center_nm],
        msi_nm=[float(nm) for nm in job.staged_bands[1][job.staged.msi.kept].center_nm],
        presets=presets(job.bands, fused),
    )


def _product(job: StagedJob, bands: Sequence[int], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    stored = store.gather(store.open_array(job.fused), bands, rows, cols)
    return decoded(stored, job.staged.scale)


def _errors(job: StagedJob, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    """Standard errors of all bands."""
    return decoded(store.gather(store.open_array(job.errors), range(len(job.bands)), rows, cols), job.error_scale)


def _hsi(job: StagedJob, bands: Sequence[int], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
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
