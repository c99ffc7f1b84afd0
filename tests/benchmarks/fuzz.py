"""Products of every reader, harmed in their bytes and in their structure: each is opened or refused in a sentence, in bounded time.

    product as its builder writes it -> one seeded harm of one of its files -> opened and read in a process of its own

`make fuzz` runs many; the tests run some with fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import rasterio
import rioxarray  # noqa: F401 (the accessor rio)
import xarray as xr

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.sensors import Source
from tests.synthetic import scene

MOST_S = 20
"""Seconds after which a reader counts as hanging."""
MOST_BYTES = 8 << 30
"""Address space of the process; readers of these small products need a fraction of it beyond the libraries."""
_ODD_NUMBERS = ("nan", "inf", "-1", "0", "1e308", "99999999999999", "-0.5", "", "abc", "4294967296")
_TEXT = {".xml", ".json", ".hdr", ".txt", ".csv"}
_HDF = {".he5", ".h5", ".nc"}


@dataclass(frozen=True)
class Outcome:
    """How the opening of a harmed product ended."""

    kind: str
    """`opened`, `refused`, `traceback`, `died` or `hung`."""
    told: str
    """What was said."""


def flip(path: Path, rng: random.Random) -> None:
    """Some bytes are other ones."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 4, 64))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def flip_early(path: Path, rng: random.Random) -> None:
    """Bytes where headers stand are other ones."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 4, 16))):
        content[rng.randrange(min(len(content), 2048))] = rng.randrange(256)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    """The file ends early."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def zero(path: Path, rng: random.Random) -> None:
    """A block is zeros, as of a disk that lost it."""
    content = bytearray(path.read_bytes())
    first, n_bytes = rng.randrange(len(content)), rng.choice((16, 512, 4096))
    content[first : first + n_bytes] = bytes(len(content[first : first + n_bytes]))
    path.write_bytes(content)


def lose(path: Path, rng: random.Random) -> None:
    """The file is missing."""
    path.unlink()


def odd_number(path: Path, rng: random.Random) -> None:
    """A number in a text is another, or none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    numbers = list(re.finditer(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", text))
    if numbers:
        found = rng.choice(numbers)
        path.write_text(text[: found.start()] + rng.choice(_ODD_NUMBERS) + text[found.end() :], encoding="utf-8")


def lost_line(path: Path, rng: random.Random) -> None:
    """A line of a text is missing, or stands twice."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines:
        at = rng.randrange(len(lines))
        path.write_text(
            "\n".join([*lines[:at], *(lines[at : at + 1] * rng.choice((0, 2))), *lines[at + 1 :]]), encoding="utf-8"
        )


def lost_object(path: Path, rng: random.Random) -> None:
    """An array or a group of an HDF5 file is missing."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        if names:
            del file[rng.choice(names)]


def lost_attribute(path: Path, rng: random.Random) -> None:
    """An attribute is missing, or odd."""
    with h5py.File(path, "a") as file:
        places = [(file, key) for key in file.attrs]
        file.visititems(lambda _name, held: places.extend((held, key) for key in held.attrs))
        if not places:
            return
        held, key = rng.choice(places)
        if rng.random() < 0.4:
            del held.attrs[key]
        else:
            held.attrs[key] = rng.choice((np.nan, -1, 0, 1e300, b"x", "", np.zeros(3), np.arange(40.0)))


def odd_array(path: Path, rng: random.Random) -> None:
    """An array has another shape, another type, or odd values."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visititems(lambda name, held: names.append(name) if isinstance(held, h5py.Dataset) else None)
        if not names:
            return
        name = rng.choice(names)
        kept, attributes = file[name][()], dict(file[name].attrs)
        del file[name]
        odd = rng.choice(
            (
                np.asarray(kept).ravel(),
                np.zeros((2, 2)),
                np.array([]),
                np.array(b"text"),
                np.full(3, np.nan),
                np.asarray(7),
            )
        )
        file.create_dataset(name, data=odd)
        for key, value in attributes.items():
            if not isinstance(value, h5py.Reference | np.ndarray) or getattr(value, "dtype", None) != np.dtype("O"):
                file[name].attrs[key] = value


def _cube() -> xr.DataArray:
    """A small image with all that a file may tell of it."""
    made = scene("hsi", "size=48&ratio=4&bands=6&seed=2").to_xarray().load()
    made = made.drop_vars([name for name, held in made.coords.items() if held.dtype.kind in "UO"])  # no type of Zarr 3
    return made.assign_coords(wavelength=("band", made["wavelength"].to_numpy(), {"units": "nm"}))


def geotiff(folder: Path, *, driver: str = "GTiff", name: str = "a.tif") -> Path:
    """The image as a raster file, wavelengths in its band metadata."""
    folder.mkdir(parents=True)
    made = _cube()
    with rasterio.open(
        folder / name, "w", driver=driver, width=made.sizes["x"], height=made.sizes["y"], count=made.shape[0], dtype="float32",
        crs=made.rio.crs, transform=made.rio.transform(), nodata=-9999.0,
    ) as file:  # fmt: skip
        file.write(made.to_numpy())
        for band, nm in enumerate(made["wavelength"].to_numpy(), start=1):
            file.update_tags(band, wavelength=f"{nm:.2f}", wavelength_units="Nanometers")
    if driver == "ENVI":
        header = (folder / name).with_suffix(".hdr")
        told = ", ".join(f"{nm:.2f}" for nm in made["wavelength"].to_numpy())
        header.write_text(
            f"{header.read_text()}wavelength units = Nanometers\nwavelength = {{{told}}}\n", encoding="utf-8"
        )
    return folder / name


def envi(folder: Path) -> Path:
    """The same with an ENVI header."""
    return geotiff(folder, driver="ENVI", name="a.bsq")


def netcdf(folder: Path) -> Path:
    """The same as NetCDF."""
    folder.mkdir(parents=True)
    _cube().rename("reflectance").drop_encoding().to_dataset().to_netcdf(folder / "a.nc")
    return folder / "a.nc"


def zarr(folder: Path) -> Path:
    """The same as Zarr."""
    folder.mkdir(parents=True)
    _cube().rename("reflectance").drop_encoding().to_dataset().to_zarr(
        folder / "a.zarr", zarr_format=3, consolidated=False
    )
    return folder / "a.zarr"


FILES: dict[str, Callable[[Path], Path]] = {"geotiff": geotiff, "envi": envi, "netcdf": netcdf, "zarr": zarr}
"""Files that are no product."""


BYTES: tuple[Callable[[Path, random.Random], None], ...] = (flip, flip_early, truncate, zero, lose)
TEXTS = (odd_number, odd_number, lost_line)
OBJECTS = (lost_object, lost_attribute, odd_array)


def harm(product: Path, rng: random.Random) -> str:
    """Harm one file of a product; what was done."""
    files = sorted(path for path in ([product] if product.is_file() else product.rglob("*")) if path.is_file())
    path = rng.choice([file for file in files if file.stat().st_size] or files)
    suffix = path.suffix.lower()
    kinds = [
        *BYTES,
        *(TEXTS * 2 if suffix in _TEXT else ()),
        *(OBJECTS * 2 if suffix in _HDF and h5py.is_hdf5(path) else ()),
    ]
    chosen = rng.choice(kinds)
    chosen(path, rng)
    return f"{chosen.__name__} {path.name}"


def opened(product: Path) -> Outcome:
    """Open a product and read some of it, in a process that cannot take more time or memory than it may."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(MOST_S)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            os.write(writing, json.dumps(_tried(product)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if told:
        return Outcome(*json.loads(told))
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Outcome("hung" if number == signal.SIGALRM else "died", f"signal {number}")


def _tried(product: Path) -> tuple[str, str]:
    warnings.simplefilter("ignore")  # of a harmed file; what is made of it counts
    try:
        scene = open_source(Source(uri=str(product)))
        _, height, width = scene.cube.shape
        for rows, cols in (
            (slice(0, min(height, 8)), slice(0, min(width, 8))),
            (slice(height - 1, height), slice(width - 1, width)),
        ):
            scene.read((rows, cols), range(len(scene.bands)))
    except HyperFuseError as error:
        return "refused", str(error)
    except BaseException:  # noqa: BLE001 (all of them are what is looked for)
        return "traceback", traceback.format_exc()
    return "opened", ""


def fuzz(name: str, build: Callable[[Path], Path], folder: Path, *, seeds: range) -> list[tuple[int, str, Outcome]]:
    """Harm a product once for each seed.

    Returns
    -------
    list of (seed, harm, outcome)
    """
    whole = build(folder / name / "product")
    found = []
    for seed in seeds:
        place = folder / f"{name}-harmed"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / name, place)
        product = place / whole.relative_to(folder / name)
        told = harm(product, random.Random(f"{name} {seed}"))  # noqa: S311 (repeatable, not secret)
        found.append((seed, told, opened(product)))
    return found


def main() -> None:
    from tests.contracts.test_sensors import BUILDERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="harms of each product (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--only", metavar="READER")
    options = parser.parse_args()
    n_bad = 0
    for name, build in {**BUILDERS, **FILES}.items():
        if options.only not in (None, name):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hyperfuse-fuzz-") as folder:
            found = fuzz(name, build, Path(folder), seeds=range(options.first, options.first + options.rounds))
        counts = Counter(outcome.kind for _, _, outcome in found)
        print(f"{name:<16}{dict(counts)}  {time.monotonic() - started:.0f} s")
        for seed, told, outcome in found:
            if outcome.kind not in ("opened", "refused"):
                n_bad += 1
                print(f"  seed {seed}: {told}: {outcome.kind}: {outcome.told.strip().splitlines()[-1]}")
    sys.exit(n_bad > 0)


if __name__ == "__main__":
    main()
