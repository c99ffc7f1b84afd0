"""From a product on disk to its catalogue item: opened once, looked at thinly, and described."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.addresses import as_glob, is_remote
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.outline import lonlat, outline, projection
from hyperfuse.catalogs.scene import Role, Scene
from hyperfuse.catalogs.sensors import Source, sensor_module
from hyperfuse.catalogs.stac.clear_map import clear_map
from hyperfuse.catalogs.stac.items import HSI_BANDS, Fingerprint, SceneItem, is_file_name

LATTICE = 512
"""Samples along the longer edge of a scene that are looked at, about."""
_EDGE_POINTS = 8
"""Straight edges of a grid bend in longitude and latitude."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_OWN = {"uri", "sensor"}


def survey(source: Source, *, role: Role | None = None) -> SceneItem:
    """Open a product and describe it.

    Reads one band of it, to find out where it is valid, and all of its bytes, for the digest.

    Parameters
    ----------
    source : Source
        A path must be absolute if the item is to be used from elsewhere.
    role : "hsi" or "msi", optional
        Which part of a pair it is; by its sensor, or by the number of its bands, unless given.

    Raises
    ------
    InputRejected
        If no reader can use it.
    """
    size, mtime_ns = stamp(source.uri)
    scene = open_source(source)
    look = _look(scene)
    area = _area(scene, look)
    col, row = np.meshgrid(look.col + 0.5, look.row + 0.5)
    lon, lat = lonlat(scene.geobox, col.ravel(), row.ravel())
    name = _UNSAFE.sub("-", scene.name).strip(".-")[:128]
    settings = {f.name: getattr(source, f.name) for f in fields_of(source) if f.name not in _OWN}
    sensor_role = sensor_module(scene.sensor).SENSOR.role
    return SceneItem(
        id=name if is_file_name(name) else scene.digest[:16],
        role=role or sensor_role or ("hsi" if len(scene.bands) >= HSI_BANDS else "msi"),
        sensor=scene.sensor,
        uri=source.uri,
        settings={key: value for key, value in settings.items() if value is not None},
        footprint=area,
        clear=clear_map(lon, lat, look.valid.ravel(), area),
        gsd_m=scene.gsd_m,
        n_bands=len(scene.bands),
        time=scene.time,
        conditions=scene.conditions,
        fingerprint=Fingerprint(sha256=scene.digest, size=size, mtime_ns=mtime_ns),
        details=_details(scene),
    )


def absolute(source: Source) -> Source:
    """The same source with an absolute path, so that it means the same from any folder."""
    given = replace(source, wavelengths=_whole(source.wavelengths), responses=_whole(source.responses))
    if source.uri.startswith("synthetic:") or is_remote(source.uri):
        return given
    # Path.resolve would follow links, and a glob is no path.
    return replace(given, uri=os.path.abspath(source.uri))  # noqa: PTH100


def _whole(table: str | None) -> str | None:
    return str(Path(table).absolute()) if table and Path(table).is_file() else table


def stamp(uri: str) -> tuple[int, int]:
    """Bytes of a product's files, and the last change of the latest (ns); zeros of what is no file on this disk.

    Raises
    ------
    UsageError
        If there is nothing at a path.
    """
    if uri.startswith("synthetic:") or is_remote(uri):
        return 0, 0
    paths = [Path(uri)] if Path(uri).exists() else [Path(p) for p in glob.glob(as_glob(uri))]  # noqa: PTH207 - a pattern from the user
    if not paths:
        raise UsageError(f"{uri}: no such file, folder or glob; check the path")
    size, latest = 0, 0
    for path in paths:
        for file in _files(path):
            status = file.stat()
            size, latest = size + status.st_size, max(latest, status.st_mtime_ns)
    return size, latest


class _Look(NamedTuple):
    """Which samples of a regular lattice are valid."""

    row: NDArray[np.int64]
    """Pixel rows of the lattice."""
    col: NDArray[np.int64]
    """Pixel columns of the lattice."""
    valid: NDArray[np.bool_]
    """Shape (row, col)."""
    step: int
    """Pixels between samples."""


def _look(scene: Scene) -> _Look:
    """Samples of one band; strip by strip, whole blocks at a time."""
    height, width = scene.geobox.shape
    step = max(1, -(-max(height, width) // LATTICE))
    good = scene.good_bands
    if not good:
        raise InputRejected(
            f"{scene.name}: none of its {len(scene.bands)} bands carries a signal; check its nodata value"
        )
    gsd = scene.bands.gsd_m
    # The band of the coarsest image has the fewest samples to decode; masks are those of all bands.
    band = good[len(good) // 2] if gsd is None else max(good, key=lambda i: gsd[i])
    rows = step * max(1, -(-scene.cube.block[0] // step))
    strips = [
        np.isfinite(scene.read((slice(top, min(top + rows, height)), slice(0, width)), [band])[0, ::step, ::step])
        for top in range(0, height, rows)
    ]
    return _Look(np.arange(0, height, step), np.arange(0, width, step), np.concatenate(strips), step)


def _area(scene: Scene, look: _Look) -> BaseGeometry:
    """Convex hull of the valid samples' cells: what a swath is, whatever clouds lie in it; all of an overcast image."""
    height, width = scene.geobox.shape
    some = look.valid.any(axis=1)
    if not some.any():
        return _area(scene, look._replace(valid=np.ones_like(look.valid)))
    first, last = look.valid[some].argmax(axis=1), look.valid.shape[1] - 1 - look.valid[some, ::-1].argmax(axis=1)
    row, left, right = look.row[some], look.col[first], np.minimum(look.col[last] + look.step, width)
    below = np.minimum(row + look.step, height)
    corners = np.concatenate([np.column_stack([x, y]) for x in (left, right) for y in (row, below)])
    hull = shapely.MultiPoint(corners).convex_hull
    ring = shapely.get_coordinates(shapely.segmentize(hull, max(height, width) / _EDGE_POINTS))
    return outline(*lonlat(scene.geobox, ring[:, 0], ring[:, 1]))


def _details(scene: Scene) -> Mapping[str, Any]:
    bands, geobox = scene.bands, scene.geobox
    listed = []
    for i, (center, fwhm) in enumerate(zip(bands.center_nm.tolist(), bands.fwhm_nm.tolist(), strict=True)):
        entry: dict[str, Any] = {"name": bands.names[i]}
        entry["eo:center_wavelength"] = float(f"{center / 1000:.7g}")
        if np.isfinite(fwhm):
            entry["eo:full_width_half_max"] = float(f"{fwhm / 1000:.7g}")
        listed.append(entry)
    shape, transform = [int(n) for n in geobox.shape], [float(v) for v in tuple(geobox.affine)[:6]]
    return {"bands": listed, "properties": projection(geobox) | {"proj:shape": shape, "proj:transform": transform}}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file()]
