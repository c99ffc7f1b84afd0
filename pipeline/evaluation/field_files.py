"""The field protocol through the whole pipeline: pairs as files, of which nothing is known but what products tell.

    simulated pair -> two GeoTIFF files with a CRS, wavelengths and widths -> `run` -> product on the MSI's grid -> truth

Registration and PSF are the pipeline's own affair. The MSI's grid is that of the truth, so the product is compared with
it pixel by pixel, whatever was done to the HSI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.pipeline.config import RunConfig, load_config
from hyperfuse.pipeline.observation.field import DIRECTION, sampled_at
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import TOUCHED, Cube, SimulatedPair, noisy
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.quality.trials import Fused, MeteredCall
from hyperfuse.pipeline.run import run

_COARSE_M = 30.0
_CRS, _NEXT_CRS = "EPSG:32633", "EPSG:32632"
_CORNER_M = (300_000.0, 5_800_000.0)  # near the border of the two zones, where their grids differ most


@dataclass(frozen=True)
class PipelineFuser:
    """Fuses a simulated pair by the whole pipeline; called as `pipeline.quality.trials.fuse_whole` is."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the fusion, such as `sensor_model`."""

    def __call__(self, name: str, pair: SimulatedPair, *, weights: Path | None = None, device: str = "cpu") -> Fused:
        """The product of a pair on the truth's grid, NaN where there is none, and what was decided on the way.

        Raises
        ------
        HyperFuseError
            If the pipeline refuses the pair.
        InputRejected
            If the pair was not simulated, or the product lacks bands of the truth.
        """
        with TemporaryDirectory(prefix="hyperfuse-field-") as folder:
            config = written(pair, Path(folder), {"method": name, "device": device, **self.settings})
            if weights is not None:
                config = config.model_copy(update={"weights": weights})
            with MeteredCall(device) as cost:
                product = run(config)
            # The record of its quality is a file of the product, which is gone when the folder is.
            return Fused(
                image=on_truth(product, pair), seconds=cost.seconds, peak_bytes=cost.peak_bytes, told=_told(product)
            )


def written(pair: SimulatedPair, folder: Path, settings: Mapping[str, Any]) -> RunConfig:
    """Both images of a simulated pair as GeoTIFF files, and the configuration that fuses them.

    Parameters
    ----------
    pair : SimulatedPair
    folder : Path
        Of the files; the product's is `product` in it.
    settings : mapping
        Further settings.

    Raises
    ------
    InputRejected
        If the pair was not simulated, or has MSI bands of several sampling distances, which a GeoTIFF does not tell.
    """
    if pair.bands is None or pair.protocol is None:
        raise InputRejected(f"{pair.name}: not a simulated pair, whose files are given to `fuse` as they are")
    if pair.observed.msi_steps:
        raise InputRejected(
            f"{pair.name}: {pair.protocol.msi} has bands of several sampling distances, which a GeoTIFF does not tell; "
            "choose bands of one for a whole pipeline"
        )
    hsi_bands, msi_bands = pair.bands
    hsi, affine, crs = _georeferenced(pair, pair.protocol)
    _write(folder / "hsi.tif", hsi, hsi_bands, affine, crs)
    _write(folder / "msi.tif", pair.msi, msi_bands, fine_affine(pair.observed.ratio), _CRS)
    own = {f"{role}.{key}": value for role in ("hsi", "msi")
           for key, value in (("uri", str(folder / f"{role}.tif")), ("quantity", "reflectance"))}  # fmt: skip
    return load_config(None, {**own, "output": str(folder / "product"), "publish.dtype": "float32", **settings})


def fine_affine(ratio: int) -> Affine:
    """Matrix of the MSI's grid, and of the truth's."""
    return Affine.translation(*_CORNER_M) @ Affine.scale(_COARSE_M / ratio, -_COARSE_M / ratio)


def on_truth(product: Product, pair: SimulatedPair) -> NDArray[np.float32]:
    """A product's samples on the truth's grid, shape of the truth; NaN where the product has none.

    Raises
    ------
    InputRejected
        If the product lacks bands of the truth, or lies on another lattice.
    """
    with product.open() as data:
        cube = data["reflectance"]
        values, box = np.asarray(cube.values, np.float32), cube.odc.geobox
    if len(values) != len(pair.truth):
        raise InputRejected(f"{pair.name}: the product has {len(values)} of the truth's {len(pair.truth)} bands")
    column, row = ~fine_affine(pair.observed.ratio) @ (box.affine.c, box.affine.f)
    if max(abs(column - round(column)), abs(row - round(row))) > 1e-3:
        raise InputRejected(f"{pair.name}: the product lies {column:.3f}, {row:.3f} px off the truth's lattice")
    image = np.full(pair.truth.shape, np.nan, np.float32)
    height, width = values.shape[1:]
    image[:, round(row) : round(row) + height, round(column) : round(column) + width] = values
    return image


def _told(product: Product) -> dict[str, Any]:
    registration, observation = (product.provenance[key] for key in ("registration", "observation"))
    return {
        "registration": registration["decision"],
        "model": registration["model"],
        "east_m": round(registration["east_m"], 2),
        "north_m": round(registration["north_m"], 2),
        "psf_sigma_px": round(observation["psf_sigma_px"], 4),
        "warnings": list((product.scores() or {}).get("warnings", [])),
    }


def _georeferenced(pair: SimulatedPair, protocol: Protocol) -> tuple[Cube, Affine, str]:
    """The HSI with the matrix and the CRS that its file has."""
    planted, ratio = protocol.planted, protocol.ratio
    if planted.zone:
        return _in_next_zone(pair, protocol)
    down, right = planted.georeference_px * np.array(DIRECTION) + planted.lattice_px / ratio
    return pair.hsi, fine_affine(ratio) @ Affine.scale(ratio) @ Affine.translation(right, down), _CRS


def _in_next_zone(pair: SimulatedPair, protocol: Protocol) -> tuple[Cube, Affine, str]:
    fine = GeoBox(pair.truth.shape[1:], fine_affine(protocol.ratio), _CRS)
    left, bottom, right, top = fine.footprint(_NEXT_CRS).boundingbox
    columns, rows = (int(np.ceil(size / _COARSE_M)) for size in (right - left, top - bottom))
    affine = Affine.translation(left, top) @ Affine.scale(_COARSE_M, -_COARSE_M)
    x = left + _COARSE_M * (np.tile(np.arange(columns), rows) + 0.5)
    y = top - _COARSE_M * (np.repeat(np.arange(rows), columns) + 0.5)
    east, north = Transformer.from_crs(_NEXT_CRS, _CRS, always_xy=True).transform(x, y)
    column, row = ((at - corner) / step for at, corner, step in
                   zip((east, north), _CORNER_M, (fine.affine.a, fine.affine.e), strict=True))  # fmt: skip
    height, width = fine.shape
    inside = (column > 0) & (column < width) & (row > 0) & (row < height)
    # The truth has holes where the PSF touched those of the cube: they count as one hole each.
    hole = np.isnan(pair.truth)
    sigma_px = protocol.sigma_px * protocol.planted.psf_factor
    at = (row[inside] - 0.5, column[inside] - 0.5)
    seen = sampled_at(np.where(hole, np.float32(0), pair.truth), sigma_px, *at)
    touched = sampled_at(hole[:1].astype(np.float32), sigma_px, *at)[0] > TOUCHED
    samples = np.full((len(pair.truth), rows * columns), np.nan, np.float32)
    samples[:, np.flatnonzero(inside)[~touched]] = seen[:, ~touched]
    image = noisy(samples.reshape(-1, rows, columns), protocol.hsi_snr_db, np.random.default_rng(protocol.seed))
    return image, affine, _NEXT_CRS


def _write(path: Path, image: Cube, bands: Bands, affine: Affine, crs: str) -> None:
    n_bands, height, width = image.shape
    profile = {"driver": "GTiff", "dtype": "float32", "crs": crs, "transform": affine, "nodata": float("nan")}
    with rasterio.open(path, "w", count=n_bands, height=height, width=width, interleave="band", **profile) as file:
        file.write(image)
        for number, (center, width_nm) in enumerate(zip(bands.center_nm, bands.width_nm(), strict=True), start=1):
            tags = {"wavelength": repr(float(center)), "fwhm": repr(float(width_nm)), "wavelength_units": "Nanometers"}
            file.update_tags(number, **tags)
