"""A pair of scenes as files that can be harmed: GeoTIFFs of the synthetic land, whose registration is clear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tests.benchmarks.faults.commands import Ended, forked
from tests.synthetic import scene, whole

RECIPE = "size=192&ratio=4&bands=12&seed=3"
NODATA = -32768
SCALE = 1e-4


@dataclass(frozen=True)
class Image:
    """An image as it is in memory."""

    cube: NDArray[np.float32]
    """Reflectance (band, y, x), NaN where nothing was measured."""
    transform: Affine
    crs: str
    center_nm: tuple[float, ...]
    fwhm_nm: tuple[float, ...]


@cache
def image(role: str, recipe: str = RECIPE) -> Image:
    """One role of the synthetic pair."""
    found = scene(role, recipe)
    bands = found.bands
    return Image(
        whole(found).astype(np.float32),
        found.geobox.affine,
        str(found.geobox.crs),
        tuple(float(nm) for nm in bands.center_nm),
        tuple(float(nm) for nm in bands.fwhm_nm),
    )


def write(path: Path, role: str, *, recipe: str = RECIPE, **changed: Any) -> Path:
    """A GeoTIFF of a role; what is given replaces what is true (`cube`, `transform`, `crs`, `center_nm`, `fwhm_nm`, `nodata`,
    and options of GDAL's driver)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    true = image(role, recipe)
    cube = changed.pop("cube", true.cube)
    centers: Sequence[object] = changed.pop("center_nm", true.center_nm)
    widths: Sequence[object] = changed.pop("fwhm_nm", true.fwhm_nm)
    unit, dtype = changed.pop("unit", "Nanometers"), changed.pop("dtype", "int16")
    nodata = changed.pop("nodata", NODATA)
    if dtype == "int16":
        fill = NODATA if nodata is None else nodata
        cube = np.where(np.isfinite(cube), np.round(cube / SCALE), fill).astype(np.int16)
    profile = {
        "crs": true.crs,
        "transform": true.transform,
        "tiled": True,
        "blockxsize": 16,
        "blockysize": 16,
    } | changed
    with rasterio.open(
        path, "w", driver="GTiff", count=len(cube), height=cube.shape[1], width=cube.shape[2], dtype=dtype, nodata=nodata, **profile
    ) as file:  # fmt: skip
        file.write(cube.astype(dtype))
        if dtype == "int16":
            file.scales = [SCALE] * len(cube)
        for band, (center, width) in enumerate(zip(centers, widths, strict=True), start=1):
            if center is not None:
                file.update_tags(band, wavelength=str(center), fwhm=str(width), wavelength_units=unit)
    return path


def pair(folder: Path, **hsi: Any) -> tuple[Path, Path]:
    """Both images in a folder `in`, the HSI changed."""
    return write(folder / "in" / "hsi.tif", "hsi", **hsi), write(folder / "in" / "msi.tif", "msi")


def fused(folder: Path, hsi: object, msi: object, *more: str, **how: Any) -> Ended:
    """Fuse two files to `out/p`."""
    (folder / "out").mkdir(exist_ok=True)
    quick = ("--set", "publish.formats=[zarr]", "--set", "quality.gate=off")
    return forked(["fuse", str(hsi), str(msi), "--output", str(folder / "out" / "p"), *quick, *more], **how)


def refused(
    folder: Path, code: int, words: Sequence[str] | str, hsi: object, msi: object, *more: str, **how: Any
) -> str:
    """The command ends with this code, one sentence that holds the words, and nothing where the product should be."""
    end = fused(folder, hsi, msi, *more, **how)
    told = end.require(code, *([words] if isinstance(words, str) else words))
    left = [path.name for path in (folder / "out").iterdir()]
    assert not left, f"left behind: {left}"
    assert end.seconds < 60, f"it took {end.seconds:.0f} s"
    return told
