"""Fusion and registration from Python, of what lies on disk or in memory.

    path, Source, Scene or DataArray  ->  RunConfig  ->  staged job  ->  a lazy DataArray, or a published Product

Registration, staging and the statistics of the scene are done when `fuse` is called, for they need the whole pair; tiles are
fused when their samples are asked for. Samples are those of the command line, to the last bit.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import dask.array
import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray
from odc.geo.xr import xr_coords

from hyperfuse.catalogs.arrays import array_uri, copies_at
from hyperfuse.catalogs.errors import AlreadyPublished, InputRejected
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source
from hyperfuse.pipeline.config import RunConfig, current_names, load_config
from hyperfuse.pipeline.fusion.tile_fuser import fuse_each
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.register import registered
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.run import open_run, run, stage_pair

Image = str | Path | Source | Scene | xr.DataArray
"""An image: where it is, how it is to be opened, an opened scene, or an array with CRS and, along its bands, wavelengths."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_fusing = threading.Lock()
"""A process has one method loaded, which fuses a tile after the other with all its threads."""


def open_scene(image: str | Path | Source, **settings: Any) -> Scene:
    """Open an image with the reader that knows it.

    Parameters
    ----------
    image : str, Path or Source
        File, folder, archive, glob of tiles, or `synthetic:` address.
    settings : Any
        What the file does not tell: `crs`, `wavelengths`, `scale`, `nodata` and the other fields of `Source`.

    Returns
    -------
    Scene
        Nothing but headers has been read; `to_xarray` gives its samples.

    Raises
    ------
    InputRejected
        If no reader can use it; the message says what is missing.
    """
    return open_source(Source(**{**_source(image), **settings}))


def open(  # noqa: A001 (as xarray, rasterio and zarr call it)
    path: str | Path,
) -> Product:
    """A published product, checked against its manifest; `Product.open` gives its samples.

    Raises
    ------
    catalogs.errors.InputRejected
        If the folder is no complete product.
    """
    return verify(Path(path))


def register(hsi: Image, msi: Image, *, settings: Mapping[str, Any] | None = None) -> Registration:
    """How a multispectral image lies on a hyperspectral one, and whether to believe it.

    Parameters
    ----------
    hsi, msi : Image
    settings : mapping, optional
        Settings of `hyperfuse register`, for example `{"align.max_shift_px": 20}`.

    Raises
    ------
    catalogs.errors.HyperFuseError
        If an image cannot be used, or the two cannot be a pair.
    """
    with tempfile.TemporaryDirectory(prefix="hyperfuse-") as scratch, _opened(hsi, msi, Path(scratch)) as scenes:
        return registered(_config(scenes, Path(scratch) / "registration", settings or {})).registration


@overload
def fuse(
    hsi: Image, msi: Image, *, method: str = ..., ratio: int | None = ..., output: None = ...,
    settings: Mapping[str, Any] | None = ..., scratch: str | Path | None = ..., progress: Progress = ...,
) -> xr.DataArray: ...  # fmt: skip


@overload
def fuse(
    hsi: Image, msi: Image, *, method: str = ..., ratio: int | None = ..., output: str | Path,
    settings: Mapping[str, Any] | None = ..., scratch: str | Path | None = ..., progress: Progress = ...,
) -> Product: ...  # fmt: skip


def fuse(
    hsi: Image,
    msi: Image,
    *,
    method: str = "map_subspace",
    ratio: int | None = None,
    output: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    scratch: str | Path | None = None,
    progress: Progress = silent,
) -> xr.DataArray | Product:
    """Fuse a low-resolution hyperspectral and a high-resolution multispectral image.

    Parameters
    ----------
    hsi, msi : Image
        A DataArray has dimensions y and x (as rioxarray and odc-geo have them) and one of bands, a CRS (`rio.write_crs`), and
        along the bands a coordinate `wavelength` (nm, or with `units`) and, if it is known, `fwhm`; NaN or its nodata value
        where there is no sample. It is copied to `scratch` as Zarr, block by block.
    method : str
        A method of `hyperfuse methods`.
    ratio : int, optional
        Fine pixels per coarse pixel; from the ground sampling distances unless given.
    output : path, optional
        Folder of a product to publish. Without it nothing is published.
    settings : mapping, optional
        Any setting of `hyperfuse fuse`, for example `{"align.estimate": False}`.
    scratch : path, optional
        Folder for working copies; the system's unless given. On a Dask cluster of several machines, one that all see.
    progress : callable, optional
        Called with a stage's name, the steps done, and all steps.

    Returns
    -------
    DataArray or Product
        Without `output` a lazy array (wavelength, y, x), float32, in the HSI's unit, NaN where not both images were seen: its
        chunks are tiles, each fused when it is asked for, on whatever Dask client there is, and kept until the array is
        forgotten. With `output` the published product.

    Raises
    ------
    catalogs.errors.HyperFuseError
        Every expected end, as on the command line; but a product that is there, of the same inputs with the same settings, is
        given back.

    Notes
    -----
    The records of a product made from arrays name them (`array:NAME`, by `DataArray.name`), and hold the digests of their samples.
    """
    folder = Path(tempfile.mkdtemp(prefix="hyperfuse-", dir=scratch))
    try:
        asked = {"method": method, **current_names(settings or {})} | ({} if ratio is None else {"ratio": ratio})
        if output is not None:
            try:
                with _opened(hsi, msi, folder) as scenes:
                    return run(_config(scenes, Path(output), asked), progress=progress)
            except AlreadyPublished:
                return verify(Path(output))  # a notebook is run again from its top
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        with _opened(hsi, msi, folder) as scenes:
            config = _config(scenes, folder / "fused", asked | {"publish.dtype": "float32"})
            with open_run(config, progress=progress) as opened:
                job = stage_pair(opened)
        return _lazy(job, _Scratch(job.folder, folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class _Scratch:
    """A staged job, and the folder that goes when nothing that is to be computed refers to it any longer."""

    def __init__(self, job: Path, owned: Path | None = None) -> None:
        self.job = job
        if owned is not None:
            weakref.finalize(self, shutil.rmtree, owned, ignore_errors=True)

    def __reduce__(self) -> tuple[type[_Scratch], tuple[Path]]:
        # A worker's copy owns nothing.
        return _Scratch, (self.job,)

    def __dask_tokenize__(self) -> Hashable:
        return str(self.job)


def _lazy(job: StagedJob, scratch: _Scratch) -> xr.DataArray:
    plan, bands = job.plan, job.bands
    fused = delayed(_fused, pure=True)
    blocks = [
        [
            dask.array.from_delayed(
                fused(scratch, row, col), (len(bands), *plan.tile(row, col).core.shape), np.dtype(np.float32)
            )
            for col in range(plan.shape[1])
        ]
        for row in range(plan.shape[0])
    ]
    hsi = job.record.hsi
    coords = {
        "wavelength": ("wavelength", bands.center_nm, {"units": "nm", "standard_name": "radiation_wavelength"}),
        "fwhm": ("wavelength", bands.fwhm_nm, {"units": "nm", "long_name": "full width at half maximum"}),
        **xr_coords(job.grids.product),
    }
    return xr.DataArray(
        dask.array.block(blocks),
        coords=coords,
        dims=("wavelength", "y", "x"),
        name=hsi.quantity,
        attrs={"units": hsi.unit, "quantity": hsi.quantity, "grid_mapping": "spatial_ref", "method": job.config.method},
    )


def _fused(scratch: _Scratch, row: int, col: int) -> NDArray[np.float32]:
    """Samples of a tile, which is fused unless it is there already."""
    with _fusing:
        job = StagedJob.load(scratch.job)
        tile = job.plan.tile(row, col)
        if job.ledger.record(tile.key) is None:
            for _ in fuse_each(str(scratch.job), [(row, col)]):
                pass
        return store.read(store.open_array(job.fused), tile.core)


@contextmanager
def _opened(hsi: Image, msi: Image, folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Fields of the sources of both images, by role; arrays are copied, and found by their names meanwhile."""
    copies: dict[str, Path] = {}
    scenes = {}
    for role, image in (("hsi", hsi), ("msi", msi)):
        if isinstance(image, xr.DataArray):
            told = _UNSAFE.sub("-", str(image.name or ""))[:64] or role
            name = told if told not in copies else f"{told}-{role}"
            copies[name] = folder / f"{role}.zarr"
            _write(image, copies[name])
            scenes[role] = {"uri": array_uri(name)}
        else:
            scenes[role] = _source(image)
    with copies_at(copies):
        yield scenes


def _config(scenes: Mapping[str, Mapping[str, Any]], output: Path, settings: Mapping[str, Any]) -> RunConfig:
    told = {f"{role}.{key}": value for role, scene in scenes.items() for key, value in scene.items()}
    return load_config(None, told | {"output": str(output)} | dict(settings))


def _source(image: str | Path | Source | Scene) -> dict[str, Any]:
    """Fields of the Source of an image that lies somewhere."""
    if isinstance(image, xr.DataArray):
        raise InputRejected("an array is open already; give it to `fuse` or `register`")
    if isinstance(image, Scene):
        if image.source is None:
            raise InputRejected(f"{image.name}: this scene was not opened from anything; give its path, or its array")
        image = image.source
    if isinstance(image, Source):
        return {key: value for key, value in asdict(image).items() if value is not None}
    return {"uri": str(image)}


def _write(array: xr.DataArray, path: Path) -> None:
    """Copy an array to a Zarr group that the reader of such files understands.

    Raises
    ------
    InputRejected
        If it has no CRS, no rows and columns, or no wavelengths along its bands.
    """
    label = f"array {array.name or 'without a name'} {dict(array.sizes)}"
    geobox = array.odc.geobox
    if geobox is None or array.ndim not in (2, 3):
        raise InputRejected(
            f"{label}: expected regular coordinates y and x and one dimension of bands; name them so, or write the array as a file"
        )
    if geobox.crs is None:
        raise InputRejected(f'{label}: has no CRS; give it one with array.rio.write_crs("EPSG:...")')
    y, x = geobox.dimensions
    named = array.rename({y: "y", x: "x"}) if (y, x) != ("y", "x") else array
    (bands,) = [dim for dim in named.dims if dim not in ("y", "x")] or [None]
    if bands is None:
        bands, named = "band", named.expand_dims("band")
    nm = next((named.coords[k] for k in ("wavelength", "wavelengths", "center_nm") if k in named.coords), None)
    if nm is None or nm.sizes.get(bands) != named.sizes[bands]:
        raise InputRejected(
            f"{label}: tells no wavelengths; assign them along the bands, array.assign_coords(wavelength=({str(bands)!r}, [...]))"
        )
    # Extra coordinates of the user are none of the reader's business, and may have names that it would take for its own.
    kept = {"wavelength": ("band", nm.values, {"units": "nm"} | dict(nm.attrs))}
    if "fwhm" in named.coords and named["fwhm"].sizes.get(bands) == named.sizes[bands]:
        kept["fwhm"] = (
            "band",
            named["fwhm"].values,
            {"units": kept["wavelength"][2]["units"]} | dict(named["fwhm"].attrs),
        )
    samples = named.transpose(bands, "y", "x").astype(np.float32)
    nodata = array.rio.nodata if array.dtype.kind != "f" or array.rio.encoded_nodata is None else None
    if nodata is not None and not np.isnan(nodata):
        samples = samples.where(samples != np.float32(nodata))
    plain = xr.DataArray(
        samples.data,
        dims=("band", "y", "x"),
        coords={**kept, **xr_coords(geobox, dims=("y", "x"))},
        name="image",
        attrs={k: str(v) for k, v in array.attrs.items() if k in {"quantity", "standard_name", "long_name", "units"}},
    )
    if "time" in array.coords and array["time"].size == 1:
        plain.attrs["datetime"] = str(array["time"].to_numpy().ravel()[0])
    plain.attrs["grid_mapping"] = "spatial_ref"
    plain.drop_encoding().to_dataset().to_zarr(path, mode="w", zarr_format=3, consolidated=False)
