"""Read a product with xarray alone, map some spectral indices, and plot spectra of the extremes.

    python examples/spectra_and_indices.py [PRODUCT.zarr] [PICTURE.png]

Without arguments a small synthetic product is made first. Only `small_product` needs HyperFuse.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import xarray as xr

INDICES = {
    "NDVI": ((842, 665), "vegetation; Rouse et al. (1974)"),
    "NDWI": ((560, 842), "open water; McFeeters (1996), doi:10.1080/01431169608948714"),
    "NDMI": ((860, 1610), "water in leaves; Gao (1996), doi:10.1016/S0034-4257(96)00067-3"),
}
"""Name: wavelengths (nm) of a and b in (a - b) / (a + b), and what it shows."""

DARK = 0.02
"""Where both reflectances together are no more than this, noise would be divided by noise."""


def small_product(folder: Path) -> Path:
    from hyperfuse import load_config, run  # noqa: PLC0415 (the rest reads the product as a stranger would)

    recipe = "size=200&ratio=4&bands=60&seed=2"
    product = run(
        load_config(
            None,
            {
                "hsi.uri": f"synthetic:hsi?{recipe}",
                "msi.uri": f"synthetic:msi?{recipe}",
                "output": str(folder / "product"),
            },
        )
    )
    return product.path / "product.zarr"


def normalized_difference(cube: xr.DataArray, a_nm: float, b_nm: float) -> xr.DataArray:
    a, b = (
        cube.sel(wavelength=nm, method="nearest", tolerance=30).drop_vars(["wavelength", "fwhm"]) for nm in (a_nm, b_nm)
    )
    return ((a - b) / (a + b)).where(a + b > DARK)


def main(store: Path, picture: Path) -> None:
    with xr.open_zarr(store) as data:
        cube = data["reflectance"].load()  # reflectance[wavelength, y, x]: scaled, NaN where there is nothing
    figure, axes = plt.subplots(1, len(INDICES) + 1, figsize=(4 * len(INDICES) + 5, 4), layout="constrained")
    for axis, (name, (wavelengths, meaning)) in zip(axes, INDICES.items(), strict=False):
        index = normalized_difference(cube, *wavelengths)
        print(
            f"{name} ({meaning}): {float(index.min()):+.2f} to {float(index.max()):+.2f}, mean {float(index.mean()):+.2f}"
        )
        index.plot.imshow(ax=axis, robust=True, cmap="viridis", cbar_kwargs={"shrink": 0.8, "label": name})
        axis.set(title=name, aspect="equal", xlabel="x", ylabel="y")
        for label, place in (("highest", index.argmax(...)), ("lowest", index.argmin(...))):
            spectrum = cube.isel({axis_name: int(at) for axis_name, at in place.items()})
            axes[-1].plot(spectrum["wavelength"], spectrum, label=f"{label} {name}")
    axes[-1].set(title="spectra", xlabel="wavelength (nm)", ylabel="reflectance")
    axes[-1].legend(fontsize=7)
    figure.savefig(picture, dpi=100)
    print(picture)


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    if given:
        main(given[0], given[1] if len(given) > 1 else Path("indices.png"))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(small_product(Path(temporary)), Path(temporary) / "indices.png")
