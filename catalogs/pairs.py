"""ScenePair: an HSI and an MSI of one place, checked before anything heavy begins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from odc.geo.geom import Geometry

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.catalogs.outline import area_on, box_of, grid_outline
from hyperfuse.catalogs.scene import Scene

RATIOS = (2, 20)
"""Integer ratios of the ground sampling distances that can be fused."""


class UnlikelyPair(InputRejected):
    """Two images that cannot be an HSI and an MSI of one place: swapped, or of resolutions that do not go together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScenePair:
    """Two scenes that can be fused.

    Raises
    ------
    UnlikelyPair
        If the scenes look swapped, or their ratio is out of range.
    InputRejected
        If an image has no good band.
    ExpectedSkip
        If the scenes do not overlap; the message gives both footprints.
    """

    hsi: Scene
    """Low-resolution hyperspectral image."""
    msi: Scene
    """High-resolution multispectral image."""
    ratios: tuple[int, int] = RATIOS
    """Smallest and largest ratio of the ground sampling distances, rounded, that is of use."""

    def __post_init__(self) -> None:
        hsi, msi = self.hsi, self.msi
        for scene in (hsi, msi):
            if not scene.bands.good.any():
                raise InputRejected(
                    f"{scene.name}: none of its {len(scene.bands)} bands carries a signal; check its nodata value and its bbl"
                )
        if self.gsd_ratio < 1 and len(hsi.bands) < len(msi.bands):
            raise UnlikelyPair(
                f"the scenes look swapped: the first, {hsi.name}, has {len(hsi.bands)} bands at {hsi.gsd_m:.4g} m, the second, "
                f"{msi.name}, {len(msi.bands)} at {msi.gsd_m:.4g} m; give the hyperspectral scene first"
            )
        if not self.ratios[0] - 0.5 <= self.gsd_ratio <= self.ratios[1] + 0.5:
            raise UnlikelyPair(
                f"{hsi.name} ({hsi.gsd_m:.4g} m) over {msi.name} ({msi.gsd_m:.4g} m) is a ratio of {self.gsd_ratio:.3g}; "
                f"expected {self.ratios[0]} to {self.ratios[1]}, so give a sharper MSI or check the grids",
                observed=self.gsd_ratio,
                allowed=self.ratios[self.gsd_ratio > self.ratios[1]],
            )
        if self.overlap().is_empty:
            footprints = " and ".join(
                f"{scene.name} covers {_lonlat_box(scene)}" for scene in (hsi, msi)
            )  # fmt: skip
            raise ExpectedSkip(f"the scenes do not overlap: {footprints}; there is nothing to fuse")

    @property
    def gsd_ratio(self) -> float:
        """HSI ground sampling distance over that of the MSI."""
        return self.hsi.gsd_m / self.msi.gsd_m

    @property
    def time_gap(self) -> timedelta | None:
        """Time between the acquisitions, None if one of them is not known."""
        if self.hsi.time is None or self.msi.time is None:
            return None
        return abs(self.hsi.time - self.msi.time)

    def overlap(self) -> Geometry:
        """Common footprint, in the MSI's CRS; edges are refined so that a change of CRS bends them."""
        msi = self.msi.geobox.extent
        hsi = self.hsi.geobox.extent
        if hsi.crs != msi.crs:
            length = max(self.hsi.geobox.boundingbox.span_x, self.hsi.geobox.boundingbox.span_y)
            hsi = hsi.segmented(length / 32)
        common: Geometry = area_on(hsi, self.msi.geobox) & msi
        return common


def _lonlat_box(scene: Scene) -> str:
    left, bottom, right, top = box_of(grid_outline(scene.geobox))
    return f"{left:.4f} to {right:.4f} E, {bottom:.4f} to {top:.4f} N"
