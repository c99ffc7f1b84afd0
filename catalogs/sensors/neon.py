"""NEON AOP surface reflectance (NIS): the HDF5 file of a tile or a flight line.

Scale, no-data value, wavelengths, widths, EPSG code and corner are read from the file. The corner in Map_Info is that
of the pixel it names, counted from 1, as in ENVI headers. Bands inside the file's band windows (water vapor) are not
good. A mosaicked tile has no single time, and no cloud mask is read.

The MTF is not in the product: the value typical of the field is used, and the setting `psf_mtf` overrules it.

References
----------
NEON.DOC.001288, NEON Imaging Spectrometer Radiance to Reflectance ATBD (layout).
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.hdf import HdfSamples, is_hdf, numbers, product, text
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source

SENSOR = Sensor(title="NEON AOP surface reflectance", gsd_m=1.0, role="hsi")

_CUBE = "Reflectance/Reflectance_Data"
_PLACE = "Reflectance/Metadata/Coordinate_System"
_SPECTRUM = "Reflectance/Metadata/Spectral_Data"


def accepts(uri: str) -> bool:
    """Whether the address is an HDF5 file with one site that holds NEON reflectance."""
    path = Path(uri)
    if not is_hdf(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return _site(file) is not None
    except (OSError, RuntimeError, KeyError):
        return False


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is no NEON reflectance, damaged, or rotated.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source)
    path = Path(source.uri)
    with product(path) as file:
        if (site := _site(file)) is None:
            raise InputRejected(f"{path}: holds no SITE/{_CUBE}, expected NEON reflectance; check the path")
        group = file[site]
        cube, spectrum = group[_CUBE], group[_SPECTRUM]
        center = numbers(spectrum["Wavelength"])
        return scene_of(
            Product(
                sensor="neon",
                name=path.stem,
                samples=HdfSamples.of(path, cube, ("y", "x", "band")),
                affine=_affine(text(group[f"{_PLACE}/Map_Info"][()]), path),
                crs=f"EPSG:{text(group[f'{_PLACE}/EPSG Code'][()])}",
                wavelength_nm=center,
                fwhm_nm=numbers(spectrum["FWHM"]) if "FWHM" in spectrum else None,
                scale=1.0 / numbers(cube.attrs["Scale_Factor"])[0],
                offset=0.0,
                nodata=tuple(numbers(cube.attrs["Data_Ignore_Value"]).tolist()),
                good=_outside_windows(cube, center),
                quantity="reflectance",
                unit="1",
                time=None,
                files=(path,),
                notes=(f"NEON site {site}",),
            ),
            source,
        )


def _site(file: h5py.File) -> str | None:
    """The group that holds the reflectance, if there is one such group."""
    names = (_CUBE, f"{_PLACE}/Map_Info", f"{_SPECTRUM}/Wavelength")
    # Links are looked at, not followed: another file must not be opened before it is refused.
    sites = [
        name
        for name in file
        if all(isinstance(file.get(f"{name}/{inner}", getlink=True), h5py.HardLink) for inner in names)
    ]
    return str(sites[0]) if len(sites) == 1 else None


def _affine(map_info: str, path: Path) -> Affine:
    """The matrix by an ENVI map info: projection, reference pixel x and y from 1, easting, northing, pixel sizes."""
    fields = [field.strip() for field in map_info.split(",")]
    if any(field.lower().startswith("rotation") and float(field.partition("=")[2] or 0) for field in fields):
        raise InputRejected(f"{path}: its grid is rotated ({map_info}); resample it to a north-up grid first")
    col, row, east, north, dx, dy = (float(field) for field in fields[1:7])
    return Affine(dx, 0.0, east - (col - 1) * dx, 0.0, -dy, north + (row - 1) * dy)


def _outside_windows(cube: h5py.Dataset, center_nm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bands outside of the windows that the file calls unusable."""
    good = np.ones(center_nm.shape, bool)
    for name, limits in cube.attrs.items():
        if name.startswith("Band_Window_") and name.endswith("Nanometers"):
            low, high = numbers(limits)
            good &= (center_nm < low) | (center_nm > high)
    return good
