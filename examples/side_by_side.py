"""One scene by several methods as one picture: short-wave infrared above, true color below, all in one stretch.

    python examples/side_by_side.py [PICTURE [PAIR.yaml [METHOD | METHOD=WEIGHTS ...]]]

PAIR.yaml holds the settings of a fusion but for output and method; without one it is a synthetic pair:

    hsi: {uri: EnMAP_scene}
    msi: {uri: Sentinel-2_scene}
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hyperfuse import load_config, run

METHODS = ("bicubic", "gsa", "map_subspace", "universal-plain")
RECIPE = "size=192&ratio=4&bands=40&seed=2"
ROWS = ((2200.0, 1610.0, 842.0), (665.0, 560.0, 490.0))
EDGE, CROP, GAP, TITLE = 260, 160, 6, 22
"""Edges of a panel and of the part of the scene in it, space between panels and for titles, in pixels."""


def composites(product: Path) -> list[NDArray[np.float32]]:
    """The middle of a product in each row's bands, or those nearest to them."""
    with xr.open_zarr(product / f"{product.name}.zarr") as data:
        cube = data["reflectance"]
        top, left = (max((cube.sizes[axis] - CROP) // 2, 0) for axis in ("y", "x"))
        middle = cube.isel(y=slice(top, top + CROP), x=slice(left, left + CROP)).transpose("y", "x", "wavelength")
        return [middle.sel(wavelength=list(row), method="nearest").values for row in ROWS]


def fused(folder: Path, method: str, pair: Path | None) -> list[NDArray[np.float32]]:
    """What a method makes of the pair; learned residuals are kept even where the scene's own trial is against them."""
    name, _, weights = method.partition("=")
    settings: dict[str, Any] = {"method": name, "output": str(folder / f"by-{name}"), "publish.formats": ["zarr"]}
    if weights:
        settings["weights"] = weights
    if name.startswith("universal"):
        settings["residual"] = "always"
    if pair is None:
        settings |= {f"{role}.uri": f"synthetic:{role}?{RECIPE}" for role in ("hsi", "msi")}
    run(load_config(pair, settings))
    return composites(folder / f"by-{name}")


def main(picture: Path, pair: Path | None, methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        columns = [fused(Path(folder), method, pair) for method in methods]
    sheet = Image.new("RGB", (len(methods) * (EDGE + GAP), len(ROWS) * (EDGE + GAP) + TITLE), "white")
    font = ImageFont.load_default(14)
    for column, method in enumerate(methods):
        ImageDraw.Draw(sheet).text((column * (EDGE + GAP) + 2, 2), method.partition("=")[0], "black", font)
    for row, panels in enumerate(zip(*columns, strict=True)):
        # One range for all of them, so that what differs is the methods' doing.
        low, high = np.nanpercentile(np.stack(panels), (1, 99), axis=(0, 1, 2))
        for column, panel in enumerate(panels):
            bright = np.nan_to_num(np.clip((panel - low) / (high - low), 0, 1) ** 0.8 * 255).astype(np.uint8)
            shown = Image.fromarray(bright).resize((EDGE, EDGE), Image.Resampling.NEAREST)
            sheet.paste(shown, (column * (EDGE + GAP), TITLE + row * (EDGE + GAP)))
    sheet.save(picture, optimize=True)
    print(picture)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path("side_by_side.png"),
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
        sys.argv[3:] or list(METHODS),
    )
