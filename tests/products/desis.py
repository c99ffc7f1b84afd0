"""A small DESIS L2A product: XML elements and layers of the specification, planted counts; five bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from affine import Affine
from pyproj import Transformer

from tests.products.packing import planted, raster

PREFIX = "DESIS-HSI-L2A-DT0483531728_001-20200712T074140-V0213-"
SHAPE = (20, 24)
GRID = Affine(30, 0, 600000, 0, -30, 5200020)
CRS = "EPSG:32633"
CENTER_NM, WIDTH_NM = (402.8, 500.1, 660.2, 865.3, 999.5), (3.4, 3.5, 3.5, 3.6, 3.7)
GAIN, OFFSET = 1e-4, (0.0, 0.0, 0.02, 0.0, 0.0)
LAYERS = ("shadow", "land", "snow", "haze land", "haze water", "cloud land", "cloud water", "water", "AOT", "vapor")
TIME = "2020-07-12T07:41:40.500000Z"


def place(layer: str) -> tuple[int, int]:
    """The pixel that carries one layer."""
    return 2 + LAYERS.index(layer), 5


def desis(folder: Path, *, level: str = "L2A", masks: bool = True) -> Path:
    """Write the product into a folder."""
    folder.mkdir(parents=True)
    counts = planted(5, *SHAPE)
    counts[:, :, 0] = -32768
    raster(folder / f"{PREFIX}SPECTRAL_IMAGE.tif", counts, GRID, CRS, nodata=-32768, interleave="pixel")
    if masks:
        quality = np.zeros((len(LAYERS), *SHAPE), np.uint8)
        quality[8:] = 40  # aerosol and water vapor are everywhere
        for i, layer in enumerate(LAYERS[:8]):
            quality[(i, *place(layer))] = 1
        raster(folder / f"{PREFIX}QL_QUALITY-2.tif", quality, GRID, CRS)
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(*(GRID @ (SHAPE[1] / 2, SHAPE[0] / 2)))
    bands = "".join(
        f"<band><bandNumber>{i + 1}</bandNumber><wavelengthWidthOfBand>{WIDTH_NM[i]}</wavelengthWidthOfBand>"
        f"<wavelengthCenterOfBand>{CENTER_NM[i]}</wavelengthCenterOfBand><gainOfBand>{GAIN}</gainOfBand>"
        f"<offsetOfBand>{OFFSET[i]}</offsetOfBand></band>"
        for i in range(5)
    )
    (folder / f"{PREFIX}METADATA.xml").write_text(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<hsi_doc><metadata><name>{PREFIX}METADATA.xml</name></metadata><base><spatialCoverage><boundingPolygon><point>
<latitude>{lat:.7f}</latitude><longitude>{lon:.7f}</longitude></point></boundingPolygon></spatialCoverage>
<temporalCoverage><startTime>{TIME}</startTime></temporalCoverage><level>{level}</level></base>
<specific><sunZenithAngle>31.5</sunZenithAngle><sunAzimuthAngle>140.5</sunAzimuthAngle>
<sceneIncidenceAngle>12.25</sceneIncidenceAngle><sceneAzimuthAngle>96.0</sceneAzimuthAngle><bandCharacterisation>{bands}</bandCharacterisation></specific>
<product><image><band><wavelengthCenterOfBand>1</wavelengthCenterOfBand></band></image></product></hsi_doc>
"""
    )
    return folder
