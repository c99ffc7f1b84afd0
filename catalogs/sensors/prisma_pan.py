"""The panchromatic image of PRISMA L2D: 5 m, in the same he5 file as the cubes that it sharpens.

It lies on the map grid of the cubes, six of its pixels to one of theirs along an axis: its outer corners are theirs, and its own
latitudes and longitudes must agree with that. Reflectance is scaled between `L2ScalePanMin` and `L2ScalePanMax`; codes of its
error matrix and a count of 0 mask as they do in the cubes. A file is opened by this reader where it is asked for,
`msi.sensor=prisma_pan`, or where one address is given for both images.

References
----------
ASI, PRISMA Products Specification Document, issue 2.3 (layout; panchromatic range 400 to 700 nm).
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from affine import Affine

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.assembly import Product, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.hdf import HdfSamples, numbers, product, text
from hyperfuse.catalogs.formats.layers import MaskedSamples
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source
from hyperfuse.catalogs.sensors._prisma import COUNTS, GOOD_CODES, HCO, PCO, check_geolocation, he5_of, outer_grid
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(title="PRISMA L2D, panchromatic", gsd_m=5.0, inside="prisma", role="msi")
_FIRST_NM, _LAST_NM = 400.0, 700.0
_TOLERANCE_PX = 2.0
"""Own pixels; latitudes and longitudes are stored as float32, half a meter apart."""


def accepts(uri: str) -> bool:  # noqa: ARG001 (whoever has such a file means its cubes)
    """Never by itself: the file is that of the cubes."""
    return False


def open_scene(source: Source) -> Scene:
    """Open the panchromatic image.

    Raises
    ------
    InputRejected
        If there is none in the file, or it does not lie on the grid of the cubes.
    UsageError
        If a setting would replace what the product tells.
    """
    refuse_overrides(source)
    path = he5_of(source)
    with product(path) as file:
        if PCO not in file or HCO not in file:
            raise InputRejected(
                f"{source.uri}: holds no panchromatic image of level 2D ({PCO}); order the scene as L2D with PAN, or give a "
                "multispectral scene of the same place"
            )
        return _scene(file, path, source)


def _scene(file: h5py.File, path: Path, source: Source) -> Scene:
    fields = file[f"{PCO}/Data Fields"]
    samples = HdfSamples.of(path, fields["Cube"], ("y", "x"))
    errors = HdfSamples.of(path, fields["PIXEL_L2_ERR_MATRIX"], ("y", "x"))
    size = file[f"{HCO}/Geolocation Fields/Latitude"].shape
    _, height, width = samples.shape
    per_pixel = width // size[1]
    if per_pixel < 2 or (height, width) != tuple(per_pixel * n for n in size) or errors.shape != samples.shape:
        raise InputRejected(
            f"{path}: its panchromatic image has {height} x {width} pixels and its error matrix {errors.shape[1:]}, expected a "
            f"whole multiple of the {size[0]} x {size[1]} pixels of the cubes; fetch it again"
        )
    coarse, told = outer_grid(file, size, path)
    affine = coarse @ Affine.scale(1.0 / per_pixel)
    crs = f"EPSG:{int(numbers(file.attrs['Epsg_Code'])[0])}"
    check_geolocation(file[PCO], fields["Cube"], affine, crs, path, most_px=_TOLERANCE_PX)
    low, high = (float(numbers(file.attrs[f"L2ScalePan{end}"])[0]) for end in ("Min", "Max"))
    return scene_of(
        Product(
            sensor="prisma_pan",
            name=f"{Path(source.uri).stem}-pan",
            samples=MaskedSamples(samples=samples, band_masks=errors, good_codes=GOOD_CODES, fill=0),
            affine=affine,
            crs=crs,
            wavelength_nm=np.array([(_FIRST_NM + _LAST_NM) / 2]),
            fwhm_nm=np.array([_LAST_NM - _FIRST_NM]),
            scale=(high - low) / COUNTS,
            offset=low,
            names=("PAN",),
            quantity="reflectance",
            unit="1",
            time=parse_time(text(file.attrs.get("Product_StartTime", [""]))),
            files=(Path(source.uri),),
            look_for_dead=False,
            notes=(told,),
        ),
        source,
    )
