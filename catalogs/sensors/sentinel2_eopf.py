"""Sentinel-2 L2A and L1C as EOPF Zarr: the folder of a product, as the sample service of ESA gives it.

    measurements/reflectance/r10m/b02 ...    bands by their native sampling, with x and y beside them
    measurements/reflectance/r20m/b05 ...
    conditions/mask/l2a_classification/r20m/scl

Scale, offset, fill and CRS are attributes of each array (`scale_factor`, `add_offset`, `proj:epsg`); time, cloud and angles stand in
the attributes of the product (`stac_discovery`). Bands and masks are chosen as of the SAFE product. Centers and widths are those of
ESA's table, because the product rounds them.

Written from the published layout; no whole product was at hand.

References
----------
ESA, Earth Observation Processing Framework, Sentinel-2 product structure (https://cpm.pages.eopf.copernicus.eu).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.arrays import array_kind, open_array
from hyperfuse.catalogs.formats.assembly import Product, check_corners, refuse_overrides, scene_of
from hyperfuse.catalogs.formats.conditions import stac_conditions
from hyperfuse.catalogs.formats.documents import read_document
from hyperfuse.catalogs.formats.layers import Layer, LayeredSamples, MaskedSamples, Rule, chosen_flags, refuse_short
from hyperfuse.catalogs.formats.stored import Image
from hyperfuse.catalogs.references.responses import SENTINEL_2A, Response
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Sensor, Source, sentinel2
from hyperfuse.catalogs.sensors._sentinel2 import COARSE_M, FINEST_M, SCL, SCL_M, two_digits
from hyperfuse.catalogs.times import parse_time

SENSOR = Sensor(
    title="Sentinel-2 L2A and L1C, EOPF Zarr",
    gsd_m=sentinel2.SENSOR.gsd_m,
    role="msi",
    mtf=sentinel2.SENSOR.mtf,
    band_mtf=sentinel2.SENSOR.band_mtf,
)

_BANDS = Path("measurements/reflectance")
_CLASSES = Path("conditions/mask/l2a_classification/r20m/scl")
_METADATA = ("zarr.json", ".zattrs", ".zarray", ".zgroup")
_RESPONSES: dict[str, Response] = {two_digits(name): response for name, response in SENTINEL_2A.items()}


def accepts(uri: str) -> bool:
    """Whether the address is a Zarr folder with the reflectance of a Sentinel-2 product at 10 m."""
    path = Path(uri)
    return path.is_dir() and array_kind(path) == "zarr" and (path / _BANDS / "r10m").is_dir()


def open_scene(source: Source) -> Scene:
    """Open a product.

    Raises
    ------
    InputRejected
        If it holds no bands, lacks scale or CRS, or its parts contradict each other.
    UsageError
        If a band is unknown, or a setting would replace what the product tells.
    """
    refuse_overrides(source, "mask", "bands")
    path = Path(source.uri)
    bands = _chosen(path, source)
    about = _about(path)
    images = {name: _image(path / _BANDS / f"r{gsd_m}m", name.lower(), path) for name, gsd_m in bands.items()}
    finest = min(bands, key=lambda name: bands[name])
    first, finest_m = images[finest], bands[finest]
    affine, crs = first.affine, first.crs or about.crs
    if affine is None or crs is None:
        raise InputRejected(f"{path}: {finest} has no grid or no CRS; fetch the product again")
    size = (first.samples.shape[1], first.samples.shape[2])
    grid = _Grid(affine=affine, size=size, gsd_m=finest_m, path=path)
    rules, notes, mask_files = _rules(grid, source)
    packing = {name: _packing(image, name, path) for name, image in images.items()}
    properties = about.properties
    return scene_of(
        Product(
            sensor="sentinel2_eopf",
            name=path.name.removesuffix(".zarr"),
            samples=MaskedSamples(
                samples=LayeredSamples(
                    layers=tuple(grid.layer(images[name], gsd_m) for name, gsd_m in bands.items()), size=size
                ),
                rules=rules,
            ),
            affine=affine,
            crs=crs,
            wavelength_nm=[_RESPONSES[name].center_nm for name in bands],
            fwhm_nm=[_RESPONSES[name].fwhm_nm for name in bands],
            scale=[scale for scale, _ in packing.values()],
            offset=[offset for _, offset in packing.values()],
            quantity="reflectance",
            unit="1",
            # 0 is no data and 65535 saturated, as in the SAFE product; what the arrays declare besides.
            nodata=tuple(
                sorted({0.0, 65535.0, *(v for image in images.values() for v in image.nodata if np.isfinite(v))})
            ),
            names=tuple(bands),
            gsd_m=[abs(affine.a) * gsd_m / finest_m for gsd_m in bands.values()],
            time=parse_time(properties.get("datetime"), properties.get("start_datetime")),
            files=(*_metadata_of(path), *(file for image in images.values() for file in image.files), *mask_files),
            look_for_dead=False,
            conditions=stac_conditions(properties),
            notes=(
                "offset of reflectance by the metadata: "
                + ", ".join(sorted({f"{offset:g}" for _, offset in packing.values()})),
                "centers and widths by ESA's table of Sentinel-2A: the product rounds them",
                *notes,
            ),
        ),
        source,
    )


@dataclass(frozen=True, kw_only=True)
class _About:
    """Attributes of the whole product."""

    properties: Mapping[str, Any]
    crs: str | None


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The grid on which all bands of a scene lie."""

    affine: Affine
    size: tuple[int, int]
    gsd_m: int
    path: Path

    def layer(self, image: Image, gsd_m: int) -> Layer:
        """An image of that sampling distance, if it shares the corners."""
        step = gsd_m // self.gsd_m
        made = refuse_short(Layer(samples=image.samples, step=step), self.size, f"{image.path}")
        if image.affine is not None:
            rows, cols = (n / step for n in self.size)
            corners = [(row, col, *(image.affine @ (col, row))) for row, col in ((0, 0), (rows, cols))]
            check_corners(self.affine @ Affine.scale(step), image.samples.shape[1:], corners, image.path)
        return made


def _chosen(path: Path, source: Source) -> dict[str, int]:
    """Bands in the order of ESA's table, each with its native sampling distance (m)."""
    there = {
        name: round(response.gsd_m)
        for name, response in _RESPONSES.items()
        if (path / _BANDS / f"r{round(response.gsd_m)}m" / name.lower()).is_dir()
    }
    if source.bands is None:
        found = {name: gsd_m for name, gsd_m in there.items() if gsd_m < COARSE_M}
        if FINEST_M not in found.values():
            raise InputRejected(f"{path}: holds no band of 10 m in {_BANDS}/r10m; fetch the product again")
        return found
    names = [two_digits(name.strip()) for name in source.bands.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in there]):
        raise UsageError(f"{path}: there is no band {(unknown or [''])[0]!r}; choose some of {', '.join(there)}")
    return {name: gsd_m for name, gsd_m in there.items() if name in names}


def _image(group: Path, variable: str, path: Path) -> Image:
    """One array with the x and y beside it; of its files those of this array alone."""
    image = open_array(group, "zarr", variable)
    if image.samples.shape[0] != 1:
        raise InputRejected(
            f"{path}: {variable} has {image.samples.shape[0]} bands, expected one; fetch the product again"
        )
    parts = [variable, *(name for name in ("x", "y") if (group / name).is_dir())]
    files = [file for part in parts for file in sorted((group / part).rglob("*")) if file.is_file()]
    return Image(**{**vars(image), "path": group / variable, "files": (*_metadata_of(group), *files)})


def _packing(image: Image, name: str, path: Path) -> tuple[float, float]:
    """Scale and offset: of counts without them nobody knows whether the offset is in them."""
    if image.scale is not None and image.offset is not None:
        return float(image.scale[0]), float(image.offset[0])
    if image.samples.dtype.kind == "f":
        return 1.0, 0.0
    raise InputRejected(f"{path}: {name} has neither scale_factor nor add_offset; fetch the product again")


def _rules(grid: _Grid, source: Source) -> tuple[tuple[Rule, ...], tuple[str, ...], tuple[Path, ...]]:
    """Mask by the scene classification, a note where there is none, and its files."""
    flags = chosen_flags(source.mask)
    values = tuple(value for flag in flags for value in SCL.get(flag, ()))
    if not values:
        return (), (), ()
    if not (grid.path / _CLASSES).is_dir() or grid.gsd_m > SCL_M:
        return (), ("no scene classification on this grid: clouds are not masked",), ()
    image = _image(grid.path / _CLASSES.parent, _CLASSES.name, grid.path)
    return (Rule(layer=grid.layer(image, SCL_M), values=values),), (), image.files


def _about(path: Path) -> _About:
    """What the attributes of the product tell; of one that has none, nothing."""
    attributes: Mapping[str, Any] = {}
    if (path / "zarr.json").is_file():
        attributes = read_document(path / "zarr.json").get("attributes") or {}
    elif (path / ".zattrs").is_file():
        attributes = read_document(path / ".zattrs")
    try:
        properties = dict((attributes.get("stac_discovery") or {}).get("properties") or {})
        code = str(
            (attributes.get("other_metadata") or {}).get("horizontal_CRS_code") or properties.get("proj:code") or ""
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputRejected(f"{path}: its attributes are no metadata of a product ({error}); fetch it again") from error
    return _About(properties=properties, crs=code or None)


def _metadata_of(group: Path) -> tuple[Path, ...]:
    return tuple(group / name for name in _METADATA if (group / name).is_file())
