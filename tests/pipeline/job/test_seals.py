"""A staged file that is lost or damaged between a kill and the next run is staged anew, never read as samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hyperfuse.pipeline import run as way
from hyperfuse.pipeline.job import stage as staging
from hyperfuse.pipeline.job.seals import changed, seal
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.run import run
from tests.synthetic import config

RECIPE = "size=300&ratio=4&bands=6&seed=3&east_m=17"
"""So large that each staged image has several chunks, and moved, so that one is resampled."""
SETTINGS = {"method": "bicubic", "publish__formats": "[zarr]", "tiles__core": 128, "tiles__chunk": 64}


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def killed_run(monkeypatch: pytest.MonkeyPatch, output: Path, step: str = "fuse_tiles", **settings: str) -> Path:
    """The staging folder of a run that died before a step."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(way, step, die)
        with pytest.raises(Killed):
            run(config(output, RECIPE, **SETTINGS | settings))
    return next(output.parent.glob(f".{output.name}.*.staging"))


def counts(output: Path) -> np.ndarray:
    with verify(output).open() as data:
        return data["reflectance"].values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(config(output, RECIPE, **SETTINGS))
    return counts(output)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def copy_over(path: Path) -> None:
    """A valid chunk at the wrong place."""
    path.write_bytes(
        next(other for other in path.parent.parent.rglob("*") if other.is_file() and other != path).read_bytes()
    )


HARM: dict[str, tuple[str, Callable[[Path], object]]] = {
    "HSI lost": ("hsi", Path.unlink),
    "HSI bit": ("hsi", flip),
    "MSI lost": ("msi", Path.unlink),
    "MSI cut": ("msi", truncate),
    "MSI swapped": ("msi", copy_over),
}


@pytest.mark.parametrize("case", HARM)
def test_a_harmed_chunk_is_staged_anew(tmp_path, monkeypatch, caplog, undisturbed, case):
    role, harm = HARM[case]
    folder = killed_run(monkeypatch, tmp_path / "out")
    harm(max(folder.glob(f"stage/{role}.zarr/c/*/*/*")))
    run(config(tmp_path / "out", RECIPE, **SETTINGS))
    assert f"files of {role}.zarr are lost or damaged; staged anew" in caplog.text
    assert np.array_equal(counts(tmp_path / "out"), undisturbed, equal_nan=True)


@pytest.mark.parametrize("name", ["stage/hsi.zarr/zarr.json", "staged_files.json", "staged.json"])
def test_harmed_records_are_made_anew(tmp_path, monkeypatch, undisturbed, name):
    folder = killed_run(monkeypatch, tmp_path / "out")
    truncate(folder / name)
    run(config(tmp_path / "out", RECIPE, **SETTINGS))
    assert np.array_equal(counts(tmp_path / "out"), undisturbed, equal_nan=True)


def other_digit(path: Path) -> None:
    """One bit of a number: the record is read as before, and says something else."""
    text = path.read_text()
    for name in ('"east_px"', '"psf_sigma_px"', '"total"', '"correlation"'):
        start = text.find(name)
        digit = next((at for at in range(start, len(text)) if text[at] in "2468"), None) if start >= 0 else None
        if digit is not None:
            path.write_text(text[:digit] + chr(ord(text[digit]) ^ 1) + text[digit + 1 :])
            return
    raise AssertionError(f"{path} holds no number that is known here")


@pytest.mark.parametrize("name", ["staged.json", "tiles/*.json", "registration.geojson"])
def test_a_digit_that_flips_in_a_record_is_found(tmp_path, monkeypatch, undisturbed, name):
    """All of these were believed: the product had another displacement, other statistics, or another table of tie points."""
    folder = killed_run(monkeypatch, tmp_path / "out", "assess")
    other_digit(min(folder.glob(name)))
    product = run(config(tmp_path / "out", RECIPE, **SETTINGS))
    run(config(tmp_path / "as_ever", RECIPE, **SETTINGS))
    assert np.array_equal(counts(tmp_path / "out"), undisturbed, equal_nan=True)
    ours, theirs = (tmp_path / name / "provenance.json" for name in ("out", "as_ever"))
    for part in ("registration", "statistics", "observation", "quality"):
        assert json.loads(ours.read_text()).get(part) == json.loads(theirs.read_text()).get(part)
    table = "registration.geojson"
    assert (tmp_path / "out" / table).read_bytes() == (tmp_path / "as_ever" / table).read_bytes()
    assert product.provenance["tiles"]["finished"] > 1


@pytest.mark.parametrize("name", ["registration.geojson", "registration.png"])
def test_a_lost_report_of_the_registration_is_made_anew_and_costs_no_tile(tmp_path, monkeypatch, name):
    folder = killed_run(monkeypatch, tmp_path / "out", "assess")
    before = (folder / name).read_bytes()
    truncate(folder / name)
    n_tiles = len(list(folder.glob("tiles/*.json")))
    product = run(config(tmp_path / "out", RECIPE, **SETTINGS))
    assert product.provenance["tiles"]["resumed"] == n_tiles > 1
    assert (tmp_path / "out" / name).read_bytes() == before


def test_finished_tiles_are_kept_when_what_is_staged_anew_is_the_same(tmp_path, monkeypatch, undisturbed):
    folder = killed_run(monkeypatch, tmp_path / "out", "assess")
    n_tiles = len(list(folder.glob("tiles/*.json")))
    next(folder.glob("stage/msi.zarr/c/0/0/0")).unlink()
    product = run(config(tmp_path / "out", RECIPE, **SETTINGS))
    assert product.provenance["tiles"]["resumed"] == n_tiles > 1
    assert np.array_equal(counts(tmp_path / "out"), undisturbed, equal_nan=True)


def test_tiles_of_other_samples_are_not_kept(tmp_path, monkeypatch, caplog, undisturbed):
    """Where staging anew gives something else (other libraries), the whole job is done anew."""
    with monkeypatch.context() as patch:
        real = staging.warp
        patch.setattr(staging, "warp", lambda *a, **k: real(*a, **k) + np.float32(0.01))
        folder = killed_run(patch, tmp_path / "out", "assess")
    next(folder.glob("stage/msi.zarr/c/0/0/0")).unlink()
    product = run(config(tmp_path / "out", RECIPE, **SETTINGS))
    assert "all tiles are fused anew" in caplog.text
    assert product.provenance["tiles"]["resumed"] == 0
    assert np.array_equal(counts(tmp_path / "out"), undisturbed, equal_nan=True)


@pytest.mark.parametrize("harm", [flip, truncate], ids=lambda harm: harm.__name__)
def test_a_harmed_first_pass_is_made_anew(tmp_path, monkeypatch, harm: Callable[[Path], object]):
    settings = SETTINGS | {"method": "gsa"}
    clean = run(config(tmp_path / "clean", RECIPE, **settings)).path
    folder = killed_run(monkeypatch, tmp_path / "out", method="gsa")
    harm(folder / "sums.safetensors")
    run(config(tmp_path / "out", RECIPE, **settings))
    assert np.array_equal(counts(tmp_path / "out"), counts(clean), equal_nan=True)


def test_an_intact_job_is_not_staged_again(tmp_path, monkeypatch):
    folder = killed_run(monkeypatch, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("stage/*/c/*/*/*")}
    monkeypatch.setattr(staging, "_stage_image", None)
    killed_run(monkeypatch, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("stage/*/c/*/*/*")} == before


def test_a_seal_sees_what_is_lost_changed_and_foreign(tmp_path):
    one, two, listing = tmp_path / "a/one", tmp_path / "a/two", tmp_path / "list.json"
    for folder in (one, two):
        (folder / "c/0").mkdir(parents=True)
        (folder / "c/0/0").write_text("chunk")
    sha256 = seal(listing, [one, two])
    assert changed(listing, sha256, [one, two]) == []
    (one / "c/0/0.partial").write_text("half a chunk")
    assert changed(listing, sha256, [one, two]) == []
    (one / "c/0/1").write_text("foreign")
    assert changed(listing, sha256, [one, two]) == [one]
    (two / "c/0/0").unlink()
    assert changed(listing, sha256, [one, two]) == [one, two]
    (one / "c/0/1").unlink()
    (two / "c/0/0").write_text("chunk")
    assert changed(listing, sha256, [one, two]) == []
    assert changed(listing, "0" * 64, [one, two]) == [one, two]


def test_samples_are_on_the_disk_before_their_list(tmp_path, monkeypatch):
    """Oracle: the order of flushes; a list that reaches the disk first vouches for files that a power cut takes."""
    (tmp_path / "one/c").mkdir(parents=True)
    (tmp_path / "one/c/0").write_text("chunk")
    seen: list[str] = []
    monkeypatch.setattr("hyperfuse.pipeline.job.seals.flush", lambda path: seen.append(path.name))
    monkeypatch.setattr(
        "hyperfuse.pipeline.job.seals.write_atomic", lambda path, text: (seen.append(path.name), path.write_text(text))
    )
    seal(tmp_path / "list.json", [tmp_path / "one"])
    assert seen.index("0") < seen.index("c") < seen.index("list.json")
    assert seen[-1] == "list.json"
