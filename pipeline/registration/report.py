"""What people see of a registration: the table of its tie points, and their arrows over the image."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.composite import stretched, true_color
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.registration.detectors import Spectral
from hyperfuse.pipeline.registration.estimate import Estimate
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.registration.tie_points import TiePoints

TABLE = "registration.geojson"
FIGURE = "registration.png"
_EDGE_PX = 512
"""Longest side of the image under the arrows."""
_ARROW_SHARE = 0.12
"""Of the image's longer side: length of the longest arrow."""
_COLORS = {True: "#00e5ff", False: "#ff5252"}
"""Tie points that agree with the displacement, and those that do not."""
_PART_COLOR = "#ffd54f"
"""Outline of a part with a move of its own."""
_PANEL_INCHES = 2.6
"""Height that the displacement over the wavelength adds to the figure."""


def write_registration(estimate: Estimate, folder: Path) -> None:
    """Table and figure in a folder; nothing where no tie point was measured."""
    if estimate.points is None:
        return
    write_table(estimate, folder / TABLE)
    write_figure(estimate, folder / FIGURE)


def write_table(estimate: Estimate, path: Path) -> None:
    """GeoJSON (RFC 7946: positions are longitude and latitude) of all tie points.

    Each point has its move (`east_px`, `north_px`, coarse pixels, and in meters), the part of it that the displacement
    leaves (`left_east_px`, `left_north_px`), its standard error, its correlation, and whether it agrees (`used`). The record
    under `registration` names displaced parts and detectors; `spectrum` has the move of parts of the spectrum beside the
    displacement.
    """
    points = _known(estimate)
    features: list[dict[str, Any]] = []
    if points is not None:
        survey, (kept, used) = estimate.survey, points
        gsd = survey.pair.hsi.gsd_m
        lon, lat = Transformer.from_crs(str(survey.frame.crs), 4326, always_xy=True).transform(kept.x, kept.y)
        for i in range(len(kept)):
            east, north = (round(float(v), 4) for v in kept.move[:, i])
            properties = {
                "east_px": east,
                "north_px": north,
                "east_m": round(east * gsd, 4),
                "north_m": round(north * gsd, 4),
                "left_east_px": round(float(kept.remainder[0, i]), 4),
                "left_north_px": round(float(kept.remainder[1, i]), 4),
                "sigma_px": round(float(kept.sigma[i]), 4) if np.isfinite(kept.sigma[i]) else None,
                "correlation": round(float(kept.correlation[i]), 4),
                "used": bool(used[i]),
            }
            place = [round(float(lon[i]), 8), round(float(lat[i]), 8)]
            features.append(
                {"type": "Feature", "geometry": {"type": "Point", "coordinates": place}, "properties": properties}
            )
    record = estimate.registration.model_dump(mode="json")
    table = {
        "type": "FeatureCollection", "name": "registration", "registration": record, "spectrum": _spectrum(estimate),
        "features": features,
    }  # fmt: skip
    write_atomic(path, json.dumps(table, indent=1, allow_nan=False))


def write_figure(estimate: Estimate, path: Path) -> None:
    """PNG of the HSI with an arrow per tie point: the move that brings the MSI onto the HSI there, drawn larger."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (half a second that only figures need)
    from matplotlib.figure import Figure  # noqa: PLC0415

    survey, registration = estimate.survey, estimate.registration
    image, grid = _backdrop(survey.pair.hsi, survey.frame)
    left, bottom, right, top = grid.boundingbox
    spectral = estimate.spectral
    tall = min(max(8.0 * image.shape[0] / image.shape[1], 3.0), 14.0)
    figure = Figure(figsize=(8.0, tall if spectral is None else tall + _PANEL_INCHES))
    if spectral is None:
        axes = figure.add_subplot()
    else:
        axes, panel = figure.subplots(2, 1, height_ratios=(tall, _PANEL_INCHES - 0.8))
        _draw_spectrum(panel, spectral, registration)
    axes.imshow(image, extent=(left, right, bottom, top), interpolation="nearest")
    points = _known(estimate)
    if points is not None:
        kept, used = points
        longest = float(np.quantile(np.hypot(*kept.move), 0.95)) or 1.0
        # One length for both axes, in CRS units: the arrows must not turn where degrees are not square.
        drawn = _ARROW_SHARE * max(right - left, top - bottom) / longest
        for agrees in (False, True):
            shown = kept.only(used == agrees)
            arrows = axes.quiver(
                shown.x, shown.y, shown.move[0] * drawn, shown.move[1] * drawn, color=_COLORS[agrees], width=0.003, pivot="mid",
                angles="xy", scale_units="xy", scale=1.0, label=f"{len(shown)} {'agree' if agrees else 'do not'}",
            )  # fmt: skip
        key = float(f"{longest:.1g}")
        axes.quiverkey(
            arrows, 0.8, 1.025, key * drawn, f"{key:g} coarse px", labelpos="E", coordinates="axes", color="black"
        )
        axes.legend(loc="lower right", framealpha=0.8)
    for part in registration.parts:
        x, y = [part.bounds[k] for k in (0, 2, 2, 0, 0)], [part.bounds[k] for k in (1, 1, 3, 3, 1)]
        axes.plot(x, y, "--", color=_PART_COLOR, lw=1.2)
    axes.set_title("\n".join(textwrap.wrap(f"{registration.decision}: {registration.reason}", 95)), fontsize=8, pad=22)
    axes.set_xlabel(f"x, {survey.frame.crs}", fontsize=8)
    axes.set_ylabel("y", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(useOffset=False, style="plain")
    FigureCanvasAgg(figure)
    # Without the software's version the same registration gives the same file.
    figure.savefig(path, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})


def _draw_spectrum(axes: Any, spectral: Spectral, registration: Registration) -> None:
    """Move of parts of the spectrum beside the displacement, with their standard errors, and what was made of them."""
    for component, name, color in ((0, "east", "#0072b2"), (1, "north", "#d55e00")):
        axes.errorbar(
            spectral.center_nm, spectral.beside[component], yerr=np.where(np.isfinite(spectral.sigma), spectral.sigma, 0.0),
            fmt="o", ms=3, lw=1, color=color, label=name,
        )  # fmt: skip
        for detector in registration.detectors:
            ends = np.array([detector.first_nm, detector.last_nm])
            axes.plot(ends, registration.beside(ends)[component], color=color, lw=1)
    axes.axhline(0.0, color="gray", lw=0.5)
    axes.set_xlabel("wavelength, nm", fontsize=8)
    axes.set_ylabel("beside, coarse px", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="best")


def _spectrum(estimate: Estimate) -> list[dict[str, Any]]:
    """Rows of the table: the parts of the spectrum that were measured."""
    found = estimate.spectral
    if found is None:
        return []
    return [
        {
            "center_nm": round(float(found.center_nm[k]), 2),
            "east_px": round(float(found.beside[0, k]), 4),
            "north_px": round(float(found.beside[1, k]), 4),
            "sigma_px": round(float(found.sigma[k]), 4),
            "tie_points": int(found.tie_points[k]),
        }
        for k in np.flatnonzero(np.isfinite(found.sigma))
    ]


def _known(estimate: Estimate) -> tuple[TiePoints, NDArray[np.bool_]] | None:
    """Tie points of windows that could be measured, and which of them agree."""
    if estimate.points is None:
        return None
    known = np.isfinite(estimate.points.correlation)
    return (estimate.points.only(known), estimate.used[known]) if known.any() else None


def _backdrop(hsi: Scene, frame: GeoBox) -> tuple[NDArray[np.uint8], GeoBox]:
    """A small picture of the HSI, shape (y, x, 4), and its grid."""
    grid = frame.zoom_out(max(1.0, max(frame.shape) / _EDGE_PX))
    good = hsi.good_bands
    bands = hsi.bands[good]
    picked = true_color(bands) or tuple(min(len(good) * k // 4, len(good) - 1) for k in (3, 2, 1))
    cube = warp(hsi, grid, (slice(0, grid.shape[0]), slice(0, grid.shape[1])), bands=[good[k] for k in picked])
    opaque = np.isfinite(cube).all(axis=0)
    image = np.zeros((*opaque.shape, 4), np.uint8)
    for layer, band in enumerate(cube):
        image[opaque, layer] = stretched(band[opaque])
    image[..., 3] = np.where(opaque, 255, 0)
    return image, grid
