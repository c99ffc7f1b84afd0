"""Metadata of an input scene as its reader understood them, as a JSON record, and a quicklook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, sensor_module
from hyperfuse.pipeline.composite import picture_bands
from hyperfuse.pipeline.products.thumbnail import EDGE_PX, save_picture


def describe(source: Source, *, quicklook: Path | None = None) -> dict[str, Any]:
    """Open a scene and list its metadata.

    Parameters
    ----------
    source : Source
    quicklook : Path, optional
        PNG to write; reads three bands of the whole scene.

    Returns
    -------
    dict
        JSON values; the bands are those of `Bands.to_json`. With a quicklook also its path and the valid share of it.

    Raises
    ------
    InputRejected
        If no reader can use the source.
    UsageError
        If the quicklook's folder does not exist.
    """
    if quicklook is not None and not quicklook.parent.is_dir():
        raise UsageError(f"{quicklook.parent}: no such folder for the quicklook; make it first")
    scene = open_source(source)
    sensor = sensor_module(scene.sensor).SENSOR
    record = {
        "uri": scene.uri,
        "name": scene.name,
        "sensor": scene.sensor,
        "title": sensor.title,
        "mtf_nyquist": list(sensor.mtf_of(scene.bands)),
        "time": None if scene.time is None else scene.time.isoformat(),
        "quantity": scene.quantity,
        "unit": scene.unit,
        "gsd_m": scene.gsd_m,
        "grid": {
            "crs": str(scene.geobox.crs),
            "shape": list(scene.geobox.shape),
            "transform": [float(v) for v in tuple(scene.geobox.affine)[:6]],
        },
        "bounds_lonlat": [float(v) for v in scene.geobox.extent.to_crs("EPSG:4326").boundingbox],
        "bands": scene.bands.to_json(),
        "sha256": scene.digest,
        "notes": list(scene.notes),
    }
    if quicklook is not None:
        samples = _thinned(scene)
        opaque = np.asarray(np.isfinite(samples).all(axis=0))
        save_picture(samples, opaque, quicklook)
        record |= {"quicklook": str(quicklook), "valid_fraction": float(opaque.mean())}
    return record


def _thinned(scene: Scene) -> NDArray[np.float32]:
    """Every n-th pixel of three bands, strip by strip: memory holds the blocks of one strip."""
    height, width = scene.geobox.shape
    step = -(-max(height, width) // EDGE_PX)
    picked = picture_bands(scene.bands)
    # Whole blocks, and a multiple of the step, so that the lattice of the picture goes on across strips.
    rows = step * max(1, -(-scene.cube.block[0] // step))
    strips = [
        scene.read((slice(row, min(row + rows, height)), slice(0, width)), picked)[:, ::step, ::step]
        for row in range(0, height, rows)
    ]
    return np.concatenate(strips, axis=1)
