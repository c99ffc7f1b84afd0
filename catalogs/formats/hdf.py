"""Arrays inside HDF5 products, read with their axes in any order, on their own grid or through a lookup table.

Every read opens the file anew: the HDF5 library has one lock for all threads, and an open file would not survive a
fork. A product is searched for links to other files before anything else is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.arrays import refuse_hdf5_surprises
from hyperfuse.catalogs.formats.stored import refuse_absurd, refuse_type, unreadable
from hyperfuse.catalogs.scene import Window

Axis = Literal["band", "y", "x"]
F64 = NDArray[np.float64]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SystemError)
"""What h5py raises over a file that is not what it says."""


def is_hdf(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    try:
        with path.open("rb") as file:
            return file.read(8) == _MAGIC
    except OSError:
        return False


def has_objects(path: Path, *names: str) -> bool:
    """Whether an HDF5 file holds all these objects; damage is left to those who open it."""
    if not is_hdf(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            # Asked for as links, so that nothing outside this file is looked at.
            return all(isinstance(file.get(name, getlink=True), h5py.HardLink) for name in names)
    except _DAMAGE:
        return False


@contextmanager
def product(path: Path) -> Iterator[h5py.File]:
    """An HDF5 product for the length of a block.

    Raises
    ------
    InputRejected
        If it refers to other files, is damaged, or lacks what the block asks for.
    """
    try:
        _check(path, path.stat().st_mtime_ns)
        with h5py.File(path, "r") as file:
            yield file
    # Beyond damage: an array that should hold a number holds none, or one that is none.
    except (*_DAMAGE, IndexError, ArithmeticError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputRejected(f"{path}: is not the product that it seems to be ({text}); fetch it again") from error


@lru_cache(maxsize=64)
def _check(path: Path, _modified_ns: int) -> None:
    refuse_hdf5_surprises(path)


def numbers(value: Any) -> F64:
    """An attribute or a small array as a flat vector of numbers."""
    return np.ravel(np.asarray(value)).astype(np.float64)


def text(value: Any) -> str:
    """An attribute or a scalar dataset as text."""
    values = np.ravel(np.asarray(value))
    if not values.size:
        return ""
    first = values[0]
    return (first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)).strip()


@dataclass(frozen=True, kw_only=True)
class HdfSamples:
    """Samples of one array of an HDF5 file."""

    path: Path
    """File."""
    name: str
    """Array."""
    axes: tuple[Axis, ...]
    """Meaning of its axes, in stored order; without `band` it is one band."""
    shape: tuple[int, int, int]
    """Size as (band, y, x)."""
    block: tuple[int, int]
    """Rows and columns of a chunk."""
    dtype: np.dtype[Any]
    """Stored type."""

    @classmethod
    def of(cls, path: Path, array: h5py.Dataset, axes: tuple[Axis, ...]) -> HdfSamples:
        """The array of an open file.

        Raises
        ------
        InputRejected
            If it has another number of axes, an absurd size, or no numbers.
        """
        if not isinstance(array, h5py.Dataset) or array.ndim != len(axes):
            raise InputRejected(f"{path}: {array.name} has not the axes {', '.join(axes)}; fetch the product again")
        size = dict(zip(axes, array.shape, strict=True))
        chunk = dict(zip(axes, array.chunks or array.shape, strict=True))
        shape = (size.get("band", 1), size["y"], size["x"])
        refuse_absurd(path, shape)
        refuse_type(path, array.dtype)
        # Contiguous rows cost alike wherever they are; whole chunks must not be read twice.
        block = (chunk["y"], chunk["x"]) if array.chunks else (1, size["x"])
        return cls(path=path, name=array.name, axes=axes, shape=shape, block=block, dtype=array.dtype.newbyteorder("="))

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values."""
        order = [self.axes.index(axis) for axis in ("band", "y", "x") if axis in self.axes]
        try:
            with h5py.File(self.path, "r") as file:
                array = file[self.name]
                if "band" not in self.axes:
                    part = {"y": window[0], "x": window[1]}
                    one = array[tuple(part[axis] for axis in self.axes)].transpose(order)
                    return np.repeat(one[None], len(bands), axis=0).astype(self.dtype), None
                # One run from the first band to the last: chunks hold many bands, and a list of indexes is read slowly.
                low, high = min(bands), max(bands) + 1
                whole = {"band": slice(low, high), "y": window[0], "x": window[1]}
                raw = array[tuple(whole[axis] for axis in self.axes)].transpose(order)
                return raw[[band - low for band in bands]].astype(self.dtype, copy=False), None
        except _DAMAGE as error:
            raise unreadable(self.path, window, error) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class OrthoSamples:
    """Samples on the sensor's own grid, seen through a geometric lookup table.

    No value is computed: a cell of the map takes the sample of the one sensor pixel that the table names.
    """

    samples: HdfSamples
    """The image on the sensor's grid."""
    row: NDArray[np.int32]
    """Sensor row of each map cell, shape (y, x); negative where there is none."""
    col: NDArray[np.int32]
    """Sensor column of the same."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""
        return self.samples.shape[0], *self.row.shape

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of the map that are best read together."""
        height, width = self.row.shape
        return min(256, height), min(256, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type."""
        return self.samples.dtype

    def read(self, bands: Sequence[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Stored values, and where the table names a pixel."""
        row, col = self.row[window], self.col[window]
        valid = (row >= 0) & (col >= 0)
        mapped = np.broadcast_to(valid, (len(bands), *valid.shape))
        if not valid.any():
            return np.zeros(mapped.shape, self.dtype), mapped
        top, left = int(row[valid].min()), int(col[valid].min())
        part = (slice(top, int(row[valid].max()) + 1), slice(left, int(col[valid].max()) + 1))
        raw, _ = self.samples.read(bands, part)
        return raw[:, np.where(valid, row - top, 0), np.where(valid, col - left, 0)], mapped
