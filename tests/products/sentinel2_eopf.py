"""A small Sentinel-2 L2A product in the layout of EOPF: a Zarr folder with a group for each sampling distance."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import xarray as xr
from affine import Affine

from tests.products.sentinel2 import CLASS_AT, GRID, SHAPE, counts

BANDS = {"b02": 10, "b04": 10, "b08": 10, "b8a": 20, "b11": 20}
_COUNTS = {"b02": "B2", "b04": "B4", "b08": "B8", "b8a": "B8A", "b11": "B11"}
NAME = "S2B_MSIL2A_20240501T102559_N0510_R108_T32TMT_20240501T140000.zarr"


def sentinel2_eopf(folder: Path, *, zarr_format: int = 2, shift_px: float = 0.0, packed: bool = True) -> Path:
    """Write the product; `shift_px` moves the bands of 20 m."""
    path = folder / NAME
    path.mkdir(parents=True)
    about = {
        "stac_discovery": {"type": "Feature", "id": NAME, "properties": {
            "datetime": "2024-05-01T10:30:11.459000Z", "platform": "sentinel-2b", "eo:cloud_cover": 12.5, "view:sun_elevation": 51.0,
            "view:sun_azimuth": 160.0}},
        "other_metadata": {"horizontal_CRS_code": "EPSG:32632"},
    }  # fmt: skip
    if zarr_format == 2:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(about))
    else:
        (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": about}))
    for gsd_m in (10, 20):
        bands = {
            name: (counts(_COUNTS[name], gsd_m), {"scale_factor": 1e-4, "add_offset": -0.1} if packed else {})
            for name, own in BANDS.items()
            if own == gsd_m
        }
        grid = GRID @ Affine.scale(gsd_m / 10) @ Affine.translation(shift_px if gsd_m == 20 else 0.0, 0)
        _group(path, f"measurements/reflectance/r{gsd_m}m", grid, bands, zarr_format)
    scl = np.full((SHAPE[0] // 2, SHAPE[1] // 2), 4, np.uint8)
    for value, at in CLASS_AT.items():
        scl[at] = value
    _group(path, "conditions/mask/l2a_classification/r20m", GRID @ Affine.scale(2), {"scl": (scl, {})}, zarr_format)
    return path


def _group(
    path: Path, group: str, grid: Affine, bands: dict[str, tuple[np.ndarray, dict[str, float]]], zarr_format: int
) -> None:
    (first, _), *_ = bands.values()
    rows, cols = first.shape
    x = np.array([(grid @ (col + 0.5, 0.5))[0] for col in range(cols)])
    y = np.array([(grid @ (0.5, row + 0.5))[1] for row in range(rows)])
    made = {name: (("y", "x"), data, {"proj:epsg": 32632, **attrs}) for name, (data, attrs) in bands.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xr.Dataset(made, coords={"x": x, "y": y}).to_zarr(
            path, group=group, mode="a", zarr_format=zarr_format, consolidated=False,
            encoding={name: {"chunks": (12, 18), **({"fill_value": 0} if zarr_format == 3 else {})} for name in made},
        )  # fmt: skip
