"""Folders of built products as the archives that operators deliver."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine


def zipped(folder: Path, path: Path, *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip whose members begin with the folder's name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder.parent).as_posix())
    return path


def tarred(folder: Path, path: Path) -> Path:
    """A tar, compressed by its name."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        archive.add(folder, folder.name)
    return path


def zip_of(path: Path, **members: bytes | str) -> Path:
    """A zip of given contents; names are given with __ for slashes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_with(path: Path, info: tarfile.TarInfo, content: bytes = b"") -> Path:
    """A tar of one crafted entry."""
    info.size = len(content)
    with tarfile.open(path, "w") as archive:
        archive.addfile(info, io.BytesIO(content))
    return path


def raster(path: Path, data: np.ndarray, affine: Affine, crs: str, **options: object) -> Path:
    """A GeoTIFF, or a lossless JPEG 2000 where the name says so, of (band, y, x) or (y, x)."""
    layers = data if data.ndim == 3 else data[None]
    profile: dict[str, object] = {"driver": "GTiff", "dtype": data.dtype.name, "crs": crs, "transform": affine}
    if path.suffix == ".jp2":
        profile |= {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"}
    n_bands, height, width = layers.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", count=n_bands, height=height, width=width, **(profile | options)) as file:
        file.write(layers)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
    return path


def planted(n_bands: int, height: int, width: int, dtype: str = "int16") -> np.ndarray:
    """Counts that tell their place: 1000 per band from 1, 10 per row, 1 per column; rows and columns below 40."""
    band, row, col = np.ogrid[1 : n_bands + 1, :height, :width]
    return (1000 * band + 20 * row + col).astype(dtype)
