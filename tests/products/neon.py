"""A small NEON reflectance tile: groups and attributes of the product, planted counts; four bands, one in water vapor."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from affine import Affine

SHAPE = (14, 18)
GRID = Affine(1, 0, 257000, 0, -1, 4113000)
CENTER_NM, FWHM_NM = (450.0, 660.0, 1400.0, 2200.0), (5.5, 5.6, 5.8, 6.0)
HOLE = (3, 4)


def counts() -> np.ndarray:
    """Counts (row, column, band) as stored."""
    row, col, band = np.ogrid[: SHAPE[0], : SHAPE[1], 1:5]
    data = (1000 * band + 20 * row + col).astype(np.int16)
    data[HOLE] = -9999
    return data


def neon(path: Path, *, reference: tuple[int, int] = (1, 1), rotation: str = "") -> Path:
    """Write the file; `reference` is the pixel (x, y), from 1, whose corner Map_Info gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    east, north = GRID @ (reference[0] - 1, reference[1] - 1)
    with h5py.File(path, "w") as file:
        group = file.create_group("HARV/Reflectance")
        cube = group.create_dataset("Reflectance_Data", data=counts(), chunks=(7, 7, 4))
        cube.attrs["Scale_Factor"], cube.attrs["Data_Ignore_Value"] = [10000.0], [-9999.0]
        cube.attrs["Band_Window_1_Nanometers"] = [1340, 1445]
        place, spectrum = "Metadata/Coordinate_System", "Metadata/Spectral_Data"
        group[f"{place}/EPSG Code"] = np.bytes_("32611")
        group[f"{place}/Map_Info"] = np.bytes_(
            f"UTM, {reference[0]}.000, {reference[1]}.000, {east}, {north}, 1.0000, 1.0000, 11, North, WGS-84, "
            f"units=Meters, 0{rotation}"
        )
        group[f"{spectrum}/Wavelength"] = np.array(CENTER_NM)
        group[f"{spectrum}/FWHM"] = np.array(FWHM_NM)
    return path
