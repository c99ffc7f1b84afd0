"""How objects show themselves in a notebook: a name, a table of a few lines, and a picture where there is one."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

_MOST_PICTURE = 4_000_000
"""Bytes of a picture that is put into a notebook."""


def rows_html(title: str, rows: Iterable[tuple[str, object]], picture: Path | None = None) -> str:
    """A small table; every text in it is escaped.

    Parameters
    ----------
    title : str
    rows : iterable of (str, object)
        Names and values; a value that is None is left out.
    picture : Path, optional
        A PNG file, embedded.
    """
    shown = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows
        if value is not None
    )
    image = ""
    if picture is not None and picture.is_file() and picture.stat().st_size <= _MOST_PICTURE:
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="" style="max-width:320px" src="data:image/png;base64,{data}">'
    return f"<div><strong>{escape(title)}</strong><table>{shown}</table>{image}</div>"
