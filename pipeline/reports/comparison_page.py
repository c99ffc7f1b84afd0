"""`comparison.html`, the page of a comparison: composites, spectra, scores, and where the samples differ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.reports.color_maps import Map, color_composite, color_map, scale_colors, stretch
from hyperfuse.pipeline.reports.compare import ProductComparison, Side
from hyperfuse.pipeline.reports.difference import Difference
from hyperfuse.pipeline.reports.html import Cell, Row, Table, figure, quantity_label, render
from hyperfuse.pipeline.reports.scores import SCORES, Score, best, place, read_scores
from hyperfuse.pipeline.reports.spectra import SpectrumPreset, count_scale, packed, presets

_COLORS = ("#0b62a8", "#c26a00", "#1f7a4d", "#8a3ffc", "#b3401f", "#00797f", "#7a5c00", "#5b6675")
"""One per product; also readers with red-green color blindness can tell them apart on white."""
_STATISTICS = (
    ("rmse", "RMSE"),
    ("bias", "mean"),
    ("largest", "largest"),
    ("sam_deg", "spectral angle (deg)"),
    ("r2", "R2"),
    ("pixels", "whole spectra"),
)
_NOTHING = 255
"""Byte of a cell in which nothing could be compared."""


@dataclass(frozen=True, kw_only=True)
class _Swipe:
    """One composite of all products, with the same stretch."""

    title: str
    images: Sequence[tuple[str, str]]
    """Label and picture (data URI of a PNG) of each product."""


@dataclass(frozen=True, kw_only=True)
class _BandCells:
    """Differences of one product to the first, per band."""

    rmse: list[float | None]
    bias: list[float | None]
    high: list[float]
    """Largest cell of each band: root mean square of the difference."""
    shape: list[int]
    """Rows and columns of cells."""
    cells: str
    """All cells, shape (band, row, col), a byte each in base64: 0 to 254 in parts of `high`, 255 for nothing."""


@dataclass(frozen=True, kw_only=True)
class _PageData:
    """What `comparison_page.js` reads."""

    labels: list[str]
    colors: list[str]
    quantity: str
    shape: list[int]
    """Rows and columns of the products."""
    rows: list[int]
    """Rows of the lattice of spectra, in product pixels."""
    cols: list[int]
    scale: float
    spectra: list[str]
    """Spectra of each product, in the form of `spectra.packed`."""
    wavelength_nm: list[float]
    presets: list[SpectrumPreset]
    differences: list[_BandCells]
    scale_colors: list[str]
    """Color of each value of a cell."""


@dataclass(frozen=True, kw_only=True)
class _ComparisonPage:
    """What `comparison_page.html` shows, from top to bottom."""

    title: str
    about: str
    notes: Sequence[str]
    reports: Sequence[tuple[str, str]]
    """Label and relative address of the products' own reports."""
    labels: Sequence[str]
    swipes: Sequence[_Swipe]
    size: tuple[int, int]
    """Width and height of the composites in their own pixels."""
    legend: Sequence[tuple[str, str]]
    """Label and color of each product."""
    scores: Table
    statistics: Table
    maps: Sequence[tuple[str, Map | None]]
    """Label of each product but the first, and where it differs over all bands; None if nothing could be compared."""
    last_band: int
    products: Sequence[tuple[str, str, str, str]]
    """Label, method, folder and job of each product."""
    data: dict[str, object]
    """`_PageData` as JSON values."""


def write_page(comparison: ProductComparison, path: Path) -> None:
    """Write the page; an existing file is replaced.

    Parameters
    ----------
    comparison : ProductComparison
    path : Path
        Its folder must exist. Links to reports of products below that folder are relative to it; others are left out.
    """
    first = comparison.sides[0]
    facts = first.product.provenance["product"]
    height, width = facts["shape"]
    quantity = quantity_label(facts["quantity"], facts["unit"])
    labels = [side.label for side in comparison.sides]
    rows, cols = first.picture.values.shape[1:]
    page = _ComparisonPage(
        title=" and ".join(labels),
        about=(
            f"{height} x {width} pixels, {len(comparison.bands)} bands from {comparison.bands.center_nm[0]:.0f} to "
            f"{comparison.bands.center_nm[-1]:.0f} nm, {facts['crs'][:60]}; differences are to {first.label}."
        ),
        notes=comparison.notes,
        reports=_reports(comparison, path.absolute().parent),
        labels=labels,
        swipes=_swipes(comparison),
        size=(cols, rows),
        legend=list(zip(labels, _COLORS, strict=False)),
        scores=_scores(comparison),
        statistics=_statistics(comparison),
        maps=[
            (side.label, color_map(f"{side.label}: root mean square of the difference over bands", one.map, quantity))
            for side, one in zip(comparison.sides[1:], comparison.differences, strict=True)
        ],
        last_band=len(comparison.bands) - 1,
        products=_products(comparison),
        data=asdict(_data(comparison, quantity)),
    )
    write_atomic(path, render("comparison_page.html", page))


def _data(comparison: ProductComparison, quantity: str) -> _PageData:
    sides, lattice = comparison.sides, comparison.sides[0].lattice
    scale = count_scale(*(side.lattice.values for side in sides))
    return _PageData(
        labels=[side.label for side in sides],
        colors=list(_COLORS[: len(sides)]),
        quantity=quantity,
        shape=sides[0].product.provenance["product"]["shape"],
        rows=lattice.rows.tolist(),
        cols=lattice.cols.tolist(),
        scale=scale,
        spectra=[packed(side.lattice.values, scale) for side in sides],
        wavelength_nm=[float(nm) for nm in comparison.bands.center_nm],
        presets=presets(comparison.bands, lattice.values),
        differences=[_band_cells(difference) for difference in comparison.differences],
        scale_colors=list(scale_colors(_NOTHING)),
    )


def _band_cells(difference: Difference) -> _BandCells:
    rms, figures = difference.cell_rms(), difference.to_json()
    known = np.isfinite(rms)
    high = np.where(known, rms, 0.0).max(axis=(1, 2))
    parts = np.nan_to_num(rms) / np.where(high > 0, high, 1.0)[:, None, None]
    counts = np.where(known, np.round(parts * (_NOTHING - 1)), _NOTHING).astype(np.uint8)
    return _BandCells(
        rmse=figures["band_rmse"],
        bias=figures["band_bias"],
        high=[float(value) for value in high],
        shape=list(counts.shape[1:]),
        cells=base64.b64encode(counts.tobytes()).decode(),
    )


def _swipes(comparison: ProductComparison) -> list[_Swipe]:
    stored = comparison.sides[0].picture.bands
    swipes = []
    for title, chosen in comparison.titles.items():
        at = np.searchsorted(stored, chosen)
        images = [side.picture.values[at] for side in comparison.sides]
        ranges = [stretch(np.concatenate([image[k].ravel() for image in images])) for k in range(len(chosen))]
        shown = [
            (side.label, color_composite(image, ranges)) for side, image in zip(comparison.sides, images, strict=True)
        ]
        swipes.append(_Swipe(title=title, images=shown))
    return swipes


def _scores(comparison: ProductComparison) -> Table:
    """A row per score, a column per product."""
    scores = [read_scores(side.scores, side.method) for side in comparison.sides]
    states = Row(title="state", cells=[Cell(text=str(one["state"] or "not judged")) for one in scores])
    rows = [_score_row(score, comparison.sides, [_numeric(one[score.key]) for one in scores]) for score in SCORES]
    return Table(columns=[side.label for side in comparison.sides], rows=[states, *rows])


def _score_row(score: Score, sides: Sequence[Side], values: list[float | None]) -> Row:
    winners = best(score, values)
    return Row(
        title=score.title,
        cells=[
            figure(f"{k}.{_place(side, score)}", value, share=score.share, best=k in winners)
            for k, (side, value) in enumerate(zip(sides, values, strict=True))
        ],
    )


def _numeric(value: float | str | None) -> float | None:
    return value if isinstance(value, int | float) else None


def _place(side: Side, score: Score) -> str:
    return (None if side.scores is None else place(side.scores, side.method, score)) or score.key


def _statistics(comparison: ProductComparison) -> Table:
    rows = []
    for k, (side, difference) in enumerate(zip(comparison.sides[1:], comparison.differences, strict=True)):
        figures = difference.to_json()
        cells = [figure(f"differences.{k}.{key}", figures[key]) for key, _ in _STATISTICS]
        rows.append(Row(title=side.label, cells=cells))
    return Table(columns=[title for _, title in _STATISTICS], rows=rows)


def _products(comparison: ProductComparison) -> list[tuple[str, str, str, str]]:
    rows = []
    for side in comparison.sides:
        method = side.product.provenance.get("method", {"title": "mosaic of products", "paper": ""})
        about = "; ".join(text for text in (method["title"], method["paper"]) if text)
        rows.append((side.label, about, str(side.product.path), side.product.job_key[:12]))
    return rows


def _reports(comparison: ProductComparison, folder: Path) -> list[tuple[str, str]]:
    """Reports of products that lie below the page's folder: only these move with it."""
    links = []
    for side in comparison.sides:
        report = side.product.report
        if report is not None and report.absolute().is_relative_to(folder):
            links.append((side.label, "./" + quote(report.absolute().relative_to(folder).as_posix())))
    return links
