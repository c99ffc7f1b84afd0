"""Spectral bands of the multispectral sensors that a benchmark simulates, and named sets of them.

Centers and widths were typed from the operators' documents:

- Sentinel-2A MSI: ESA, SentiWiki, S2 Mission, spectral bands of Sentinel-2A.
- Landsat-5 TM: USGS, Landsat 4-5 Thematic Mapper, band designations (limits of the bands).
- Landsat-8 OLI: Barsi et al. (2014), The spectral response of the Landsat-8 Operational Land Imager, Remote Sensing
  6(10), 10232-10251, doi:10.3390/rs61010232.
- WorldView-2, WorldView-3, QuickBird: DigitalGlobe data sheets (limits of the bands).
- PlanetScope SuperDove: Planet, Imagery Product Specification.

Where a document gives limits, the center is their middle and the width their distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import UsageError

Shape = Literal["gaussian", "box"]


@dataclass(frozen=True, kw_only=True)
class Response:
    """One band of a multispectral sensor."""

    name: str
    """Name that the operator gives it."""
    center_nm: float
    """Center wavelength (nm)."""
    fwhm_nm: float
    """Full width at half maximum (nm)."""
    gsd_m: float
    """Native ground sampling distance (m)."""


@dataclass(frozen=True, kw_only=True)
class BandSet:
    """Bands that are simulated together.

    Raises
    ------
    ValueError
        If there is no band.
    """

    name: str
    """Name by which it is chosen."""
    responses: tuple[Response, ...]
    """Bands, sorted by wavelength."""
    shape: Shape = "gaussian"
    """Form of the responses; `box` weighs all bands whose center lies between the limits alike."""
    one_gsd: bool = True
    """Whether all bands are simulated on the fine grid, whatever their native sampling."""

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError(f"{self.name}: a band set needs at least one band")

    @property
    def bands(self) -> Bands:
        """Centers and widths."""
        return Bands.sort(
            [band.center_nm for band in self.responses],
            unit="nm",
            of=self.name,
            fwhm=[band.fwhm_nm for band in self.responses],
            names=[band.name for band in self.responses],
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Fine pixels per own pixel of each band along one axis."""
        finest = min(band.gsd_m for band in self.responses)
        return tuple(1 if self.one_gsd else round(band.gsd_m / finest) for band in self.responses)

    def weights(self, hsi: Bands) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights that turn the good bands of a cube into these bands.

        Returns
        -------
        weights : ndarray, shape (c, C)
            Rows sum to 1, or to 0 where no good band lies under the response.
        coverage : ndarray, shape (c,)
            Share of each response that the good bands cover, 0 to 1.
        """
        if self.shape == "gaussian":
            return hsi.srf(self.bands)
        low, high = (np.array([b.center_nm + side * b.fwhm_nm / 2 for b in self.responses]) for side in (-1, 1))
        inside = (hsi.center_nm >= low[:, None]) & (hsi.center_nm <= high[:, None]) & hsi.good
        members = inside.sum(axis=1)
        spacing = np.gradient(hsi.center_nm) if len(hsi) > 1 else hsi.width_nm()
        coverage = np.clip((inside * np.minimum(spacing, 1.5 * hsi.width_nm())).sum(axis=1) / (high - low), 0.0, 1.0)
        return inside / np.maximum(members, 1)[:, None], coverage


def band_set(name: str) -> BandSet:
    """The band set of that name.

    Raises
    ------
    UsageError
        If there is none; the message lists those that exist.
    """
    if name not in SETS:
        raise UsageError(f"there is no band set {name!r}; choose one of {', '.join(SETS)}")
    return SETS[name]


def _table(gsd_m: float, *rows: tuple[str, float, float] | tuple[str, float, float, float]) -> dict[str, Response]:
    """Rows of name, center, width and, where it is not `gsd_m`, sampling distance."""
    return {
        row[0]: Response(name=row[0], center_nm=row[1], fwhm_nm=row[2], gsd_m=row[3] if len(row) == 4 else gsd_m)
        for row in rows
    }


def _limits(gsd_m: float, *rows: tuple[str, float, float] | tuple[str, float, float, float]) -> dict[str, Response]:
    """The same of rows that give lower and upper limit instead of center and width."""
    return _table(gsd_m, *((row[0], (row[1] + row[2]) / 2, row[2] - row[1], *row[3:]) for row in rows))


SENTINEL_2A = _table(
    10.0,
    ("B1", 442.7, 21.0, 60.0), ("B2", 492.7, 66.0), ("B3", 559.8, 36.0), ("B4", 664.6, 31.0), ("B5", 704.1, 15.0, 20.0),
    ("B6", 740.5, 15.0, 20.0), ("B7", 782.8, 20.0, 20.0), ("B8", 832.8, 106.0), ("B8A", 864.7, 21.0, 20.0),
    ("B9", 945.1, 20.0, 60.0), ("B10", 1373.5, 31.0, 60.0), ("B11", 1613.7, 91.0, 20.0), ("B12", 2202.4, 175.0, 20.0),
)  # fmt: skip
"""Bands of Sentinel-2A by name; those of the twins differ by a few nanometers."""
_LANDSAT_5 = _limits(
    30.0,
    ("TM1", 450.0, 520.0), ("TM2", 520.0, 600.0), ("TM3", 630.0, 690.0), ("TM4", 760.0, 900.0),
    ("TM5", 1550.0, 1750.0), ("TM7", 2080.0, 2350.0),
)  # fmt: skip
LANDSAT_8 = _table(
    30.0,
    ("CA", 442.96, 15.98), ("Blue", 482.04, 60.04), ("Green", 561.41, 57.33), ("Red", 654.59, 37.47),
    ("NIR", 864.67, 28.25), ("SWIR1", 1608.86, 84.72), ("SWIR2", 2200.73, 186.66), ("Pan", 589.50, 172.40, 15.0),
)  # fmt: skip
"""Bands of the OLI of Landsat 8 by name; that of Landsat 9 is its copy."""
_WORLDVIEW_2 = _limits(
    1.84,
    ("Coastal", 400.0, 450.0), ("Blue", 450.0, 510.0), ("Green", 510.0, 580.0), ("Yellow", 585.0, 625.0),
    ("Red", 630.0, 690.0), ("Red Edge", 705.0, 745.0), ("NIR1", 770.0, 895.0), ("NIR2", 860.0, 1040.0),
    ("Pan", 450.0, 800.0, 0.46),
)  # fmt: skip
_WORLDVIEW_3 = {
    **{name: Response(**{**vars(band), "gsd_m": 1.24}) for name, band in _WORLDVIEW_2.items() if name != "Pan"},
    **_limits(
        3.7,
        ("SWIR1", 1195.0, 1225.0), ("SWIR2", 1550.0, 1590.0), ("SWIR3", 1640.0, 1680.0), ("SWIR4", 1710.0, 1750.0),
        ("SWIR5", 2145.0, 2185.0), ("SWIR6", 2185.0, 2225.0), ("SWIR7", 2235.0, 2285.0), ("SWIR8", 2295.0, 2365.0),
    ),
}  # fmt: skip
SUPERDOVE = _table(
    3.0,
    ("Coastal Blue", 443.0, 20.0), ("Blue", 490.0, 50.0), ("Green I", 531.0, 36.0), ("Green II", 565.0, 36.0),
    ("Yellow", 610.0, 20.0), ("Red", 665.0, 31.0), ("Red-Edge", 705.0, 15.0), ("NIR", 865.0, 40.0),
)  # fmt: skip
"""Bands of SuperDove (PSB.SD) by name."""
PLANETSCOPE_4 = {
    "PS2": _limits(3.7, ("Blue", 455.0, 515.0), ("Green", 500.0, 590.0), ("Red", 590.0, 670.0), ("NIR", 780.0, 860.0)),
    "PS2.SD": _limits(
        3.7, ("Blue", 464.0, 517.0), ("Green", 547.0, 585.0), ("Red", 650.0, 682.0), ("NIR", 846.0, 888.0)
    ),
    "PSB.SD": _limits(
        3.7, ("Blue", 465.0, 515.0), ("Green", 547.0, 583.0), ("Red", 650.0, 680.0), ("NIR", 845.0, 885.0)
    ),
}
"""Four-band products of PlanetScope by instrument, as the operator gives their limits."""
_QUICKBIRD = _limits(
    2.44,
    ("Blue", 450.0, 520.0), ("Green", 520.0, 600.0), ("Red", 630.0, 690.0), ("NIR", 760.0, 900.0),
)  # fmt: skip


def _pick(table: dict[str, Response], names: str = "") -> tuple[Response, ...]:
    chosen = [table[name] for name in names.split()] if names else list(table.values())
    return tuple(sorted(chosen, key=lambda band: band.center_nm))


_TEN = "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12"
SETS = {
    made.name: made
    for made in (
        BandSet(name="s2-4", responses=_pick(SENTINEL_2A, "B2 B3 B4 B8")),
        BandSet(name="s2-6", responses=_pick(SENTINEL_2A, "B2 B3 B4 B8 B11 B12")),
        BandSet(name="s2-6gsd", responses=_pick(SENTINEL_2A, "B2 B3 B4 B8 B11 B12"), one_gsd=False),
        BandSet(name="s2-10", responses=_pick(SENTINEL_2A, _TEN), one_gsd=False),
        BandSet(name="landsat-4", responses=_pick(_LANDSAT_5, "TM1 TM2 TM3 TM4"), shape="box"),
        BandSet(name="landsat-6", responses=_pick(_LANDSAT_5), shape="box"),
        BandSet(name="oli-6", responses=_pick(LANDSAT_8, "Blue Green Red NIR SWIR1 SWIR2")),
        BandSet(name="wv2-8", responses=tuple(b for b in _pick(_WORLDVIEW_2) if b.name != "Pan")),
        BandSet(name="wv3-16", responses=_pick(_WORLDVIEW_3), one_gsd=False),
        BandSet(name="superdove-8", responses=_pick(SUPERDOVE)),
        BandSet(name="qb-4", responses=_pick(_QUICKBIRD)),
        # A panchromatic response is flat and wide: a Gaussian of its width would reach far beyond its limits.
        BandSet(name="pan", responses=_pick(_WORLDVIEW_2, "Pan"), shape="box"),
    )
}
"""Band sets by name; `s2-6` and `s2-10` differ in sampling too: `s2-10` and `s2-6gsd` keep the 20 m bands at 20 m."""
