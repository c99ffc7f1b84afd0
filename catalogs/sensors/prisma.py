"""PRISMA L2D (surface reflectance on a UTM grid): the he5 file, or the zip that it comes in.

Scale limits, wavelengths, widths, grid and time are root attributes of the file. Wavelengths descend, VNIR and SWIR
overlap, and a band that was not acquired has the wavelength 0; nothing of this is assumed, bands are sorted.

Grid: the corner coordinates are taken for centers of the corner pixels where (LR - UL) / (n - 1) is the pixel size,
for outer corners where (LR - UL) / n is. Which one it is stands in the notes, and the product's own latitudes and
longitudes must agree with the result within a pixel.

Validity: codes 0 (good) and 2 (negative after atmospheric correction, stored as the lower limit of the scale) of the
error matrices are valid, 1 (invalid in L1) and 3 or 4 (saturated) are not; a count of 0 under code 0 is fill. Padding
is where the solar zenith angle is 0. L2D has no cloud mask.

References
----------
ASI, PRISMA Products Specification Document, issue 2.3 (layout).
USGS, Open-File Report 2021-1030-K: the PSF of the product is 1.84 to 1.97 pixels wide at half maximum, its MTF at the Nyquist
frequency 0.054 to 0.096. The MTF here is that of the Gaussian 1.9 pixels wide, because the width decides what a pixel mixes.
Neither is published per detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import conditions
from hyperfuse.catalogs.formats.hdf import HdfSamples, numbers, product, text
from hyperfuse.catalogs.formats.layers import JoinedSamples, Layer, MaskedSamples, Rule, refuse_short
from hyperfuse.catalogs.scene import Conditions, Scene
from hyperfuse.catalogs.sensors import Mtf, Sensor, Source
from hyperfuse.catalogs.sensors._prisma import (
    COUNTS,
    GOOD_CODES,
    HCO,
    SWATHS,
    check_geolocation,
    he5_of,
    is_prisma,
    outer_grid,
)
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="PRISMA L2D", gsd_m=30.0, role="hsi", mtf=Mtf(across=0.04))

_ZENITH = f"{HCO}/Geometric Fields/Solar_Zenith_Angle"

accepts = is_prisma


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it is of another level, damaged, or its parts contradict each other.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source)
    path = he5_of(source)
    with product(path) as file:
        if "PRS_L2D_HCO" not in file.get(SWATHS, {}):
            found = ", ".join(sorted(file.get(SWATHS, {}))) or "nothing"
            raise InputRejected(
                f"{source.uri}: holds {found}, expected PRS_L2D_HCO: only L2D lies on a map grid; order the scene as L2D"
            )
        return _scene(file, path, source)


def _scene(file: h5py.File, path: Path, source: Source) -> Scene:
    _require(file, path)
    cubes = [_cube(file, path, kind) for kind in ("Vnir", "Swir")]
    errors = [(cube.errors, cube.bands) for cube in cubes if cube.errors is not None]
    masked = len(errors) == len(cubes)
    samples = JoinedSamples(parts=tuple((cube.samples, cube.bands) for cube in cubes))
    _, height, width = samples.shape
    if any(part.samples.shape[1:] != (height, width) for part in cubes):
        raise InputRejected(f"{source.uri}: its VNIR and SWIR cubes differ in size; fetch it again")
    zenith = Layer(samples=HdfSamples.of(path, file[_ZENITH], ("y", "x")))
    crs, guessed = _crs(file, path)
    affine, told = outer_grid(file, (height, width), path)
    check_geolocation(file[HCO], file[_ZENITH], affine, crs, path)
    return scene_of(
        Product(
            sensor="prisma",
            name=Path(source.uri).stem,
            samples=MaskedSamples(
                samples=samples,
                rules=(Rule(layer=refuse_short(zenith, (height, width), f"{path}, solar zenith angle"), values=(0,)),),
                band_masks=JoinedSamples(parts=tuple(errors)) if masked else None,
                good_codes=GOOD_CODES,
                fill=0,
            ),
            # Without a code, a count of 0 is fill as well as a negative reflectance: it is left out.
            nodata=() if masked else (0.0,),
            affine=affine,
            crs=crs,
            wavelength_nm=np.concatenate([cube.center_nm for cube in cubes]),
            fwhm_nm=np.concatenate([cube.fwhm_nm for cube in cubes]),
            scale=np.concatenate([np.full(len(cube.bands), cube.scale) for cube in cubes]),
            offset=np.concatenate([np.full(len(cube.bands), cube.offset) for cube in cubes]),
            names=tuple(name for cube in cubes for name in cube.names),
            quantity="reflectance",
            unit="1",
            time=parse_time(text(file.attrs.get("Product_StartTime", [""]))),
            files=(Path(source.uri),),
            conditions=_conditions(file),
            notes=(
                told,
                *guessed,
                *(
                    ()
                    if masked
                    else ("no error matrices in the file: counts of 0 are no data, saturated ones are not masked",)
                ),
                "L2D has no cloud mask: clouds are not masked",
            ),
        ),
        source,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cube:
    """One detector; only bands that were acquired."""

    samples: HdfSamples
    errors: HdfSamples | None
    """Codes of the samples; None if the file has none."""
    bands: tuple[int, ...]
    """Stored positions of the bands."""
    names: tuple[str, ...]
    center_nm: NDArray[np.float64]
    fwhm_nm: NDArray[np.float64]
    scale: float
    offset: float


def _cube(file: h5py.File, path: Path, kind: str) -> _Cube:
    fields = file[f"{HCO}/Data Fields"]
    samples = HdfSamples.of(path, fields[f"{kind.upper()}_Cube"], ("y", "band", "x"))
    matrix = f"{kind.upper()}_PIXEL_L2_ERR_MATRIX"
    errors = HdfSamples.of(path, fields[matrix], ("y", "band", "x")) if matrix in fields else None
    center, width = (numbers(file.attrs[f"List_{what}_{kind}"]) for what in ("Cw", "Fwhm"))
    flags = numbers(file.attrs.get(f"List_Cw_{kind}_Flags", np.ones(center.size)))
    n_bands = samples.shape[0]
    if (errors is not None and errors.shape != samples.shape) or not n_bands == center.size == width.size == flags.size:
        raise InputRejected(
            f"{path}: {kind.upper()} has {n_bands} bands, {center.size} wavelengths, {width.size} widths and {flags.size} "
            f"flags, its error matrix {n_bands if errors is None else errors.shape[0]} bands, expected one number; fetch it again"
        )
    low, high = (float(numbers(file.attrs[f"L2Scale{kind}{end}"])[0]) for end in ("Min", "Max"))
    taken = np.flatnonzero((center > 0) & (flags != 0))
    return _Cube(
        samples=samples,
        errors=errors,
        bands=tuple(int(band) for band in taken),
        names=tuple(f"{kind.upper()} {band + 1}" for band in taken),
        center_nm=center[taken],
        fwhm_nm=width[taken],
        scale=(high - low) / COUNTS,
        offset=low,
    )


def _require(file: h5py.File, path: Path) -> None:
    """Refuse a file without one of its cubes, or without the limits of its scale."""
    for kind in ("Vnir", "Swir"):
        if f"{HCO}/Data Fields/{kind.upper()}_Cube" not in file:
            raise InputRejected(
                f"{path}: holds no {kind.upper()} cube, expected VNIR and SWIR; order the scene with both"
            )
        for end in ("Min", "Max"):
            if f"L2Scale{kind}{end}" not in file.attrs:
                raise InputRejected(
                    f"{path}: has no attribute L2Scale{kind}{end}, without which counts are no reflectance; fetch it again, or copy "
                    "the attribute from the product as it was delivered"
                )


def _crs(file: h5py.File, path: Path) -> tuple[str, tuple[str, ...]]:
    """The CRS by its code; without one, by name and zone, and a note."""
    if "Epsg_Code" in file.attrs:
        return f"EPSG:{int(numbers(file.attrs['Epsg_Code'])[0])}", ()
    name, zone, body = (
        text(file.attrs.get(k, [""])) for k in ("Projection_Name", "Projection_Id", "Reference_Ellipsoid")
    )
    if (
        name.upper() != "UTM"
        or not zone.isdecimal()
        or not 1 <= int(zone) <= 60
        or body.upper().replace(" ", "") != "WGS84"
    ):
        raise InputRejected(
            f"{path}: has no attribute Epsg_Code, and its projection is {name or 'unknown'} {zone}, expected UTM and a zone; fetch it "
            "again"
        )
    north = float(np.mean(file[f"{HCO}/Geolocation Fields/Latitude"])) >= 0
    code = f"EPSG:{326 if north else 327}{int(zone):02d}"
    return code, (f"no EPSG code in the file: {code} by its projection (UTM {zone}, WGS84) and its latitudes",)


def _conditions(file: h5py.File) -> Conditions:
    """Cloud and sun of the root attributes, where they are; angles of the middle of the image otherwise."""

    def attribute(name: str) -> float | None:
        return float(numbers(file.attrs[name])[0]) if name in file.attrs else None

    def middle(name: str) -> float | None:
        """Of the imaged pixel in the middle of the middle row."""
        if f"{HCO}/Geometric Fields/{name}" not in file:
            return None
        row = file[_ZENITH].shape[0] // 2
        imaged = np.flatnonzero(file[_ZENITH][row] != 0)
        return float(file[f"{HCO}/Geometric Fields/{name}"][row, imaged[imaged.size // 2]]) if imaged.size else None

    zenith = attribute("Sun_zenith_angle")
    return conditions(
        cloud_percent=attribute("Cloudy_pixels_percentage"),
        sun_zenith=middle("Solar_Zenith_Angle") if zenith is None else zenith,
        sun_azimuth=attribute("Sun_azimuth_angle"),
        off_nadir=middle("Observing_Angle"),
    )
