"""Add your own sensor: one file, `own_sensor/npy.py`, reads a format that HyperFuse does not know.

    python examples/add_a_sensor.py [FOLDER]

Copy the file to `catalogs/sensors/` to keep it. Here its folder joins the package's path, so that the repository stays as
it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from hyperfuse import load_config, run
from hyperfuse.catalogs import sensors
from hyperfuse.catalogs.sensors import Source, open_scene

sensors.__path__.append(str(Path(__file__).with_name("own_sensor")))
RECIPE = "size=160&ratio=4&bands=40&seed=2"


def write_cube(folder: Path) -> Path:
    """The coarse image of a synthetic pair, in the format of the new sensor and in an order of its own."""
    scene = open_scene(Source(uri=f"synthetic:hsi?{RECIPE}"))
    height, width = scene.geobox.shape
    folder.mkdir()
    backwards = slice(None, None, -1)
    np.save(folder / "cube.npy", scene.read((slice(0, height), slice(0, width)))[backwards])
    facts = {
        "crs": str(scene.geobox.crs),
        "transform": list(tuple(scene.geobox.affine)[:6]),
        "wavelength_nm": scene.bands.center_nm[backwards].tolist(),
    }
    (folder / "cube.json").write_text(json.dumps(facts))
    return folder


def main(folder: Path) -> None:
    cube = write_cube(folder / "flight_17")
    scene = open_scene(Source(uri=str(cube)))
    print(f"{scene.name}: read by {scene.sensor}, {len(scene.bands)} bands, {scene.gsd_m:.1f} m")
    product = run(
        load_config(
            None, {"hsi.uri": str(cube), "msi.uri": f"synthetic:msi?{RECIPE}", "output": str(folder / "product")}
        )
    )
    with product.open() as data:
        red = data["reflectance"].sel(wavelength=665, method="nearest")
        print(f"{product.name}: {dict(data.sizes)}, red {float(red.mean()):.3f} in the mean")
    print(
        f"its record: {product.provenance['inputs']['hsi']['sensor']}, {product.provenance['registration']['reason']}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
