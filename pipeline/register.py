"""Registration by itself: measure, report, and if wanted write the MSI where it belongs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from hyperfuse.catalogs.errors import InputRejected, QualityRefused
from hyperfuse.catalogs.pairs import RATIOS, ScenePair, UnlikelyPair
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.execution.cluster import spread_over
from hyperfuse.pipeline.geometry.grids import NestedGrids, nest
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.plan import open_pair, psf_sigma_px
from hyperfuse.pipeline.progress import Progress, Steps, silent
from hyperfuse.pipeline.registration.estimate import Estimate, estimate
from hyperfuse.pipeline.registration.report import write_figure, write_table

_RATIOS = (1, RATIOS[1])
"""Two images of one resolution cannot be fused, but they can be registered."""
_EDGE_PX = 512
"""Edge of the windows in which the moved image is written, and of its file's tiles."""


def register_alone(
    config: RunConfig,
    *,
    table: Path | None = None,
    figure: Path | None = None,
    moved: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """How the MSI lies on the HSI, as a record; `config.output` is not used.

    Parameters
    ----------
    config : RunConfig
    table, figure : Path, optional
        GeoJSON of the tie points and PNG of their arrows; an existing file is replaced.
    moved : Path, optional
        Cloud-optimized GeoTIFF of the MSI, moved onto the HSI; must not exist.
    progress : callable, optional

    Returns
    -------
    dict
        The fields of `Registration`, and the names of the scenes. A pair that cannot be one (swapped, far from each other in
        resolution) is refused like one whose images do not match.

    Raises
    ------
    QualityRefused
        If the MSI should be moved by a displacement that is refused.
    catalogs.errors.HyperFuseError
        If an image cannot be read, or the scenes do not meet.
    """
    if moved is not None and moved.exists():
        raise InputRejected(f"{moved}: exists; choose another file for the moved image, or take it away")
    try:
        found = registered(config)
    except UnlikelyPair as error:
        return _refused(str(error))
    pair = found.survey.pair
    if table is not None:
        write_table(found, table)
    if figure is not None:
        write_figure(found, figure)
    if moved is not None:
        if found.registration.decision == "refuse":
            raise QualityRefused(f"{pair.msi.name} was not moved onto {pair.hsi.name}: {found.registration.reason}")
        write_moved(found, pair, nest(pair, config.align, config.ratio), moved, progress)
    return {"hsi": pair.hsi.name, "msi": pair.msi.name, "moved": "msi"} | found.registration.model_dump(mode="json")


def registered(config: RunConfig) -> Estimate:
    """How the MSI lies on the HSI; `config.output` is not used.

    Raises
    ------
    UnlikelyPair
        If the two cannot be a pair.
    catalogs.errors.HyperFuseError
        If an image cannot be read, or the scenes do not meet.
    """
    pair = open_pair(config, ratios=_RATIOS)
    grids = nest(pair, config.align, config.ratio)
    return estimate(
        pair, grids, config.align, psf_sigma_px(config, pair, grids), workers=partial(spread_over, config.dask)
    )


def write_moved(found: Estimate, pair: ScenePair, grids: NestedGrids, path: Path, progress: Progress = silent) -> None:
    """Write the MSI, resampled once along the displacement; the HSI is not touched.

    The file has the MSI's own grid where that shares the CRS of the product, else the product's; float32 in the MSI's unit,
    NaN where it is not valid.
    """
    grid = pair.msi.geobox if pair.msi.geobox.crs == grids.product.crs else grids.product
    bands, displacement = pair.msi.good_bands, -found.registration.displacement
    height, width = grid.shape
    plain, final = (path.with_name(f".{path.name}.{stage}.tif") for stage in ("plain", "final"))
    windows = [
        (slice(y, min(y + _EDGE_PX, height)), slice(x, min(x + _EDGE_PX, width)))
        for y in range(0, height, _EDGE_PX)
        for x in range(0, width, _EDGE_PX)
    ]
    step = Steps(progress, "move", len(windows))
    try:
        with rasterio.open(
            plain, "w", driver="GTiff", count=len(bands), height=height, width=width, dtype="float32", crs=str(grid.crs),
            transform=grid.affine, nodata=np.nan, tiled=True, blockxsize=_EDGE_PX, blockysize=_EDGE_PX, bigtiff="IF_SAFER",
        ) as file:  # fmt: skip
            for index, band in enumerate(bands, start=1):
                file.set_band_description(index, pair.msi.bands.names[band])
                nm = float(pair.msi.bands.center_nm[band])
                file.update_tags(index, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{nm / 1e3:.10g}")
            for window in windows:
                cube = warp(pair.msi, grid, window, bands=bands, displacement=displacement)
                file.write(cube, window=RasterWindow.from_slices(*window))
                step()
        rasterio.shutil.copy(plain, final, driver="COG", COMPRESS="DEFLATE", PREDICTOR="YES", BIGTIFF="IF_SAFER")
        final.replace(path)
    except (RasterioError, OSError) as error:
        raise InputRejected(f"{path}: cannot be written ({error}); choose another place") from error
    finally:
        for leftover in (plain, final):
            leftover.unlink(missing_ok=True)


def _refused(reason: str) -> dict[str, Any]:
    """The record of a pair that is none."""
    nothing: dict[str, Any] = {
        "decision": "refuse", "reason": reason, "model": "none", "east_m": 0.0, "north_m": 0.0, "residual_before_px": None,
        "residual_after_px": None, "tie_points": 0,
    }  # fmt: skip
    return nothing
