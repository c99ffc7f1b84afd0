from __future__ import annotations

import pytest

from hyperfuse.catalogs.addresses import carries_user, without_user
from hyperfuse.catalogs.errors import UsageError
from hyperfuse.flows.cli import main
from hyperfuse.pipeline.archive.settings import load_archive
from hyperfuse.pipeline.config import RunConfig, load_config, load_scene

ADDRESS = "s3://bob:hunter2@host/jobs"
BASE = {"hsi.uri": "a", "msi.uri": "b", "output": "c"}


def test_settings_are_read_as_scalars():
    config = load_config(None, BASE | {"hsi.scale": "1e-4", "hsi.wavelengths": "665,560", "publish.formats": "[zarr]"})
    assert config.hsi.scale == 1e-4
    assert config.hsi.wavelengths == "665,560"
    assert config.publish.formats == ("zarr",)


@pytest.mark.parametrize("suffix", ["yaml", "toml", "json"])
def test_files_of_three_kinds_and_overrides(tmp_path, suffix):
    text = {
        "yaml": "hsi: {uri: x}\nmsi: {uri: y}\noutput: o\ntiles: {core: 256}\n",
        "toml": 'output = "o"\n[hsi]\nuri = "x"\n[msi]\nuri = "y"\n[tiles]\ncore = 256\n',
        "json": '{"hsi": {"uri": "x"}, "msi": {"uri": "y"}, "output": "o", "tiles": {"core": 256}}',
    }[suffix]
    path = tmp_path / f"run.{suffix}"
    path.write_text(text)
    config = load_config(path, {"method": "bicubic"})
    assert (config.hsi.uri, config.tiles.core, config.method) == ("x", 256, "bicubic")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hsi.nope": "1"}, r"hsi\.nope"),
        ({"tiles.core": "100"}, r"tiles: core=100 must be a multiple of chunk=256"),
        ({"method": "nope"}, r"method: there is no method 'nope'; choose one of bicubic"),
        ({"ratio": "1"}, r"ratio"),
        ({"publish.formats": "[hdf]"}, r"publish\.formats"),
        ({"hsi.scale": "0"}, r"hsi\.scale"),
        ({"output.x": "1"}, r"output is not a group"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(UsageError, match=message):
        load_config(None, BASE | setting)


@pytest.mark.parametrize(
    "key", ["store", "dask", "hsi.uri", "msi.responses", "weights", "output", "network", "publish.formats"]
)
def test_addresses_with_a_password_are_refused_and_not_repeated(key):
    """All settings stand in the records of job and product."""
    with pytest.raises(UsageError, match="carries a user name or a password") as told:
        load_config(None, BASE | {key: "s3://bob:hunter2@host/jobs"})
    assert "hunter2" not in str(told.value)
    assert "bob" not in str(told.value)


@pytest.mark.parametrize("field", [{"catalog": ADDRESS}, {"roots": [ADDRESS]}, {"settings": {"store": ADDRESS}},
                                   {"sensors": {"enmap": {"weights": ADDRESS}}}])  # fmt: skip
def test_so_are_those_of_an_archive(field):
    with pytest.raises(UsageError) as told:
        load_archive(None, {"catalog": "c", "output": "o"} | field)
    assert "hunter2" not in str(told.value)


def test_no_message_of_the_command_line_repeats_a_password(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = ["synthetic:hsi?size=96", "synthetic:msi?size=96"]
    for command in (
        ["fuse", *scenes, "--output", "p", "--set", f"store={ADDRESS}"],
        ["fuse", *scenes, "--output", "p", "--dask", ADDRESS],
        ["fuse", ADDRESS, scenes[1], "--output", "p"],
        ["fuse", *scenes, "--output", "p", "--set", ADDRESS],
        ["info", ADDRESS],
        ["archive", ADDRESS, "--output", "p"],
        ["catalog", "list", ADDRESS],
        ["catalog", "add", ADDRESS, "--catalog", "c"],
        ["catalog", "add", "x", "--catalog", ADDRESS],
    ):
        assert main([*command, "--json"]) != 0
        told = capsys.readouterr()
        assert "hunter2" not in told.out + told.err, command
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("https://bob:p@ss@host/a@b?c=d@e", "https://host/a@b?c=d@e"),
        ("simplecache::s3://key:secret@bucket/x", "simplecache::s3://bucket/x"),
        ("tcp://10.0.0.1:8786", "tcp://10.0.0.1:8786"),
        ("s3://bucket/user@host", "s3://bucket/user@host"),
        ("/data/a@b.tif", "/data/a@b.tif"),
    ],
)
def test_user_information_of_an_address(text, plain):
    assert without_user(text) == plain
    assert carries_user(text) == (text != plain)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="missing"):
        load_config(tmp_path / "missing.yaml", {})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="expected a mapping"):
        load_config(tmp_path / "list.yaml", {})


def test_the_key_ignores_where_and_how_but_not_what():
    config = load_config(None, BASE)
    elsewhere = load_config(
        None, {"hsi.uri": "z", "msi.uri": "b", "output": "d", "device": "cpu", "dask": "local", "tiles.batch": "9"}
    )
    assert config.decisive() == elsewhere.decisive()
    assert config.decisive() != load_config(None, BASE | {"method": "bicubic"}).decisive()
    assert config.decisive() != load_config(None, BASE | {"hsi.scale": "2"}).decisive()


def test_schema_is_a_form():
    schema = RunConfig.model_json_schema()
    assert schema["properties"]["method"]["description"].startswith("Fusion method")


def test_responses_are_those_of_the_msi():
    with pytest.raises(UsageError, match=r"setting hsi: hsi.responses is not used"):
        load_config(None, {"hsi.uri": "a", "hsi.responses": "a.csv", "msi.uri": "b", "output": "c"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [("665", "665"), ("665.5", "665.5"), ("[665, 560]", "665,560"), ("665,560", "665,560"), ("table.csv", "table.csv")],
)
def test_one_wavelength_is_as_good_as_several(value, expected):
    assert load_config(None, BASE | {"msi.wavelengths": value}).msi.wavelengths == expected
    assert load_scene("a", {"msi.wavelengths": value}).wavelengths == expected


def test_a_number_is_a_code_of_epsg():
    assert load_config(None, BASE | {"msi.crs": "32633"}).msi.crs == "EPSG:32633"


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("hsi.wavelenghts", r"hsi\.wavelengths"),
        ("align.max_shift", r"align\.max_shift_px"),
        ("max_shift_px", r"align\.max_shift_px"),
        ("hsi.no_data", r"hsi\.nodata"),
    ],
)
def test_settings_that_are_nearly_right(setting, meant):
    with pytest.raises(UsageError, match=rf"setting {setting} is unknown; did you mean {meant}\?"):
        load_config(None, BASE | {setting: "1"})


def test_settings_of_a_scene_that_are_nearly_right():
    with pytest.raises(UsageError, match=r"setting nodatta is unknown; did you mean nodata\?"):
        load_scene("a", {"nodatta": "0"})
    with pytest.raises(UsageError, match="setting qqq is unknown; correct its name"):
        load_scene("a", {"qqq": "0"})


def test_settings_under_their_old_names_are_taken_and_told(caplog: pytest.LogCaptureFixture) -> None:
    old = load_config(None, BASE | {"network": "gsa", "observe": "tables", "learned": "never"})
    assert (old.method, old.sensor_model, old.residual) == ("gsa", "tables", "never")
    assert "setting network is called method now" in caplog.text
    new = load_config(None, BASE | {"method": "gsa", "sensor_model": "tables", "residual": "never"})
    assert old.decisive() == new.decisive()


def test_a_setting_overrules_that_of_the_file_whatever_name_either_has(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("network: gsa\n", encoding="utf-8")
    assert load_config(path, BASE | {"method": "bicubic"}).method == "bicubic"
    assert load_config(path, BASE | {"network": "bicubic"}).method == "bicubic"


def test_both_names_of_a_setting_are_refused() -> None:
    with pytest.raises(UsageError, match="settings network and method are two names of one; keep method"):
        load_config(None, BASE | {"network": "gsa", "method": "gsa"})


def test_null_in_a_file_is_not_given(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("hsi: {uri: a}\nmsi: {uri: b}\noutput: c\nmethod:\nalign:\n  # most: field\ntiles:\n")
    given = {"hsi.uri": "a", "msi.uri": "b", "output": "c"}
    assert load_config(path, {}) == load_config(None, given)
    assert load_config(path, {"align.most": "shift"}).align.most == "shift"
    path.write_text("hsi: {uri: a}\nmsi: {uri: b}\noutput:\n")
    with pytest.raises(UsageError, match="output is missing"):
        load_config(path, {})
