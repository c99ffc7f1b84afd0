"""What the images of one PRISMA L2D file have in common: the file, its map grid, and how that grid is checked."""

from __future__ import annotations

from itertools import product as product_of
from pathlib import Path

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.hdf import has_objects, is_hdf, numbers
from hyperfuse.catalogs.formats.packages import Member, Package, open_package
from hyperfuse.catalogs.sensors import Source

SWATHS = "HDFEOS/SWATHS"
HCO = f"{SWATHS}/PRS_L2D_HCO"
"""Hyperspectral cubes."""
PCO = f"{SWATHS}/PRS_L2D_PCO"
"""Panchromatic image."""
GOOD_CODES = (0, 2)
"""Codes of the error matrices that leave a sample valid."""
COUNTS = 65535
_PIXEL_M = 30.0
_PIXEL_TOLERANCE = 1e-4
"""Relative; the corners of a scene of 1200 pixels tell n from n - 1 by 8e-4."""


def is_prisma(uri: str) -> bool:
    """Whether the address is an HDF5 file with PRISMA swaths, or an archive of one."""
    path = Path(uri)
    if is_hdf(path):
        return any(has_objects(path, f"{SWATHS}/PRS_L{level}_HCO") for level in ("1", "2B", "2C", "2D"))
    return path.is_file() and (package := open_package(uri)) is not None and bool(_inside(package))


def he5_of(source: Source) -> Path:
    """The he5 file; one in an archive is unpacked, because the HDF5 library reads nothing else."""
    path = Path(source.uri)
    if is_hdf(path):
        return path
    package = open_package(source.uri)
    if package is None or package.kind == "folder":
        raise InputRejected(f"{source.uri}: is no he5 file and no archive of one; name the he5 file")
    member = package.one("*.he5")
    return package.in_place([member], whole_files=True)[member.name].holder


def outer_grid(file: h5py.File, size: tuple[int, int], path: Path) -> tuple[Affine, str]:
    """The matrix of the outer corners, and how the corner coordinates were understood."""
    height, width = size
    left, top, right, bottom = (
        float(numbers(file.attrs[f"Product_{corner}corner_{axis}"])[0])
        for corner, axis in product_of(("UL", "LR"), ("easting", "northing"))
    )
    for n_gaps, inset, meaning in ((1, 0.5, "centers of the corner pixels"), (0, 0.0, "outer corners")):
        step_x, step_y = (right - left) / (width - n_gaps), (top - bottom) / (height - n_gaps)
        if max(abs(step_x - _PIXEL_M), abs(step_y - _PIXEL_M)) <= _PIXEL_TOLERANCE * _PIXEL_M:
            told = f"corner coordinates are {meaning}: they lie {_PIXEL_M:g} m times the number of pixels"
            told += f" less {n_gaps} apart" if n_gaps else " apart"
            return Affine(step_x, 0, left - inset * step_x, 0, -step_y, top + inset * step_y), told
    raise InputRejected(
        f"{path}: corners {right - left:g} m x {top - bottom:g} m apart do not fit {width} x {height} pixels of "
        f"{_PIXEL_M:g} m; fetch it again"
    )


def check_geolocation(
    swath: h5py.Group,
    imaged: NDArray[np.bool_] | h5py.Dataset,
    affine: Affine,
    crs: str,
    path: Path,
    *,
    most_px: float = 1.0,
) -> None:
    """Compare a grid with the latitudes and longitudes of a swath, at imaged pixels of five rows.

    Parameters
    ----------
    swath : h5py.Group
        With its `Geolocation Fields`.
    imaged : array, shape (y, x)
        Not 0 where the pixel was imaged.
    affine : Affine
        Of the outer corners.
    crs : str
    path : Path
        For the message.
    most_px : float
        Pixels by which they may differ.

    Raises
    ------
    InputRejected
        If they differ by more.
    """
    lat, lon = (swath[f"Geolocation Fields/{name}"] for name in ("Latitude", "Longitude"))
    to_crs = Transformer.from_crs(4326, crs, always_xy=True)
    for row in np.unique(np.linspace(0, lat.shape[0] - 1, 5).astype(int)).tolist():
        columns = np.flatnonzero(imaged[row] != 0)
        if not columns.size:
            continue
        col = int(columns[columns.size // 2])
        at_col, at_row = ~affine @ to_crs.transform(float(lon[row, col]), float(lat[row, col]))
        off = max(abs(at_col - col - 0.5), abs(at_row - row - 0.5))
        if not off <= most_px:
            raise InputRejected(
                f"{path}: its latitude and longitude put row {row}, column {col} {off:.1f} px away from where its corners "
                f"put it, expected at most {most_px:g}; fetch it again"
            )


def _inside(package: Package) -> list[Member]:
    return package.find("PRS_L*.he5") if package.kind != "folder" else []
