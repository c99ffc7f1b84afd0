"""Figure of an evaluation: bars of PSNR and SAM of every method on every cube, one row of panels per protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.pipeline.observation.field import Planting
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.quality.trials import TrialRow

# Okabe & Ito (2008): colors that all readers can tell apart.
_COLORS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")
_MEASURES = (("psnr_db", "PSNR (dB), higher is better, axis cut"), ("sam_deg", "SAM (deg), lower is better"))
_MAX_CUBES = 24
"""With more cubes only the means over cubes are drawn, since single bars would be too narrow."""


def draw(rows: Sequence[TrialRow], path: Path) -> None:
    """Draw the rows of an evaluation as bars; a method that failed leaves its place empty.

    Raises
    ------
    InputRejected
        If the file cannot be written.
    """
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    widest = max(_groups(rows, protocol)[1] for protocol in protocols)
    # Without pyplot, which would keep the figure in memory and look for a screen.
    figure = Figure(figsize=(max(10.0, 1.6 + 0.22 * widest * len(methods)), 1.0 + 2.8 * len(protocols)), dpi=130)
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(protocols), 2, squeeze=False)
    for line, protocol in zip(panels, protocols, strict=True):
        for axes, (measure, label) in zip(line, _MEASURES, strict=True):
            _bars(axes, rows, protocol, methods, measure)
            axes.set_ylabel(label, fontsize=8)
        line[0].set_title(_title(protocol), fontsize=9, loc="left")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=min(len(methods), 8), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    try:
        canvas.print_png(path)
    except OSError as error:
        raise InputRejected(f"{path}: the figure cannot be written ({error}); choose another file") from error


def _bars(axes: Axes, rows: Sequence[TrialRow], protocol: Protocol, methods: Sequence[str], measure: str) -> None:
    cubes, _ = _groups(rows, protocol)
    found = {
        (row.cube, row.method): float(getattr(row.scores, measure))
        for row in rows
        if row.protocol == protocol and row.scores is not None
    }
    width = 0.85 / len(methods)
    for k, name in enumerate(methods):
        own = [found.get((cube, name), np.nan) for cube in cubes]
        heights = [*(own if len(cubes) <= _MAX_CUBES else ()), np.mean([v for v in own if np.isfinite(v)] or [np.nan])]
        at = np.arange(len(heights)) + (k - (len(methods) - 1) / 2) * width
        axes.bar(at, heights, width, color=_COLORS[k % len(_COLORS)], label=name,
                 hatch="//" if k >= len(_COLORS) else None)  # fmt: skip
    names = [*(cubes if len(cubes) <= _MAX_CUBES else ()), f"mean of {len(cubes)}"]
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    shown = [value for value in found.values() if np.isfinite(value)]
    if measure == "psnr_db" and shown:
        axes.set_ylim(max(0.0, min(shown) - 3.0), max(shown) + 1.0)  # bars from 0 dB would all look alike
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _groups(rows: Sequence[TrialRow], protocol: Protocol) -> tuple[list[str], int]:
    """Cubes of a protocol, and the groups of bars that they and their mean make."""
    cubes = list(dict.fromkeys(row.cube for row in rows if row.protocol == protocol))
    return cubes, (len(cubes) if len(cubes) <= _MAX_CUBES else 0) + 1


def _title(protocol: Protocol) -> str:
    noise = "no noise" if protocol.hsi_snr_db is None else f"noise {protocol.hsi_snr_db:g} / {protocol.msi_snr_db:g} dB"
    planted = "" if protocol.planted == Planting() else f", planted: {protocol.planted.name}"
    return f"ratio {protocol.ratio}, MSI {protocol.msi}, {noise}{planted}"
