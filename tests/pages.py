"""HTML pages as tests see them: what is in them, and how a headless browser takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hyperfuse.pipeline.reports.html import number

PHONE = {"width": 390, "height": 800}
SHARES = {
    "validity.valid", "validity.invalid_pixels", "validity.filled_hsi", "validity.filled_msi", "validity.implausible_samples",
}  # fmt: skip


class Page(HTMLParser):
    """What the tests want to know of a page."""

    void = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.cells: dict[str, str] = {}
        self.scripts: list[str] = []
        self.policy = ""
        self.paths: list[str] = []
        self.open: list[str] = []
        self._key: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.links += [found[key] for key in ("src", "href", "srcset", "action", "data") if key in found]
        if tag == "img":
            self.images.append(found["src"])
            assert found["alt"]
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag == "path":
            self.paths.append(found["d"])
        if tag not in self.void:
            self.open.append(tag)
        self._key = found.get("data-key", self._key)
        assert not [key for key in found if key.startswith("on")], f"{tag} carries a script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._key = None

    def handle_data(self, data: str) -> None:
        if self._key:
            self.cells[self._key] = data
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def looked_up(record: Any, key: str) -> Any:
    for part in key.split("."):
        record = record[int(part)] if part.isdigit() else record[part]
    return record


def require_figures(page: Page, qa: dict[str, Any]) -> int:
    """Every figure that a report shows is that of `qa.json`; returns how many there are."""
    assert page.cells["state"] == qa["state"]
    figures = {key: shown for key, shown in page.cells.items() if key != "state"}
    for key, shown in figures.items():
        part = qa[key.partition(".")[0]]
        missing = part is None or (key.startswith("consistency.") and part[key.split(".")[1]] is None)
        assert shown == number(None if missing else looked_up(qa, key), share=key in SHARES), key
    return len(figures)


@contextmanager
def opened(path: Path, viewport: dict[str, int] | None = None) -> Iterator[tuple[Any, list[str]]]:
    """A page of a headless browser that has opened a file, and what it complained of or asked for."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        # A Chromium that Playwright has not installed itself is named in the environment.
        chromium = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport=viewport or PHONE)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        yield page, complaints
        chromium.close()
