"""The command line: one sentence on stderr, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from hyperfuse.flows.cli import main
from hyperfuse.flows.display import Display

GSD = {"hsi": 40.0, "msi": 10.0}


def write(
    path: Path, role: str, *, crs: str | None = "EPSG:32633", nm=True, east: float = 0.0, data=None, **profile
) -> Path:
    """A small tiled GeoTIFF: 12 or 4 bands, reflectance x 10000, wavelengths as band tags."""
    n_bands, size = (12, 30) if role == "hsi" else (4, 120)
    if data is None:
        rng = np.random.default_rng(len(role))
        data = (2000 + 500 * rng.standard_normal((n_bands, size, size))).astype(np.int16)
    centers = np.linspace(450, 2300, n_bands) if role == "hsi" else np.array([490, 560, 665, 842])
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=n_bands, dtype=data.dtype, crs=crs, nodata=-32768,
        transform=Affine(GSD[role], 0, 400_000 + east, 0, -GSD[role], 5_800_000),
        tiled=True, blockxsize=16, blockysize=16, **profile,
    ) as file:  # fmt: skip
        file.write(data)
        file.scales = [1e-4] * n_bands
        for band, center in enumerate(centers, start=1):
            if nm:
                value = center if nm is True else nm
                file.update_tags(band, wavelength=str(value), wavelength_units="Nanometers")
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "in"
    folder.mkdir()
    return write(folder / "hsi.tif", "hsi"), write(folder / "msi.tif", "msi")


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def rejected(capsys, tmp_path: Path, code: int, sentence: str, *arguments: object) -> str:
    """The command ends with this code and sentence; only the inputs remain; no traceback."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    found, _, err = call(capsys, "fuse", *arguments, "--output", out / "product")
    assert found == code, err
    lines = [line for line in err.splitlines() if line.startswith("hyperfuse: ")]
    assert len(lines) == 1
    assert sentence in lines[0], lines[0]
    assert "Traceback" not in err
    assert list(out.iterdir()) == []
    return lines[0]


def test_fuse_verify_and_again(pair, tmp_path, capsys):
    hsi, msi = pair
    code, _, err = call(capsys, "fuse", hsi, msi, "--output", tmp_path / "p")
    assert code == 7  # both are noise
    assert "could not be registered" in err
    anyway = ("--set", "align.on_refuse=keep", "--set", "quality.gate=off")
    code, out, _ = call(capsys, "fuse", hsi, msi, "--output", tmp_path / "p", "--json", *anyway)
    assert code == 0
    record = json.loads(out)
    assert record["bands"] == 12
    assert set(record["files"]) == {"zarr", "cog", "item", "report"}
    code, out, _ = call(capsys, "verify", tmp_path / "p")
    assert code == 0
    assert "verified" in out
    code, _, err = call(capsys, "fuse", hsi, msi, "--output", tmp_path / "p", *anyway)
    assert code == 4
    assert "already published" in err
    code, _, err = call(capsys, "fuse", hsi, msi, "--output", tmp_path / "p", "--method", "bicubic")
    assert code == 3
    assert "exists and is not this product" in err


def test_register_says_how_the_images_lie(tmp_path, capsys):
    recipe = "size=240&ratio=4&bands=20&seed=1&east_m=17&north_m=-9"
    pair = f"synthetic:hsi?{recipe}", f"synthetic:msi?{recipe}"
    files = tmp_path / "figure.png", tmp_path / "points.geojson", tmp_path / "moved.tif"
    code, out, _ = call(
        capsys, "register", *pair, "--json", "--figure", files[0], "--tie-points", files[1], "--apply", files[2]
    )
    assert code == 0
    record = json.loads(out)
    assert (record["east_m"], record["north_m"]) == pytest.approx((17, -9), abs=1.2)
    keys = {"decision", "reason", "model", "residual_before_px", "residual_after_px", "tie_points"}
    assert keys <= record.keys()
    assert all(path.stat().st_size > 1000 for path in files)
    code, out, _ = call(capsys, "register", *pair)
    assert code == 0
    assert "17.0" in out
    assert "agree" in out


def test_register_refuses_what_it_cannot_believe(pair, capsys):
    """The record is printed all the same; the exit code is that of a quality gate."""
    code, out, _ = call(capsys, "register", *pair, "--json")
    assert code == 7  # both are noise
    assert json.loads(out)["decision"] == "refuse"
    code, out, _ = call(capsys, "register", *reversed(pair), "--json")
    assert code == 7
    assert "swapped" in json.loads(out)["reason"]


def test_demo_prints_both_scores(tmp_path, capsys, monkeypatch):
    from hyperfuse.pipeline import demo

    monkeypatch.setattr(demo, "RECIPE", "size=120&bands=8")
    monkeypatch.setattr(demo.demonstrate, "__kwdefaults__", demo.demonstrate.__kwdefaults__ | {"recipe": demo.RECIPE})
    code, out, _ = call(capsys, "demo", "--output", tmp_path / "d")
    assert code == 0
    assert all(word in out for word in ("PSNR", "SAM", "ERGAS", "map_subspace", "bicubic"))


def test_plan_and_networks(pair, capsys, tmp_path):
    code, out, _ = call(capsys, "plan", *pair, "--output", tmp_path / "p", "--json")
    assert code == 0
    assert json.loads(out)["ratio"] == 4
    code, out, _ = call(capsys, "plan", *pair, "--output", tmp_path / "p")
    assert "EPSG:32633" in out
    code, out, _ = call(capsys, "methods", "--json")
    assert {row["name"] for row in json.loads(out)["methods"]} >= {"bicubic", "gsa"}
    assert call(capsys, "methods")[0] == 0
    assert call(capsys, "networks", "--json")[:2] == (code, out)  # its name before 0.1.0


def test_an_option_under_its_old_name_is_taken_and_told(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    code, _, err = call(capsys, "fuse", "a.tif", "b.tif", "--output", "p", "--network", "nope")
    assert (code, "there is no method 'nope'" in err) == (2, True)
    assert "--network is called --method now" in caplog.text


def test_missing_crs(pair, tmp_path, capsys):
    bare = write(pair[0].parent / "bare.tif", "hsi", crs=None)
    sentence = rejected(capsys, tmp_path, 3, "no CRS", bare, pair[1])
    assert "hsi.crs=EPSG:" in sentence
    code, _, _ = call(capsys, "plan", bare, pair[1], "--output", tmp_path / "p", "--set", "hsi.crs=EPSG:32633")
    assert code == 0


def test_no_overlap(pair, tmp_path, capsys):
    far = write(pair[0].parent / "far.tif", "msi", east=50_000)
    sentence = rejected(capsys, tmp_path, 4, "do not overlap", pair[0], far)
    assert "hsi covers" in sentence
    assert "far covers" in sentence


def test_swapped(pair, tmp_path, capsys):
    rejected(capsys, tmp_path, 3, "look swapped", pair[1], pair[0])


def test_no_wavelengths(pair, tmp_path, capsys):
    bare = write(pair[0].parent / "bare.tif", "hsi", nm=False)
    rejected(capsys, tmp_path, 3, "wavelengths=NM,NM", bare, pair[1])


def test_absurd_wavelengths(pair, tmp_path, capsys):
    absurd = write(pair[0].parent / "absurd.tif", "hsi", nm=3)
    rejected(capsys, tmp_path, 3, "300-15000 nm", absurd, pair[1])


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_truncated(pair, tmp_path, capsys, keep):
    data = pair[0].read_bytes()
    pair[0].write_bytes(data[: int(len(data) * keep)])
    rejected(capsys, tmp_path, 3, "hsi.tif", *pair)


def test_all_nodata_and_never_written(pair, tmp_path, capsys):
    empty = write(pair[0].parent / "empty.tif", "hsi", data=np.full((12, 30, 30), -32768, np.int16))
    rejected(capsys, tmp_path, 3, "empty", empty, pair[1])
    zeros = write(pair[0].parent / "zeros.tif", "hsi", data=np.zeros((12, 30, 30), np.int16))
    rejected(capsys, tmp_path, 3, "zeros", zeros, pair[1])


@pytest.mark.parametrize(
    ("network", "lost"),
    [
        ("gsa", (slice(10, 12), slice(18 * 4, 23 * 4))),  # the two coarse pixels that the kernel reaches on each side
        ("map_subspace", (slice(10, 12), slice(20 * 4, 21 * 4))),  # works around holes
    ],
)
def test_nan_and_nodata_stripes_are_marked(pair, tmp_path, capsys, network, lost):
    """Stripes of NaN in the HSI and of nodata in the MSI end as nodata, and nothing else does."""
    rng = np.random.default_rng(0)
    hsi = (0.2 + 0.05 * rng.standard_normal((12, 30, 30))).astype(np.float32)
    hsi[:, :, 20] = np.nan
    msi = (2000 + 500 * rng.standard_normal((4, 120, 120))).astype(np.int16)
    msi[:, 10:12] = -32768
    folder = pair[0].parent
    with rasterio.open(
        folder / "s.tif", "w", driver="GTiff", height=30, width=30, count=12, dtype="float32", crs="EPSG:32633",
        transform=Affine(40, 0, 400_000, 0, -40, 5_800_000),
    ) as file:  # fmt: skip
        file.write(hsi)
        for band in range(12):
            file.update_tags(band + 1, wavelength=str(450 + 100 * band), wavelength_units="nm")
    write(folder / "m.tif", "msi", data=msi)
    code, _, err = call(
        capsys, "fuse", folder / "s.tif", folder / "m.tif", "--output", tmp_path / "p", "--set", "align.estimate=false",
        "--set", "quality.gate=off", "--method", network,
    )  # fmt: skip
    assert code == 0, err
    with rasterio.open(tmp_path / "p" / "p.tif") as file:
        valid = file.read(1) != file.nodata
    expected = np.ones((120, 120), bool)
    expected[lost[0]] = False
    expected[:, lost[1]] = False
    assert np.array_equal(valid, expected)


def test_outputs_that_cannot_be(pair, tmp_path, capsys):
    code, _, err = call(capsys, "fuse", *pair, "--output", tmp_path / "no" / "such")
    assert code == 3
    assert "does not exist" in err
    (tmp_path / "file").write_text("x")
    code, _, err = call(capsys, "fuse", *pair, "--output", tmp_path / "file" / "p")
    assert code == 3
    code, _, err = call(capsys, "fuse", *pair, "--output", tmp_path / "file")
    assert code == 3
    assert "exists" in err
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that not even root can write")
def test_read_only_output(pair, capsys):
    code, _, err = call(capsys, "fuse", *pair, "--output", "/sys/kernel/product")
    assert code == 3
    assert "read-only" in err


def test_missing_file(pair, tmp_path, capsys):
    rejected(capsys, tmp_path, 3, "nothing.tif", pair[0].parent / "nothing.tif", pair[1])


def test_usage(pair, tmp_path, capsys):
    for arguments in (
        ["fuse", *pair],
        ["fuse", *pair, "--output", tmp_path / "p", "--set", "oops"],
        ["fuse", *pair, "--output", tmp_path / "p", "--method", "nope"],
        ["fuse", *pair, "--output", tmp_path / "p", "--set", "tiles.core=100"],
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2, err
        assert err.count("hyperfuse: ") == 1
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2


def test_errors_as_json(pair, tmp_path, capsys):
    code, out, _ = call(capsys, "fuse", pair[1], pair[0], "--output", tmp_path / "p", "--json")
    assert code == 3
    assert json.loads(out) == {"error": json.loads(out)["error"], "reason": "input_rejected", "exit_code": 3}


def test_help_loads_no_torch():
    code = "import sys; from hyperfuse.flows.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display:
        display.show_rows([("product", "/data/[old]/[/x] [red]")])
    assert "/data/[old]/[/x] [red]" in capsys.readouterr().out


def test_a_setting_without_a_value_or_of_no_name_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["fuse", "a", "b", "--output", "c"],
        ["info", "a"],
        ["catalog", "add", "a", "--catalog", "b"],
        ["archive"],
    ):
        assert main([*command, "--set", "ratio"]) == 2
        assert "expected KEY=VALUE" in capsys.readouterr().err
    assert main(["plan", "a", "b", "--output", "c", "--set", "nope=1"]) == 2
    assert capsys.readouterr().err == "hyperfuse: setting nope is unknown; correct its name\n"


def test_what_no_method_can_fuse_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--hsi-bands", "0"]) == 2
    assert "expected at least one band each" in capsys.readouterr().err


def test_a_file_of_settings_that_is_none_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, told in (("a: [1", "cannot be read as a configuration"), (None, "cannot be read (No such file")):
        path = tmp_path / f"{told[:4]}{text is None}.yaml"
        if text is not None:
            path.write_text(text)
        assert main(["plan", "--config", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


@pytest.mark.parametrize("as_json", [False, True])
def test_a_numerical_error_is_one_sentence(
    capsys,
    monkeypatch,
    pair: tuple[Path, Path],
    as_json: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(
        "hyperfuse.pipeline.reports.describe.describe", lambda *_, **__: np.linalg.inv(np.zeros((2, 2)))
    )
    code, out, err = call(capsys, "info", pair[0], *(["--json"] if as_json else []))
    assert code == 3
    assert "do not determine a system of equations (Singular matrix)" in err
    assert "Traceback" not in err
    if as_json:
        assert json.loads(out)["reason"] == "input_rejected"


def test_what_both_scenes_lack_is_one_message(capsys, tmp_path: Path) -> None:
    hsi, msi = write(tmp_path / "hsi.tif", "hsi", crs=None, nm=False), write(tmp_path / "msi.tif", "msi", nm=False)
    code, _, err = call(capsys, "plan", hsi, msi, "--output", tmp_path / "out")
    assert code == 3
    assert "hsi.tif: no wavelengths, no CRS in the file of 12 bands" in err
    assert "; and " in err
    assert "msi.tif: no wavelengths in the file of 4 bands" in err
    # What the message asks for is all that is needed.
    settings = re.findall(r"--set (\S+)", err)
    assert settings == [f"hsi.wavelengths={','.join(['NM'] * 12)}", "hsi.crs=EPSG:CODE", "msi.wavelengths=NM,NM,NM,NM"]
    centers = {12: ",".join(map(str, range(450, 1050, 50))), 4: "490,560,665,842"}
    filled = [
        re.sub("(NM,)+NM", lambda found: centers[found[0].count("NM")], one).replace("CODE", "32633")
        for one in settings
    ]
    given = [part for one in filled for part in ("--set", one)]
    assert call(capsys, "plan", hsi, msi, "--output", tmp_path / "out", *given)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fus", "a", "b"], "invalid choice: 'fus'; did you mean fuse?"),
        (["fuse", "a", "b", "--outptu", "c"], "did you mean --output?"),
        (["networkz"], "did you mean networks?"),
    ],
)
def test_the_name_that_was_meant_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"hyperfuse {metadata.version('hyperfuse')}\n")


@pytest.mark.parametrize(
    ("option", "ours"), [("--verbose", logging.DEBUG), ("--quiet", logging.WARNING), (None, logging.INFO)]
)
def test_libraries_are_heard_from_warnings_on(
    capsys: pytest.CaptureFixture[str], option: str | None, ours: int
) -> None:
    """71,786 lines of rasterio at DEBUG took longer than the run."""
    main(["methods", *([option] if option else [])])
    assert logging.getLogger("hyperfuse").getEffectiveLevel() == ours
    assert not logging.getLogger("rasterio").isEnabledFor(logging.INFO)
