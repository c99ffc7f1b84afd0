"""The page of a comparison: pictures to swipe, spectra, scores side by side, and where the samples differ."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.reports.color_maps import colored, mapped, packed, packing, png, presets, scale_colors, stretch
from hyperfuse.pipeline.reports.compare import Comparison, Side
from hyperfuse.pipeline.reports.difference import Difference
from hyperfuse.pipeline.reports.html import cell, embedded, escaped, listed, render, table
from hyperfuse.pipeline.reports.scores import SCORES, best, place, read_scores

_COLORS = ("#0b62a8", "#c26a00", "#1f7a4d", "#8a3ffc", "#b3401f", "#00797f", "#7a5c00", "#5b6675")
"""One per product, told apart on white by people who see red and green alike."""
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


def write_page(found: Comparison, path: Path) -> None:
    """Write the page; an existing file is replaced.

    Parameters
    ----------
    found : Comparison
    path : Path
        Its folder must exist. Links to the products' own reports are relative to it where that is possible.
    """
    first = found.sides[0]
    facts = first.product.provenance["product"]
    height, width = facts["shape"]
    quantity = facts["quantity"].replace("_", " ") + (f" ({facts['unit']})" if facts["unit"] != "1" else "")
    swipes, size = _swipes(found)
    parts = {
        "title": escaped(" and ".join(side.label for side in found.sides)),
        "notes": listed(found.notes),
        "about": escaped(
            f"{height} x {width} pixels, {len(found.bands)} bands from {found.bands.center_nm[0]:.0f} to "
            f"{found.bands.center_nm[-1]:.0f} nm, {facts['crs'][:60]}; differences are to {first.label}."
        ),
        "composite_buttons": "".join(f'<button type="button">{escaped(title)}</button>' for title in found.titles),
        "choose_left": _options(found, 0),
        "choose_right": _options(found, 1),
        "swipes": "".join(_swipe(title, images, found, size) for title, images in swipes.items()),
        "order": escaped(", ".join(side.label for side in found.sides)),
        "legend": "".join(
            f'<span style="color: {color}">{escaped(side.label)}</span>'
            for side, color in zip(found.sides, _COLORS, strict=False)
        ),
        "scores": _scores(found),
        "first": escaped(first.label),
        "statistics": _statistics(found),
        "maps": "".join(map(_map, found.sides[1:], found.differences)),
        "bands": str(len(found.bands) - 1),
        "products": table(("", "method", "product", "job"), _products(found)),
        "reports": _reports(found, path.absolute().parent),
        "data": embedded(_data(found, quantity)),
    }
    write_atomic(path, render("compare.html", parts))


def _data(found: Comparison, quantity: str) -> dict[str, Any]:
    """What the page's script reads."""
    lattice = found.sides[0].lattice
    scale = packing(*(side.lattice.values for side in found.sides))
    return {
        "labels": [side.label for side in found.sides],
        "colors": list(_COLORS[: len(found.sides)]),
        "quantity": quantity,
        "shape": found.sides[0].product.provenance["product"]["shape"],
        "rows": lattice.rows.tolist(),
        "cols": lattice.cols.tolist(),
        "scale": scale,
        "spectra": [packed(side.lattice.values, scale) for side in found.sides],
        "wavelength_nm": [float(nm) for nm in found.bands.center_nm],
        "presets": presets(found.bands, lattice.values),
        "differences": [_cells(difference) for difference in found.differences],
        "scale_colors": list(scale_colors(_NOTHING)),
    }


def _cells(difference: Difference) -> dict[str, Any]:
    """Statistics by band, and the map of each band as bytes: 0 to 254 in parts of the band's largest cell."""
    rms, figures = difference.cell_rms(), difference.to_json()
    known = np.isfinite(rms)
    high = np.where(known, rms, 0.0).max(axis=(1, 2))
    parts = np.nan_to_num(rms) / np.where(high > 0, high, 1.0)[:, None, None]
    counts = np.where(known, np.round(parts * (_NOTHING - 1)), _NOTHING).astype(np.uint8)
    return {
        "rmse": figures["band_rmse"],
        "bias": figures["band_bias"],
        "high": [float(value) for value in high],
        "shape": list(counts.shape[1:]),
        "cells": base64.b64encode(counts.tobytes()).decode(),
    }


def _swipes(found: Comparison) -> tuple[dict[str, list[str]], tuple[int, int]]:
    """Pictures of all products by title, each title with one stretch, and their width and height."""
    shown = found.sides[0].picture.bands
    pictures = {}
    for title, chosen in found.titles.items():
        at = np.searchsorted(shown, chosen)
        images = [side.picture.values[at] for side in found.sides]
        ranges = [stretch(np.concatenate([image[k].ravel() for image in images])) for k in range(len(chosen))]
        pictures[title] = [png(colored(image, ranges)) for image in images]
    rows, cols = found.sides[0].picture.values.shape[1:]
    return pictures, (cols, rows)


def _swipe(title: str, images: list[str], found: Comparison, size: tuple[int, int]) -> str:
    width, height = size
    places = {0: "before", 1: "after"}
    pictures = "".join(
        f'<img class="{places.get(k, "")}" alt="{escaped(f"{side.label}, {title}")}" src="{image}">'
        for k, (side, image) in enumerate(zip(found.sides, images, strict=True))
    )
    return (
        f'<div class="swipe many" hidden style="aspect-ratio: {width} / {height}; max-width: calc(80vh * {width} / {height})">'
        f'{pictures}<span class="edge"></span><span class="tag left" style="left: .4rem"></span>'
        '<span class="tag right" style="right: .4rem"></span><span class="dot"></span></div>'
    )


def _options(found: Comparison, chosen: int) -> str:
    return "".join(
        f'<option value="{k}"{" selected" if k == chosen else ""}>{escaped(side.label)}</option>'
        for k, side in enumerate(found.sides)
    )


def _scores(found: Comparison) -> str:
    """A row per score, a column per product; the best is marked."""
    read = [read_scores(side.scores, side.method) for side in found.sides]
    head = "".join(f'<th class="number">{escaped(side.label)}</th>' for side in found.sides)
    states = "".join(f'<td class="number">{escaped(one["state"] or "not judged")}</td>' for one in read)
    rows = [f"<tr><td>state</td>{states}</tr>"]
    for score in SCORES:
        values = [value if isinstance(value := one[score.key], int | float) else None for one in read]
        winners = best(score, values)
        cells = "".join(
            cell(f"{k}.{_place(side, score.key)}", value, share=score.share, best=k in winners)
            for k, (side, value) in enumerate(zip(found.sides, values, strict=True))
        )
        rows.append(f"<tr><td>{escaped(score.title)}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _place(side: Side, key: str) -> str:
    score = next(score for score in SCORES if score.key == key)
    return (None if side.scores is None else place(side.scores, side.method, score)) or key


def _statistics(found: Comparison) -> str:
    head = "".join(f'<th class="number">{escaped(title)}</th>' for _, title in _STATISTICS)
    rows = []
    for k, (side, difference) in enumerate(zip(found.sides[1:], found.differences, strict=True)):
        figures = difference.to_json()
        cells = "".join(cell(f"differences.{k}.{key}", figures[key]) for key, _ in _STATISTICS)
        rows.append(f"<tr><td>{escaped(side.label)}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _map(side: Side, difference: Difference) -> str:
    """Where a product differs, over all bands."""
    picture = mapped(difference.map)
    if picture is None:
        return f"<p>No sample of {escaped(side.label)} can be compared.</p>"
    image, high = picture
    return (
        f'<figure><img alt="Difference of {escaped(side.label)}" src="{image}"><div class="scale"><span>0</span>'
        f'<i style="background: linear-gradient(to right, {", ".join(scale_colors())})"></i><span>{high:.3g}</span></div>'
        f"<figcaption>{escaped(side.label)}: root mean square of the difference over bands</figcaption></figure>"
    )


def _products(found: Comparison) -> list[tuple[str, str, str, str]]:
    rows = []
    for side in found.sides:
        method = side.product.provenance.get("method", {"title": "put together from products", "paper": ""})
        about = "; ".join(text for text in (method["title"], method["paper"]) if text)
        rows.append((side.label, about, str(side.product.path), side.product.job_key[:12]))
    return rows


def _reports(found: Comparison, folder: Path) -> str:
    """Links to the reports of products that lie below the page's folder: only these move with it."""
    links = []
    for side in found.sides:
        report = side.product.report
        if report is not None and report.absolute().is_relative_to(folder):
            href = quote(report.absolute().relative_to(folder).as_posix())
            links.append(f'<a href="./{escaped(href)}">{escaped(side.label)}</a>')
    return f"<p>Reports: {', '.join(links)}</p>" if links else ""
