"""Runs of the synthetic scene, whose truth, response, PSF and displacement are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse import models
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.config import RunConfig, load_config
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.run import fuse_tiles, open_run, stage_pair

SMALL = "size=150&ratio=4&bands=12&seed=3"
"""A pair that fuses in a second: 150 is no multiple of the ratio, of a tile, or of a chunk."""
TILES = {"tiles.core": 64, "tiles.chunk": 32}
"""Tiles so small that SMALL has nine of them."""
"""Real imagery beside the checkout; tests that need it skip where it is absent."""


def methods_without_weights() -> list[str]:
    """Names of the methods that fuse as they are; `test_weights` takes networks the same way, `test_gate` those with a base."""
    observed = models.Observed(hsi_bands=12, msi_bands=4, ratio=4, psf_sigma_px=2.0)
    specs = {name: models.method(name).specify(observed) for name in models.available()}
    return [name for name, spec in specs.items() if not spec.needs_weights and spec.base is None]


def config(output: Path, recipe: str = SMALL, **settings: Any) -> RunConfig:
    """A RunConfig of both roles of a recipe; settings are given with `__` for dots."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(
        None,
        {"hsi.uri": f"synthetic:hsi?{recipe}", "msi.uri": f"synthetic:msi?{recipe}", "output": str(output), **dotted},
    )


def scene(role: str, recipe: str = SMALL) -> Scene:
    """One role of a recipe."""
    return open_scene(Source(uri=f"synthetic:{role}?{recipe}"))


def whole(image: Scene) -> NDArray[np.float32]:
    """All samples of a small scene."""
    height, width = image.geobox.shape
    return image.read((slice(0, height), slice(0, width)))


def fused_tiles(asked: RunConfig) -> NDArray[np.float32]:
    """Samples of a float32 product that is neither judged nor published, NaN where nothing is valid."""
    assert asked.publish.dtype == "float32"
    with open_run(asked) as held:
        job = stage_pair(held)
        fuse_tiles(job)
        array = store.open_array(job.fused)
        return store.read(array, Box(y0=0, y1=array.shape[1], x0=0, x1=array.shape[2]))
