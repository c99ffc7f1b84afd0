"""Small AVIRIS flight lines: an ENVI image with a rotated map info, and a NetCDF file on a north-up grid; planted values.

Layouts by the distribution documents of AVIRIS-NG and AVIRIS-3 and by headers of real files: BIL, 32-bit floats, -9999
outside the imaged strip, wavelengths in the header. AVIRIS-Classic is 16-bit integers, reflectance x 10000.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
from pyproj import CRS

SHAPE = (24, 16)
CORNER = (724522.127, 4074620.759)
GSD, ROTATION_DEG = 4.0, 30.0
EPSG = 32612
CENTER_NM, FWHM_NM = (450.0, 660.0, 1380.0, 2200.0), (5.5, 5.6, 5.8, 6.0)
GOOD = (1, 1, 0, 1)
LINE = "ang20170323t202244"
HOLE = (3, 4)


def reflectance() -> np.ndarray:
    """Values (band, row, column) as stored in floats."""
    band, row, col = np.ogrid[1:5, : SHAPE[0], : SHAPE[1]]
    data = (0.1 * band + 0.002 * row + 0.0001 * col).astype(np.float32)
    data[:, *HOLE] = -9999
    return data


def place(row: float, col: float, rotation_deg: float = ROTATION_DEG) -> tuple[float, float]:
    """Easting and northing of a point of the image, rows and columns from its upper left corner.

    The map info turns the image counterclockwise about its upper left corner.
    """
    angle = math.radians(rotation_deg)
    right, down = col * GSD, row * GSD
    return (
        CORNER[0] + right * math.cos(angle) + down * math.sin(angle),
        CORNER[1] + right * math.sin(angle) - down * math.cos(angle),
    )


def aviris(
    folder: Path,
    *,
    name: str = f"{LINE}_rfl_v2p9_img",
    description: str = f"{LINE} corrected reflectance",
    rotation: str = f"rotation={ROTATION_DEG:.8f}",
    mapped: bool = True,
    integers: bool = False,
) -> Path:
    """Write an ENVI image and return its data file."""
    folder.mkdir(parents=True, exist_ok=True)
    data = reflectance()
    if integers:
        data = np.where(data == -9999, -9999, np.rint(data * 1e4)).astype(np.int16)
    # Lines, then bands, then samples.
    data.transpose(1, 0, 2).tofile(folder / name)
    turned = f" , {rotation}" if rotation else ""
    where = (
        f"map info = {{UTM , 1.000 , 1.000 , {CORNER[0]} , {CORNER[1]} , {GSD:.10e} , {GSD:.10e} , 12 , North , WGS-84 , "
        f"units=Meters{turned}}}\n"
    )
    (folder / f"{name}.hdr").write_text(
        f"ENVI\ndescription = {{\n{description}}}\n"
        f"samples = {SHAPE[1]}\nlines   = {SHAPE[0]}\nbands   = {len(CENTER_NM)}\n"
        f"header offset = 0\nfile type = ENVI Standard\ndata type = {2 if integers else 4}\ninterleave = bil\nbyte order = 0\n"
        + (where if mapped else "")
        + f"wavelength units = Nanometers\nwavelength = {{{', '.join(map(str, CENTER_NM))}}}\n"
        f"fwhm = {{{', '.join(map(str, FWHM_NM))}}}\nbbl = {{{', '.join(map(str, GOOD))}}}\n"
    )
    return folder / name


def aviris3(path: Path, *, group: str = "reflectance", lookup: bool = False) -> Path:
    """Write a NetCDF file as those of AVIRIS-3 and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        cube = file.create_dataset(f"{group}/{group}", data=reflectance(), chunks=(2, 8, 8))
        cube.attrs["_FillValue"] = np.float32([-9999])
        file[f"{group}/wavelength"], file[f"{group}/fwhm"] = np.float32(CENTER_NM), np.float32(FWHM_NM)
        grid = file.create_dataset("transverse_mercator", data=np.bytes_(""))
        grid.attrs["GeoTransform"] = np.bytes_(f"{CORNER[0]} {GSD} 0.0 {CORNER[1]} 0.0 {-GSD} ")
        grid.attrs["spatial_ref"] = np.bytes_(CRS.from_epsg(EPSG).to_wkt("WKT1_GDAL"))
        file["easting"] = CORNER[0] + GSD * (np.arange(SHAPE[1]) + 0.5)
        file["northing"] = CORNER[1] - GSD * (np.arange(SHAPE[0]) + 0.5)
        file.attrs["time_coverage_start"] = np.bytes_("2023-08-21T17:30:24Z")
        if lookup:
            file["geolocation_lookup_table/line"] = np.ones(SHAPE, np.int32)
            file["geolocation_lookup_table/sample"] = np.ones(SHAPE, np.int32)
    return path
