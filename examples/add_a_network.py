"""Add your own network: one file, `own_network/modulation.py`, fused beside the default and held to its word.

    python examples/add_a_network.py [FOLDER]

Copy the file to `models/` to keep it. Here its folder joins the package's path, so that the repository stays as it is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from hyperfuse import Product, load_config, models, run

models.__path__.append(str(Path(__file__).with_name("own_network")))
RECIPE = "size=200&ratio=4&bands=40&seed=2"


def fused(output: Path, method: str, core: int = 256) -> Product:
    return run(
        load_config(
            None,
            {
                "hsi.uri": f"synthetic:hsi?{RECIPE}",
                "msi.uri": f"synthetic:msi?{RECIPE}",
                "output": str(output),
                "method": method,
                "tiles.core": core,
                "tiles.chunk": 64,
            },
        )
    )


def main(folder: Path) -> None:
    whole, tiled = fused(folder / "whole", "modulation"), fused(folder / "tiled", "modulation", core=64)
    with whole.open() as one, tiled.open() as many:
        apart = float(np.nanmax(np.abs(one["reflectance"].values - many["reflectance"].values)))
    print(
        f"{whole.provenance['method']['title']}: one tile and {tiled.provenance['tiles']['finished']} differ by {apart:.1e}"
    )
    # Exact tiles is what its specification promises; packed samples may round the other way.
    if apart > 1.01e-4:
        raise SystemExit("tiles show: the halo in `specify` is too small")
    for method, scores in whole.provenance["quality"]["reduced_resolution"].items():
        print(f"{method:10} PSNR {scores['psnr_db']:.2f} dB, SAM {scores['sam_deg']:.2f} deg at reduced resolution")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
