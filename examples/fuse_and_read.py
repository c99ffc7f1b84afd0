"""Fuse a pair from Python and read the product with xarray.

    python examples/fuse_and_read.py [FOLDER]

Put your own files where the two `synthetic:` addresses stand.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import xarray as xr

from hyperfuse import load_config, run


def main(folder: Path) -> None:
    config = load_config(
        None,
        {
            "hsi.uri": "synthetic:hsi?size=200&ratio=4&bands=40",
            "msi.uri": "synthetic:msi?size=200&ratio=4&bands=40",
            "output": str(folder / "product"),
        },
    )
    product = run(config)

    with xr.open_zarr(product.zarr) as data:
        cube = data["reflectance"]  # reflectance[wavelength, y, x]: scaled, NaN where there is nothing
        red, infrared = (cube.sel(wavelength=nm, method="nearest") for nm in (665, 842))
        ndvi = (infrared - red) / (infrared + red)
        print(f"{product.path.name}: {dict(cube.sizes)}")
        print(f"NDVI {float(ndvi.min()):.2f} to {float(ndvi.max()):.2f}, mean {float(ndvi.mean()):.2f}")
        spectrum = cube.sel(x=float(cube.x[50]), y=float(cube.y[60]))
        print(
            f"a spectrum of {spectrum.sizes['wavelength']} bands, {float(spectrum.min()):.3f} to {float(spectrum.max()):.3f}"
        )
    print(f"registration: {product.provenance['registration']['reason']}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
