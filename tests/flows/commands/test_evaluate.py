"""`hyperfuse evaluate`: a table, a record and a figure; refusals in one sentence with their exit code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import savemat

from hyperfuse.flows.cli import main
from hyperfuse.flows.display import Display

PAIR = "synthetic:hsi?size=192&bands=40,synthetic:msi?size=192&bands=40"
CUBE = "synthetic:truth?size=64&bands=40&seed=2"


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_record(capsys, tmp_path):
    figure = tmp_path / "bars.png"
    code, out, _ = call(capsys, CUBE, "--methods", "bicubic,gsa", "--ratio", "2,4", "--msi", "s2-4,s2-6", "--noise",
                        "35/40,none", "--json", "--figure", figure)  # fmt: skip
    assert code == 0
    record = json.loads(out)
    assert len(record["rows"]) == 2 * 2 * 2 * 2
    assert len(record["protocols"]) == 8
    assert {(row["ratio"], row["msi"], row["hsi_snr_db"]) for row in record["rows"]} == {
        (ratio, msi, noise) for ratio in (2, 4) for msi in ("s2-4", "s2-6") for noise in (35.0, None)
    }
    scores = {(r["method"], r["ratio"], r["msi"], r["hsi_snr_db"]): r["psnr_db"] for r in record["means"]}
    assert scores["gsa", 4, "s2-6", None] > scores["gsa", 4, "s2-4", None] > scores["bicubic", 4, "s2-4", None]
    assert all(row["error"] is None and row["seconds"] >= 0 for row in record["rows"])
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_table_of_cubes_and_pairs(capsys, tmp_path):
    """A damaged cube and a network without weights are lines below the table, not the end of it."""
    (tmp_path / "damaged.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    code, out, _ = call(capsys, CUBE, PAIR, tmp_path / "damaged.mat", "--methods", "gsa,csakd-teacher")
    assert code == 0
    for text in ("ratio 4, MSI s2-4, noise 35 / 40 dB", "ratio 4, MSI own, no noise", "PSNR (dB)", "SSIM", "mean",
                 "damaged.mat: ", "csakd-teacher means nothing without trained weights"):  # fmt: skip
        assert text in out


def test_registration_of_pairs_and_failures_are_told(capsys):
    """Counts of decisions, and one line for what all methods failed at."""
    display = Display(quiet=True)
    protocol = {"ratio": 2, "msi": "rgb", "hsi_snr_db": None, "msi_snr_db": None}
    scored = {
        **protocol,
        "method": "gsa",
        "psnr_db": 30.0,
        "sam_deg": 1.0,
        "planted": "nothing",
        "cubes": 2,
        "error": None,
    }
    record = {
        "rows": [
            scored | {"cube": "a", "registration": "accept"}, scored | {"cube": "b", "registration": "warn"},
            scored | {"cube": "c", "registration": "warn"}, scored | {"cube": "d", "error": "could not be registered"},
        ],
        "field": [scored], "beaten": [], "protocols": [protocol], "figure": None,
    }  # fmt: skip
    display.show_evaluation(record)
    out = capsys.readouterr().out
    assert "1 accepted, 2 accepted with a doubt" in out
    assert "d: could not be registered" in out
    assert "30.00 / 1.00" in out


def test_settings_of_a_pair(capsys, tmp_path):
    """A known move by an option, the PSF by a file: both are those of the row."""
    (tmp_path / "settings.yaml").write_text("psf_mtf: 0.2\nalign: {north_m: 0.0}")
    code, out, _ = call(capsys, PAIR, "--methods", "bicubic", "--set", "align.east_m=-3.5", "--config",
                        tmp_path / "settings.yaml", "--json")  # fmt: skip
    assert code == 0
    record = json.loads(out)
    assert (record["rows"][0]["east_m"], record["rows"][0]["registration"]) == (-3.5, "accept")
    assert record["protocols"][0]["mtf_nyquist"] == 0.2


def test_planted_pairs(capsys):
    """Rows of the field protocol beside each other, what changed apart, and where another method is better."""
    rows = ["nothing", "shift-0.5", "date-2"]
    code, out, _ = call(
        capsys, CUBE, "--methods", "gsa,map_subspace", "--plant", ",".join(rows), "--window", 48, "--json"
    )
    assert code == 0
    record = json.loads(out)
    assert [row.get("planted", "nothing") for row in record["rows"]] == [row for row in rows for _ in range(2)]
    assert {row["pixels"] for row in record["rows"]} == {40 * 40}
    assert [p.get("planted", {}) for p in record["protocols"]] == [
        {}, {"name": "shift-0.5", "vnir_px": 0.5, "swir_px": 0.5}, {"name": "date-2", "n_changed": 2}
    ]  # fmt: skip
    scores = {(r["planted"], r["method"]): r["psnr_db"] for r in record["field"]}
    # Who knows nothing of the displacement loses by it; the default finds it.
    assert scores["nothing", "gsa"] > scores["shift-0.5", "gsa"] + 2
    assert (
        scores["nothing", "map_subspace"] > scores["shift-0.5", "map_subspace"] > scores["nothing", "map_subspace"] - 2
    )
    assert scores["date-2 outside", "gsa"] > scores["date-2", "gsa"]
    assert ("shift-0.5", "gsa") not in {(r["planted"], r["method"]) for r in record["beaten"]}
    code, out, _ = call(capsys, CUBE, "--methods", "gsa,map_subspace", "--plant", "nothing,shift-0.5")
    assert code == 0
    for text in ("ratio 4, MSI s2-4, PSNR (dB) / SAM (deg)", "shift-0.5"):
        assert text in out


def test_planted_pairs_as_files(capsys):
    """A row that only a georeference can show, with a setting of the fusion; what the pipeline found is told."""
    cube = CUBE.replace("size=64", "size=128")
    options = [
        "--plant",
        "lattice-0.5",
        "--pipeline",
        "--set",
        "psf_mtf=0.31",
        "--set",
        "sensor_model=tables",
        "--json",
    ]
    code, out, _ = call(capsys, cube, "--methods", "bicubic", *options)
    assert code == 0
    row = json.loads(out)["rows"][0]
    assert (row["error"], row["planted"], row["registration"]) == (None, "lattice-0.5", "accept")
    assert row["psf_sigma_px"] == pytest.approx(4 / np.pi * np.sqrt(-2 * np.log(0.31)), rel=1e-3)
    assert json.loads(out)["field"][0]["planted"] == "lattice-0.5"
    assert any("agreement with the MSI" in told for told in row["warnings"])  # a bicubic has none of its detail


def test_weights_that_are_shipped_are_used(capsys):
    """Without them the network would be the method it stands on."""
    code, out, _ = call(capsys, CUBE, "--methods", "map_subspace,universal-plain", "--json")
    assert code == 0
    base, learned = json.loads(out)["means"]
    assert learned["psnr_db"] != base["psnr_db"]
    assert learned["psnr_db"] == pytest.approx(base["psnr_db"], abs=1.0)


def test_matlab_cube_with_its_options(capsys, tmp_path):
    values = np.random.default_rng(0).uniform(0.1, 0.5, (30, 40 * 48))
    path = tmp_path / "scene.mat"
    savemat(path, {"Y": values, "map": np.ones((40, 48))})
    table = tmp_path / "bands.csv"
    table.write_text("center_nm\n" + "\n".join(str(nm) for nm in np.linspace(430, 930, 30)))
    options = ["--variable", "Y", "--axes", "b(yx)", "--rows", 40, "--wavelengths", table, "--json"]
    code, out, _ = call(capsys, path, "--methods", "bicubic", *options)
    assert code == 0
    assert json.loads(out)["rows"][0]["pixels"] == 32 * 40
    assert json.loads(out)["rows"][0]["cube"] == "scene"


@pytest.mark.parametrize(
    ("code", "sentence", "arguments"),
    [
        (2, "name cubes or HSI,MSI pairs", []),
        (2, "there is no preset 'real-5'", ["--preset", "real-5", "--data", "."]),
        (2, "wants the folder of its cubes", ["--preset", "real-4"]),
        (2, "--ratio is fixed by --preset real-4", ["--preset", "real-4", "--data", ".", "--ratio", "3"]),
        (2, "--crs is fixed by --preset real-4", ["--preset", "real-4", "--data", ".", "--crs", "EPSG:4326"]),
        (2, "there is no method 'nope'", [CUBE, "--methods", "nope"]),
        (2, "there is no row 'fog-1'", [CUBE, "--plant", "fog-1"]),
        (2, "--plant is fixed by --preset real-4", ["--preset", "real-4", "--data", ".", "--plant", "mix"]),
        (2, "--ratio is fixed by --preset field-4", ["--preset", "field-4", "--data", ".", "--ratio", "3"]),
        (2, "--window 0: expected", [CUBE, "--window", "0"]),
        (2, "row zone is one of files", [CUBE, "--plant", "zone"]),
        (2, "--pipeline is for simulated pairs", [PAIR, "--pipeline"]),
        (2, "with --pipeline use --set strict=true", [CUBE, "--pipeline", "--strict"]),
        (2, "--set and --config are for HSI,MSI pairs", [CUBE, "--set", "hsi.crs=EPSG:32633"]),
        (2, "--wavelengths does not say of which image", [PAIR, "--wavelengths", "650,550,470"]),
        (2, "--noise is for cubes", [PAIR, "--noise", "none"]),
        (2, "setting tiles has no effect on the evaluation of a pair", [PAIR, "--set", "tiles.core=64"]),
        (2, "setting align.most", [PAIR, "--set", "align.most=bent"]),
        (2, "--preset real-pairs names its own", ["--preset", "real-pairs", "--data", ".", "--set", "ratio=2"]),
        (3, "none of the pairs of real-pairs", ["--preset", "real-pairs", "--data", "/proc/self/fd"]),
        (2, "there is no band set 's2-5'", [CUBE, "--msi", "s2-5"]),
        (2, "--ratio 1.5: expected whole numbers", [CUBE, "--ratio", "1.5"]),
        (2, "--noise 35: expected HSI/MSI in dB", [CUBE, "--noise", "35"]),
        (2, "--weights x: expected NAME=FILE", [CUBE, "--weights", "x"]),
        (2, "its folder does not exist", [CUBE, "--figure", "/nowhere/at/all.png"]),
        (3, "no such file", ["absent.mat"]),
        (3, "holds none of the cubes", ["--preset", "real-4", "--data", "/proc/self/fd"]),
        (3, "the scenes look swapped", ["synthetic:msi?size=64,synthetic:hsi?size=64"]),
        (6, "no device 'gpu'", [CUBE, "--device", "gpu"]),
    ],
)
def test_refusals(capsys, code, sentence, arguments):
    found, out, err = call(capsys, *arguments)
    assert found == code, err
    lines = [line for line in err.splitlines() if line.startswith("hyperfuse: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert not out
