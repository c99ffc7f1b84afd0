"""A small PlanetScope delivery: a STAC item, a surface reflectance image and UDM2; four bands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from affine import Affine

from tests.products.packing import planted, raster

ID = "20240501_101112_34_24b5"
SHAPE = (18, 22)
GRID = Affine(3, 0, 400000, 0, -3, 5700000)
CRS = "EPSG:32633"
BANDS = {"Blue": (490.0, 50.0), "Green": (565.0, 36.0), "Red": (665.0, 31.0), "NIR": (865.0, 40.0)}
UDM2 = ("clear", "snow", "shadow", "light haze", "heavy haze", "cloud", "confidence", "unusable")
HOLE = (0, 0)


def place(layer: str) -> tuple[int, int]:
    """The pixel that carries one layer."""
    return 2 + UDM2.index(layer), 6


def planetscope(folder: Path, *, udm2: bool = True) -> Path:
    """Write the delivery into a folder."""
    folder.mkdir(parents=True)
    counts = planted(4, *SHAPE, dtype="uint16")
    counts[(slice(None), *HOLE)] = 0
    raster(folder / f"{ID}_3B_AnalyticMS_SR_clip.tif", counts, GRID, CRS, nodata=0)
    if udm2:
        layers = np.zeros((8, *SHAPE), np.uint8)
        layers[0], layers[6] = 1, 90  # clear, and the confidence of that
        for i, layer in enumerate(UDM2):
            if layer not in ("clear", "confidence"):
                layers[(i, *place(layer))] = 4 if layer == "unusable" else 1
        raster(folder / f"{ID}_3B_udm2_clip.tif", layers, GRID, CRS)
    item = {
        "stac_version": "1.0.0", "type": "Feature", "id": ID,
        "properties": {"datetime": "2024-05-01T10:11:12.340000Z", "constellation": "planetscope",
                       "instruments": ["PSB.SD"], "eo:cloud_cover": 4, "view:sun_elevation": 53.5, "view:sun_azimuth": 144.5,
                       "view:off_nadir": 2.5, "view:azimuth": 277.5},
        "assets": {
            "sr": {
                "href": f"./{ID}_3B_AnalyticMS_SR_clip.tif",
                "raster:bands": [{"data_type": "uint16", "nodata": 0, "scale": 1e-4}] * 4,
                "eo:bands": [
                    {"name": name, "center_wavelength": center / 1e3, "full_width_half_max": width / 1e3}
                    for name, (center, width) in BANDS.items()
                ],
            },
            "udm2": {"href": f"./{ID}_3B_udm2_clip.tif"},
        },
    }  # fmt: skip
    (folder / f"{ID}.json").write_text(json.dumps(item))
    return folder
