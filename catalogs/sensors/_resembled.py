"""What a folder that no reader takes looks like, and what is missing in it."""

from __future__ import annotations

from pathlib import Path

_RESEMBLED = (
    (
        "manifest.json",
        "a fused product of HyperFuse; read it with xarray or `hyperfuse info`, and fuse scenes, not products",
    ),
    ("MTD_MSIL*.xml", "a Sentinel-2 SAFE whose metadata cannot be read; fetch it again"),
    ("GRANULE", "a Sentinel-2 SAFE without MTD_MSIL1C.xml or MTD_MSIL2A.xml; fetch it again, whole"),
    ("L[COTE]0[4-9]_*", "a Landsat scene without its MTL file (_MTL.txt, .xml or .json); put it beside the bands"),
    ("ENMAP*SPECTRAL_IMAGE*", "an EnMAP product without its METADATA.XML; put it beside the image"),
    ("DESIS*SPECTRAL_IMAGE*", "a DESIS product without its METADATA.xml; put it beside the image"),
    ("PRS_L*.he5", "a folder of PRISMA files; name one of them"),
    ("EMIT_L2A_*.nc", "a folder of EMIT files; name that of the reflectance, EMIT_L2A_RFL_*.nc"),
    ("*_udm2*.tif", "a Planet order without its STAC item or metadata; name the image itself"),
    ("*.he5", "a folder of HDF5 files; name one of them"),
    (
        "*.tif",
        "a folder of TIFF files; name one, quote a glob of tiles such as {folder}/*.tif, or a pattern of files of one band each such as {folder}/NAME_{{band}}.tif",
    ),
    ("*.jp2", "a folder of JPEG 2000 files; name one, or fetch the whole product with its metadata"),
    ("*.nc", "a folder of NetCDF files; name one of them"),
    ("*.zip", "a folder of archives; name one of them"),
    ("*.tar*", "a folder of archives; name one of them"),
)
"""What a folder looks like by the first of these names that is in it, and what is missing."""


def resembled(folder: Path) -> str:
    """What a folder that no reader takes looks like, and what to do."""
    if not any(folder.iterdir()):
        return "an empty folder; name a scene"
    told = next((told for pattern, told in _RESEMBLED if any(folder.glob(pattern))), None)
    if told is None:
        return f"a folder without Zarr metadata; name a file, a Zarr folder or a glob such as {folder}/*.tif"
    return f"looks like {told.format(folder=folder)}"
