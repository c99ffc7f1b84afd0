"""An archive: every scene in exactly one state with its reason, whatever happened to it, and nothing done twice."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperfuse.catalogs.errors import Busy, InputRejected, OutOfResources, Transient, UsageError
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.items import Fingerprint
from hyperfuse.pipeline.archive import backlog
from hyperfuse.pipeline.archive import night as night_module
from hyperfuse.pipeline.archive.backlog import Entry, Task
from hyperfuse.pipeline.archive.dead_letters import DeadLetter, DeadLetters
from hyperfuse.pipeline.archive.locks import alone_in
from hyperfuse.pipeline.archive.night import forget, work_off
from hyperfuse.pipeline.archive.outcome import Outcome
from hyperfuse.pipeline.archive.settings import ArchiveConfig, folder_name, open_catalog
from hyperfuse.pipeline.products.publish import verify
from tests.pipeline.archives import archive, both, item, look, night, pretend, states
from tests.pipeline.fusion.test_weights import weight_file

pytestmark = pytest.mark.usefixtures("own_devices")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_module, "RETRY_SECONDS", 0.0)


def letter(config: ArchiveConfig, scene: str) -> DeadLetter:
    found = DeadLetters(config.folder).read(scene)
    assert found is not None
    return found


def stock(config: ArchiveConfig) -> tuple[Entry, ...]:
    return look(config).entries


def due(config: ArchiveConfig) -> tuple[Task, ...]:
    return look(config).due


def test_every_scene_ends_in_one_state_with_its_reason(tmp_path: Path) -> None:
    """A product, one without partner, a cloudy one, one that no reader opens, one whose file is not there, one swapped."""
    (tmp_path / "junk.tif").write_bytes(b"no image")
    config = archive(
        tmp_path,
        [
            *both(0),
            item("h1", "hsi", 1),
            *both(2, cloud=0.9),
            item("h3", "hsi", 3, uri=str(tmp_path / "junk.tif")),
            item("m3", "msi", 3),
            item("h4", "hsi", 4, uri=str(tmp_path / "away.tif")),
            item("m4", "msi", 4),
            item("h5", "hsi", 5, uri=item("", "msi", 5).uri, sensor="synthetic"),
            item("m5", "msi", 5, uri=item("", "hsi", 5).uri, sensor="synthetic"),
        ],
    )
    found = states(config)
    assert found == {
        "h0": "new", "h1": "refused no_partner", "h2": "refused cloudy", "h3": "new", "h4": "new", "h5": "new",
    }  # fmt: skip
    assert not config.folder.exists(), "a look changes nothing"
    first = night(config)
    ended = {
        "h0": "done",
        "h1": "refused no_partner",
        "h2": "refused cloudy",
        "h3": "refused input_rejected",
        "h4": "failed transient",
        "h5": "refused input_rejected",
    }
    assert states(config) == ended
    assert first.started == ("h0", "h3", "h4", "h5")
    assert verify(config.folder / "h0").name == "h0"
    assert {path.stem for path in (config.folder / "deadletter").glob("*.json")} == set(ended) - {"h0"}
    assert letter(config, "h3").files == (str(tmp_path / "junk.tif"),)
    assert (letter(config, "h2").observed, letter(config, "h2").allowed) == (0.9, 0.5)
    assert "is not there" in letter(config, "h4").message
    assert [product.id for product in open_catalog(config).products] == ["h0"]
    page = (config.folder / "index.html").read_text()
    assert all(name in page for name in ended)
    before = {path: path.stat().st_mtime_ns for path in (config.folder / "deadletter").glob("*.json")}
    second = night(config)
    assert second.started == ("h4",), "the second night tries only what may pass"
    assert states(config) == ended
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"h4"}


def test_the_record_of_a_scene_names_the_command_that_replays_it(tmp_path: Path, capsys) -> None:
    from shlex import split

    from hyperfuse.flows.cli import main

    (tmp_path / "junk.tif").write_bytes(b"no image")
    config = archive(tmp_path, [item("h0", "hsi", 0, uri=str(tmp_path / "junk.tif")), item("m0", "msi", 0)])
    night(config)
    program, *arguments = split(letter(config, "h0").replay)
    assert program == "hyperfuse"
    assert main(arguments) == InputRejected.exit_code
    assert "junk.tif" in capsys.readouterr().err


def test_a_changed_weight_file_makes_exactly_its_products_stale(tmp_path: Path) -> None:
    weights = weight_file(tmp_path / "w.safetensors", "csakd-student", bands=8)
    net = {"method": "csakd-student", "weights": str(weights)}
    # The sensor of h1 is found by its content, so the settings of the sensor's name are not its own.
    config = archive(
        tmp_path, [*both(0), item("h1", "hsi", 1, sensor=None), item("m1", "msi", 1)], sensors={"synthetic": net}
    )
    night(config)
    assert states(config) == {"h0": "done", "h1": "done"}
    used = {name: verify(config.folder / name).provenance["method"]["name"] for name in ("h0", "h1")}
    assert used == {"h0": "csakd-student", "h1": "bicubic"}
    weight_file(weights, "csakd-student", bands=8, scale=1.01)
    assert states(config) == {"h0": "stale weights", "h1": "done"}
    assert night(config).started == ("h0",)
    assert states(config) == {"h0": "done", "h1": "done"}
    assert sorted(path.name for path in config.folder.iterdir()) == [".archive", "h0", "h1", "index.html"]


def test_a_product_that_missed_the_catalogue_joins_it_the_next_night(tmp_path: Path) -> None:
    """Its night was killed between publishing and cataloguing; the roots of the scenes need not cover the products."""
    config = archive(tmp_path, both(0), roots=[])
    night(config)
    [item_path] = (tmp_path / "catalog" / "products").glob("h0.json")
    [before] = open_catalog(config).products
    item_path.unlink()
    night(config)
    [again] = open_catalog(config).products
    assert (again.id, again.hsi, again.msi, again.job_key) == ("h0", "h0", "m0", before.job_key)
    assert states(config) == {"h0": "done"}


def test_a_scene_on_a_disk_that_fails_is_tried_again_the_next_night(tmp_path: Path) -> None:
    """Address 0 of a process's memory is a file that ends every read in EIO."""
    config = archive(tmp_path, [item("h0", "hsi", 0, uri="/proc/self/mem"), item("m0", "msi", 0)], roots=["/proc"])
    night(config)
    assert states(config) == {"h0": "failed transient"}
    assert night(config).started == ("h0",)


def by_others(config: ArchiveConfig, how: str) -> dict[Path, bytes]:
    """Make the catalogue one that this software did not write, and give its files."""
    folder = Path(config.catalog)
    if how == "made by others":
        items = sorted(path for path in folder.glob("*/*.json") if path.name != "collection.json")
        links = [{"rel": "item", "href": f"./{path.relative_to(folder)}"} for path in items]
        links.append({"rel": "child", "href": "./deep/er/catalog.json"})
        (folder / "deep" / "er").mkdir(parents=True)
        deeper = {"type": "Catalog", "stac_version": "1.1.0", "id": "deeper", "description": "d", "links": []}
        (folder / "deep" / "er" / "catalog.json").write_text(json.dumps(deeper))
        record = deeper | {"id": "my-institute", "title": "Our own catalogue", "links": links}
    elif how == "edited":
        record = json.loads((folder / "catalog.json").read_text()) | {"title": "Our own catalogue"}
    else:
        record = json.loads((folder / "catalog.json").read_text())
        (folder / "products").mkdir()
        theirs = {"type": "Collection", "id": "products", "links": [], "license": "CC-BY-4.0"}
        (folder / "products" / "collection.json").write_text(json.dumps(theirs))
    (folder / "catalog.json").write_text(json.dumps(record))
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["made by others", "edited", "a collection of others"])
def test_a_catalogue_of_others_is_only_read(tmp_path: Path, how: str) -> None:
    """Every byte of it stays; products go to a catalogue of the archive's own, once."""
    config = archive(tmp_path, both(0))
    (tmp_path / "catalog" / ".lock").unlink()
    before = by_others(config, how)
    night(config)
    assert states(config) == {"h0": "done"}
    assert {path: path.read_bytes() for path in (tmp_path / "catalog").rglob("*") if path.is_file()} == before
    own = Catalog.open(config.folder / "catalog", roots=[config.folder])
    assert [(product.id, product.folder) for product in own.products] == [("h0", config.folder / "h0")]
    assert [(product.hsi, product.msi) for product in own.products] == [("h0", "m0")]
    item_path = config.folder / "catalog" / "products" / "h0.json"
    inputs = [link["href"] for link in json.loads(item_path.read_text())["links"] if link.get("hrhsi:scene")]
    assert [(item_path.parent / href).resolve().name for href in inputs] == ["h0.json", "m0.json"]
    assert all((item_path.parent / href).is_file() for href in inputs)
    written = (config.folder / "catalog" / "products" / "h0.json").stat().st_mtime_ns
    assert night(config).started == ()
    assert (config.folder / "catalog" / "products" / "h0.json").stat().st_mtime_ns == written
    assert folder_name("catalog") != "catalog", "no product takes the place of the catalogue"


# From here on products are only pretended: states follow from records, and these are the same.


def test_stale_says_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archive(tmp_path, both(0))
    night(config, pretend)
    assert states(config) == {"h0": "done"}
    other = config.model_copy(update={"settings": config.settings | {"align.max_shift_px": 4}})
    [entry] = stock(other)
    assert (entry.state, entry.code) == ("stale", "settings")
    assert entry.reason == "align.max_shift_px is 4.0, it was 10.0"
    assert states(config.model_copy(update={"settings": config.settings | {"quality.gate": "warn"}})) == {"h0": "done"}
    monkeypatch.setattr(backlog, "code_version", lambda: "9.9")
    assert states(config) == {"h0": "done"}, "code that decides no sample makes no product stale"
    monkeypatch.setattr(backlog, "samples_code", lambda: "0123456789ab")
    [entry] = stock(config)
    assert (entry.state, entry.code) == ("stale", "code")
    assert entry.reason.startswith("the code is 9.9, it was ")
    assert states(config.model_copy(update={"stale": ("input", "weights")})) == {"h0": "done"}


def test_another_partner_is_another_input(tmp_path: Path) -> None:
    config = archive(tmp_path, [item("h0", "hsi", 0), item("ma", "msi", 0)])
    night(config, pretend)
    scene = item("mb", "msi", 0, uri=str(tmp_path / "mb.tif"))
    Catalog.open(config.catalog).add([replace(scene, fingerprint=Fingerprint(sha256="f" * 64, size=1, mtime_ns=1))])
    chosen = config.model_copy(update={"rules": replace(config.rules, overrides={"h0": "mb"})})
    [entry] = stock(chosen)
    assert (entry.state, entry.code) == ("stale", "input")
    assert "the msi is mb.tif (ffffffffffff), it was synthetic:msi" in entry.reason
    assert entry.task is not None
    assert entry.task.config.publish.replace, "the product of before is exchanged"


def test_an_input_that_changed_since_it_was_catalogued_is_told_once(tmp_path: Path) -> None:
    """Without this rule its product would be stale every night, and made again for ever."""
    old = Fingerprint(sha256="0" * 64, size=0, mtime_ns=0)
    right = item("h0", "hsi", 0)
    config = archive(tmp_path, [replace(right, fingerprint=old), item("m0", "msi", 0)])
    night(config)
    assert states(config) == {"h0": "refused outdated"}
    assert "run `hyperfuse catalog add`" in letter(config, "h0").message
    assert night(config).started == ()
    Catalog.open(config.catalog).add([right])
    assert states(config) == {"h0": "done"}
    night(config)
    assert "h0" not in DeadLetters(config.folder)


def test_what_may_pass_is_tried_again_and_then_quarantined(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    away, fused = Outcome.of(Transient("disk: gone")), []

    def broken(task: Task) -> Outcome:
        fused.append(task.id)
        return away

    for attempts, state in ((1, "failed"), (2, "failed"), (3, "quarantined")):
        night(config, broken)
        assert (letter(config, "h0").attempts, letter(config, "h0").state) == (attempts, state)
    assert len(fused) == 3 * (1 + night_module.RETRIES)
    assert night(config, pretend).started == ()
    assert forget(config, ["h0"]) == ["h0"]
    assert states(config) == {"h0": "new"}
    assert night(config, pretend).started == ("h0",)
    assert states(config) == {"h0": "done"}


def test_a_disk_that_comes_back_in_the_same_night(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    away = Outcome.of(Transient("disk: gone"))
    left = [away, away]
    night(config, lambda task: left.pop() if left else pretend(task))
    assert states(config) == {"h0": "done"}
    assert "h0" not in DeadLetters(config.folder)


@pytest.mark.parametrize(
    ("outcome", "nights"),
    [
        (Outcome.of(OutOfResources("memory: too little")), ["failed", "failed", "quarantined"]),
        (Outcome.of_signal(9, ["line"]), ["failed", "quarantined"]),
        (
            Outcome(exit_code=1, reason="bug", message="ValueError: x", log=("Traceback", "ValueError: x")),
            ["quarantined"],
        ),
        (Outcome(exit_code=3, reason="bad_product", message="does not read back"), ["quarantined"]),
        (Outcome.of(InputRejected("h.tif: no bands")), ["refused"]),
        (Outcome(exit_code=7, reason="quality_refused", message="not registered"), ["refused"]),
        (Outcome(exit_code=4, reason="expected_skip", message="do not overlap"), ["refused"]),
    ],
    ids=["resources", "killed", "bug", "bad product", "rejected", "quality", "skip"],
)
def test_only_what_may_pass_is_tried_again(tmp_path: Path, outcome: Outcome, nights: list[str]) -> None:
    config = archive(tmp_path, [*both(0), *both(1)])
    tried = []

    def fuse(task: Task) -> Outcome:
        tried.append(task.id)
        return outcome if task.id == "h0" else pretend(task)

    for state in nights:
        night(config, fuse)
        assert (letter(config, "h0").state, letter(config, "h0").reason) == (state, outcome.reason)
    night(config, fuse)
    assert tried.count("h0") == len(nights), "once a night, and never after the last verdict"
    assert tried.count("h1") == 1, "one bad scene never stops the rest"
    assert letter(config, "h0").log == outcome.log


def test_a_verdict_counts_for_its_recipe_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archive(tmp_path, both(0))
    refused = Outcome.of(InputRejected("h.tif: no bands"))
    night(config, lambda _: refused)
    assert states(config) == {"h0": "refused input_rejected"}
    with monkeypatch.context() as patch:
        patch.setattr(backlog, "code_version", lambda: "9.9")
        assert states(config) == {"h0": "new"}
    (config.folder / "deadletter" / "h0.json").write_text('{"scene": "h0", "state"')
    assert states(config) == {"h0": "new"}, "a torn record counts as none"


def test_a_refused_new_version_leaves_the_old_product(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    night(config, pretend)
    other = config.model_copy(update={"settings": config.settings | {"method": "gsa"}})
    night(other, lambda _: Outcome.of(InputRejected("h.tif: no bands")))
    [entry] = stock(other)
    assert (entry.state, entry.code) == ("refused", "input_rejected")
    assert entry.reason.endswith("the product of before stays")
    assert states(config) == {"h0": "done"}


def test_a_product_whose_partner_has_gone_stays(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    night(config, pretend)
    Catalog.open(config.catalog).add([item("m0", "msi", 0, cloud=0.9)])
    [entry] = stock(config)
    assert (entry.state, entry.task) == ("done", None)


def test_an_item_with_settings_that_no_reader_takes_costs_the_others_nothing(tmp_path: Path) -> None:
    config = archive(tmp_path, [item("h0", "hsi", 0, settings={"scale": "large"}), item("m0", "msi", 0), *both(1)])
    night(config, pretend)
    assert states(config) == {"h0": "refused bad_item", "h1": "done"}
    assert "scale" in letter(config, "h0").message


def test_items_that_cannot_be_read_are_scenes_too(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    [path] = (tmp_path / "catalog").glob("*/h0.json")
    path.write_text(path.read_text().replace('"Feature"', '"Creature"'))
    night(config, pretend)
    assert set(states(config).values()) == {"refused bad_item"}
    assert [found.code for found in stock(config)] == ["bad_item"]
    assert len(list((config.folder / "deadletter").glob("*.json"))) == 1


def test_a_path_that_holds_no_product_is_left_alone(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    (config.folder / "h0").mkdir(parents=True)
    night(config, pretend)
    assert states(config) == {"h0": "refused occupied"}
    assert list((config.folder / "h0").iterdir()) == []


def test_a_scene_on_which_another_process_works_is_busy(tmp_path: Path) -> None:
    config = archive(tmp_path, [*both(0), *both(1)])
    staging = config.folder / ".h0.abcdefabcdef.staging"
    staging.mkdir(parents=True)
    with locked(staging):
        assert states(config) == {"h0": "busy busy", "h1": "new"}
        assert night(config, pretend).started == ("h1",)
    assert states(config) == {"h0": "new", "h1": "done"}


def test_a_second_night_is_busy(tmp_path: Path) -> None:
    config = archive(tmp_path, both(0))
    with alone_in(config), pytest.raises(Busy, match="another night works on this archive"):
        night(config, pretend)
    assert states(config) == {"h0": "new"}
    assert night(config, pretend).started == ("h0",)


def test_an_interrupt_ends_the_night_and_nothing_else(tmp_path: Path) -> None:
    config = archive(tmp_path, [*both(0), *both(1), *both(2)])
    stopped = []

    def fuse(task: Task) -> Outcome:
        if task.id == "h1":
            raise KeyboardInterrupt
        return pretend(task)

    with pytest.raises(KeyboardInterrupt):
        work_off(config, fuse, stop=lambda: stopped.append(True))
    assert stopped
    assert states(config) == {"h0": "done", "h1": "new", "h2": "new"}
    assert night(config, pretend).started == ("h1", "h2")


def test_devices_work_side_by_side(tmp_path: Path) -> None:
    config = archive(tmp_path, [*both(0), *both(1)], devices=["cuda:0", "cuda:1"])
    together = threading.Barrier(2, timeout=30)

    def fuse(task: Task) -> Outcome:
        together.wait()
        devices.add(task.config.device)
        return pretend(task)

    devices: set[str] = set()
    night(config, fuse)
    assert devices == {"cuda:0", "cuda:1"}
    assert states(config) == {"h0": "done", "h1": "done"}


def test_new_scenes_come_before_failed_and_stale_ones(tmp_path: Path) -> None:
    config = archive(tmp_path, [*both(0), *both(1)])
    night(config, lambda task: Outcome.of(OutOfResources("x")) if task.id == "h0" else pretend(task))
    Catalog.open(config.catalog).add(both(2))
    other = config.model_copy(update={"stale": ("settings",)})
    assert [task.id for task in due(other)] == ["h2", "h0"]
    changed = config.model_copy(update={"settings": config.settings | {"method": "gsa"}})
    assert [task.id for task in due(changed)] == ["h0", "h2", "h1"], "other settings make h0 new, and h1 stale"


def test_a_night_starts_only_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archive(tmp_path, [*both(0), *both(1), *both(2)], max_scenes=1)
    one = night(config, pretend)
    assert one.started == ("h0",)
    assert set(one.left) == {"h1", "h2"}
    assert "as many as a night may start" in one.left["h1"]
    soon = datetime.now(UTC).isoformat()
    late = config.model_copy(update={"max_scenes": None, "until": soon})
    assert "expected to end at" in night(late, pretend).left["h1"]
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(night_module.shutil, "disk_usage", lambda _: usage)
        assert "free some space" in night(config, pretend).left["h2"]
    assert states(config) == {"h0": "done", "h1": "new", "h2": "new"}


def test_costs_follow_from_the_overlap_and_the_pace_of_finished_products(tmp_path: Path) -> None:
    config = archive(tmp_path, [*both(0), *both(1)], settings={"publish.formats": ["zarr", "cog"]})
    assumed = {entry.id: entry.task.cost for entry in stock(config) if entry.task}
    samples = 96 * 96 * 8
    assert assumed["h0"].gigabytes == pytest.approx(samples * 2 * 2 * 0.6 / 1e9, rel=0.02)
    assert assumed["h0"].hours == pytest.approx((samples / 1e6 + 15) / 3600, rel=0.02)
    night(config.model_copy(update={"max_scenes": 1}), pretend)
    measured = {entry.id: entry.task.cost for entry in stock(config) if entry.task}
    assert measured["h0"].hours == 0
    assert measured["h1"].hours == pytest.approx((2 + 15) / 3600, rel=0.02), "two seconds, as its neighbor took"


@pytest.mark.parametrize(
    ("until", "end"),
    [("06:00", "2026-11-22T06:00"), ("23:30", "2026-11-21T23:30"), (1350, "2026-11-21T22:30"), ("2026-12-01T00:00", "2026-12-01T00:00")],
)  # fmt: skip
def test_the_end_of_a_night(tmp_path: Path, until: str | int, end: str) -> None:
    """The next such time of day by the machine's clock; YAML 1.1 reads 22:30 as 1350."""
    config = ArchiveConfig.model_validate({"catalog": "c", "output": tmp_path, "until": until})
    now = datetime.fromisoformat("2026-11-21T22:00").astimezone()
    assert config.deadline(now) == datetime.fromisoformat(end).astimezone()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"until": "soon"}, "until: expected a time of day"),
        ({"maxscenes": 1}, "maxscenes"),
        ({"settings": {"nonsense": 1}}, "nonsense"),
        ({"sensors": {"enmap": {"tiles.core": 33}}}, "tiles"),
        ({"sensors": {"enmap+sentinel": {}}}, "there is no sensor 'sentinel'"),
        ({"rules": {"min_overlap": "much"}}, "rules.min_overlap"),
    ],
)
def test_mistakes_are_told_before_anything_is_opened(tmp_path: Path, fields, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        archive(tmp_path, both(0), **fields)


def test_identifiers_become_names_of_their_own() -> None:
    plain = "ENMAP01-____L2A-DT0000001234_20240501T102030Z_001_V010402_20240502T000000Z"
    assert folder_name(plain) == plain
    odd = ["../../etc", "a/b", "a:b", "", "deadletter", "manifest", ".archive", "x" * 300, "ü", "-rf"]
    names = [folder_name(scene) for scene in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert Path(name).name == name
        assert not name.startswith((".", "-"))
        assert len(name) < 130
        assert name not in {"deadletter", "manifest"}
