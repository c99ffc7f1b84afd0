"""Scenes that are not what they should be: E12 to E18, X27, X31. Nothing wrong is fused without a word."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from affine import Affine

from tests.benchmarks.faults.commands import samples
from tests.benchmarks.faults.pairs import fused, image, pair, refused, write
from tests.benchmarks.faults.table import by_tests, experiment


@experiment(
    "E12", "NaN, infinity and nodata stripes in HSI and MSI", "nodata there and nowhere else; no value invented"
)
def stripes(folder: Path) -> str:
    hsi, msi = image("hsi").cube.copy(), image("msi").cube.copy()
    hsi[:, :, 10], hsi[:, 20, :], msi[:, 100:103, :] = np.nan, np.inf, np.nan
    files = (
        write(folder / "hsi.tif", "hsi", cube=hsi, dtype="float32", nodata=np.nan),
        write(folder / "msi.tif", "msi", cube=msi),
    )
    # The default method works around holes; it is the PSF's reach alone that widens those of others.
    fused(folder, *files, "--set", "align.estimate=false").require(0)
    holes = np.isnan(samples(folder / "out" / "p"))
    expected = np.zeros(holes.shape[1:], bool)
    expected[:, 40:44], expected[80:84, :], expected[100:103, :] = True, True, True
    assert (holes == holes[0]).all(), "bands have different holes"
    assert np.array_equal(holes[0], expected), f"{int((holes[0] ^ expected).sum())} pixels are wrong"
    return f"{int(expected.sum())} px nodata as they must be, no other"


@experiment(
    "E12b",
    "a block of an undeclared fill value (-9999, 0, 65535)",
    "masked and told, or refused; never taken for reflectance",
)
def undeclared(folder: Path) -> str:
    seen = []
    for value, dtype in ((-9999, "int16"), (0, "int16"), (65535, "uint16")):
        counts = np.round(image("hsi").cube / 1e-4)
        counts[:, :20, :] = value
        here = folder / str(value)
        hsi = write(
            here / "hsi.tif",
            "hsi",
            cube=counts.astype(dtype) if dtype != "int16" else counts * 1e-4,
            dtype=dtype,
            nodata=None,
        )
        msi = write(here / "msi.tif", "msi")
        end = fused(
            here, hsi, msi, "--set", "method=bicubic", *(("--set", "hsi.scale=1e-4") if dtype != "int16" else ())
        )
        if end.code == 0:
            valid = np.isfinite(samples(here / "out" / "p"))
            assert not valid[:, :80].any(), f"{value} was taken for data"
            assert re.search(r"hsi.*(fill|nodata)", end.err), end.err
            seen.append(f"{value} masked and told")
        else:
            end.require(3)
            seen.append(f"{value} exit 3")
    return "; ".join(seen)


@experiment(
    "E13",
    "no CRS; rotated, sheared and south-up grids; another zone; degrees",
    "exit 3 asking for it, or right to 0.1 px",
)
def grids(folder: Path) -> str:
    hsi, msi = pair(folder, crs=None)
    refused(folder, 3, "hsi.crs", hsi, msi)
    seen = ["no CRS exit 3"]
    true = image("msi")
    flipped = write(
        folder / "in" / "up.tif", "msi", cube=true.cube[:, ::-1],
        transform=true.transform * Affine.translation(0, true.cube.shape[1]) * Affine.scale(1, -1),
    )  # fmt: skip
    straight = write(folder / "in" / "down.tif", "msi")
    good = write(folder / "in" / "good.tif", "hsi")
    for name, reference in (("up", flipped), ("down", straight)):
        (folder / name).mkdir()
        fused(folder / name, good, reference, "--set", "method=bicubic").require(0)
    same = np.array_equal(samples(folder / "up" / "out" / "p"), samples(folder / "down" / "out" / "p"), equal_nan=True)
    assert same, "a south-up MSI gives another product"
    seen.append("south-up equal")
    turned = write(folder / "in" / "turned.tif", "msi", transform=true.transform * Affine.rotation(10))
    sheared = write(folder / "in" / "sheared.tif", "msi", transform=true.transform * Affine.shear(8))
    for name, reference in (("rotated", turned), ("sheared", sheared)):
        (folder / name).mkdir()
        end = fused(folder / name, good, reference)
        assert end.code in {3, 4, 7}, f"{name}: exit {end.code}: {end.err[-500:]}"
        seen.append(f"{name} MSI exit {end.code}")
    return "; ".join(seen)


by_tests(
    "E13b", "scenes in other zones, in degrees, across the antimeridian", "a dot lands where it is within 0.1 px",
    "pipeline/test_run.py::test_a_dot_lands_where_it_is",
    "pipeline/geometry/test_antimeridian.py",
)  # fmt: skip


@experiment("E14", "scenes that do not meet; meet in one pixel", "exit 4 or 3 at once, with both places")
def apart(folder: Path) -> str:
    hsi, _ = pair(folder)
    true = image("msi")
    far = write(folder / "in" / "far.tif", "msi", transform=Affine.translation(50_000, 0) * true.transform)
    told = refused(folder, 4, "overlap", hsi, far)
    width = image("hsi").cube.shape[2] * image("hsi").transform.a
    near = write(
        folder / "in" / "near.tif",
        "msi",
        transform=Affine.translation(width - 1.5 * true.transform.a, 0) * true.transform,
    )
    end = fused(folder, hsi, near)
    assert end.code in {3, 4}, end.err[-800:]
    assert end.sentence
    return f"exit 4 ({told[:60]}…); one pixel exit {end.code}"


by_tests(
    "E14b",
    "scenes that meet only where one has no data",
    "exit 4",
    "pipeline/test_run.py::test_scenes_that_meet_only_where_one_has_no_data",
)


@experiment("E15", "HSI and MSI swapped", "exit 3 that says so")
def swapped(folder: Path) -> str:
    hsi, msi = pair(folder)
    refused(folder, 3, "swapped", msi, hsi)
    return "exit 3, `look swapped`"


@experiment(
    "E16",
    "wavelengths in another unit, shuffled, twice, missing, FWHM below 0",
    "exit 3, or the bands put in order with their samples",
)
def wavelengths(folder: Path) -> str:
    true = image("hsi")
    centers = true.center_nm
    seen = []
    for name, changed, words in (
        ("µm called nm", {"center_nm": [nm / 1000 for nm in centers]}, "wavelength"),
        ("missing", {"center_nm": [None] * len(centers)}, "hsi.wavelengths"),
    ):
        here = folder / name.split()[0]
        refused(here, 3, words, *pair(here, **changed))
        seen.append(f"{name} exit 3")
    order = np.random.default_rng(0).permutation(len(centers))
    for name, changed in (
        ("plain", {}),
        ("shuffled", {
            "cube": true.cube[order], "center_nm": [centers[i] for i in order], "fwhm_nm": [true.fwhm_nm[i] for i in order],
        }),
    ):  # fmt: skip
        (folder / name).mkdir()
        fused(folder / name, *pair(folder / name, **changed), "--set", "method=bicubic").require(0)
    assert np.array_equal(
        samples(folder / "plain" / "out" / "p"), samples(folder / "shuffled" / "out" / "p"), equal_nan=True
    )
    seen.append("shuffled equal")
    for name, changed in (
        ("twice", {"center_nm": (centers[1], *centers[1:])}),
        ("FWHM -5", {"fwhm_nm": (-5.0, *true.fwhm_nm[1:])}),
    ):
        here = folder / name.replace(" ", "")
        end = fused(here_of(here), *pair(here, **changed), "--set", "method=bicubic")
        if end.code:
            end.require(3)
        seen.append(f"{name} {'accepted' if end.code == 0 else f'exit {end.code}'}")
    return "; ".join(seen)


def here_of(folder: Path) -> Path:
    """A folder that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@experiment(
    "E17",
    "an MSI of one band; an HSI of one band; an MSI band that the HSI does not see",
    "fused with a warning, or refused; no division by 0",
)
def few_bands(folder: Path) -> str:
    seen = []
    msi, hsi = image("msi"), image("hsi")
    good = write(folder / "in" / "hsi.tif", "hsi")
    pan = write(folder / "in" / "pan.tif", "msi", cube=msi.cube[2:3], center_nm=msi.center_nm[2:3], fwhm_nm=(260.0,))
    thermal = write(
        folder / "in" / "far.tif", "msi", cube=np.concatenate([msi.cube, msi.cube[:1]]),
        center_nm=(*msi.center_nm, 11_000.0), fwhm_nm=(*msi.fwhm_nm, 500.0),
    )  # fmt: skip
    one = write(
        folder / "in" / "one.tif", "hsi", cube=hsi.cube[:1], center_nm=hsi.center_nm[:1], fwhm_nm=hsi.fwhm_nm[:1]
    )
    whole_msi = write(folder / "in" / "msi.tif", "msi")
    for name, files in {
        "one MSI band": (good, pan),
        "band at 11 µm": (good, thermal),
        "one HSI band": (one, whole_msi),
    }.items():
        end = fused(here_of(folder / name.replace(" ", "")), *files)
        assert end.code in {0, 3, 7}, f"{name}: {end.err[-1500:]}"
        if end.code:
            assert end.sentence
        else:
            assert np.isfinite(samples(folder / name.replace(" ", "") / "out" / "p")).any()
        seen.append(f"{name} exit {end.code}")
    return "; ".join(seen)


@experiment(
    "E18", "ratio 1, 1000 and 2.7; pixels that are not square", "exit 3 naming the ratio, or right on the MSI's grid"
)
def ratios(folder: Path) -> str:
    seen = []
    true = image("hsi")
    msi = write(folder / "in" / "msi.tif", "msi")
    for name, factor, words in (("1", 0.25, "ratio"), ("1000", 250.0, "")):
        scaled = write(folder / "in" / f"{name}.tif", "hsi", transform=true.transform * Affine.scale(factor))
        end = fused(here_of(folder / f"r{name}"), scaled, msi)
        assert end.code in {3, 4}, f"{name}: {end.err[-1200:]}"
        assert words in end.sentence
        seen.append(f"{name} exit {end.code}")
    flat = write(folder / "in" / "flat.tif", "hsi", transform=true.transform * Affine.scale(1, 0.5))
    end = fused(here_of(folder / "flat"), flat, msi)
    assert end.code in {0, 3, 7}, end.err[-1200:]
    seen.append(f"not square exit {end.code}")
    return "; ".join(seen)


by_tests(
    "E18b",
    "ratios that are not whole, and a dot",
    "no shift by half a pixel",
    "pipeline/test_run.py::test_a_dot_lands_where_it_is",
)


@experiment(
    "X27",
    "an offset of 0.1 in the MSI (`BOA_ADD_OFFSET` not applied)",
    "not corrected silently: told, or exit 7 with `harmonize.mode=require`",
)
def offset(folder: Path) -> str:
    many = "size=192&ratio=4&bands=80&seed=3"  # so that the HSI covers the bands of the MSI, and can be compared
    hsi = write(folder / "in" / "hsi.tif", "hsi", recipe=many)
    wrong = write(folder / "in" / "wrong.tif", "msi", recipe=many, cube=image("msi", many).cube + 0.1)
    end = fused(folder, hsi, wrong)
    assert end.code in {0, 7}, end.err[-1500:]
    assert re.search(r"radiometry.*offset", end.err), end.err[-1500:]
    strict = fused(here_of(folder / "strict"), hsi, wrong, "--set", "harmonize.mode=require")
    strict.require(7)
    return f"exit {end.code} and told; exit 7 with `require`"


@experiment(
    "X31",
    "an MSI moved by 2 px and 60 px of the HSI; bare water",
    "moved back; exit 7; exit 7 or told; never a wild warp",
)
def misregistered(folder: Path) -> str:
    hsi, _ = pair(folder)
    true, step = image("msi"), image("hsi").transform.a
    near = write(folder / "in" / "near.tif", "msi", transform=Affine.translation(2 * step, 0) * true.transform)
    found = fused(here_of(folder / "near"), hsi, near)
    found.require(0, "registration")
    turned = write(folder / "in" / "other.tif", "msi", cube=true.cube[:, ::-1, ::-1])
    end = fused(here_of(folder / "other"), hsi, turned)
    end.require(7)
    water = np.full_like(image("hsi").cube, 0.02), np.full_like(true.cube, 0.02)
    rng = np.random.default_rng(1)
    calm = (
        write(folder / "in" / "wh.tif", "hsi", cube=water[0] + rng.normal(0, 1e-3, water[0].shape)),
        write(folder / "in" / "wm.tif", "msi", cube=water[1] + rng.normal(0, 1e-3, water[1].shape)),
    )
    flat = fused(here_of(folder / "water"), *calm)
    flat.require(7, "could not be registered")
    return "2 px found; another land exit 7; water exit 7"
