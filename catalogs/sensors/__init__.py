"""One file per sensor, found by its module name.

A sensor module defines

- `SENSOR`: a `Sensor` that describes it,
- `accepts(uri) -> bool`: whether this module opens that address, by content (first bytes, the names in a package, the
  head of its metadata) and never by the name of the file alone,
- `open_scene(source) -> Scene`: opens a `Source`.

The more specific module wins: `generic` is asked last.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, cast

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.curves import with_curves
from hyperfuse.catalogs.scene import Quantity, Role, Scene


@dataclass(frozen=True, kw_only=True)
class Mtf:
    """Modulation at the Nyquist frequency of a band's own grid.

    Raises
    ------
    ValueError
        If a modulation is not between 0 and 1.
    """

    across: float
    """Across the flight direction, or in every direction."""
    along: float | None = None
    """Along it, where the operator publishes both."""

    def __post_init__(self) -> None:
        for name, value in (("across", self.across), ("along", self.along)):
            if value is not None and not 0.0 < value < 1.0:
                raise ValueError(f"the MTF {name} track is {value:g}, expected more than 0 and less than 1")

    @property
    def mean(self) -> float:
        """That of the round Gaussian whose variance is the mean of the variances along and across: the geometric mean."""
        return self.across if self.along is None else math.sqrt(self.across * self.along)


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """What is known of a sensor before any scene of it is opened."""

    title: str
    """Name and product, for people."""
    gsd_m: float | None = None
    """Ground sampling distance (m), None if it varies."""
    inside: str | None = None
    """Reader in whose files this image lies beside that reader's own; it opens them where one address is given twice."""
    role: Role | None = None
    """Part that its scenes play in a pair; None where the number of bands tells."""
    mtf: Mtf = Mtf(across=0.3)
    """Of the bands that `band_mtf` does not list; 0.3 is typical of the field."""
    band_mtf: Mapping[str, Mtf] = field(default_factory=dict)
    """By the names that the sensor's scenes give their bands, where the operator publishes it per band."""

    def mtf_of(self, bands: Bands) -> tuple[float, ...]:
        """Modulation of each band at the Nyquist frequency of its own grid, the mean of along and across."""
        return tuple(self.band_mtf.get(name, self.mtf).mean for name in bands.names)

    def mean_mtf(self, bands: Bands) -> float:
        """That of the Gaussian whose variance is the mean over the bands: the geometric mean of their modulations."""
        found = self.mtf_of(bands)
        # One figure for all bands is that figure to the last bit: what is computed from it repeats.
        return found[0] if len(set(found)) == 1 else math.exp(math.fsum(math.log(mtf) for mtf in found) / len(found))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a scene is and what the user says of it; None leaves it to the file."""

    uri: str
    """File, folder, glob of tiles, pattern of files of one band each (`scene_{band}.tif`), address of a server, or `synthetic:`."""
    sensor: str | None = None
    """Module name; None lets the modules choose."""
    crs: str | None = None
    """CRS as anything pyproj reads; for files that carry none."""
    wavelengths: str | None = None
    """CSV table or numbers separated by commas, in file order."""
    scale: float | None = None
    """Factor from stored to physical values."""
    offset: float | None = None
    """Physical value of stored 0."""
    nodata: float | None = None
    """Stored value that means no data."""
    quantity: Quantity | None = None
    """What the samples measure."""
    variable: str | None = None
    """Variable of a NetCDF or Zarr source that holds several, or those of the bands in their order (`B04,B03`), with `@DATE` of one
    date; of a pattern of files, the bands in their order."""
    fill: Literal["mask", "keep"] | None = None
    """Whether pixels that hold one value in all bands, which is not declared as nodata, are masked (None: they are) or kept."""
    mask: str | None = None
    """Flags of the product's masks that make a pixel invalid, separated by commas, or `none`; for products with masks."""
    bands: str | None = None
    """Bands to open, by the product's names, separated by commas; for multispectral products."""
    responses: str | None = None
    """CSV table of measured spectral responses, see `catalogs.references.curves`."""


def sigma_from_mtf(mtf: float, ratio: float) -> float:
    """Standard deviation, in fine pixels, of the Gaussian PSF with a given modulation at the coarse Nyquist frequency.

    Parameters
    ----------
    mtf : float
        Modulation, between 0 and 1.
    ratio : float
        Fine pixels per pixel of the coarse sensor.

    Notes
    -----
    A Gaussian's MTF at frequency f is exp(-2 (pi sigma f)^2); the coarse Nyquist frequency is 1 / (2 ratio).

    References
    ----------
    Aiazzi et al. (2006), MTF-tailored multiscale fusion of high-resolution MS and Pan imagery, PE&RS 72(5), 591-596.
    """
    return ratio / math.pi * math.sqrt(-2.0 * math.log(mtf))


def band_sigmas_px(sensor: Sensor, bands: Bands, steps: Sequence[int]) -> tuple[float, ...]:
    """Standard deviation, in fine pixels, of the PSF of each band.

    Parameters
    ----------
    sensor : Sensor
    bands : Bands
    steps : sequence of int
        Fine pixels per pixel of each band along one axis; a band of step 1 is what the fine grid shows, and gets 0.
    """
    return tuple(
        sigma_from_mtf(mtf, step) if step > 1 else 0.0 for mtf, step in zip(sensor.mtf_of(bands), steps, strict=True)
    )


class SensorModule(Protocol):
    """The three names that a sensor module defines."""

    SENSOR: Sensor

    def accepts(self, uri: str) -> bool:
        """Whether this module opens that address."""

    def open_scene(self, source: Source) -> Scene:
        """Open it."""


@cache
def available() -> tuple[str, ...]:
    """Names of all sensor modules, sorted, `generic` last."""
    names = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return (*sorted(names - {"generic"}), "generic")


def sensor_module(name: str) -> SensorModule:
    """The module of that name.

    Raises
    ------
    InputRejected
        If there is none; the message lists those that exist.
    """
    if name not in available():
        raise InputRejected(f"there is no sensor {name!r}; choose one of {', '.join(available())}")
    module: ModuleType = importlib.import_module(f"{__name__}.{name}")
    return cast("SensorModule", module)


def image_beside(name: str) -> str | None:
    """The reader of the other image that files of a reader hold, None if they hold one."""
    return next((other for other in available() if sensor_module(other).SENSOR.inside == name), None)


def open_scene(source: Source) -> Scene:
    """Open a scene with the named sensor, or with the first that accepts its address.

    Raises
    ------
    InputRejected
        If no sensor accepts it, or the one that does cannot use it.
    """
    # Nobody accepts it: the reader of last resort knows best what is wrong with it.
    name = source.sensor or next((n for n in available() if sensor_module(n).accepts(source.uri)), "generic")
    scene = replace(sensor_module(name).open_scene(source), source=source)
    if source.responses is None:
        return scene
    return replace(scene, bands=with_curves(scene.bands, Path(source.responses), of=scene.name))
