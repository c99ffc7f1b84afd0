"""What generated scenes are made of in the folder of real imagery: fine images and libraries whose terms allow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def sentinel2(data: Path) -> Entry:
    """Fields, forest and villages at 10 m, four bands."""
    uri = data / "s2_l1c_dsen2" / "S2A_MSIL1C_20170527_T33UUB.mat"
    terms = "contains modified Copernicus Sentinel data"
    return {"uri": str(uri), "variable": "im10", "wavelengths": "665,560,490,842", "license": terms}


def harvard_forest(data: Path) -> Entry:
    """Crowns at 0.1 m, three bands."""
    uri = data / "neon_harv_pair" / "2019_D01_HARV_DP3_726000_4699000_image_crop.tif"
    return {"uri": str(uri), "wavelengths": "640,550,470", "license": "NEON open data policy"}


def berlin(data: Path) -> Entry:
    """Streets, roofs and gardens at 3.6 m, four bands."""
    uri = data / "berlin_urban_gradient" / "pairA" / "HighResolution_BerlinUrbanGradient.bsq"
    return {"uri": str(uri), "license": "CC-BY-SA-4.0"}


def berlin_library(data: Path) -> Entry:
    """75 urban materials, 460-2409 nm."""
    uri = data / "berlin_urban_gradient" / "speclib" / "SpecLib_BerlinUrbanGradient.sli"
    return {"uri": str(uri), "license": "CC-BY-SA-4.0"}


def ecostress_library(data: Path) -> Entry:
    """Some 2,000 minerals, soils, plants, artificial materials and mixtures of them, 376-12008 nm."""
    uri = data / "spectral_libraries" / "ecostress" / "ecostress_library_with_mixtures"
    return {"uri": str(uri), "license": "Apache-2.0"}


def everything(data: Path) -> Entry:
    """`generated` of a training, of all of them."""
    return {
        "images": [sentinel2(data), harvard_forest(data), berlin(data)],
        "libraries": [berlin_library(data), ecostress_library(data)],
    }
