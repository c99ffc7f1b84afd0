"""The page of an archive: one `index.html` for a folder of products and of scenes that became none.

The page carries small thumbnails and the few scores of each product; reports and product folders are linked relative
to it, so that the folder may move as a whole.
"""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.job.product_files import PROVENANCE, REPORT, THUMBNAIL
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.reports.html import escaped, number, render
from hyperfuse.pipeline.reports.scores import SCORES, read_scores

INDEX = "index.html"
GOOD = frozenset({"done", "published"})
"""States that need nobody's attention."""
_THUMBNAIL_PX = 96
_SHOWN = ("consistency.hsi.sam_deg", "consistency.msi.r2", "reduced.psnr_db", "reduced.sam_deg", "validity.valid")
"""Scores with a column of their own."""


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """A scene of an archive."""

    id: str
    """Name of the scene or product."""
    state: str
    """One word or two: published, published with warnings, refused, failed, stale ..."""
    reason: str = ""
    """Why it is in that state; a sentence."""
    product: Path | None = None
    """Product folder, if there is one."""
    network: str = ""
    """Method."""
    scores: dict[str, float | str | None] = field(default_factory=dict)
    """Figures by the keys of `pipeline.reports.scores.SCORES`; missing ones are shown as such."""


def product_entry(folder: Path) -> IndexEntry:
    """The entry of a product folder, from its own records; a folder that cannot be read as a product says so."""
    try:
        product = Product.load(folder)
        qa = product.scores()
        scores = read_scores(qa, product.method)
    except (BadProduct, LookupError, TypeError, AttributeError) as error:
        return IndexEntry(id=folder.name, state="damaged", reason=str(error), product=folder)
    reasons = [] if qa is None else [str(warning) for warning in qa["warnings"]]
    return IndexEntry(
        id=product.name,
        state=str(scores["state"] or "published"),
        reason="; ".join(reasons),
        product=folder,
        network=product.method,
        scores=scores,
    )


def product_entries(folder: Path) -> list[IndexEntry]:
    """Entries of all products directly inside a folder, by name; a product is a folder with a provenance record."""
    return [
        product_entry(path.parent)
        for path in sorted(folder.glob(f"*/{PROVENANCE}"))
        if not path.parent.name.startswith(".")
    ]


def write_index(folder: Path, entries: Sequence[IndexEntry]) -> Path:
    """Write `index.html`; an existing one is replaced in one step.

    Parameters
    ----------
    folder : Path
        Where the page goes; links are relative to it.
    entries : sequence of IndexEntry
        In the order in which they are shown; readers may sort by any column.

    Returns
    -------
    Path
    """
    counts = Counter(one.state for one in entries)
    columns = [score for score in SCORES if score.key in _SHOWN]
    heads = (
        ("scene", ""),
        ("state", ""),
        ("method", ""),
        *((score.title, "number") for score in columns),
        ("reason", ""),
    )
    parts = {
        "title": escaped(folder.absolute().name),
        "about": escaped(f"{len(entries)} scenes; press a column's title to sort, a state to see only its scenes."),
        "states": "".join(
            f'<button type="button" data-state="{escaped(state)}">{escaped(state)}: {count}</button>'
            for state, count in counts.most_common()
        ),
        "head": "".join(
            f'<th class="{kind}"><button type="button" class="sort">{escaped(title)}</button></th>'
            for title, kind in heads
        ),
        "rows": "".join(_row(one, folder.absolute()) for one in entries),
    }
    path = folder / INDEX
    write_atomic(path, render("index.html", parts))
    return path


def summary(entries: Iterable[IndexEntry]) -> dict[str, Any]:
    """How many scenes are in each state."""
    return dict(Counter(one.state for one in entries).most_common())


def _row(one: IndexEntry, folder: Path) -> str:
    figures = []
    for score in SCORES:
        if score.key in _SHOWN:
            value = one.scores.get(score.key)
            known = value if isinstance(value, int | float) else None
            shown = "" if known is None else number(known, share=score.share)
            figures.append(f'<td class="number" data-value="{"" if known is None else known}">{shown}</td>')
    state = "passed" if one.state in GOOD else "missed"
    return (
        f'<tr data-state="{escaped(one.state)}"><td>{_name(one, folder)}</td><td class="{state}">{escaped(one.state)}</td>'
        f"<td>{escaped(one.network)}</td>{''.join(figures)}<td><small>{escaped(one.reason)}</small></td></tr>"
    )


def _name(one: IndexEntry, folder: Path) -> str:
    """Thumbnail and name, linked to the report, or else to the folder."""
    if one.product is None:
        return escaped(one.id)
    report = one.product / REPORT
    href = _relative(report if report.is_file() else one.product, folder)
    image = _thumbnail(one.product / THUMBNAIL)
    picture = "" if image is None else f'<img class="thumbnail" alt="" src="{image}">'
    return f'<a href="{escaped(href)}">{picture}{escaped(one.id)}</a>'


def _relative(target: Path, folder: Path) -> str:
    # A leading ./ keeps a name with a colon from being read as a scheme.
    return "./" + quote(Path(os.path.relpath(target.absolute(), folder)).as_posix())


def _thumbnail(path: Path) -> str | None:
    """A product's thumbnail, much smaller, as a data URI; None if there is none to be read."""
    try:
        with Image.open(path) as image:
            image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            white = Image.new("RGBA", image.size, "white")
            shown = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except (OSError, ValueError):
        return None
    with io.BytesIO() as file:
        shown.save(file, format="JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
