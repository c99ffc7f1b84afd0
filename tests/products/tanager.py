"""Planet Tanager files by the published layout, ortho and basic."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

WAVELENGTHS = np.linspace(376.4, 2499.0, 12)
FWHM = np.full(12, 5.5)
FILL = -9999.0
CORNER, STEP, EPSG = (503_220.0, 4_410_990.0), 30.0, 32613
TIME = 1_749_374_175.0


def cube(height: int, width: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    values = rng.uniform(0.02, 0.6, (12, height, width)).astype(np.float32)
    values[:, 0, 1] = FILL
    return values


def fields(
    file: h5py.File, root: str, values: NDArray[np.float32], *, name: str = "surface_reflectance"
) -> h5py.Dataset:
    data = file.create_dataset(f"{root}/Data Fields/{name}", data=values, chunks=(3, 4, 4))
    data.attrs["wavelengths"], data.attrs["fwhm"], data.attrs["_FillValue"] = WAVELENGTHS, FWHM, FILL
    data.attrs["good_wavelengths"] = np.array([0] + [1] * 11)
    for mask, at in (("nodata_pixels", (2, 3)), ("beta_cloud_mask", (4, 5)), ("beta_cirrus_mask", (6, 2))):
        layer = np.zeros(values.shape[1:], np.uint8)
        layer[at] = 1
        file.create_dataset(f"{root}/Data Fields/{mask}", data=layer)
    for angle, value in (
        ("sun_zenith", 31.5),
        ("sun_azimuth", 140.0),
        ("sensor_zenith", 4.0),
        ("sensor_azimuth", 98.0),
    ):
        file.create_dataset(f"{root}/Data Fields/{angle}", data=np.full(values.shape[1:], value, np.float32))
    return data


def ortho(path: Path, values: NDArray[np.float32], *, corner: tuple[float, float] = CORNER, epsg: int = EPSG) -> Path:
    height, width = values.shape[1:]
    with h5py.File(path, "w") as file:
        fields(file, "HDFEOS/GRIDS/HYP", values)
        file["HDFEOS/GRIDS/HYP"].attrs["epsg_code"] = epsg
        file.create_dataset("HDFEOS/GRIDS/HYP/Data Fields/time", data=np.full(height, TIME))
        right, bottom = corner[0] + width * STEP, corner[1] - height * STEP
        told = (
            f'GROUP=GridStructure\n\tGROUP=GRID_1\n\t\tGridName="HYP"\n\t\tXDim={width}\n\t\tYDim={height}\n'
            f"\t\tUpperLeftPointMtrs=({corner[0]:.2f},{corner[1]:.2f})\n\t\tLowerRightMtrs=({right:.2f},{bottom:.2f})\n"
            "\t\tProjection=HE5_GCTP_UTM\n\tEND_GROUP=GRID_1\nEND_GROUP=GridStructure\nEND\n"
        )
        file.create_dataset("HDFEOS INFORMATION/StructMetadata.0", data=np.bytes_(told))
    return path


def basic(path: Path, values: NDArray[np.float32], affine: Affine, shape: tuple[int, int], turn: Affine) -> Path:
    """A swath whose pixel centers lie at `turn` of its rows and columns, in cells of the framing."""
    height, width = values.shape[1:]
    col, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = affine @ (turn @ (col, row))
    lon, lat = Transformer.from_crs(EPSG, 4326, always_xy=True).transform(x, y)
    with h5py.File(path, "w") as file:
        fields(file, "HDFEOS/SWATHS/HYP", values)
        for key, array in (("Latitude", lat), ("Longitude", lon)):
            file.create_dataset(f"HDFEOS/SWATHS/HYP/Geolocation Fields/{key}", data=array)
        file.create_dataset("HDFEOS/SWATHS/HYP/Geolocation Fields/Time", data=TIME + np.arange(height))
        file["HDFEOS/SWATHS/HYP/Geolocation Fields"].attrs["Planet_Ortho_Framing"] = json.dumps(
            {"epsg_code": EPSG, "rows": shape[0], "cols": shape[1], "geotransform": list(affine.to_gdal())}
        )
    return path


def tanager(folder: Path) -> Path:
    """An ortho product in a folder of its own."""
    folder.mkdir(parents=True)
    return ortho(folder / "20250608_091615_90_4001_ortho_sr_hdf5.h5", cube(9, 7))
