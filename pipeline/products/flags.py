"""What a user should know of single pixels, as bits of a one-band GeoTIFF beside the cube, on its grid.

    1  changed      HSI and MSI show something else there: the product follows the HSI, with its detail alone
    2  near a hole  a network saw filled samples there: within `RIM_PX` coarse pixels of a sample that either image lacks

A pixel without a bit is as good as its standard error says. Pixels without data have no bits: the cube itself tells them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window
from scipy.ndimage import distance_transform_cdt

from hyperfuse.pipeline.geometry.box import blocks_of
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.product_files import FLAGS
from hyperfuse.pipeline.quality.causes.change_map import load_changes, of_product

CHANGED, NEAR_HOLE = 1, 2
MEANINGS = {CHANGED: "changed between the dates of HSI and MSI", NEAR_HOLE: "near a hole that was filled for a network"}
RIM_PX = 4
"""Coarse pixels around a hole within which filled samples matter to a network; beyond, they do by less than a thousandth of the
image's standard deviation (networks with weights of this project, holes of one coarse pixel)."""
_BLOCK = 256
_EDGE = 2048
"""Fine pixels along the edge of the windows that are written at once."""
_SMALLEST = 256
"""Overviews are made until one is as small as this."""


def write_flags(job: StagedJob, root: Path) -> dict[str, float]:
    """Write the flags of a finished job.

    Parameters
    ----------
    job : StagedJob
    root : Path
        Folder of the product.

    Returns
    -------
    dict
        Share of the product's pixels that carry each flag, by its first word.
    """
    geobox = job.grids.product
    height, width = geobox.shape
    layers = {CHANGED: load_changes(job), NEAR_HOLE: _near_holes(job)}
    counts = dict.fromkeys(layers, 0)
    path = root / FLAGS
    with rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=height, width=width, dtype="uint8", crs=job.record.grid.crs,
            transform=geobox.affine, tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK, compress="DEFLATE", bigtiff="IF_SAFER",
        ) as target:  # fmt: skip
            target.set_band_description(1, "quality flags")
            target.update_tags(1, **{f"bit_{bit}": meaning for bit, meaning in MEANINGS.items()})
            for block in blocks_of((height, width), _EDGE):
                flags = np.zeros(block.shape, np.uint8)
                for bit, layer in layers.items():
                    there = of_product(job, layer, block)
                    flags |= np.where(there, np.uint8(bit), np.uint8(0))
                    counts[bit] += int(there.sum())
                target.write(flags, 1, window=Window(block.x0, block.y0, block.shape[1], block.shape[0]))
        levels: list[int] = []
        while max(height, width) >> len(levels) > _SMALLEST:
            levels.append(2 << len(levels))
        if levels:
            with rasterio.open(path, "r+") as target:
                target.build_overviews(levels, Resampling.nearest)
    return {MEANINGS[bit].split()[0]: count / (height * width) for bit, count in counts.items()}


def _near_holes(job: StagedJob) -> NDArray[np.bool_]:
    """Coarse pixels within reach of a hole, for methods whose inputs are filled."""
    near = np.zeros(job.grids.coarse_shape, bool)
    if not job.spec.is_filled:
        return near
    ratio = job.grids.ratio
    arrays = [store.open_array(job.folder / f"stage/{role}.zarr") for role in ("hsi", "msi")]
    for block in blocks_of(near.shape, _EDGE // ratio):
        hsi = store.read(arrays[0], block, np.array(job.staged.hsi.kept))
        msi = store.read(arrays[1], block.times(ratio), np.array(job.staged.msi.kept))
        seen = np.isfinite(msi).all(axis=0).reshape(block.shape[0], ratio, block.shape[1], ratio).all(axis=(1, 3))
        near[block.slices] = ~(np.isfinite(hsi).all(axis=0) & seen)
    if not near.any():
        return near
    return np.asarray(distance_transform_cdt(~near, metric="chessboard") <= RIM_PX)
