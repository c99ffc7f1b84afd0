"""What goes in and what comes out, as one picture: the picture of the README.

    python examples/before_and_after.py [PICTURE]

The HSI has short-wave infrared bands in coarse pixels, the MSI has fine pixels in four visible and near-infrared bands;
the product has both. Left and right are short-wave infrared composites (2200, 1610, 842 nm), the middle is true color.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hyperfuse import load_config, run
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene

RECIPE = "size=320&ratio=5&bands=60&seed=7"
INFRARED, TRUE_COLOR = (2200.0, 1610.0, 842.0), (665.0, 560.0, 490.0)
EDGE = 320


def composite(scene: Scene, wavelengths: tuple[float, ...]) -> NDArray[np.float32]:
    bands = [scene.bands.nearest(nm, within_nm=40) for nm in wavelengths]
    height, width = scene.geobox.shape
    return np.stack([scene.read((slice(0, height), slice(0, width)), [band])[0] for band in bands], axis=-1)


def picture(rgb: NDArray[np.float32], title: str) -> Image.Image:
    low, high = np.nanpercentile(rgb, (1, 99))
    pixels = np.nan_to_num(np.clip((rgb - low) / (high - low), 0, 1) ** 0.8 * 255).astype(np.uint8)
    image = Image.new("RGB", (EDGE, EDGE + 26), "white")
    image.paste(Image.fromarray(pixels).resize((EDGE, EDGE), Image.Resampling.NEAREST), (0, 26))
    ImageDraw.Draw(image).text((4, 6), title, fill="black", font=ImageFont.load_default(14))
    return image


def main(path: Path) -> None:
    hsi, msi = (open_scene(Source(uri=f"synthetic:{role}?{RECIPE}")) for role in ("hsi", "msi"))
    with tempfile.TemporaryDirectory() as folder:
        product = run(
            load_config(
                None,
                {
                    "hsi.uri": hsi.uri,
                    "msi.uri": msi.uri,
                    "output": f"{folder}/product",
                    "publish.formats": ["zarr"],
                },
            )
        )
        with product.open() as data:
            chosen = data["reflectance"].sel(wavelength=list(INFRARED), method="nearest")
            fused = chosen.transpose("y", "x", "wavelength").values.astype(np.float32)
    panels = [
        picture(composite(hsi, INFRARED), f"in: HSI, 60 bands, {hsi.gsd_m:.0f} m"),
        picture(composite(msi, TRUE_COLOR), f"in: MSI, 4 bands, {msi.gsd_m:.0f} m"),
        picture(fused, f"out: 60 bands, {msi.gsd_m:.0f} m"),
    ]
    sheet = Image.new("RGB", (3 * EDGE + 2 * 8, EDGE + 26), "white")
    for column, panel in enumerate(panels):
        sheet.paste(panel, (column * (EDGE + 8), 0))
    sheet.save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("before_and_after.png"))
