"""A product is absent or complete, and whoever changes it is found out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import hyperfuse.pipeline.products.publish as publishing
from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.flows.cli import main
from hyperfuse.pipeline.job.completeness import finished
from hyperfuse.pipeline.products import commit as placing
from hyperfuse.pipeline.products.draft import BadProduct, Draft
from hyperfuse.pipeline.products.publish import publish, require_free, side_files, verify
from hyperfuse.pipeline.products.writers import stac
from tests.pipeline.conftest import build_job

Make = Callable[..., Draft]


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(build_job(tmp_path_factory.mktemp("published"))).path


@pytest.fixture
def product(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_product_is_complete_and_alone(finished_job: Make) -> None:
    draft = finished_job()
    steps: list[tuple[str, int, int]] = []
    product = publish(draft, progress=lambda *step: steps.append(step))
    assert [path.name for path in product.path.parent.iterdir()] == ["fused"]
    names = {
        "fused.json", "fused.qml", "fused.tif", "fused.zarr", "manifest.json", "prov.json", "provenance.json", "quality_flags.tif",
        "ro-crate-metadata.json", "thumbnail.png",
    }  # fmt: skip
    assert {path.name for path in product.path.iterdir()} == names
    assert product.provenance == json.loads((product.path / "provenance.json").read_text())
    told = {key: value for key, value in product.provenance.items() if key != "stages"}
    assert told == draft.provenance.model_dump(mode="json")
    assert product.facts == draft.provenance.product
    assert verify(product.path) == product
    assert steps[-1] == ("publish", 7, 7)
    manifest = json.loads((product.path / "manifest.json").read_text())
    assert set(manifest["files"]) == set(contents(product.path)) - {"manifest.json", "fused.json"}
    assert manifest["arrays"] == {"fused.zarr/reflectance": {"chunks": 2 * 3 * 3}}


SUFFIXES = {"cog": {".tif", ".qml"}, "zarr": {".zarr"}, "stac": {".json"}}


@pytest.mark.parametrize("formats", [("cog",), ("zarr",), ("cog", "stac"), ("stac",)])
def test_only_the_formats_asked_for(finished_job: Make, formats: tuple[str, ...]) -> None:
    product = publish(finished_job(formats=formats))
    suffixes = {path.suffix for path in product.path.glob("fused.*")}
    assert suffixes == set().union(*(SUFFIXES[name] for name in formats))
    assert (product.cog is None, product.zarr is None, product.item is None) == tuple(
        name not in formats for name in ("cog", "zarr", "stac")
    )
    verify(product.path)
    if "cog" in formats or "zarr" in formats:
        assert product.open()["reflectance"].shape == (7, 70, 90)
        assert float(product.open()["reflectance"].max()) == pytest.approx(0.45, abs=0.01)
    else:
        with pytest.raises(LookupError, match="published as stac, none of which"):
            product.open()


def test_a_product_may_move(product: Path) -> None:
    moved = product.rename(product.parent / "elsewhere")
    assert verify(moved).path == moved


CHUNK = "fused.zarr/reflectance/c/1/2/0"


@pytest.mark.parametrize(
    "name", [CHUNK, "fused.tif", "fused.qml", "fused.zarr/zarr.json", "provenance.json", "thumbnail.png"]
)
def test_a_flipped_bit_is_found_and_named(product: Path, name: str) -> None:
    flip_a_bit(product / name)
    with pytest.raises(BadProduct, match=name):
        verify(product)


@pytest.mark.parametrize("name", [CHUNK, "fused.tif", "fused.qml", "provenance.json", "manifest.json", "fused.json"])
def test_a_missing_file_is_named(product: Path, name: str) -> None:
    (product / name).unlink()
    with pytest.raises(BadProduct, match=name):
        verify(product)


@pytest.mark.parametrize("name", ["fused.tif.ovr", "fused.zarr/notes.txt", "fused.zarr/reflectance/c/9/0/0"])
def test_a_foreign_file_is_named(product: Path, name: str) -> None:
    (product / name).parent.mkdir(parents=True, exist_ok=True)
    (product / name).write_text("hello")
    with pytest.raises(BadProduct, match=name):
        verify(product)


def test_a_link_is_foreign(product: Path) -> None:
    (product / "link").symlink_to("/etc", target_is_directory=True)
    with pytest.raises(BadProduct, match="link"):
        verify(product)


def test_a_file_replaced_by_a_link_is_found(product: Path) -> None:
    (product / "thumbnail.png").rename(product.parent / "thumbnail.png")
    (product / "thumbnail.png").symlink_to(product.parent / "thumbnail.png")
    with pytest.raises(BadProduct, match=r"thumbnail\.png"):
        verify(product)


def change_item(product: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = product / "fused.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item["properties"].update(datetime="2020-01-01T00:00:00Z"),
        lambda item: item["assets"]["fused"]["bands"][0].update({"eo:center_wavelength": 0.4}),
        lambda item: item["assets"]["manifest"].update({"file:checksum": "1220" + "0" * 64}),
        lambda item: item["assets"].pop("thumbnail"),
        lambda item: item.pop("geometry"),
    ],
    ids=["time", "wavelength", "checksum", "asset", "geometry"],
)
def test_a_changed_item_is_found(product: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_item(product, change)
    with pytest.raises(BadProduct, match=r"fused\.json"):
        verify(product)


def test_a_changed_manifest_does_not_fit_the_item(product: Path) -> None:
    """Who changes a file and its line in the manifest still has the item against him."""
    path = product / "fused.zarr" / "zarr.json"
    path.write_text(path.read_text().replace("CF-1.11", "CF-1.12"))
    manifest = json.loads((product / "manifest.json").read_text())
    manifest["files"]["fused.zarr/zarr.json"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (product / "manifest.json").write_text(json.dumps(manifest, indent=1))
    with pytest.raises(BadProduct, match=r"manifest\.json"):
        verify(product)


def test_an_item_that_is_consistent_but_no_stac_is_refused(product: Path) -> None:
    def change(item: dict[str, Any]) -> None:
        del item["geometry"]
        item["properties"][stac.DIGEST] = stac.digest(item)

    change_item(product, change)
    with pytest.raises(BadProduct, match="no valid STAC item"):
        verify(product)


def test_an_item_cannot_point_out_of_the_product(product: Path) -> None:
    def change(item: dict[str, Any]) -> None:
        item["assets"]["thumbnail"]["href"] = "../../../etc/passwd"
        item["properties"][stac.DIGEST] = stac.digest(item)

    change_item(product, change)
    with pytest.raises(BadProduct, match="outside the product"):
        verify(product)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "hyperfuse-manifest/9"}', "null"])
def test_a_damaged_manifest_is_no_crash(product: Path, text: str) -> None:
    (product / "manifest.json").write_text(text)
    with pytest.raises(BadProduct, match=r"manifest\.json"):
        verify(product)


def test_no_product_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadProduct, match="no such product"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize("formats", [("zarr",), ("cog",)])
def test_a_damaged_chunk_is_not_published(finished_job: Make, formats: tuple[str, ...]) -> None:
    draft = finished_job(formats=formats)
    flip_a_bit(draft.job.fused / "c" / "0" / "1" / "1")
    with pytest.raises(BadProduct, match="does not decode"):
        publish(draft)
    assert not draft.job.config.output.exists()


@pytest.mark.parametrize("what", ["product", "folder", "file", "link"])
def test_what_exists_is_left_untouched(finished_job: Make, published: Path, what: str) -> None:
    draft = finished_job()
    output = draft.job.config.output
    if what == "product":
        shutil.copytree(published, output)
    elif what == "folder":
        output.mkdir()
    elif what == "file":
        output.write_text("mine")
    else:
        output.symlink_to("/nowhere")
    before = contents(output), output.lstat().st_ino
    for attempt in (lambda: publish(draft), lambda: require_free(draft.job)):
        with pytest.raises(ExpectedSkip if what == "product" else InputRejected, match=str(output)):
            attempt()
    assert (contents(output), output.lstat().st_ino) == before
    assert len(finished(draft.job)) == draft.job.plan.n_tiles


@pytest.mark.parametrize("supported", [True, False], ids=["renameat2", "rename"])
def test_a_target_that_appears_meanwhile_wins(
    finished_job: Make, monkeypatch: pytest.MonkeyPatch, *, supported: bool
) -> None:
    draft = finished_job()
    output = draft.job.config.output

    def sync_and_race(_: Path) -> None:
        output.mkdir()
        (output / "theirs").write_text("theirs")

    monkeypatch.setattr(placing, "_sync", sync_and_race)
    if not supported:
        monkeypatch.setattr(placing, "_renameat2", lambda *_: False)
    with pytest.raises(ExpectedSkip, match="appeared"):
        publish(draft)
    assert contents(output).keys() == {"theirs"}


def test_works_without_renameat2(finished_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "_renameat2", lambda *_: False)
    verify(publish(finished_job()).path)


@pytest.mark.parametrize("name", ["manifest", "provenance", "prov", "qa"])
def test_names_that_collide_are_refused(finished_job: Make, name: str) -> None:
    with pytest.raises(InputRejected, match=f"{name}.json"):
        publish(finished_job(name=name))


@pytest.mark.parametrize("formats", [("zarr", "cog", "stac"), ("cog", "stac")], ids=["zarr", "no zarr"])
@pytest.mark.parametrize(
    "step",
    ["cog", "thumbnail", "write_atomic", "_product_root", "_seal", "item", "_sync", "flush", "_renameat2", "_discard"],
)
def test_a_kill_between_steps_leaves_nothing_half(
    finished_job: Make, monkeypatch: pytest.MonkeyPatch, step: str, formats: tuple[str, ...]
) -> None:
    draft = finished_job(formats=formats)
    output = draft.job.config.output

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "cog":
            patch.setattr("rasterio.shutil.copy", die)
        else:
            patch.setattr(placing if hasattr(placing, step) else publishing, step, die)
        with pytest.raises(Killed):
            publish(draft)
    if step == "_discard":
        verify(output)
    else:
        assert not os.path.lexists(output)
        assert len(finished(draft.job)) == draft.job.plan.n_tiles, "a rerun must find its tiles"
    product = publish(draft)
    assert verify(product.path) == product
    assert [path.name for path in output.parent.iterdir()] == ["fused"]


def test_a_kill_at_every_system_call_leaves_nothing_half(finished_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die at a random fsync, again and again: the output stays away, and the last run publishes."""
    draft = finished_job()
    real, rng = os.fsync, np.random.default_rng(7)
    for countdown in rng.integers(1, 30, size=4):
        left = [int(countdown)]

        def fsync(handle: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(Killed):
                publish(draft)
        assert not os.path.lexists(draft.job.config.output)
    verify(publish(draft).path)


def test_litter_of_a_killed_worker_is_swept(finished_job: Make) -> None:
    draft = finished_job()
    (draft.job.fused / "c" / "0" / "0" / "0.1234.partial").write_bytes(b"half")
    (draft.job.product / "old.tif").write_bytes(b"old")
    verify(publish(draft).path)


def test_what_a_viewer_leaves_is_told_and_no_fault(
    product: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with rasterio.open(product / "fused.tif") as image:
        image.stats(indexes=1)
    assert (product / "fused.tif.aux.xml").is_file(), "GDAL keeps statistics beside the image"
    (product / "fused.qmd").write_text("<qgis/>")
    (product / "fused.zarr" / ".DS_Store").write_bytes(b"\0")
    assert verify(product).job_key
    left = ["fused.qmd", "fused.tif.aux.xml", "fused.zarr/.DS_Store"]
    assert all(any(name in told for told in caplog.messages) for name in left)
    assert side_files(product) == left
    assert main(["verify", str(product), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["side_files"] == left


@pytest.mark.parametrize("name", ["notes.txt", "aux.xml", "fused.aux.xml.txt", "sub/x.tif"])
def test_other_files_are_foreign(product: Path, name: str) -> None:
    (product / name).parent.mkdir(exist_ok=True)
    (product / name).write_text("x")
    with pytest.raises(BadProduct, match=f"{name} does not belong"):
        verify(product)


def test_a_link_is_no_side_file(product: Path) -> None:
    (product / "fused.tif.aux.xml").symlink_to("/etc/hostname")
    with pytest.raises(BadProduct, match="does not belong"):
        verify(product)
