"""A small EnMAP L2A or L1C product: the XML of the specification, planted counts, and masks of one pixel each.

Six bands: VNIR at 500, 911 and 985 nm, SWIR at 905, 1380 and 2200 nm. Stored in detector order, so that the overlap is
not sorted; the band at 1380 nm is dead. Row 0 is background.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from affine import Affine
from pyproj import Transformer

from tests.products.packing import planted, raster

PREFIX = "ENMAP01-____L2A-DT0000001234_20240501T102030Z_001_V010402_20240502T000000Z-"
CENTER_NM = (500.0, 911.0, 985.0, 905.0, 1380.0, 2200.0)
FWHM_NM = (6.5, 8.0, 8.2, 9.9, 11.0, 8.5)
GAIN, OFFSET = 1e-4, (0.0, 0.0, 0.01, 0.0, 0.0, 0.0)
DEAD = 4
SHAPE = (24, 30)
GRID = Affine(30, 0, 628785, 0, -30, 5294265)
CRS = "EPSG:32632"
MASKED = {"CLOUD": (3, 4), "CLOUDSHADOW": (5, 6), "CIRRUS": (7, 8), "HAZE": (9, 10), "SNOW": (11, 12)}
WATER = (13, 14)
TIME = "2024-05-01T10:20:30.500000Z"


def enmap(
    folder: Path,
    *,
    level: str = "L2A",
    cog: str = "",
    suffix: str = "TIF",
    shift_px: float = 0.0,
    xml: str | None = None,
) -> Path:
    """Write the product into a folder; `shift_px` moves the image away from the corners that the XML gives."""
    folder.mkdir(parents=True)
    counts = planted(6, *SHAPE)
    counts[DEAD] = 0
    counts[:, 0] = -32768
    affine = GRID @ Affine.translation(shift_px, 0)
    raster(folder / f"{PREFIX}SPECTRAL_IMAGE{cog}.{suffix}", counts, affine, CRS, nodata=-32768)
    classes = np.ones(SHAPE, np.uint8)
    classes[0] = 3
    classes[WATER] = 2
    raster(folder / f"{PREFIX}QL_QUALITY_CLASSES{cog}.{suffix}", classes, affine, CRS)
    for word, pixel in MASKED.items():
        mask = np.zeros(SHAPE, np.uint8)
        mask[pixel] = 2 if word == "CIRRUS" else 1
        raster(folder / f"{PREFIX}QL_QUALITY_{word}{cog}.{suffix}", mask, affine, CRS)
    (folder / f"{PREFIX}METADATA.XML").write_text(xml or metadata(level))
    return folder


def metadata(level: str = "L2A") -> str:
    """METADATA.XML with what the specification puts there, as far as a reader may ask for it."""
    to_lonlat = Transformer.from_crs(CRS, 4326, always_xy=True)
    height, width = SHAPE
    points = ""
    for frame, (col, row) in {
        "upper_left": (5.0, 0.5), "lower_left": (0.5, height - 5.0), "lower_right": (width - 5.0, height - 0.5),
        "upper_right": (width - 0.5, 5.0), "center": (width / 2, height / 2),
    }.items():  # fmt: skip
        lon, lat = to_lonlat.transform(*(GRID @ (col, row)))
        points += (
            f"<point><frame>{frame}</frame><latitude unit='DEG'>{lat:.7f}</latitude>"
            f"<longitude unit='DEG'>{lon:.7f}</longitude><utcTime>{TIME}</utcTime></point>"
        )
    bands = "".join(
        f"<bandID number='{i + 1}'><wavelengthCenterOfBand>{center}</wavelengthCenterOfBand><FWHMOfBand>{width_nm}"
        f"</FWHMOfBand><GainOfBand>{GAIN}</GainOfBand><OffsetOfBand>{OFFSET[i]}</OffsetOfBand></bandID>"
        for i, (center, width_nm) in enumerate(zip(CENTER_NM, FWHM_NM, strict=True))
    )
    statistics = "".join(
        f"<bandID number='{i + 1}'><waveLength>{center}</waveLength><mean>{-1000000 if i == DEAD else 0.2}</mean>"
        f"<stdDeviation>{0 if i == DEAD else 0.05}</stdDeviation></bandID>"
        for i, center in enumerate(CENTER_NM)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<level_X><metadata><schema><copyright>(c) DLR EnMAP</copyright><processingLevel>{level}</processingLevel></schema></metadata>
<base><spatialCoverage><boundingPolygon>{points}</boundingPolygon></spatialCoverage>
<temporalCoverage><startTime>{TIME}</startTime></temporalCoverage><format>ENMAP_{level}</format><level>{level}</level></base>
<specific><qualityFlag><cloudCover>12</cloudCover><hazeCover>3</hazeCover></qualityFlag>
<sunElevationAngle><upper_left unit="DEG">1</upper_left><center unit="DEG">58.5</center></sunElevationAngle>
<sunAzimuthAngle><center unit="DEG">151.25</center></sunAzimuthAngle>
<acrossOffNadirAngle><center unit="DEG">-4.0</center></acrossOffNadirAngle>
<alongOffNadirAngle><center unit="DEG">3.0</center></alongOffNadirAngle>
<sceneAzimuthAngle><center unit="DEG">14.25</center></sceneAzimuthAngle>
<backgroundValue>-32768</backgroundValue><bandCharacterisation>{bands}</bandCharacterisation></specific>
<product><image><merge><channels>6</channels></merge></image><ortho><projection>UTM_Zone32_North</projection></ortho>
<bandStatistics>{statistics}</bandStatistics></product></level_X>
"""
