"""`hyperfuse evaluate`: a table, a record and a figure; refusals in one sentence with their exit code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import savemat

from hyperfuse.flows.cli import main

CUBE = "synthetic:truth?size=64&bands=40&seed=2"


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_record(capsys, tmp_path):
    figure = tmp_path / "bars.png"
    code, out, _ = call(capsys, CUBE, "--networks", "bicubic,gsa", "--ratio", "2,4", "--msi", "s2-4,s2-6", "--noise",
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
    pair = "synthetic:hsi?size=192&bands=40,synthetic:msi?size=192&bands=40"
    code, out, _ = call(capsys, CUBE, pair, tmp_path / "damaged.mat", "--networks", "gsa,csakd-teacher")
    assert code == 0
    for text in ("ratio 4, MSI s2-4, noise 35 / 40 dB", "ratio 4, MSI own, no noise", "PSNR (dB)", "SSIM", "mean",
                 "damaged.mat: ", "csakd-teacher means nothing without trained weights"):  # fmt: skip
        assert text in out


def test_weights_that_are_shipped_are_used(capsys):
    """Without them the network would be the method it stands on."""
    code, out, _ = call(capsys, CUBE, "--networks", "map_subspace,universal-plain", "--json")
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
    code, out, _ = call(capsys, path, "--networks", "bicubic", *options)
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
        (2, "there is no network 'nope'", [CUBE, "--networks", "nope"]),
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
