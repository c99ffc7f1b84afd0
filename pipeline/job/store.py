"""Zarr, and nothing but Zarr: the only module that imports it.

Two kinds of arrays: working cubes (float32, blosc lz4, fast) and product arrays (zstd with a checksum, which detects a
flipped bit and which GDAL can still read). A chunk has one writer, ever; `write` refuses anything else, because two
writers of one chunk lose pixels without an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

from hyperfuse.pipeline.geometry.box import Box

Array = zarr.Array[Any]
_WORKING = BloscCodec(cname="lz4", clevel=3, shuffle=BloscShuffle.bitshuffle)
_ARCHIVE = ZstdCodec(level=3, checksum=True)


def codec_threads() -> list[int]:
    """Native numbers of the threads in which Zarr reads, writes, encodes and decodes; those to come are started by them."""
    return [thread.native_id for thread in threading.enumerate() if thread.name.startswith("zarr") and thread.native_id]


def create_cube(path: Path, shape: tuple[int, int, int], chunk: int) -> Array:
    """A working cube (band, y, x) of float32, NaN where nothing is written; all bands of a chunk lie together."""
    return zarr.create_array(
        store=str(path),
        shape=shape,
        chunks=(shape[0], min(chunk, shape[1]), min(chunk, shape[2])),
        dtype="float32",
        fill_value=math.nan,
        compressors=_WORKING,
        overwrite=True,
    )


def create_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """A product group with its attributes.

    Raises
    ------
    ValueError
        If an attribute holds NaN or infinity, which strict JSON readers refuse.
    """
    zarr.create_group(store=str(path), attributes=_strict(attributes), zarr_format=3, overwrite=True)


def create_array(
    path: Path,
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: str,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    chunks: tuple[int, ...] | None = None,
    fill: float = 0,
    data: NDArray[Any] | None = None,
    kind: Literal["archive", "plain"] = "archive",
) -> Array:
    """An array of a product group, written at once if `data` is given.

    Parameters
    ----------
    path : Path
        The group.
    name : str
    shape, dtype, dims, attributes, chunks, fill
        As Zarr has them; one chunk unless given.
    data : ndarray, optional
        All values.
    kind : {"archive", "plain"}
        zstd with a checksum, or no compression.
    """
    array: Array = zarr.create_array(
        store=str(path),
        name=name,
        shape=shape,
        chunks=chunks or tuple(max(size, 1) for size in shape),
        dtype=dtype,
        fill_value=fill,
        dimension_names=dims,
        attributes=_strict(attributes),
        compressors=_ARCHIVE if kind == "archive" else None,
        overwrite=True,
    )
    if data is not None:
        array.with_config({"write_empty_chunks": True})[...] = data
    return array


def open_array(path: Path, *, write: bool = False) -> Array:
    """An existing array; chunks that hold only the fill value are written too, so that absent means unfinished."""
    array = zarr.open_array(store=str(path), mode="r+" if write else "r")
    return array.with_config({"write_empty_chunks": True})


def attributes(path: Path) -> dict[str, Any]:
    """Attributes of a group or array."""
    return dict(zarr.open(store=str(path), mode="r").attrs)


def dimensions(array: Array) -> tuple[str, ...]:
    """Names of the axes of a product array."""
    named: Any = array.metadata
    return tuple(named.dimension_names or ())


def update_attributes(path: Path, values: Mapping[str, Any]) -> None:
    """Set some attributes of a group or array; the others stay.

    Raises
    ------
    ValueError
        If an attribute holds NaN or infinity.
    """
    zarr.open(store=str(path), mode="r+").update_attributes(_strict(values))


def replace_attributes(path: Path, values: Mapping[str, Any]) -> None:
    """Set the attributes of a group or array; it keeps no others.

    Raises
    ------
    ValueError
        If an attribute holds NaN or infinity.
    """
    zarr.open(store=str(path), mode="r+").attrs.put(_strict(values))


def consolidate(path: Path) -> None:
    """Copy the metadata of all arrays into the group's, so that a reader opens one file; not before all is final."""
    with warnings.catch_warnings():
        # Outside the core specification of v3, as zarr says each time; but without it `xr.open_zarr` warns every user.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(str(path), zarr_format=3)


def read(array: Array, box: Box, bands: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """All or some bands of a rectangle, shape (band, y, x)."""
    cube = np.asarray(array[(slice(None), *box.slices)])
    return cube if bands is None or len(bands) == cube.shape[0] else cube[bands]


def thin(array: Array, box: Box, bands: Sequence[int], step: int) -> NDArray[Any]:
    """Every `step`-th row and column of some bands of a rectangle, counted from its corner, shape (band, y, x)."""
    rows, cols = slice(box.y0, box.y1, step), slice(box.x0, box.x1, step)
    return np.asarray(array.oindex[np.asarray(bands, dtype=np.intp), rows, cols])


def gather(array: Array, bands: Sequence[int], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[Any]:
    """Some bands at the crossings of increasing rows and columns, shape (band, row, col)."""
    return np.asarray(array.oindex[np.asarray(bands, dtype=np.intp), rows, cols])


def chunks(folder: Path, array: Array) -> Iterator[NDArray[Any]]:
    """Every chunk of an array, decoded; one is in memory at a time.

    Raises
    ------
    ValueError
        If a chunk is missing or does not decode (its checksum is wrong); the message begins with its path.
    """
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    for index in np.ndindex(*counts):
        path = folder.joinpath("c", *map(str, index))
        # Zarr reads a missing chunk as fill value without a word.
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        region = tuple(
            slice(i * n, min((i + 1) * n, size)) for i, n, size in zip(index, array.chunks, array.shape, strict=True)
        )
        try:
            yield np.asarray(array[region])
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{path} does not decode: {error}") from error


def chunk_boxes(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Box]:
    """Rectangles of the chunks of a cube (band, y, x), row by row."""
    (height, width), (rows, cols) = shape[-2:], chunks[-2:]
    for y in range(0, height, rows):
        for x in range(0, width, cols):
            yield Box(y0=y, y1=min(y + rows, height), x0=x, x1=min(x + cols, width))


def write(array: Array, box: Box, values: NDArray[Any]) -> None:
    """Write whole chunks.

    Raises
    ------
    ValueError
        If the rectangle cuts a chunk.
    """
    for first, last, chunk, size in zip(
        (box.y0, box.x0), (box.y1, box.x1), array.chunks[-2:], array.shape[-2:], strict=True
    ):
        if first % chunk or (last % chunk and last != size):
            raise ValueError(
                f"pixels {first}:{last} cut the chunks of {chunk}: two writers of one chunk overwrite each other"
            )
    array[..., *box.slices] = values


def chunk_paths(folder: Path, array: Array, box: Box) -> Iterator[Path]:
    """Files of the chunks under a rectangle of a cube or of one layer, all bands, in order."""
    rows, cols = array.chunks[-2:]
    counts = (-(-size // chunk) for size, chunk in zip(array.shape[:-2], array.chunks[:-2], strict=True))
    for leading in product(*map(range, counts)):
        for row in range(box.y0 // rows, -(-box.y1 // rows)):
            for col in range(box.x0 // cols, -(-box.x1 // cols)):
                yield folder.joinpath("c", *map(str, (*leading, row, col)))


def chunks_digest(folder: Path, array: Array, box: Box) -> str | None:
    """SHA-256 over the stored bytes of the chunks under a rectangle; None if one is missing."""
    digest = hashlib.sha256()
    try:
        for path in chunk_paths(folder, array, box):
            digest.update(path.read_bytes())
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def n_chunk_files(folder: Path, array: Array) -> tuple[int, int]:
    """Chunk files that exist, and that should."""
    expected = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
    return sum(1 for path in (folder / "c").rglob("*") if path.is_file()), expected


def _strict(attributes: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(json.dumps(dict(attributes), allow_nan=False))
    except ValueError as error:
        raise ValueError(f"attributes must be finite JSON: {error}") from error
    return result
