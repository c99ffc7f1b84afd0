"""A small Landsat 9 Collection 2 Level 2 product: names, bits and MTL groups of a real one, planted counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from affine import Affine

from tests.products.packing import planted, raster

NAME = "LC09_L2SP_193027_20240501_20240502_02_T1"
SHAPE = (16, 20)
GRID = Affine(30, 0, 600585, 0, -30, 5300115)
CRS = "EPSG:32632"
MULT, ADD = 2.75e-05, -0.2
QA = {"fill": (1, 1), "dilated_cloud": (2, 2), "cirrus": (3, 3), "cloud": (4, 4), "shadow": (5, 5), "snow": (6, 6),
      "clear": (7, 7), "water": (8, 8)}  # fmt: skip
"""Pixels with one bit of QA_PIXEL, in the order of the bits."""
SATURATED = (10, 10)


def landsat(folder: Path, *, forms: tuple[str, ...] = ("json", "xml", "txt"), shift_px: float = 0.0) -> Path:
    """Write the product; `shift_px` moves the images away from the corners in the MTL."""
    folder.mkdir(parents=True)
    affine = GRID @ Affine.translation(shift_px, 0)
    counts = planted(7, *SHAPE, dtype="uint16") + 8000
    for band, data in enumerate(counts, start=1):
        raster(folder / f"{NAME}_SR_B{band}.TIF", data, affine, CRS, nodata=0)
    qa = np.full(SHAPE, 1 << 6, np.uint16)
    for bit, at in enumerate(QA.values()):
        qa[at] = 1 << bit
    raster(folder / f"{NAME}_QA_PIXEL.TIF", qa, affine, CRS)
    radsat = np.zeros(SHAPE, np.uint16)
    radsat[SATURATED] = 1 << 4
    raster(folder / f"{NAME}_QA_RADSAT.TIF", radsat, affine, CRS)
    for form in forms:
        (folder / f"{NAME}_MTL.{form}").write_text({"json": _json, "xml": _xml, "txt": _txt}[form](groups()))
    return folder


def groups() -> dict[str, dict[str, str]]:
    """The groups of the MTL that say something of the reflectance; corners are centers of pixels."""
    height, width = SHAPE
    corners = {}
    for key, (col, row) in {"UL": (0.5, 0.5), "LR": (width - 0.5, height - 0.5)}.items():
        x, y = GRID @ (col, row)
        corners |= {f"CORNER_{key}_PROJECTION_X_PRODUCT": f"{x:.3f}", f"CORNER_{key}_PROJECTION_Y_PRODUCT": f"{y:.3f}"}
    return {
        "PRODUCT_CONTENTS": {
            "LANDSAT_PRODUCT_ID": NAME, "PROCESSING_LEVEL": "L2SP", "COLLECTION_NUMBER": "02",
            **{f"FILE_NAME_BAND_{n}": f"{NAME}_SR_B{n}.TIF" for n in range(1, 8)},
            "FILE_NAME_QUALITY_L1_PIXEL": f"{NAME}_QA_PIXEL.TIF",
            "FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION": f"{NAME}_QA_RADSAT.TIF",
        },
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": "LANDSAT_9", "DATE_ACQUIRED": "2024-05-01", "SCENE_CENTER_TIME": "10:03:24.1234560Z",
            "CLOUD_COVER": "3.50", "ROLL_ANGLE": "-7.250", "SUN_AZIMUTH": "-160.50", "SUN_ELEVATION": "55.25",
        },
        "PROJECTION_ATTRIBUTES": {
            "GRID_CELL_SIZE_REFLECTIVE": "30.00", "REFLECTIVE_LINES": str(height), "REFLECTIVE_SAMPLES": str(width),
            **corners,
        },
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {
            **{f"REFLECTANCE_MULT_BAND_{n}": str(MULT) for n in range(1, 8)},
            **{f"REFLECTANCE_ADD_BAND_{n}": str(ADD) for n in range(1, 8)},
        },
        # The Level 1 groups repeat the keys with other values.
        "LEVEL1_RADIOMETRIC_RESCALING": {f"REFLECTANCE_MULT_BAND_{n}": "2.0000E-05" for n in range(1, 8)},
    }  # fmt: skip


def _json(content: dict[str, dict[str, str]]) -> str:
    return json.dumps({"LANDSAT_METADATA_FILE": content})


def _xml(content: dict[str, dict[str, str]]) -> str:
    inner = "".join(
        f"<{group}>{''.join(f'<{key}>{value}</{key}>' for key, value in keys.items())}</{group}>"
        for group, keys in content.items()
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><LANDSAT_METADATA_FILE>{inner}</LANDSAT_METADATA_FILE>'


def _txt(content: dict[str, dict[str, str]]) -> str:
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for group, keys in content.items():
        lines += [f"  GROUP = {group}"]
        lines += [f'    {k} = "{v}"' for k, v in keys.items()]
        lines += [f"  END_GROUP = {group}"]
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END", ""])
