"""A small picture of a product, for people and catalogs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.composite import picture_bands, stretched
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import valid_samples
from hyperfuse.pipeline.job.folder import StagedJob

EDGE_PX = 512
"""Longest side."""


def thumbnail(job: StagedJob, path: Path) -> None:
    """Write a PNG with transparent nodata, true color where the spectrum allows it.

    Parameters
    ----------
    job : StagedJob
        With a finished mosaic.
    path : Path
        File to write; an existing one is replaced.
    """
    cube_picture(job.fused, job.bands, path)


def cube_picture(array: Path, bands: Bands, path: Path) -> None:
    """The same of any product cube, by its Zarr array and its bands."""
    samples = thinned_bands(array, picture_bands(bands))
    save_picture(samples, np.asarray(valid_samples(samples).all(axis=0)), path)


def save_picture(samples: NDArray[np.generic], opaque: NDArray[np.bool_], path: Path) -> None:
    """Write three layers as a PNG, each stretched to its own range.

    Parameters
    ----------
    samples : ndarray, shape (3, y, x)
        Red, green and blue.
    opaque : ndarray, shape (y, x), bool
        False where the picture is transparent.
    path : Path
        File to write; an existing one is replaced.
    """
    image = np.zeros((*opaque.shape, 4), np.uint8)
    for layer, band in enumerate(samples):
        image[opaque, layer] = stretched(band[opaque].astype(np.float32))
    image[..., 3] = np.where(opaque, 255, 0)
    Image.fromarray(image).save(path, format="PNG", optimize=True)


def thinned_bands(path: Path, picked: tuple[int, ...]) -> NDArray[np.generic]:
    """Every n-th pixel of some bands of a product's Zarr array, as stored, read chunk by chunk.

    Parameters
    ----------
    path : Path
        Array (band, y, x).
    picked : tuple of int
        Positions of the bands, in the order wanted; one may come more than once.

    Returns
    -------
    ndarray, shape (band, y, x)
        Its longest side has at most `EDGE_PX` pixels.
    """
    array = store.open_array(path)
    _, height, width = array.shape
    _, rows, cols = array.chunks
    step = -(-max(height, width) // EDGE_PX)
    # A band may be wanted thrice (one-band products), the store is asked once.
    unique, back = np.unique(picked, return_inverse=True)
    image = np.empty((len(unique), -(-height // step), -(-width // step)), array.dtype)
    for y0 in range(0, height, rows):
        for x0 in range(0, width, cols):
            # The lattice of the picture goes on across chunks.
            box = Box(
                y0=-(-y0 // step) * step, y1=min(y0 + rows, height), x0=-(-x0 // step) * step, x1=min(x0 + cols, width)
            )
            if box.y0 >= box.y1 or box.x0 >= box.x1:
                continue
            part = store.thin(array, box, [int(band) for band in unique], step)
            row, col = box.y0 // step, box.x0 // step
            image[:, row : row + part.shape[1], col : col + part.shape[2]] = part
    return image[back]
