"""Pictures and sampled spectra of a finished job, small enough to be carried inside a report."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from catalogs.bands import Bands
from pipeline import store
from pipeline.agreement import F32
from pipeline.consistency import radiometry
from pipeline.error_pass import unpacked
from pipeline.job import Job
from pipeline.provenance import NODATA
from pipeline.thumbnail import true_color

EDGE_PX = 700
"""Longest side of a picture, in its own pixels."""
POINTS = 40
"""Rows and columns of spectra that are carried, at most."""
MAX_SAMPLES = 300_000
"""Samples of the carried spectra of one cube, at most."""
_CHUNKS = 8
"""Rows and columns of chunks that spectra are taken from: all of a large product would have to be read otherwise."""
_INFRARED_NM = (860.0, 660.0, 560.0)
_STRETCH = (2.0, 98.0)
_COLORMAP = "viridis"


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


def composites(job: Job) -> list[Composite]:
    """True and false color of HSI and product, as far as the bands allow; at least one."""
    chosen = {"true color": true_color(job.bands), "color infrared": _nearest(job.bands, _INFRARED_NM)}
    picked = {name: bands for name, bands in chosen.items() if bands is not None}
    if not picked:
        last = len(job.bands) - 1
        picked = {"long, middle and short waves": (last, last // 2, 0)}
    height, width = job.grids.product.shape
    step = -(-max(height, width) // EDGE_PX)
    rows, cols = np.arange(0, height, step), np.arange(0, width, step)
    found = []
    for name, bands in picked.items():
        after, before = _product(job, bands, rows, cols), _hsi(job, bands, rows, cols)
        # The product's own range: fine pixels reach farther than what the coarse ones average.
        ranges = [_range(band) for band in after]
        centers = ", ".join(f"{job.bands.center_nm[band]:.0f}" for band in bands)
        size = (len(cols), len(rows))
        uris = [_png(_colored(image, ranges)) for image in (before, after)]
        found.append(Composite(title=f"{name} ({centers} nm)", before=uris[0], after=uris[1], size=size))
    return found


def disagreement(title: str, values: F32, unit: str) -> Map | None:
    """A map as a picture, from 0 to its 98th percentile; None if nothing was compared."""
    shown = np.isfinite(values)
    if not shown.any():
        return None
    high = float(np.percentile(values[shown], _STRETCH[1])) or 1.0
    colormap = mpl.colormaps[_COLORMAP]
    image = (colormap(np.clip(np.nan_to_num(values) / high, 0, 1)) * 255).astype(np.uint8)
    image[..., 3] = np.where(shown, 255, 0)
    scale = tuple(mpl.colors.to_hex(colormap(k / 8)) for k in range(9))
    return Map(title=title, unit=unit, image=_png(image), high=high, colors=scale)


def spectra(job: Job) -> dict[str, Any]:
    """Spectra of HSI, MSI and product at a lattice of points, as the report's script reads them.

    Returns
    -------
    dict
        `rows` and `cols` (product pixels) of the lattice; `fused`, `hsi`, `msi`, and `error` if there are any: little-endian int16 counts of `scale` in
        base64, shape (row, col, band), -32768 where invalid; their wavelengths; `presets`, points worth a look.
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
    highest = max(
        (float(np.nanmax(np.abs(cube))) for cube in (fused, hsi, msi) if np.isfinite(cube).any()), default=1.0
    )
    scale = max(highest, 1e-12) / 32767
    return {
        "rows": rows.tolist(),
        "cols": cols.tolist(),
        "scale": scale,
        "fused": _packed(fused, scale),
        "hsi": _packed(hsi, scale),
        **({"error": _packed(_errors(job, rows, cols), scale)} if job.config.publish.uncertainty else {}),
        "msi": _packed(msi, scale),
        "wavelength_nm": [float(nm) for nm in job.bands.center_nm],
        "msi_nm": [float(nm) for nm in job.staged_bands[1][job.staged.msi.kept].center_nm],
        "presets": _presets(job.bands, fused),
    }


def _product(job: Job, bands: Any, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    stored = store.gather(store.open_array(job.fused), bands, rows, cols)
    if stored.dtype != np.int16:
        return stored.astype(np.float32)
    return np.where(stored == NODATA, np.float32(np.nan), stored * np.float32(job.staged.scale)).astype(np.float32)


def _errors(job: Job, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
    """Standard errors of all bands."""
    return unpacked(job, store.gather(store.open_array(job.errors), range(len(job.bands)), rows, cols))


def _hsi(job: Job, bands: Any, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> F32:
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


def _presets(bands: Bands, fused: F32) -> list[dict[str, Any]]:
    """The brightest, the darkest, the greenest and a usual point of the lattice, less the extremes of noise."""
    valid = np.isfinite(fused).all(axis=0)
    if not valid.any():
        return []
    brightness = np.where(valid, fused.mean(axis=0), np.nan)
    wanted = {name: (brightness, share) for name, share in (("bright", 98), ("usual", 50), ("dark", 2))}
    pair = _nearest(bands, (860.0, 660.0))
    if pair is not None:
        infrared, red = fused[pair[0]], fused[pair[1]]
        total = np.maximum(np.abs(infrared + red), 1e-6)
        wanted["vegetated"] = (np.where(valid, (infrared - red) / total, np.nan), 99)
    presets = []
    for name, (score, share) in wanted.items():
        row, col = np.unravel_index(np.nanargmin(np.abs(score - np.nanpercentile(score, share))), score.shape)
        presets.append({"name": name, "row": int(row), "col": int(col)})
    return presets


def _nearest(bands: Bands, wanted_nm: tuple[float, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(bands.nearest(nm) for nm in wanted_nm)
    except LookupError:
        return None


def _range(band: F32) -> tuple[float, float]:
    shown = band[np.isfinite(band)]
    low, high = np.percentile(shown, _STRETCH) if shown.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _colored(image: F32, ranges: list[tuple[float, float]]) -> NDArray[np.uint8]:
    shown = np.isfinite(image).all(axis=0)
    layers = [
        np.clip((np.nan_to_num(band) - low) / (high - low), 0, 1)
        for band, (low, high) in zip(image, ranges, strict=True)
    ]
    layers.append(shown.astype(np.float32))
    return (np.stack(layers, axis=-1) * 255).astype(np.uint8)


def _png(image: NDArray[np.uint8]) -> str:
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, format="PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _packed(cube: F32, scale: float) -> str:
    counts = np.where(np.isfinite(cube), np.round(np.nan_to_num(cube) / scale), NODATA)
    return base64.b64encode(np.ascontiguousarray(counts.transpose(1, 2, 0), "<i2").tobytes()).decode()
