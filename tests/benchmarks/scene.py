"""A whole run of one pair, stage by stage, beside what its bytes cost alone: `make bench-scene`.

    stages     seconds, CPU, bytes and memory of each, as the product's own record has them, and what comes after it
    read       all samples of both inputs once, by rasterio
    write      the product's samples once in each published format: as Zarr with its codec, as a plain tiled GeoTIFF
    hash       SHA-256 of the product's files
    forward    the method on all tiles, nothing else running

The pair is written first, as its providers do: a compressed GeoTIFF each, in blocks or strips, by band or by pixel. Each
measurement has a process of its own; the baselines are measured after the run, in the same state of the machine's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.config import RunConfig, load_config
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.run import fuse_tiles, open_run, run, stage_pair
from tests import ROOT
from tests.benchmarks.engine import forward_seconds
from tests.benchmarks.measured import in_own_process
from tests.synthetic import scene

_ROWS = 240
"""Rows of a scene that are generated at once."""
LAYOUTS = {
    "tiled": {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band"},
    "striped": {"interleave": "band", "blockysize": 1},
    "pixel": {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "pixel"},
}


def write_scene(image: Scene, path: Path, layout: str) -> None:
    """A scene as int16 counts of 1e-4 in a deflated GeoTIFF."""
    height, width = image.geobox.shape
    bands = range(len(image.bands))
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=len(bands), dtype="int16", crs=str(image.geobox.crs),
        transform=image.geobox.affine, nodata=-9999, compress="deflate", zlevel=1, bigtiff="if_safer", num_threads="all_cpus",
        **LAYOUTS[layout],
    ) as file:  # fmt: skip
        for band, nm in enumerate(image.bands.center_nm, start=1):
            file.update_tags(band, wavelength=f"{nm:.2f}", wavelength_units="Nanometers")
        for first in range(0, height, _ROWS):
            rows = slice(first, min(first + _ROWS, height))
            counts = np.rint(image.read((rows, slice(0, width)), list(bands)) * 1e4)
            file.write(
                np.nan_to_num(counts, nan=-9999).astype(np.int16),
                window=Window(0, rows.start, width, rows.stop - rows.start),
            )


def settings(folder: Path, method: str, formats: str) -> RunConfig:
    """The run of the pair in a folder."""
    told: dict[str, Any] = {"method": method, "publish.formats": formats, "output": str(folder / "product")}
    for role in ("hsi", "msi"):
        told |= {f"{role}.uri": str(folder / f"{role}.tif"), f"{role}.scale": 1e-4, f"{role}.quantity": "reflectance"}
    return load_config(None, told)


def whole_run(folder: str, method: str, formats: str) -> dict[str, Any]:
    """Seconds of a whole run, and its stages."""
    started = time.monotonic()
    product = run(settings(Path(folder), method, formats))
    return {"seconds": time.monotonic() - started, "stages": product.provenance["stages"]}


def bytes_alone(folder: str) -> dict[str, Any]:
    """Seconds of reading the inputs, and of writing and hashing the samples of the product."""
    place, found = Path(folder), {}
    started = time.monotonic()
    for role in ("hsi", "msi"):
        with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"), rasterio.open(place / f"{role}.tif") as file:
            for first in range(0, file.height, _ROWS):
                file.read(window=Window(0, first, file.width, min(_ROWS, file.height - first)))
    found["read"] = time.monotonic() - started
    product = Product.load(place / "product")
    assert product.zarr is not None
    fused = store.open_array(product.zarr / product.provenance["product"]["quantity"])
    copy = store.create_array(
        place, "copy.zarr", shape=fused.shape, dtype=str(fused.dtype), chunks=fused.chunks, dims=("wavelength", "y", "x"),
        attributes={}, fill=-32768,
    )  # fmt: skip
    cube, writing = np.asarray(fused[:]), {}
    for name in product.formats:
        started = time.monotonic()
        if name == "zarr":
            copy[:] = cube
        elif name == "cog":
            with rasterio.open(
                place / "copy.tif", "w", driver="GTiff", width=cube.shape[2], height=cube.shape[1], count=cube.shape[0],
                dtype=cube.dtype, tiled=True, blockxsize=256, blockysize=256, compress="deflate", predictor=2,
                interleave="pixel", num_threads="all_cpus", bigtiff="if_safer",
            ) as file:  # fmt: skip
                file.write(cube)
        else:
            continue
        writing[f"write {name}"] = time.monotonic() - started
    started = time.monotonic()
    for path in product.path.rglob("*"):
        if path.is_file():
            with path.open("rb") as content:
                hashlib.file_digest(content, "sha256")
    return found | writing | {"hash": time.monotonic() - started}


def forward_alone(folder: str, method: str) -> dict[str, Any]:
    """Seconds of the method on all tiles."""
    asked = settings(Path(folder), method, "[zarr]").model_copy(update={"output": Path(folder) / "other"})
    with open_run(asked) as held:
        job = stage_pair(held)
        forward = forward_seconds(job)
        fuse_tiles(job)
    return {"forward": forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1200, help="fine pixels along an edge (default: %(default)s)")
    parser.add_argument("--bands", type=int, default=100)
    parser.add_argument("--ratio", type=int, default=3)
    parser.add_argument("--method", default="map_subspace")
    parser.add_argument("--layout", choices=LAYOUTS, default="tiled")
    parser.add_argument("--formats", default="[zarr, cog, stac]")
    options = parser.parse_args()
    recipe = f"size={options.size}&ratio={options.ratio}&bands={options.bands}&seed=1&east_m=7&north_m=-4"
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        for role in ("hsi", "msi"):
            write_scene(scene(role, recipe), Path(folder) / f"{role}.tif", options.layout)
        found = in_own_process(whole_run, folder, options.method, options.formats)
        alone = in_own_process(bytes_alone, folder) | in_own_process(forward_alone, folder, options.method)
    alone.pop("peak_mb")
    rest = found["seconds"] - sum(stage["wall_s"] for stage in found["stages"])
    print(
        f"{options.size} x {options.size} px, {options.bands} bands, ratio {options.ratio}, {options.layout}: ", end=""
    )
    print(
        f"{found['seconds']:.1f} s, peak {found['peak_mb']:.0f} MB, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    print(f"{'stage':<16}{'s':>8}{'CPU s':>8}{'read MB':>10}{'written MB':>12}{'peak MB':>9}")
    for stage in found["stages"]:
        print(
            f"{stage['stage']:<16}{stage['wall_s']:8.1f}{stage['cpu_s']:8.1f}{stage['read_mb'] or 0:10.0f}"
            f"{stage['written_mb'] or 0:12.0f}{stage['peak_mb']:9.0f}"
        )
    print(f"{'check and seal':<16}{rest:8.1f}\n")
    for name, seconds in alone.items():
        print(f"{name:<16}{seconds:8.1f}   alone")
    bound = sum(seconds for name, seconds in alone.items() if name != "hash")
    fusing = next(stage["wall_s"] for stage in found["stages"] if stage["stage"] == "fuse")
    publishing = rest + sum(s["wall_s"] for s in found["stages"] if s["stage"].startswith(("write", "report", "check")))
    print(f"\nwhole run / (forward + read + write): {found['seconds'] / bound:.2f}")
    print(f"publishing / fusing: {publishing / fusing:.2f}")
    record = {"options": vars(options), "run": found, "alone": alone, "machine": platform.node()}
    kept = ROOT / "benchmarks" / f"scene-{options.size}-{options.layout}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
