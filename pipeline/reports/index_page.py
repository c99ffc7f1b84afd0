"""`index.html`, the page of a folder of products, and of an archive also of the scenes without a product.

The page carries a small thumbnail and a few scores of each product. Links to reports and product folders are relative, so
that the folder can be moved as a whole.

Products may come from anywhere. Whatever is wrong with one is its own row, and no product keeps the page from being written:
records and images are bounded before they are read.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.job.product_files import PROVENANCE, QA, REPORT, THUMBNAIL
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.reports.html import number, render
from hyperfuse.pipeline.reports.scores import SCORES, Score, read_scores

INDEX = "index.html"
GOOD = frozenset({"done", "published"})
"""States that need no attention; all others are red."""
_THUMBNAIL_PX = 96
_MAX_THUMBNAIL_PX = 1 << 24
"""Pixels of a product's thumbnail that are decoded at most: ours have 2^18."""
_MAX_RECORD_BYTES = 64 << 20
_MAX_TEXT = 2000
"""Characters of a name or a reason."""
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
    """Why it is in that state, as a sentence."""
    product: Path | None = None
    """Product folder, if there is one."""
    method: str = ""
    """Method."""
    scores: dict[str, float | str | None] = field(default_factory=dict)
    """Figures by the keys of `pipeline.reports.scores.SCORES`; the cell of a missing one is empty."""


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """A score that columns can be sorted by."""

    value: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class _IndexRow:
    """A scene as `index_page.html` shows it."""

    name: str
    address: str | None
    """Relative link to the report, or to the product folder if there is no report; None without a product."""
    thumbnail: str | None
    """Data URI of a JPEG."""
    state: str
    good: bool
    method: str
    figures: Sequence[_Figure]
    """One per title of `_IndexPage.scores`."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class _IndexPage:
    """What `index_page.html` shows."""

    title: str
    states: Sequence[tuple[str, int]]
    """States and how many scenes are in each, most frequent first."""
    scores: Sequence[str]
    """Titles of the columns of figures."""
    rows: Sequence[_IndexRow]


def product_entry(folder: Path) -> IndexEntry:
    """The entry of a product folder, from its records; its state is `damaged` if they cannot be read."""
    try:
        _require_bounded(folder / PROVENANCE)
        _require_bounded(folder / QA)
        product = Product.load(folder)
        qa = product.scores()
        scores = read_scores(qa, product.method)
        reasons = [] if qa is None else [str(warning) for warning in qa["warnings"]]
    except (BadProduct, OSError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = f"{folder}: its records cannot be read ({type(error).__name__}: {error}); run `hyperfuse verify` on it"
        return IndexEntry(
            id=folder.name,
            state="damaged",
            reason=str(error) if isinstance(error, BadProduct) else reason,
            product=folder,
        )
    except RecursionError:
        return IndexEntry(
            id=folder.name, state="damaged", reason=f"{folder}: its records are nested too deeply", product=folder
        )
    return IndexEntry(
        id=product.name,
        state=str(scores["state"] or "published"),
        reason="; ".join(reasons),
        product=folder,
        method=product.method,
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
    page = _IndexPage(
        title=folder.absolute().name,
        states=Counter(one.state for one in entries).most_common(),
        scores=[score.title for score in SCORES if score.key in _SHOWN],
        rows=[_row(one, folder.absolute()) for one in entries],
    )
    path = folder / INDEX
    write_atomic(path, render("index_page.html", page))
    return path


def index_record(entries: Iterable[IndexEntry]) -> dict[str, Any]:
    """How many scenes are in each state."""
    return dict(Counter(one.state for one in entries).most_common())


def _row(one: IndexEntry, folder: Path) -> _IndexRow:
    return _IndexRow(
        name=_plain(one.id),
        address=None if one.product is None else _address(one.product, folder),
        thumbnail=None if one.product is None else _thumbnail(one.product / THUMBNAIL),
        state=_plain(one.state),
        good=one.state in GOOD,
        method=_plain(one.method),
        figures=[_figure(score, one.scores.get(score.key)) for score in SCORES if score.key in _SHOWN],
        reason=_plain(one.reason),
    )


def _plain(text: str) -> str:
    """A text that can be written: names of files and records of others may hold what UTF-8 does not."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _require_bounded(record: Path) -> None:
    """Refuse a record that is larger than any of ours."""
    size = record.stat().st_size if record.is_file() else 0
    if size > _MAX_RECORD_BYTES:
        raise BadProduct(f"{record}: has {size} bytes, expected a record of at most {_MAX_RECORD_BYTES}")


def _figure(score: Score, value: float | str | None) -> _Figure:
    # An integer of JSON may be larger than any float.
    known = value if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None
    return _Figure(value=known, text="" if known is None else number(known, share=score.share))


def _address(product: Path, folder: Path) -> str:
    """Link from the page's folder to a product's report, or to the product itself."""
    report = product / REPORT
    target = report if report.is_file() else product
    # A leading ./ keeps a name with a colon from being read as a scheme.
    return "./" + quote(os.fsencode(os.path.relpath(target.absolute(), folder)))


def _is_small_png(path: Path) -> bool:
    """Whether a file is a PNG of a size that is decoded, by its first bytes: a small file may unpack to gigabytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or start[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    width, height = struct.unpack(">II", start[16:24])
    return 0 < int(width) * int(height) <= _MAX_THUMBNAIL_PX


def _thumbnail(path: Path) -> str | None:
    """A product's thumbnail at the page's size, as a data URI; None if it is missing or cannot be read."""
    try:
        if not _is_small_png(path):
            return None
        with Image.open(path, formats=["PNG"]) as image:
            image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            white = Image.new("RGBA", image.size, "white")
            shown = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):
        return None
    with io.BytesIO() as file:
        shown.save(file, format="JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
