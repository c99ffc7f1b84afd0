"""A small PRISMA L2D file: groups, names, axes and attributes of the listing of a real one, planted counts.

VNIR has four bands and SWIR three, descending; the first VNIR band was not acquired (wavelength 0), VNIR 990 nm and
SWIR 945 nm overlap. Row 0 is padding. The coordinates of the corners are those of pixel centers unless `corners` says
otherwise; latitude and longitude follow the true grid.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from affine import Affine
from pyproj import Transformer

SHAPE = (20, 26)
GRID = Affine(30, 0, 550005, 0, -30, 5940015)
EPSG = 32632
VNIR_NM, SWIR_NM = (0.0, 990.0, 700.0, 450.0), (2490.0, 1600.0, 945.0)
LIMITS = {"Vnir": (0.0, 1.2), "Swir": (-0.1, 0.9)}
CENTER_NM = (990.0, 700.0, 450.0, 2490.0, 1600.0, 945.0)
"""Acquired bands in file order."""
PER_PIXEL = 6
"""Panchromatic pixels per pixel of the cubes along an axis."""
PAN_LIMITS = (-0.05, 1.05)
ERRORS = {"fine": (3, 3), "invalid": (4, 4), "negative": (5, 5), "saturated": (6, 6), "fill": (7, 7)}
"""Places (row, column) with one code in the second VNIR band: 0, 1, 2 and 3, and a count of 0 under code 0."""


def counts(kind: str) -> np.ndarray:
    """Counts (row, band, column) as stored."""
    n_bands = len(VNIR_NM if kind == "Vnir" else SWIR_NM)
    row, band, col = np.ogrid[: SHAPE[0], 1 : n_bands + 1, : SHAPE[1]]
    data = (5000 * band + (20000 if kind == "Swir" else 0) + 100 * row + col).astype(np.uint16)
    data[0] = 0
    if kind == "Vnir":
        for name in ("negative", "fill"):
            row_at, col_at = ERRORS[name]
            data[row_at, 1, col_at] = 0
    return data


def pan_counts() -> np.ndarray:
    """Counts of the panchromatic image; a count of 0 in a corner is fill."""
    row, col = np.mgrid[: SHAPE[0] * PER_PIXEL, : SHAPE[1] * PER_PIXEL]
    data = (8000 + 50 * row + 7 * col).astype(np.uint16)
    data[:PER_PIXEL] = 0
    data[20, 30] = 0
    return data


def pan_errors() -> np.ndarray:
    """One saturated pixel, and one that is negative after atmospheric correction."""
    errors = np.zeros(pan_counts().shape, np.uint8)
    errors[40, 50], errors[41, 51] = 4, 2
    return errors


def prisma(
    path: Path, *, corners: str = "centers", level: str = "2D", shift_px: float = 0.0, pan_shift_px: float = 0.0
) -> Path:
    """Write the file; `shift_px` moves latitude and longitude away from the corners."""
    height, width = SHAPE
    inset = 0.5 if corners == "centers" else 0.0
    with h5py.File(path, "w") as file:
        for name, (col, row) in {
            "UL": (inset, inset), "UR": (width - inset, inset), "LL": (inset, height - inset),
            "LR": (width - inset, height - inset),
        }.items():  # fmt: skip
            east, north = GRID @ (col, row)
            file.attrs[f"Product_{name}corner_easting"] = np.float32([east])
            file.attrs[f"Product_{name}corner_northing"] = np.float32([north])
        file.attrs["Epsg_Code"] = np.array([EPSG])
        file.attrs["Sun_zenith_angle"], file.attrs["Sun_azimuth_angle"] = np.float32(47.5), np.float32(158.25)
        file.attrs["Cloudy_pixels_percentage"] = np.float32(6.25)
        file.attrs["Product_StartTime"] = np.bytes_("2024-04-02T10:28:37.932000")
        for kind, centers in (("Vnir", VNIR_NM), ("Swir", SWIR_NM)):
            file.attrs[f"List_Cw_{kind}"] = np.float32(centers)
            file.attrs[f"List_Fwhm_{kind}"] = np.float32([0.0 if nm == 0 else 11.5 for nm in centers])
            file.attrs[f"List_Cw_{kind}_Flags"] = np.array([int(nm > 0) for nm in centers], np.uint8)
            file.attrs[f"L2Scale{kind}Min"], file.attrs[f"L2Scale{kind}Max"] = np.float32(LIMITS[kind])
        swath = f"HDFEOS/SWATHS/PRS_L{level}_HCO"
        for kind in ("Vnir", "Swir"):
            file[f"{swath}/Data Fields/{kind.upper()}_Cube"] = counts(kind)
            errors = np.zeros(counts(kind).shape, np.uint8)
            if kind == "Vnir":
                for code, name in enumerate(("fine", "invalid", "negative", "saturated")):
                    row, col = ERRORS[name]
                    errors[row, 1, col] = code
            file[f"{swath}/Data Fields/{kind.upper()}_PIXEL_L2_ERR_MATRIX"] = errors
        row, col = np.mgrid[:height, :width]
        x, y = GRID @ (col + 0.5 + shift_px, row + 0.5)
        lon, lat = Transformer.from_crs(EPSG, 4326, always_xy=True).transform(x, y)
        zenith = np.full(SHAPE, 49.5, np.float32)
        zenith[0] = 0
        file[f"{swath}/Geolocation Fields/Latitude"] = lat.astype(np.float32)
        file[f"{swath}/Geolocation Fields/Longitude"] = lon.astype(np.float32)
        file[f"{swath}/Geometric Fields/Solar_Zenith_Angle"] = zenith
        file[f"{swath}/Geometric Fields/Observing_Angle"] = np.where(zenith > 0, np.float32(9.5), 0)
        for name, values in (("Cube", pan_counts()), ("PIXEL_L2_ERR_MATRIX", pan_errors())):
            file[f"HDFEOS/SWATHS/PRS_L{level}_PCO/Data Fields/{name}"] = values
        file.attrs["L2ScalePanMin"], file.attrs["L2ScalePanMax"] = np.float32(PAN_LIMITS)
        row, col = np.mgrid[: height * PER_PIXEL, : width * PER_PIXEL]
        x, y = GRID @ ((col + 0.5 + pan_shift_px) / PER_PIXEL, (row + 0.5) / PER_PIXEL)
        lon, lat = Transformer.from_crs(EPSG, 4326, always_xy=True).transform(x, y)
        file[f"HDFEOS/SWATHS/PRS_L{level}_PCO/Geolocation Fields/Latitude"] = lat.astype(np.float32)
        file[f"HDFEOS/SWATHS/PRS_L{level}_PCO/Geolocation Fields/Longitude"] = lon.astype(np.float32)
    return path
