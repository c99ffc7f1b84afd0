"""Rendering of the HTML pages: jinja2 templates that escape every value.

A page is one file without any request to a network: styles and scripts are inlined, pictures are data URIs, numbers for the
charts are JSON. A content security policy in the page forbids everything else, also any script but the page's own. Tables are
plain HTML, so that a page can be read without scripts and printed; scripts draw the charts and answer sliders and clicks.

The templates lie in `templates`: `page.html` is the frame of all pages, `macros.html` has the parts that they share. A
template reads the fields of a dataclass and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table of figures."""

    text: str
    key: str = ""
    """Dotted place of the figure in the record, which the page carries as `data-key`; empty for plain text."""
    best: bool = False
    """Whether it is marked as the best of its row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table of figures."""

    title: str
    cells: Sequence[Cell] = ()
    error: str = ""
    """Why there are no figures; shown in place of the cells."""
    chosen: bool = False
    """Whether the row is highlighted."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of figures: text in the first column, right-aligned figures in the others."""

    columns: Sequence[str] = ()
    """Titles of the columns of figures; no line of titles if empty."""
    corner: str = ""
    """Title of the first column."""
    rows: Sequence[Row]


def render(template: str, view: DataclassInstance) -> str:
    """Fill a template.

    Parameters
    ----------
    template : str
        File in `templates`.
    view : dataclass
        Its fields are the template's variables. Text is escaped by the template.

    Raises
    ------
    jinja2.UndefinedError
        If the template uses a name that the view does not have.
    """
    return _environment.get_template(template).render({field.name: getattr(view, field.name) for field in fields(view)})


def number(value: float | None, *, share: bool = False) -> str:
    """Format a figure: four significant digits, integers in full, shares in percent."""
    if value is None:
        return "not measured"
    if share:
        return f"{100 * value:.3g} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def quantity_label(quantity: str, unit: str) -> str:
    """Title of an axis or a map: what the samples are, with their unit unless it is 1."""
    return quantity.replace("_", " ") + (f" ({unit})" if unit != "1" else "")


def figure(key: str, value: float | None, *, share: bool = False, best: bool = False) -> Cell:
    """The cell of a figure of a record.

    Parameters
    ----------
    key : str
        Its dotted place in the record.
    value : float or None
        None if it was not measured.
    share : bool
        Show it in percent.
    best : bool
        Mark it as the best of its row.
    """
    return Cell(text=number(value, share=share), key=key, best=best)


def _sha256(script: str) -> str:
    """Digest of a script as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _source(file: str) -> Markup:
    """A style sheet or script as it stands: braces in it are no placeholders."""
    return Markup((_TEMPLATES / file).read_text(encoding="utf-8"))  # noqa: S704 (a file of ours)


def _script(*files: str) -> Markup:
    """Scripts, one after the other."""
    return Markup("\n").join([Markup('\n"use strict";'), *(_source(file) for file in files)])


_environment = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,  # everything, whatever a template's name ends with
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals["source"] = _source
_environment.globals["script"] = _script
_environment.filters["sha256"] = _sha256
# JSON in a script element; `tojson` writes <, >, & and ' as \uXXXX, so that no text in it can end the element.
_environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
