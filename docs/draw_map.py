"""Draw the import graph of the pipeline's rooms as SVG: layers from top to bottom, modules in each room, imports as arrows.

    python docs/draw_map.py docs/map.svg

Layers are those of the import-linter contract in `pyproject.toml`; imports are read by grimp. Arrows run down only: one
that runs up, or a cycle, ends the command with exit code 1.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

import grimp
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
PIPELINE = "hyperfuse.pipeline"
_WIDTH, _GAP = 16.0, 0.25
_MODULE_INCHES, _LINE = 1.45, 0.17


def layers() -> list[list[str]]:
    """Rooms of each layer, from the top, as the contract names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in settings["tool"]["importlinter"]["contracts"] if c.get("containers") == [PIPELINE])
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def modules(graph: grimp.ImportGraph, room: str) -> list[str]:
    """Modules of a room, its own name for a room that is one module."""
    found = sorted(m.removeprefix(f"{PIPELINE}.{room}.") for m in graph.find_descendants(f"{PIPELINE}.{room}"))
    return [m for m in found if m not in {n.rpartition(".")[0] for n in found}]


def arrows(graph: grimp.ImportGraph, rooms: list[str]) -> Counter[tuple[str, str]]:
    """Number of imports from one room into another."""
    counted: Counter[tuple[str, str]] = Counter()
    for importer in graph.find_descendants(PIPELINE):
        for imported in graph.find_modules_directly_imported_by(importer):
            if imported.startswith(f"{PIPELINE}."):
                pair = importer.split(".")[2], imported.split(".")[2]
                if pair[0] != pair[1] and set(pair) <= set(rooms):
                    counted[pair] += 1
    return counted


def draw(path: Path) -> list[str]:
    """Write the picture; returns the imports that run up."""
    graph, levels = grimp.build_graph("hyperfuse"), layers()
    floor = {room: level for level, rooms in enumerate(levels) for room in rooms}
    boxes: dict[str, tuple[float, float, float, float]] = {}
    y = 0.0
    texts: dict[str, list[str]] = {}
    for rooms in levels:
        width = (_WIDTH - _GAP * (len(rooms) - 1)) / len(rooms)
        per_row = max(int(width / _MODULE_INCHES), 1)
        for room in rooms:
            names = modules(graph, room)
            texts[room] = ["   ".join(names[i : i + per_row]) for i in range(0, len(names), per_row)]
        height = 0.36 + _LINE * max(len(texts[room]) for room in rooms)
        for column, room in enumerate(rooms):
            boxes[room] = column * (width + _GAP), y - height, width, height
        y -= height + 0.42
    figure, axes = plt.subplots(figsize=(_WIDTH + 0.4, -y + 0.2))
    for (source, target), n in sorted(arrows(graph, list(floor)).items()):
        (x0, y0, w0, _), (x1, y1, w1, h1) = boxes[source], boxes[target]
        along = (list(floor).index(source) * 0.618 + list(floor).index(target) * 0.31) % 0.9 + 0.05
        start, end = (x0 + w0 * along, y0), (x1 + w1 * along, y1 + h1)
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, lw=0.4 + 0.06 * min(n, 20),
                            color="#c0392b" if floor[source] >= floor[target] else "#5b7fa5", alpha=0.6, zorder=1)
        )  # fmt: skip
    for room, (x, bottom, width, height) in boxes.items():
        axes.add_patch(
            FancyBboxPatch((x, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.06", fc="#f7f9fb", ec="#34495e", zorder=2)
        )  # fmt: skip
        axes.text(x + 0.1, bottom + height - 0.2, room, weight="bold", size=9, va="center", zorder=3)
        for line, text in enumerate(texts[room]):
            axes.text(x + 0.1, bottom + height - 0.42 - _LINE * line, text, size=6.5, va="center", zorder=3)
    axes.set_xlim(-0.1, _WIDTH + 0.1)
    axes.set_ylim(y + 0.3, 0.1)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    up = [f"{a} -> {b}" for a, b in arrows(graph, list(floor)) if floor[a] >= floor[b]]
    cycles = graph.nominate_cycle_breakers(PIPELINE)
    return up + [f"cycle: {a} -> {b}" for a, b in cycles]


if __name__ == "__main__":
    wrong = draw(Path(sys.argv[1]))
    for line in wrong:
        print(line)
    raise SystemExit(1 if wrong else 0)
