"""Stored images: raw samples of one file, what the file declares of them, and the lazy cubes made of both.

`_rasters` and `_arrays` turn files into an `Image`; `catalogs.sensors.generic` turns images into a `Scene`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import BandTable
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.scene import Window

MAX_PIXELS = 10_000_000
"""More rows or columns than this are taken for a damaged or hostile header."""
MAX_BANDS = 10_000
"""More bands than this are taken for a damaged or hostile header."""
SAMPLE_VALUES = 4_000_000
"""Images up to this many values are looked at whole when they are opened, larger ones in windows."""

_LINES = 24
"""Whole rows, and whole columns, of a large image that are looked at."""
_LINE_VALUES = 40_000_000
"""Values that may be decoded for them."""


class Samples(Protocol):
    """Values of one file as they are stored, in file order; may be read from several threads at once."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the file stores together."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values (band, y, x), and where the file's own mask calls them valid (None: it has no mask)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One file and what it declares; nothing is assumed yet."""

    path: Path
    """The data file or folder."""
    files: tuple[Path, ...]
    """All files that were looked at, for the digest."""
    samples: Samples
    """Stored values in file order."""
    affine: Affine | None
    """Pixel-to-world matrix as stored, rows in file order; None without georeference."""
    crs: str | None
    """CRS as WKT or authority code, None if the file has none."""
    table: BandTable | None
    """Wavelengths in file order, None if the file has none."""
    names: tuple[str, ...] | None
    """Band names in file order."""
    nodata: tuple[float, ...] = ()
    """Stored values that mean no data."""
    valid_range: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest stored value that is valid."""
    scale: NDArray[np.float64] | None = None
    """Declared factor per band; None if neither scale nor offset is declared."""
    offset: NDArray[np.float64] | None = None
    """Declared offset per band, None as for `scale`."""
    measures: str = ""
    """What the file says it measures, in its words."""
    unit: str = ""
    """Unit in the file's words."""
    time: datetime | None = None
    """Acquisition, UTC."""
    unwritten: float = 0.0
    """Share of the file's blocks that were never written, 0 to 1."""
    notes: tuple[str, ...] = field(default=())
    """What had to be assumed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredCube:
    """Physical values of one file, bands in the scene's order, rows from north to south."""

    samples: Samples
    """Stored values."""
    order: tuple[int, ...]
    """File position of each band."""
    scale: NDArray[np.float64]
    """Factor of each band, in file order."""
    offset: NDArray[np.float64]
    """Offset of each band, in file order."""
    nodata: tuple[float, ...]
    """Stored values that mean no data."""
    flip: bool
    """The file's rows run from south to north."""
    valid_range: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest stored value that is valid."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        return (len(self.order), *self.samples.shape[1:])

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the file stores together."""
        return self.samples.block

    def read(self, bands: Sequence[int], window: Window) -> NDArray[np.float32]:
        """Physical values; see `catalogs.scene.Cube.read`."""
        rows, cols = _checked(window, self.shape)
        height = self.shape[1]
        stored_rows = slice(height - rows.stop, height - rows.start) if self.flip else rows
        picked = [self.order[b] for b in bands]
        raw, valid = self.samples.read(picked, (stored_rows, cols))
        invalid = np.zeros(raw.shape, bool) if valid is None else ~valid
        for value in self.nodata:
            invalid |= equal(raw, value)
        low, high = self.valid_range
        if low > -math.inf:
            invalid |= raw < low
        if high < math.inf:
            invalid |= raw > high
        # 32-bit floats hold 16-bit counts exactly; wider counts are scaled in 64 bits before they are rounded.
        exact = np.float32 if raw.dtype.itemsize <= 2 or raw.dtype == np.float32 else np.float64
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = raw.astype(exact) * self.scale[picked, None, None].astype(exact)
            values: NDArray[np.float32] = (scaled + self.offset[picked, None, None].astype(exact)).astype(np.float32)
        values[invalid | ~np.isfinite(values)] = np.nan
        return np.ascontiguousarray(values[:, ::-1]) if self.flip else values


@dataclass(frozen=True, kw_only=True, eq=False)
class MosaicCube:
    """Several cubes on one lattice; NaN where none has a sample, the first that has one wins."""

    tiles: tuple[tuple[StoredCube, int, int], ...]
    """Cubes with the row and column of their north-west pixel."""
    shape: tuple[int, int, int]
    """Size as (band, y, x)."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the first tile stores together."""
        return self.tiles[0][0].block

    def read(self, bands: Sequence[int], window: Window) -> NDArray[np.float32]:
        """Physical values; see `catalogs.scene.Cube.read`."""
        rows, cols = _checked(window, self.shape)
        out = np.full((len(bands), rows.stop - rows.start, cols.stop - cols.start), np.nan, np.float32)
        for cube, row, col in self.tiles:
            _, height, width = cube.shape
            top, bottom = max(rows.start, row), min(rows.stop, row + height)
            left, right = max(cols.start, col), min(cols.stop, col + width)
            if top >= bottom or left >= right:
                continue
            part = out[:, top - rows.start : bottom - rows.start, left - cols.start : right - cols.start]
            hole = np.isnan(part)
            if hole.any():
                tile = cube.read(bands, (slice(top - row, bottom - row), slice(left - col, right - col)))
                part[hole] = tile[hole]
        return out


def sample(cube: StoredCube | MosaicCube) -> tuple[NDArray[np.float32], bool]:
    """Values that stand for an image, and whether they are all of it.

    Returns
    -------
    values : ndarray, shape (band, sample), float32
        NaN where there is no valid sample.
    whole : bool
        False for a lattice of windows of 64 x 64 pixels.
    """
    n_bands, height, width = cube.shape
    if n_bands * height * width <= SAMPLE_VALUES:
        return cube.read(range(n_bands), (slice(0, height), slice(0, width))).reshape(n_bands, -1), True
    # Large blocks are decoded whole for a few pixels each: fewer windows then, so that opening takes seconds.
    per_window = n_bands * max(cube.block[0], 64) * max(cube.block[1], 64)
    side = 4 if per_window < 4_000_000 else 2
    windows = [
        (slice(row, min(row + 64, height)), slice(col, min(col + 64, width)))
        for row in np.unique(np.linspace(0, max(height - 64, 0), 2 * side + 1).astype(int)[1::2]).tolist()
        for col in np.unique(np.linspace(0, max(width - 64, 0), 2 * side + 1).astype(int)[1::2]).tolist()
    ]
    return np.concatenate([cube.read(range(n_bands), w).reshape(n_bands, -1) for w in windows], axis=1), False


def sample_lines(cube: StoredCube | MosaicCube, bands: Sequence[int]) -> NDArray[np.float32]:
    """Some whole rows and columns of a large image, where margins, blocks and columns of fill show.

    Returns
    -------
    ndarray, shape (band, sample), float32
        NaN where there is no valid sample; nothing where the blocks of the file make lines costly.
    """
    _, height, width = cube.shape
    tall, wide = cube.block
    parts = [np.empty((len(bands), 0), np.float32)]
    # What a line costs is what its blocks hold.
    if (n_rows := min(_LINES, _LINE_VALUES // (len(bands) * tall * width))) >= 2:
        rows = np.unique(np.linspace(0, height - 1, n_rows).astype(int)).tolist()
        parts += [cube.read(bands, (slice(row, row + 1), slice(0, width)))[:, 0] for row in rows]
    if (n_cols := min(_LINES, _LINE_VALUES // (len(bands) * height * min(wide, width)))) >= 2:
        cols = np.unique(np.linspace(0, width - 1, n_cols).astype(int)).tolist()
        parts += [cube.read(bands, (slice(0, height), slice(col, col + 1)))[:, :, 0] for col in cols]
    return np.concatenate(parts, axis=1)


def refuse_absurd(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse a size that no image has, before anything is read.

    Raises
    ------
    InputRejected
        If there is nothing in it, or more than 10,000 bands or 10 million rows or columns.
    """
    n_bands, height, width = shape
    if min(shape) < 1 or n_bands > MAX_BANDS or max(height, width) > MAX_PIXELS:
        raise InputRejected(
            f"{path}: declares {n_bands} bands x {height} rows x {width} columns, expected 1 to {MAX_BANDS} bands and "
            f"1 to {MAX_PIXELS} rows and columns; the file is damaged or not an image"
        )


def refuse_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse samples that are not real numbers.

    Raises
    ------
    InputRejected
        For complex, text and other types.
    """
    if dtype.kind not in "uif":
        raise InputRejected(f"{path}: samples are {dtype}, expected integers or floating-point numbers")


def unreadable(path: Path, window: Window, cause: BaseException) -> InputRejected:
    """The error for a window that cannot be read."""
    rows, cols = window
    text = " ".join(str(getattr(cause, "__cause__", None) or cause).split()) or type(cause).__name__
    return InputRejected(
        f"{path}: rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop} cannot be read ({text}); "
        "the file is truncated or damaged, fetch it again"
    )


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the bytes of some files, as hex.

    One file gives the digest that `sha256sum` prints. Several are taken in sorted order, each with its path relative to
    their common folder, so that renamed or exchanged files differ.
    """
    files = sorted({Path(os.path.abspath(p)) for p in paths})  # noqa: PTH100 - Path.resolve would follow links
    root = Path(os.path.commonpath([p.parent for p in files]))
    total = hashlib.sha256()
    for path in files:
        if len(files) > 1:
            total.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                total.update(piece)
    return total.hexdigest()


def _checked(window: Window, shape: tuple[int, int, int]) -> Window:
    for part, size in zip(window, shape[1:], strict=True):
        if not 0 <= part.start < part.stop <= size:
            raise ValueError(f"window {window} does not lie inside {shape[1]} rows x {shape[2]} columns")
    return window


def equal(raw: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Stored samples that are a value, in the type of the samples; floats within the rounding that GDAL grants them."""
    stored = as_stored(value, raw.dtype)
    if stored is None:
        return np.zeros(raw.shape, bool)
    if raw.dtype.kind != "f" or not np.isfinite(stored) or stored == 0:
        return np.asarray(raw == stored)
    # GDAL takes the precision of 32-bit floats for 64 bits, too: nodata values are written with few digits.
    precision = raw.dtype.type(2 * np.finfo(np.float32).eps)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.abs(raw - stored) < precision * np.abs(raw + stored))


def as_stored(value: float, dtype: np.dtype[Any]) -> Any:
    """The nodata value in the type of the samples, None if no sample can have it."""
    if dtype.kind == "f":
        # GDAL tells the nodata value of a 32-bit file in 64 bits.
        with np.errstate(over="ignore"):
            return dtype.type(value)
    limits = np.iinfo(dtype)
    return (
        dtype.type(int(value))
        if np.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
        else None
    )
