"""A new format is one file: written, verified, opened and published, by a fusion and by a mosaic, without another edit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hyperfuse.flows.cli import main
from hyperfuse.pipeline import formats
from hyperfuse.pipeline.config import OutputConfig
from hyperfuse.pipeline.mosaic.run import mosaic_products
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.products import writers
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish, verify
from tests.pipeline.conftest import build_job, truth
from tests.pipeline.mosaic.products import grid, ground, product

NPY = '''
"""Physical values as a NumPy array."""

import numpy as np
import xarray as xr

from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.products.draft import Asset, BadProduct

SUFFIX = ".npy"


def write(cube):
    target, array = cube.folder / f"{cube.name}{SUFFIX}", store.open_array(cube.array)
    values = np.lib.format.open_memmap(target, "w+", "<f4", array.shape)
    for box in store.chunk_boxes(array.shape, array.chunks):
        stored = store.read(array, box)
        valid = stored != NODATA if cube.packed else np.isfinite(stored)
        values[(slice(None), *box.slices)] = np.where(valid, stored * np.float32(cube.scale), np.nan)
    values.flush()
    return [Asset(key="npy", href=target.name, media_type="application/octet-stream", title=cube.title, roles=("overview",))]


def check(folder, expected):
    path = folder / f"{expected.name}{SUFFIX}"
    if not path.is_file() or np.load(path).shape != (len(expected.wavelength_nm), *expected.shape):
        raise BadProduct(f"{path.name}: missing, or of another shape")


def open_cube(path):
    return xr.Dataset({"reflectance": (("band", "y", "x"), np.load(path, mmap_mode="r"))})
'''


@contextmanager
def added(folder: Path) -> Iterator[None]:
    """The format `npy` among those that there are, from a folder that is not the project's."""
    folder.mkdir()
    (folder / "npy.py").write_text(NPY)
    writers.__path__.append(str(folder))
    formats.available.cache_clear()
    try:
        yield
    finally:
        writers.__path__.remove(str(folder))
        sys.modules.pop(f"{writers.__name__}.npy", None)
        formats.available.cache_clear()


@pytest.fixture
def npy(tmp_path: Path) -> Iterator[None]:
    with added(tmp_path / "formats"):
        yield


@pytest.mark.usefixtures("npy")
def test_a_fusion_publishes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert OutputConfig(formats=("npy",)).formats == ("npy",)
    made = publish(build_job(tmp_path, formats=("npy", "stac"), n_bands=3))
    assert made.path_of("npy") == made.path / "fused.npy"
    assert made.path_of("zarr") is None
    assert made.files == {"npy": made.path / "fused.npy", "item": made.path / "fused.json"}
    np.testing.assert_allclose(made.open()["reflectance"].values, truth(3, (70, 90)), atol=5.001e-5)
    assert verify(made.path).formats == ("npy", "stac")
    assert main(["verify", str(made.path)]) == 0
    assert "fused.npy" in capsys.readouterr().out
    np.save(made.path / "fused.npy", np.zeros((1, 2, 3)))
    with pytest.raises(BadProduct, match=r"fused\.npy"):
        verify(made.path)


@pytest.mark.usefixtures("npy")
def test_a_mosaic_publishes_it(tmp_path: Path) -> None:
    cube = ground(24, 40)
    halves = (
        product(tmp_path, "west", cube[:, :, :24], grid(0, 0, 24, 24)),
        product(tmp_path, "east", cube[:, :, 16:], grid(0, 16, 24, 24)),
    )
    made = mosaic_products(
        AreaConfig(products=halves, output=tmp_path / "area", feather_px=4, chunk=32, formats=("zarr", "stac", "npy"))
    )
    assert made.formats == ("zarr", "npy", "stac")
    path = made.path_of("npy")
    assert path is not None
    # The same cube in both halves: its mean is itself.
    np.testing.assert_allclose(np.load(path), cube, atol=1e-7)
    np.testing.assert_allclose(made.open()["reflectance"].values, np.load(path), atol=1e-7)
    assert verify(made.path).path == made.path


def test_a_format_that_this_version_lacks_is_named(tmp_path: Path) -> None:
    with added(tmp_path / "formats"):
        path = publish(build_job(tmp_path, formats=("npy", "stac"), n_bands=3)).path
    there = Product.load(path)
    assert there.formats == ("npy", "stac")
    assert there.files == {"item": path / "fused.json"}
    with pytest.raises(LookupError, match="published as npy, stac, none of which this version can open"):
        there.open()
    with pytest.raises(BadProduct, match="this version cannot check the format 'npy'"):
        verify(path)
