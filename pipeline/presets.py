"""Benchmarks by name: which cubes of a data folder, how each is prepared, and under which protocols.

`real-3`, `real-4` and `real-6` are the protocol of the field at that ratio: Gaussian PSF with a modulation of 0.3 at the
coarse Nyquist frequency, four and six bands of Sentinel-2, with 35 / 40 dB of noise and without. `aviris-172` is that of
CSAKD (arXiv:2406.19666) and HyFusion (arXiv:2501.04665): 172 bands of AVIRIS, tiles of 256 x 256 mapped to 0..1, the
bands of Landsat TM, ratio 4.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from catalogs.cubes import CubeSource
from catalogs.errors import InputRejected, UsageError
from pipeline.simulate import Protocol

_AVIRIS = "srf/derived/AVIRIS_classic_224.csv"
CUBES = {
    "aviris-gatorsense": CubeSource(uri="aviris_gatorsense_vi/a_hsi_img_for_VI_demo.mat"),
    "jasper-ridge": CubeSource(
        uri="jasper_ridge/jasperRidge2_R198.mat",
        variable="Y",
        axes="b(xy)",
        rows=100,
        wavelengths=_AVIRIS,
        table_rows="4-107,113-153,167-219",
    ),
    "san-diego": CubeSource(
        uri="san_diego/Sandiego_224.mat", variable="data", wavelengths=_AVIRIS, bad="1,107-113,153-166,224"
    ),
    "berlin-enmap": CubeSource(uri="berlin_urban_gradient/pairA/EnMAP_BerlinUrbanGradient.bsq"),
    "neon-harv": CubeSource(
        uri="neon_harv_pair/NEON_D01_HARV_DP3_726000_4699000_reflectance_crop.tif",
        wavelengths="srf/derived/NEON_NIS_426_SJER2017.csv",
        crs="EPSG:32618",
    ),
    "enmap-potsdam": CubeSource(uri="enmap_potsdam_tiles/*.tif"),
    "muufl": CubeSource(uri="muufl_gulfport/an_hsi_image_sub_for_demo.mat", variable="hsi_img_sub", absorption=False),
}
"""Cubes of the presets `real-R`, by name; the addresses are relative to the data folder."""
