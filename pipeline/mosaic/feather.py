"""How far a pixel of the area lies from the edge of a product, and from what is invalid in it.

Each product is read once, block by block, into a map of one byte per pixel: nothing valid, something, everything. The
distance of a pixel of the area follows from that map alone, so a block of the area and `reach` pixels around it give the
distances of the whole area, exactly: what lies farther away has no say, because the weight has reached 1 there.

    weight = (d - 1/2) / feather, at most 1        d: pixels to the center of the nearest pixel that is not whole

half a pixel is the way from the edge to the center of the first pixel, so in a strip where two products overlap by less
than the feather, their shares are a straight line that meets the edges at 0 and 1.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import distance_transform_edt

from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.resample import source_pixels
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.progress import Steps

NOTHING, SOMETHING, WHOLE = 0, 1, 2
"""Bytes of the map: no band is valid, some are, all are."""
FAINT = 1e-6
"""Weight of a pixel that is valid in some bands only: it counts where no other product has a sample."""
_BANDS_AT_ONCE = 32


def stage_validity(scene: Scene, bands: tuple[int, ...], group: Path, name: str, step: Steps) -> store.Array:
    """Write the map of a scene as an array of a group.

    Parameters
    ----------
    scene : Scene
    bands : tuple of int
        Bands that count.
    group : Path
        Existing Zarr group.
    name : str
        Of the array.
    step : Steps
        Called for every block.

    Raises
    ------
    InputRejected
        If a block of the scene does not decode.
    """
    height, width = scene.geobox.shape
    rows, cols = scene.cube.block
    array = store.create_array(
        group, name, shape=(height, width), chunks=(rows, cols), dtype="uint8", dims=("y", "x"), attributes={}
    )
    for box in store.chunk_boxes(array.shape, array.chunks):
        some, whole = np.zeros(box.shape, bool), np.ones(box.shape, bool)
        for first in range(0, len(bands), _BANDS_AT_ONCE):
            valid = np.isfinite(scene.read(box.slices, bands[first : first + _BANDS_AT_ONCE]))
            some |= valid.any(axis=0)
            whole &= valid.all(axis=0)
        store.write(array, box, np.where(whole, WHOLE, np.where(some, SOMETHING, NOTHING)).astype(np.uint8))
        step()
    return array


def reach(feather_px: int) -> int:
    """Pixels around a block that its distances depend on."""
    return math.ceil(feather_px + 0.5)


def seen(validity: store.Array, source: GeoBox, target: GeoBox, box: Box) -> NDArray[np.uint8]:
    """The map of a product on a box of another grid: the byte of the pixel under each center, 0 outside.

    Parameters
    ----------
    validity : Array, shape (y, x)
        Map on the product's own grid.
    source, target : GeoBox
        Grid of the product and of the area.
    box : Box
        Pixels of `target`, may reach beyond it.

    Returns
    -------
    ndarray, shape (y, x), uint8
    """
    out = np.zeros(box.shape, np.uint8)
    height, width = source.shape
    row, col = source_pixels(source, target, box.slices)
    inside = (row >= -0.5) & (row < height - 0.5) & (col >= -0.5) & (col < width - 0.5)
    if not inside.any():
        return out
    rows, cols = (np.floor(axis[inside] + 0.5).astype(np.int64) for axis in (row, col))
    part = Box(y0=int(rows.min()), y1=int(rows.max()) + 1, x0=int(cols.min()), x1=int(cols.max()) + 1)
    out[inside] = np.asarray(validity[part.slices])[rows - part.y0, cols - part.x0]
    return out


def weights(flags: NDArray[np.uint8], feather_px: int) -> NDArray[np.float64]:
    """Weight of a product in a block.

    Parameters
    ----------
    flags : ndarray, shape (y + 2 * reach, x + 2 * reach), uint8
        Its map on the block and `reach(feather_px)` pixels around it.
    feather_px : int

    Returns
    -------
    ndarray, shape (y, x), float64
        Above 0 where anything is valid, at most 1.
    """
    halo = reach(feather_px)
    inner = (slice(halo, -halo), slice(halo, -halo))
    core, whole = flags[inner], flags == WHOLE
    if not core.any():
        return np.zeros(core.shape)
    if whole.all():
        return np.ones(core.shape)
    distance = np.asarray(distance_transform_edt(whole), np.float64)[inner]
    return np.where(core == NOTHING, 0.0, np.clip((distance - 0.5) / feather_px, FAINT, 1.0))
