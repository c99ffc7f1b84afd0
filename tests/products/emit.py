"""A small EMIT granule: reflectance on the sensor's grid, its lookup table, coordinates and MASK file; planted values.

The sensor flew over the map at an angle: map cell (y, x) shows sensor pixel (y, x + y // 4), where there is one. The
table counts from 1. Band 2 of four has no signal by `good_wavelengths`.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

SENSOR = (24, 18)
MAP = (24, 22)
CELL = 0.000542232520256367
ORIGIN = (62.0, 36.4)
CENTER_NM, FWHM_NM = (450.0, 660.0, 1380.0, 2200.0), (8.5, 8.6, 8.8, 9.0)
GOOD = (1, 1, 0, 1)
MASKS = ("Cloud flag", "Cirrus flag", "Water flag", "Spacecraft Flag", "Dilated Cloud Flag", "AOD550", "H2O (g cm-2)",
         "Aggregate Flag")  # fmt: skip
MASKED = {"Cloud flag": (5, 5), "Cirrus flag": (6, 6), "Water flag": (7, 7), "Spacecraft Flag": (8, 8)}
"""Sensor pixels that carry one flag."""
NAME = "EMIT_L2A_RFL_001_20240501T101010_2412207_003.nc"


def reflectance() -> np.ndarray:
    """Values (row, column, band) on the sensor's grid."""
    row, col, band = np.ogrid[: SENSOR[0], : SENSOR[1], 1:5]
    data = (0.1 * band + 0.001 * row + 0.00001 * col).astype(np.float32)
    data[12, 12] = -9999
    data[:, :, 2] = -0.01
    return data


def lookup() -> tuple[np.ndarray, np.ndarray]:
    """Sensor row and column of each map cell, from 0; -1 for none."""
    y, x = np.mgrid[: MAP[0], : MAP[1]]
    col = x - y // 4
    there = (col >= 0) & (col < SENSOR[1])
    return np.where(there, y, -1), np.where(there, col, -1)


def emit(
    folder: Path,
    *,
    mirrored: bool = False,
    mask: bool = True,
    off_cells: float = 0.0,
    line: str = "e1",
    observed: bool = False,
) -> Path:
    """Write the granule and return its reflectance file."""
    folder.mkdir(parents=True, exist_ok=True)
    row, col = lookup()
    # A mirrored table names the column counted from the other side.
    told = np.where(col >= 0, SENSOR[1] - 1 - col, -1) if mirrored else col
    lat, lon = np.full(SENSOR, -9999.0), np.full(SENSOR, -9999.0)
    y, x = np.nonzero(row >= 0)
    lon[row[y, x], col[y, x]] = ORIGIN[0] + CELL * (x + 0.5 + off_cells)
    lat[row[y, x], col[y, x]] = ORIGIN[1] - CELL * (y + 0.5)
    for name, data, fill in ((NAME, reflectance(), -9999.0), (NAME.replace("RFL", "MASK"), _mask(), -9999.0)):
        if "MASK" in name and not mask:
            continue
        with h5py.File(folder / name, "w") as file:
            array = file.create_dataset("mask" if "MASK" in name else "reflectance", data=data, chunks=(8, 8, 2))
            array.attrs["_FillValue"] = np.float32([fill])
            file.attrs["geotransform"] = np.array([ORIGIN[0], CELL, 0, ORIGIN[1], 0, -CELL])
            file.attrs["spatial_ref"] = (
                'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
                'UNIT["degree",0.0174532925199433],AUTHORITY["EPSG","4326"]]'
            )
            file.attrs["time_coverage_start"] = "2024-05-01T10:10:10+0000"
            file.attrs["flight_line"] = line if "MASK" in name else "e1"
            file["location/glt_x"], file["location/glt_y"] = (told + 1).astype(np.int32), (row + 1).astype(np.int32)
            file["location/lat"], file["location/lon"] = lat, lon
            if "MASK" in name:
                file["sensor_band_parameters/mask_bands"] = np.array(MASKS, dtype=h5py.string_dtype())
            else:
                file["sensor_band_parameters/wavelengths"] = np.float32(CENTER_NM)
                file["sensor_band_parameters/fwhm"] = np.float32(FWHM_NM)
                file["sensor_band_parameters/good_wavelengths"] = np.float32(GOOD)
    if observed:
        _observed(folder)
    return folder / NAME


def _observed(folder: Path) -> None:
    """The OBS file of L1B beside it: angles of 1, 2 ... degrees, those of the middle pixel ten times as large."""
    names = ("Path length (sensor-to-ground in meters)", "To-sensor azimuth (0 to 360 degrees CW from N)",
             "To-sensor zenith (0 to 90 degrees from zenith)", "To-sun azimuth (0 to 360 degrees CW from N)",
             "To-sun zenith (0 to 90 degrees from zenith)")  # fmt: skip
    data = np.broadcast_to(np.arange(5, dtype=np.float32), (*SENSOR, 5)).copy()
    data[SENSOR[0] // 2, SENSOR[1] // 2] *= 10
    with h5py.File(folder / NAME.replace("L2A_RFL", "L1B_OBS"), "w") as file:
        file["obs"] = data
        file["sensor_band_parameters/observation_bands"] = np.array(names, dtype=h5py.string_dtype())


def _mask() -> np.ndarray:
    data = np.zeros((*SENSOR, len(MASKS)), np.float32)
    for name, at in MASKED.items():
        data[(*at, MASKS.index(name))] = 1
    return data
