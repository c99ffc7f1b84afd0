"""What our HTML pages have in common: one file each, nothing from the network, text that stays text.

Templates, styles and scripts lie in `templates`. Pictures and figures go into a page as data URIs and JSON, styles
and script inline; a content security policy in the page itself forbids everything else. Figures stand in the page's own
HTML, so that a reader without scripts and a printer see them; scripts draw the charts, and answer sliders and clicks.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_PAGES = Path(__file__).with_name("templates")
_SHARED = {"style": "style.css", "charts": "charts.js"}
"""Parts that every template may ask for, and their files."""


def render(template: str, parts: dict[str, str]) -> str:
    """A page.

    Parameters
    ----------
    template : str
        File in `templates`; `{{name}}` stands for a part.
    parts : dict
        HTML by name, escaped by whoever made it. `style` and `charts` are there already.

    Raises
    ------
    LookupError
        If the template wants a part that is missing.
    """
    shared = {name: _read(file) for name, file in _SHARED.items()}
    # Text that happens to look like a placeholder is never looked at again.
    first, *pieces = _read(template).split("{{")
    whole = [first]
    for piece in pieces:
        name, _, rest = piece.partition("}}")
        whole += [parts[name] if name in parts else shared[name], rest]
    return "".join(whole)


def escaped(value: object) -> str:
    """Text as HTML, also inside quoted attributes."""
    return html.escape(str(value))


def embedded(data: dict[str, Any]) -> str:
    """JSON for a script element, which no name in it can turn into markup."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def number(value: float | None, *, share: bool = False) -> str:
    """A figure as pages show it: four digits, whole numbers whole, shares in percent."""
    if value is None:
        return "not measured"
    if share:
        return f"{100 * value:.3g} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def cell(key: str, value: float | None, *, share: bool = False, best: bool = False) -> str:
    """A cell that names the figure of the record it shows."""
    return f'<td class="number{" best" if best else ""}" data-key="{escaped(key)}">{number(value, share=share)}</td>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, escaped here; without a head if its titles are empty."""
    titles = "".join(f"<th>{escaped(title)}</th>" for title in head) if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escaped(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{titles}</tr>' if titles else ''}{body}</table>"


def listed(sentences: Sequence[str]) -> str:
    """A list of sentences; nothing for none."""
    return f"<ul>{''.join(f'<li>{escaped(one)}</li>' for one in sentences)}</ul>" if sentences else ""


def _read(name: str) -> str:
    return (_PAGES / name).read_text(encoding="utf-8")
