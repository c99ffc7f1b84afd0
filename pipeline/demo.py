"""The demonstration: a synthetic pair whose truth is known, fused end to end, and scored beside cubic interpolation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.config import OutputConfig, RunConfig, SceneConfig
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.metrics import SSIM_REACH, Comparison, Scores
from hyperfuse.pipeline.run import run

RECIPE = "size=600&ratio=4&bands=60&seed=7&east_m=13&north_m=-6&holes_msi=0.002"
"""A pair that is displaced by 13 m east and 6 m south and has holes: what real pairs bring."""
CONTROL = "bicubic"
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A demonstration's product, and how well it fits the truth."""

    product: Product
    scores: dict[str, Scores]
    """By method: the chosen one and the control."""


def demonstrate(output: Path, *, method: str, recipe: str = RECIPE, progress: Progress = silent) -> Demonstration:
    """Fuse the synthetic pair of a recipe with a method and with the control; only the first is kept.

    Raises
    ------
    catalogs.errors.HyperFuseError
        As `pipeline.run`.
    """
    truth = open_scene(Source(uri=f"synthetic:truth?{recipe}"))
    config = RunConfig(
        hsi=SceneConfig(uri=f"synthetic:hsi?{recipe}"),
        msi=SceneConfig(uri=f"synthetic:msi?{recipe}"),
        output=output,
        method=method,
    )
    product = run(config, progress=progress)
    scores = {method: product_scores(product, truth)}
    if method != CONTROL:
        with tempfile.TemporaryDirectory(prefix="hyperfuse-control-") as folder:
            control = config.model_copy(
                update={
                    "output": Path(folder) / CONTROL,
                    "method": CONTROL,
                    "publish": OutputConfig(formats=("zarr",)),
                }
            )
            scores[CONTROL] = product_scores(run(control, progress=progress), truth)
    return Demonstration(product=product, scores=scores)


def product_scores(product: Product, truth: Scene) -> Scores:
    """Scores of a product against a scene that holds the truth on the same lattice or any other.

    Raises
    ------
    ValueError
        If no pixel is valid in both.
    LookupError
        If the truth has no band at one of the product's wavelengths.
    """
    with product.open() as data:
        cube = data["reflectance"]
        grid = cube.odc.geobox
        bands = [truth.bands.nearest(float(nm), within_nm=0.5) for nm in data["wavelength"].values]
        comparison = Comparison(len(bands), product.provenance["observation"]["ratio"])
        height, width = grid.shape
        for y in range(0, height, _BLOCK):
            for x in range(0, width, _BLOCK):
                rows, core_rows = _with_margin(y, height)
                cols, core_cols = _with_margin(x, width)
                fused = np.asarray(cube[:, rows, cols].values)
                comparison.add(fused, warp(truth, grid, (rows, cols), bands=bands), core=(core_rows, core_cols))
    return comparison.scores()


def _with_margin(start: int, size: int) -> tuple[slice, slice]:
    """A block along one axis with what its SSIM windows look at, and where the block lies in that."""
    first, end = max(start - SSIM_REACH, 0), min(start + _BLOCK, size)
    return slice(first, min(end + SSIM_REACH, size)), slice(start - first, end - first)
