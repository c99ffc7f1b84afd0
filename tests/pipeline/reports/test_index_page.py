"""The page of an archive: every scene has its row, links lead to reports, and columns sort."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from hyperfuse.flows.cli import main
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.reports.index_page import INDEX, IndexEntry, product_entries, write_index
from tests.pages import Page, opened
from tests.pipeline.conftest import build_job


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two judged products, as their records say, one that was not judged, and one whose record is damaged."""
    folder = tmp_path_factory.mktemp("archive")
    for name, sam in (("one: <i>", 0.5), ("two", 12.0)):
        path = publish(build_job(folder, name=name)).path
        (path / "qa.json").write_text(json.dumps(judged(sam)))
        (path / "report.html").write_text("<p>report")
    publish(build_job(folder, name="three"))
    damaged = publish(build_job(folder, name="zero")).path
    (damaged / "qa.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(build_job(tmp_path_factory.mktemp("published"))).path


def judged(sam: float) -> dict[str, object]:
    warnings = ["too wide <an> angle"] if sam > 1 else []
    return {
        "state": "published with warnings" if warnings else "published",
        "warnings": warnings,
        "consistency": {"hsi": {"sam_deg": sam, "rmse": 0.01, "bias": 0.0}, "msi": None},
        "seams": None,
        "no_reference": None,
        "reduced_resolution": {"rows": [{"method": "bicubic", "psnr_db": 30.0, "sam_deg": 2.0}]},
        "validity": {"valid": 0.96},
    }


def test_products_are_found_with_their_scores(archive: Path) -> None:
    found = {entry.id: entry for entry in product_entries(archive)}
    assert {entry.id: entry.state for entry in found.values()} == {
        "one: <i>": "published", "two": "published with warnings", "three": "published", "zero": "damaged",
    }  # fmt: skip
    assert found["two"].scores["consistency.hsi.sam_deg"] == 12.0
    assert found["two"].reason == "too wide <an> angle"
    assert found["two"].method == "bicubic"
    assert "qa.json" in found["zero"].reason


def test_the_page_links_and_shows(archive: Path) -> None:
    dead = IndexEntry(id="dead <b>letter", state="dead letter", reason="damaged <file>", method="gsa")
    path = write_index(archive, [*product_entries(archive), dead])
    assert path == archive / INDEX
    text = path.read_text(encoding="utf-8")
    page = Page(text.replace('alt=""', 'alt="thumbnail"'))
    assert page.open == []
    assert "<b>letter" not in text
    assert "<an>" not in text
    links = [link for link in page.links if not link.startswith("data:")]
    assert all((archive / unquote(link)).exists() for link in links)
    assert sum(link.endswith("report.html") for link in links) == 2
    assert all(link.startswith("./") for link in links)  # `one: ` is no scheme
    pictures = [Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))) for image in page.images]
    assert [max(picture.size) for picture in pictures] == [90] * 4 or all(max(p.size) <= 96 for p in pictures)
    assert len(text) < 30_000


def test_links_follow_products_that_lie_elsewhere(archive: Path, tmp_path: Path) -> None:
    (product,) = (entry for entry in product_entries(archive) if entry.id == "two")
    (link,) = (
        link
        for link in Page(write_index(tmp_path, [product]).read_text().replace('alt=""', 'alt="x"')).links
        if link.startswith("./")
    )
    assert (tmp_path / unquote(link)).resolve() == archive / "two" / "report.html"


def test_the_command(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(archive), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["states"] == {"published": 2, "published with warnings": 1, "damaged": 1}
    assert main(["index", str(tmp_path)]) == 3
    assert "no product in any of its subfolders" in capsys.readouterr().err


def with_thumbnail(folder: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(folder / "thumbnail.png")


def with_scores(folder: Path, text: str) -> None:
    (folder / "qa.json").write_text(text)


def with_record(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "provenance.json").read_text()) | changes
    (folder / "provenance.json").write_text(json.dumps(record))


BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text for a number": ("damaged", lambda f: with_scores(f, json.dumps(judged(1.0)).replace("1.0", '"x"'))),
    "a list for a number": ("damaged", lambda f: with_scores(f, json.dumps(judged(1.0)).replace("1.0", "[1]"))),
    "no number": ("published", lambda f: with_scores(f, json.dumps(judged(1.0)).replace("1.0", "NaN"))),
    "an infinite number": ("published", lambda f: with_scores(f, json.dumps(judged(1.0)).replace("1.0", "1e999"))),
    "a number of 400 digits": (
        "published",
        lambda f: with_scores(f, json.dumps(judged(1.0)).replace("1.0", "9" * 400)),
    ),
    "no warnings": ("damaged", lambda f: with_scores(f, '{"state": "published"}')),
    "a list of scores": ("damaged", lambda f: with_scores(f, "[1, 2]")),
    "nested scores": ("damaged", lambda f: with_scores(f, "[" * 100_000)),
    "an image of gigabytes": ("published", lambda f: with_thumbnail(f, (30_000, 30_000))),
    "half an image": (
        "published",
        lambda f: (f / "thumbnail.png").write_bytes((f / "thumbnail.png").read_bytes()[:60]),
    ),
    "a method of another kind": ("damaged", lambda f: with_record(f, method=3)),
    "a name that is no text": ("published", lambda f: with_record(f, method={"name": "\ud800"})),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_product_is_one_row(tmp_path: Path, published: Path, what: str) -> None:
    shutil.copytree(published, tmp_path / "a")
    shutil.copytree(published, tmp_path / "bad")
    (tmp_path / "a" / "qa.json").write_text(json.dumps(judged(0.5)))
    (tmp_path / "bad" / "qa.json").write_text(json.dumps(judged(0.5)))
    state, spoil = BAD[what]
    spoil(tmp_path / "bad")
    entries = product_entries(tmp_path)
    assert [(entry.product.name, entry.state) for entry in entries if entry.product] == [
        ("a", "published"),
        ("bad", state),
    ]
    assert state != "damaged" or "bad" in entries[1].reason
    text = write_index(tmp_path, entries).read_text(encoding="utf-8")
    assert 'href="./a"' in text
    assert 'href="./bad"' in text


def test_a_record_of_gigabytes_is_not_read(tmp_path: Path, published: Path) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "bad"))
    os.truncate(folder / "provenance.json", 1 << 40)
    [entry] = product_entries(tmp_path)
    assert entry.state == "damaged"
    assert f"has {1 << 40} bytes" in entry.reason


def test_names_that_are_no_text_are_shown(tmp_path: Path, published: Path) -> None:
    shutil.copytree(published, tmp_path / os.fsdecode(b"pr\xfc"))
    (tmp_path / os.fsdecode(b"pr\xfc") / "provenance.json").write_text("{")
    assert "./pr%FC" in write_index(tmp_path, product_entries(tmp_path)).read_text(encoding="utf-8")


def test_an_archive_without_scenes_has_a_page(tmp_path: Path) -> None:
    assert "0 scenes" in write_index(tmp_path, []).read_text()


@pytest.mark.browser
def test_a_browser_sorts_and_filters(archive: Path) -> None:
    dead = IndexEntry(id="dead", state="dead letter", reason="no partner")
    path = write_index(archive, [dead, *product_entries(archive)])
    with opened(path) as (page, complaints):

        def names() -> list[str]:
            return [text.strip() for text in page.locator("#scenes tbody tr:visible td:first-child").all_inner_texts()]

        sam = page.locator("th button").nth(3)
        sam.click()
        assert names()[:2] == ["one: <i>", "two"]  # by number, and what is missing goes last
        sam.click()
        assert names()[:2] == ["two", "one: <i>"]
        page.locator("th button").nth(0).click()
        assert names() == ["dead", "one: <i>", "three", "two", "zero"]
        page.get_by_role("button", name="dead letter: 1").click()
        assert names() == ["dead"]
        page.get_by_role("button", name="dead letter: 1").click()
        assert len(names()) == 5
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert complaints == []
