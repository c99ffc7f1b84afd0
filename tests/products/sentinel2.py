"""A small Sentinel-2 SAFE product: the XML of the product specification, planted counts in lossless JPEG 2000.

The tile has 24 x 36 pixels of 10 m; the image of each band differs by 500 counts. The first row of blocks is no data
in all bands, and one pixel of B03 is saturated. The scene classification has one 20 m block of each class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from affine import Affine

from tests.products.packing import raster

SHAPE = (24, 36)
GRID = Affine(10, 0, 499980, 0, -10, 5400000)
CRS = "EPSG:32632"
NAME = "S2B_MSIL2A_20240501T102559_N0510_R108_T32TMT_20240501T140000"
GRANULE = "GRANULE/L2A_T32TMT_A037000_20240501T102600"
SENSED = "2024-05-01T10:30:11.459Z"
BANDS = {  # name in the XML, native sampling distance (m), limits and center (nm)
    "B1": (60, 412.0, 456.0, 442.3), "B2": (10, 456.0, 533.0, 492.1), "B3": (10, 538.0, 583.0, 559.0),
    "B4": (10, 646.0, 684.0, 665.0), "B5": (20, 695.0, 714.0, 703.8), "B8": (10, 774.0, 907.0, 833.0),
    "B8A": (20, 848.0, 880.0, 864.0), "B11": (20, 1538.0, 1679.0, 1610.4),
}  # fmt: skip
SATURATED = ("B03", (20, 30))
CLASS_AT = {value: (2, value) for value in range(1, 12)}
"""Row and column of the 20 m block of each class; elsewhere 4 (vegetation)."""


def counts(name: str, gsd_m: int) -> np.ndarray:
    """Counts of a band on its own grid: 2000, 500 more per band, 10 per row and 1 per column."""
    step = gsd_m // 10
    rows, cols = SHAPE[0] // step, SHAPE[1] // step
    row, col = np.ogrid[:rows, :cols]
    data = (2000 + 500 * list(BANDS).index(name) + 10 * row + col).astype(np.uint16)
    data[: max(1, 2 // step)] = 0
    if name == SATURATED[0].replace("B0", "B"):
        data[SATURATED[1]] = 65535
    return data


def sentinel2(folder: Path, *, level: str = "L2A", offset: int | None = -1000, masks: bool = True) -> Path:
    """Write the product as folder/NAME.SAFE; an offset of None leaves the list of offsets out, as before 04.00."""
    safe = folder / f"{NAME.replace('L2A', level)}.SAFE"
    granule = safe / GRANULE.replace("L2A", level)
    for name, (gsd_m, *_) in BANDS.items():
        file = f"T32TMT_20240501T102559_{name if len(name) == 3 else f'B0{name[1:]}'}"
        place = granule / "IMG_DATA"
        place = place / f"R{gsd_m}m" / f"{file}_{gsd_m}m.jp2" if level == "L2A" else place / f"{file}.jp2"
        raster(place, counts(name, gsd_m), GRID @ Affine.scale(gsd_m // 10), CRS)
    if masks and level == "L2A":
        scl = np.full((SHAPE[0] // 2, SHAPE[1] // 2), 4, np.uint8)
        for value, at in CLASS_AT.items():
            scl[at] = value
        raster(granule / "IMG_DATA" / "R20m" / "T32TMT_20240501T102559_SCL_20m.jp2", scl, GRID @ Affine.scale(2), CRS)
        # The same band again at 20 m, as the product has it: not its native image.
        raster(
            granule / "IMG_DATA" / "R20m" / "T32TMT_20240501T102559_B02_20m.jp2",
            np.full((SHAPE[0] // 2, SHAPE[1] // 2), 7, np.uint16), GRID @ Affine.scale(2), CRS,
        )  # fmt: skip
    elif masks:
        layers = np.zeros((3, SHAPE[0] // 6, SHAPE[1] // 6), np.uint8)
        layers[0, 1, 1] = layers[1, 1, 2] = layers[2, 1, 3] = 1
        raster(granule / "QI_DATA" / "MSK_CLASSI_B00.jp2", layers, GRID @ Affine.scale(6), CRS)
    (safe / f"MTD_MSI{level}.xml").write_text(product_xml(level, offset))
    (granule / "MTD_TL.xml").write_text(tile_xml(level))
    return safe


def product_xml(level: str, offset: int | None) -> str:
    """MTD_MSIL2A.xml or MTD_MSIL1C.xml; the response of every band is a trapezoid over its limits."""
    number = level[1:]
    ids = {name: str(i) for i, name in enumerate(BANDS)}
    tag = "BOA_ADD_OFFSET" if level == "L2A" else "RADIO_ADD_OFFSET"
    offsets = "".join(f'<{tag} band_id="{i}">{offset}</{tag}>' for i in ids.values()) if offset is not None else ""
    quantity = "BOA_QUANTIFICATION_VALUE" if level == "L2A" else "QUANTIFICATION_VALUE"
    spectral = ""
    for name, (gsd_m, low, high, center) in BANDS.items():
        half = (high - low) / 2
        response = " ".join(f"{min(1, 2 - 2 * abs(nm - half) / half):.6f}" for nm in np.arange(0, high - low + 1))
        spectral += (
            f'<Spectral_Information bandId="{ids[name]}" physicalBand="{name}"><RESOLUTION>{gsd_m}</RESOLUTION>'
            f'<Wavelength><MIN unit="nm">{low}</MIN><MAX unit="nm">{high}</MAX><CENTRAL unit="nm">{center}</CENTRAL>'
            f'</Wavelength><Spectral_Response><STEP unit="nm">1</STEP><VALUES>{response}</VALUES></Spectral_Response>'
            "</Spectral_Information>"
        )
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{number}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{number}.xsd">
<n1:General_Info><Product_Info><PRODUCT_START_TIME>2024-05-01T10:25:59.024Z</PRODUCT_START_TIME>
<PRODUCT_URI>{NAME.replace("L2A", level)}.SAFE</PRODUCT_URI><PROCESSING_LEVEL>Level-{number}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>05.10</PROCESSING_BASELINE></Product_Info><Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX>
</Special_Values><{quantity} unit="none">10000</{quantity}>{offsets}
<Spectral_Information_List>{spectral}</Spectral_Information_List>
</Product_Image_Characteristics></n1:General_Info><n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>21.5</Cloud_Coverage_Assessment>
</n1:Quality_Indicators_Info></n1:Level-{number}_User_Product>
"""


def tile_xml(level: str) -> str:
    """MTD_TL.xml; upper left coordinates are outer corners."""
    sizes = "".join(
        f'<Size resolution="{r}"><NROWS>{SHAPE[0] * 10 // r}</NROWS><NCOLS>{SHAPE[1] * 10 // r}</NCOLS></Size>'
        for r in (10, 20, 60)
    )
    places = "".join(
        f'<Geoposition resolution="{r}"><ULX>{GRID.c:.0f}</ULX><ULY>{GRID.f:.0f}</ULY><XDIM>{r}</XDIM><YDIM>-{r}</YDIM>'
        "</Geoposition>"
        for r in (10, 20, 60)
    )
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level[1:]}_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Tile_Metadata.xsd">
<n1:General_Info><SENSING_TIME>{SENSED}</SENSING_TIME></n1:General_Info><n1:Geometric_Info><Tile_Geocoding>
<HORIZONTAL_CS_NAME>WGS84 / UTM zone 32N</HORIZONTAL_CS_NAME><HORIZONTAL_CS_CODE>{CRS}</HORIZONTAL_CS_CODE>
{sizes}{places}</Tile_Geocoding><Tile_Angles><Sun_Angles_Grid><Zenith/></Sun_Angles_Grid>
<Mean_Sun_Angle><ZENITH_ANGLE unit="deg">36.75</ZENITH_ANGLE><AZIMUTH_ANGLE unit="deg">155.5</AZIMUTH_ANGLE></Mean_Sun_Angle>
<Mean_Viewing_Incidence_Angle_List><Mean_Viewing_Incidence_Angle bandId="0"><ZENITH_ANGLE unit="deg">1</ZENITH_ANGLE>
<AZIMUTH_ANGLE unit="deg">1</AZIMUTH_ANGLE></Mean_Viewing_Incidence_Angle><Mean_Viewing_Incidence_Angle bandId="7">
<ZENITH_ANGLE unit="deg">8.25</ZENITH_ANGLE><AZIMUTH_ANGLE unit="deg">286.5</AZIMUTH_ANGLE></Mean_Viewing_Incidence_Angle>
</Mean_Viewing_Incidence_Angle_List></Tile_Angles></n1:Geometric_Info></n1:Level-{level[1:]}_Tile_ID>
"""
