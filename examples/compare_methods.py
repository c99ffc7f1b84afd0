"""Fuse one scene by several methods, and lay the products beside each other: `comparison.html` for people, figures here.

    python examples/compare_methods.py [FOLDER] [METHOD ...]

On the command line: hyperfuse compare PRODUCT PRODUCT --output comparison.html
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hyperfuse import load_config, run
from hyperfuse.pipeline.reports.compare import compare
from hyperfuse.pipeline.reports.comparison_page import write_page

RECIPE = "size=200&ratio=4&bands=40&seed=2"


def main(folder: Path, methods: list[str]) -> None:
    scenes = {"hsi.uri": f"synthetic:hsi?{RECIPE}", "msi.uri": f"synthetic:msi?{RECIPE}"}
    for method in methods:
        run(load_config(None, scenes | {"output": str(folder / method), "method": method}))
    found = compare([folder / method for method in methods])
    write_page(found, folder / "comparison.html")

    record = found.to_json()
    for product in record["products"]:
        scores = product["scores"]
        print(
            f"{product['label']:13} SAM to the HSI {scores['consistency.hsi.sam_deg']:.2f} deg, R2 with the MSI "
            f"{scores['consistency.msi.r2']:.4f}, PSNR at reduced resolution {scores['reduced.psnr_db']:.2f} dB"
        )
    for difference in record["differences"]:
        worst = max(range(len(difference["band_rmse"])), key=lambda k: difference["band_rmse"][k])
        print(
            f"{difference['second']} to {difference['first']}: RMSE {difference['rmse']:.4f}, most at "
            f"{record['wavelength_nm'][worst]:.0f} nm"
        )
    print(folder / "comparison.html")


if __name__ == "__main__":
    chosen = sys.argv[2:] or ["bicubic", "gsa", "map_subspace"]
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), chosen)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), chosen)
