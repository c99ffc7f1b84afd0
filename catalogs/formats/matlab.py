"""MATLAB files: numeric arrays of level 5 (up to version 7) through SciPy, of version 7.3 through HDF5.

Both give arrays with the axes as MATLAB shows them. Only numbers are read: structures, cells, objects and functions
are left where they are.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.arrays import refuse_hdf5_surprises

Level = Literal["5", "7.3"]

MAX_VALUES = 1 << 31
"""Arrays of more values are refused before they are read: the header may lie, and a cube is held whole."""
_NUMERIC = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
# What SciPy, zlib and HDF5 raise over a file that is not what it says.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, AttributeError, OverflowError, MemoryError,
           IndexError, NotImplementedError, UnicodeError, zlib.error, MatReadError)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MatlabFile:
    """The numeric arrays of a MATLAB file, by name."""

    path: Path
    """The file."""
    level: Level
    """Format."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each numeric array, axes as MATLAB shows them."""

    def read(self, name: str) -> NDArray[Any]:
        """An array.

        Raises
        ------
        InputRejected
            If it is absurdly large or cannot be read.
        """
        size = int(np.prod([float(n) for n in self.shapes[name]]))
        if not 1 <= size <= MAX_VALUES:
            raise InputRejected(
                f"{self.path}: {name} declares {size} values, expected 1 to {MAX_VALUES}; cut the cube or fetch it again"
            )
        try:
            if self.level == "5":
                found = loadmat(self.path, variable_names=[name], appendmat=False)[name]
            else:
                with h5py.File(self.path, "r") as file:
                    found = file[name][()].T
        except _DAMAGE as error:
            raise _damaged(self.path, error) from error
        values: NDArray[Any] = np.asarray(found)
        if values.shape != self.shapes[name] or values.dtype.kind not in "uif":
            raise InputRejected(
                f"{self.path}: {name} is {values.dtype} of shape {values.shape}, expected real numbers of shape "
                f"{self.shapes[name]} as its header says; the file is damaged, fetch it again"
            )
        return values


def matlab_level(path: Path) -> Level | None:
    """Format of a MATLAB file by its first bytes; None for others."""
    try:
        with path.open("rb") as file:
            start = file.read(24)
    except OSError:
        return None
    levels: tuple[Level, ...] = ("5", "7.3")
    return next((level for level in levels if start.startswith(f"MATLAB {level.partition('.')[0]}.".encode())), None)


def open_matlab(path: Path, level: Level) -> MatlabFile:
    """The list of a file's numeric arrays.

    Raises
    ------
    InputRejected
        If the file is damaged, or refers to other files.
    """
    try:
        if level == "5":
            shapes = {name: shape for name, shape, kind in whosmat(path, appendmat=False) if kind in _NUMERIC}
        else:
            refuse_hdf5_surprises(path)
            with h5py.File(path, "r") as file:
                shapes = {
                    name: tuple(item.shape[::-1])
                    for name, item in file.items()
                    if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "uif"
                }
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return MatlabFile(path=path, level=level, shapes=shapes)


def _damaged(path: Path, error: BaseException) -> InputRejected:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return InputRejected(f"{path}: cannot be read as a MATLAB file ({words}); it is damaged, fetch it again")
