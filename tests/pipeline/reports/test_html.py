"""Hostile text stays text: whatever a name, note or setting holds, a page has the elements that its template gives it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from hyperfuse.pipeline.job.product_files import REPORT
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.reports import comparison_page, html, index_page, product_page
from hyperfuse.pipeline.reports.compare import compare
from hyperfuse.pipeline.run import run
from tests.pages import opened
from tests.synthetic import SMALL, config

NAME = """<img src=x onerror=hacked=1> "'> {{7*7}} {% if %} {#no#} &lt;"""
"""Hostile, and a valid name of a folder."""
HOSTILE = f"</script></style><script>hacked = 1</script>{NAME}"


class Structure(HTMLParser):
    """Elements with the names of their attributes, and all text: between elements, in attributes, and in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.texts += [value or "" for _, value in attrs]
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))
        self._in_script = False

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in_script else self.texts).append(data)


def refilled(value: Any, text: str) -> Any:
    """The same value with every string in it replaced."""
    if isinstance(value, str):
        return text
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: refilled(getattr(value, field.name), text) for field in fields(value)})
    if isinstance(value, dict):
        return {key: refilled(one, text) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(refilled(one, text) for one in value)
    return value


@dataclass(frozen=True)
class Written:
    """Pages about hostile products, and what their templates were given."""

    folder: Path
    product: Product
    views: dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("hostile")
    views: dict[str, Any] = {}

    def render(template: str, view: Any) -> str:
        views[template] = view
        return html.render(template, view)

    with pytest.MonkeyPatch.context() as patch:
        for module in (product_page, comparison_page, index_page):
            patch.setattr(module, "render", render)
        # Two products of one method are told apart by their names.
        product, second = (
            run(config(folder / name, SMALL, method="bicubic", publish__formats=["zarr"], publish__license=HOSTILE))
            for name in (NAME, "b")
        )
        comparison_page.write_page(compare([product.path, second.path]), folder / "comparison.html")
        entry = index_page.IndexEntry(id=HOSTILE, state=HOSTILE, reason=HOSTILE, method=HOSTILE)
        index_page.write_index(folder, [*index_page.product_entries(folder), entry])
        yield Written(folder=folder, product=product, views=views)


@pytest.mark.parametrize("template", ["product_page.html", "comparison_page.html", "index_page.html"])
def test_no_value_adds_an_element_or_an_attribute(written: Written, template: str) -> None:
    view = written.views[template]
    plain, hostile = (Structure(html.render(template, refilled(view, text))) for text in ("text", HOSTILE))
    assert hostile.elements == plain.elements
    assert hostile.scripts[-1] == plain.scripts[-1]  # the program; the JSON is below
    # Where the plain page has the text, the hostile one has it to the letter.
    assert len(hostile.texts) == len(plain.texts)
    shown = [(ours, theirs) for ours, theirs in zip(plain.texts, hostile.texts, strict=True) if ours != theirs]
    assert len(shown) >= 15
    assert all(theirs == ours.replace("text", HOSTILE) for ours, theirs in shown)


@pytest.mark.parametrize("template", ["product_page.html", "comparison_page.html"])
def test_json_for_scripts_holds_hostile_text_to_the_letter(written: Written, template: str) -> None:
    view = refilled(written.views[template], HOSTILE)
    assert json.loads(Structure(html.render(template, view)).scripts[0]) == view.data


def test_names_notes_and_settings_of_products_stay_text(written: Written) -> None:
    report, comparison, index = (
        Structure((folder / name).read_text(encoding="utf-8"))
        for folder, name in (
            (written.product.path, REPORT), (written.folder, "comparison.html"), (written.folder, "index.html"),
        )
    )  # fmt: skip
    assert f"{NAME}: synthetic-hsi fused with synthetic-msi" in report.texts
    assert any(json.dumps(HOSTILE) in text for text in report.texts)  # the setting
    assert f"{NAME} and b" in comparison.texts
    assert json.loads(comparison.scripts[0])["labels"] == [NAME, "b"]
    assert {NAME, HOSTILE} <= set(index.texts)
    for page in (report, comparison, index):
        assert not any(name.startswith("on") for _, *names in page.elements for name in names)
        assert sum(element[0] == "script" for element in page.elements) == (1 if page is index else 2)


@pytest.mark.parametrize("template", ["product_page.html", "comparison_page.html", "index_page.html"])
def test_the_policy_allows_the_script_of_the_page_alone(written: Written, template: str) -> None:
    page = Structure(html.render(template, written.views[template]))
    (policy,) = (text for text in page.texts if text.startswith("default-src"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_braces_in_scripts_and_styles_are_no_placeholders(written: Written) -> None:
    text = (written.product.path / REPORT).read_text(encoding="utf-8")
    templates = Path(html.__file__).with_name("templates")
    for file in ("style.css", "charts.js", "product_page.js"):
        assert (templates / file).read_text(encoding="utf-8") in text


def test_a_template_that_wants_more_than_its_view_has_fails() -> None:
    @dataclass
    class Little:
        title: str

    with pytest.raises(UndefinedError, match="rows"):
        html.render("index_page.html", Little(title="x"))


@pytest.mark.browser
@pytest.mark.parametrize("page", ["report", "comparison", "index"])
def test_a_browser_runs_no_script_of_a_name(written: Written, page: str) -> None:
    path = written.product.path / REPORT if page == "report" else written.folder / f"{page}.html"
    with opened(path) as (shown, complaints):
        assert shown.evaluate("typeof hacked") == "undefined"
        assert NAME in shown.locator("body").inner_text()
        assert complaints == []


@pytest.mark.browser
def test_a_browser_refuses_a_script_that_was_added(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    added = "<script>hacked = 1</script><img src=data:, onerror='hacked = 2'></body>"
    text = (written.folder / "index.html").read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", added), encoding="utf-8")
    with opened(path) as (shown, complaints):
        assert shown.evaluate("typeof hacked") == "undefined"
        assert len([one for one in complaints if "Content Security Policy" in one]) == 2
