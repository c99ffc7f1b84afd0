"""Scene: a lazy georeferenced image cube that knows its bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.notebook import rows_html

if TYPE_CHECKING:
    import xarray as xr

    from hyperfuse.catalogs.sensors import Source

Role = Literal["hsi", "msi"]
"""Which part of a pair a scene can be: hyperspectral and coarse, or multispectral and fine."""
Quantity = Literal["reflectance", "radiance", "digital_number"]
Window = tuple[slice, slice]
"""Rows and columns of a read, with start and stop inside the image."""


@runtime_checkable
class Cube(Protocol):
    """Lazy samples of one image; what every sensor must provide.

    Obligations: nothing is read before `read` is called, and `read` reads no more than the window (plus the file's
    own blocks); it may be called from several threads at once; the same window gives the same bytes every time.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as (band, y, x)."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the file stores together; reads on this lattice cost least."""

    def read(self, bands: Sequence[int], window: Window) -> NDArray[np.float32]:
        """Physical values of some bands in a window.

        Parameters
        ----------
        bands : sequence of int
            Positions on the scene's (sorted) band axis.
        window : (slice, slice)
            Rows and columns.

        Returns
        -------
        ndarray, shape (band, y, x), float32
            In the scene's unit, scale and offset applied; NaN where there is no valid sample.

        Raises
        ------
        catalogs.errors.InputRejected
            If the file cannot be read there, naming the file and the window.
        """


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a scene was taken, as far as its product tells: what decides whether two scenes look alike.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    cloud_cover: float | None = None
    """Share of the scene under clouds, 0 to 1."""
    sun_elevation_deg: float | None = None
    """Height of the sun above the horizon, -90 to 90."""
    sun_azimuth_deg: float | None = None
    """Direction of the sun, clockwise from north, 0 to 360."""
    off_nadir_deg: float | None = None
    """Angle of the line of sight to the vertical, 0 to 90."""
    view_azimuth_deg: float | None = None
    """Direction from the ground to the sensor, clockwise from north, 0 to 360."""

    def __post_init__(self) -> None:
        for name, (low, high) in _CONDITIONS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value:g}, expected {low:g} to {high:g}")


_CONDITIONS = {
    "cloud_cover": (0.0, 1.0),
    "sun_elevation_deg": (-90.0, 90.0),
    "sun_azimuth_deg": (0.0, 360.0),
    "off_nadir_deg": (0.0, 90.0),
    "view_azimuth_deg": (0.0, 360.0),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image of one sensor on one grid.

    Raises
    ------
    ValueError
        If cube, bands and geobox differ in size, or the grid has no CRS.
    """

    name: str
    """Short name for messages: the file's stem."""
    uri: str
    """Where it was opened from."""
    sensor: str
    """Module in `catalogs.sensors` that opened it."""
    cube: Cube
    """Lazy samples (band, y, x)."""
    bands: Bands
    """Bands, in the order of the cube's band axis."""
    geobox: GeoBox
    """Grid: shape, pixel-to-world matrix (pixel is area) and CRS; rows run from north to south."""
    quantity: Quantity
    """What the samples measure."""
    unit: str
    """Unit of the samples; "1" for reflectance."""
    time: datetime | None
    """Acquisition, UTC; None if the product does not tell."""
    digest: str
    """SHA-256 of the source's bytes, or of the recipe of a synthetic scene."""
    conditions: Conditions = field(default=Conditions())
    """Cloud, sun and view by the product's metadata."""
    notes: tuple[str, ...] = field(default=())
    """What had to be assumed while opening; goes to the log and to the provenance."""
    source: Source | None = None
    """How it was opened."""

    def __post_init__(self) -> None:
        if self.geobox.crs is None:
            raise ValueError(f"{self.name} has no CRS")
        if self.cube.shape != (len(self.bands), *self.geobox.shape):
            raise ValueError(
                f"{self.name}: cube {self.cube.shape}, {len(self.bands)} bands and grid {tuple(self.geobox.shape)} differ"
            )

    @property
    def good_bands(self) -> list[int]:
        """Positions of the bands that carry signal."""
        return [int(i) for i in np.flatnonzero(self.bands.good)]

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance (m) at the center of the image, geometric mean of both axes."""
        along_x, along_y = pixel_size_m(self.geobox)
        return float(np.sqrt(along_x * along_y))

    def read(self, window: Window, bands: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Samples of a window, all bands unless some are named; see `Cube.read`."""
        return self.cube.read(range(len(self.bands)) if bands is None else bands, window)

    def _repr_html_(self) -> str:
        height, width = self.geobox.shape
        good = self.bands.center_nm[self.bands.good]
        return rows_html(
            f"{self.name} ({self.sensor})",
            [
                ("opened from", self.uri),
                ("grid", f"{height} x {width} px of {self.gsd_m:.4g} m, {self.geobox.crs}"),
                (
                    "bands",
                    f"{len(good)} of {len(self.bands)} good, {good.min():.0f} to {good.max():.0f} nm"
                    if len(good)
                    else "none good",
                ),
                ("samples", f"{self.quantity} ({self.unit})"),
                ("time", self.time),
                *(("", note) for note in self.notes),
            ],
        )

    def to_xarray(self, *, chunk: int = 512) -> xr.DataArray:
        """All samples as a lazy array, read block by block through Dask.

        Parameters
        ----------
        chunk : int
            Edge of a block in pixels; rounded up to whole blocks of the file.

        Returns
        -------
        DataArray, dims (band, y, x), float32
            In the scene's unit, NaN where there is no valid sample; coordinates wavelength and fwhm (nm) and `good` along the
            bands, pixel centers and the CRS (`spatial_ref`, as rioxarray and odc-geo have it).
        """
        import dask.array  # noqa: PLC0415 (whoever only reads windows needs neither)
        import xarray as xr  # noqa: PLC0415
        from odc.geo.xr import xr_coords  # noqa: PLC0415

        edges = [-(-chunk // block) * block for block in self.cube.block]
        chunks = dask.array.core.normalize_chunks((-1, *edges), shape=self.cube.shape)

        def block(block_info: dict[None, dict[str, list[tuple[int, int]]]]) -> NDArray[np.float32]:
            _, rows, cols = block_info[None]["array-location"]
            return self.read((slice(*rows), slice(*cols)))

        samples = dask.array.map_blocks(
            block, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32), name=f"scene-{self.digest}"
        )
        along = {
            "wavelength": ("band", self.bands.center_nm, {"units": "nm", "standard_name": "radiation_wavelength"}),
            "fwhm": ("band", self.bands.fwhm_nm, {"units": "nm"}),
            "good": ("band", self.bands.good),
            "band": ("band", list(self.bands.names)),
        }
        return xr.DataArray(
            samples,
            dims=("band", "y", "x"),
            coords={**along, **xr_coords(self.geobox, dims=("y", "x"))},
            name=self.quantity,
            attrs={"units": self.unit, "quantity": self.quantity, "grid_mapping": "spatial_ref", "sensor": self.sensor},
        )


def pixel_size_m(geobox: GeoBox) -> tuple[float, float]:
    """Length (m) on the ground of one pixel along x and along y, at the center of the grid."""
    height, width = geobox.shape
    row, col = height / 2, width / 2
    points = [geobox.affine @ p for p in ((col, row), (col + 1, row), (col, row + 1))]
    to_lonlat = Transformer.from_crs(geobox.crs, 4326, always_xy=True)
    lon, lat = to_lonlat.transform([p[0] for p in points], [p[1] for p in points])
    geod = Geod(ellps="WGS84")
    _, _, length = geod.inv([lon[0], lon[0]], [lat[0], lat[0]], lon[1:], lat[1:])
    return float(length[0]), float(length[1])
