"""Differences of two cubes: known answers, and blocks must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job.store import chunk_boxes
from hyperfuse.pipeline.reports.difference import Difference, Sampled


def gathered(a: np.ndarray, b: np.ndarray, *, block: int = 16, step: int = 1) -> Difference:
    difference = Difference(shape=a.shape, step=step)
    for box in chunk_boxes(a.shape, (block, block)):
        difference.add(box, a[:, *box.slices], b[:, *box.slices])
    return difference


def cubes(shape: tuple[int, int, int] = (3, 40, 50)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    a = rng.uniform(0.1, 0.5, shape).astype(np.float32)
    b = a + rng.normal(0, 0.02, shape).astype(np.float32)
    a[:, :5, :7], b[1, 20:30, 3:4] = np.nan, np.nan
    return a, b


def test_figures_are_those_of_whole_arrays() -> None:
    a, b = cubes()
    found = gathered(a, b).to_json()
    delta = np.asarray(b - a, np.float64)
    assert found["samples"] == np.isfinite(delta).sum()
    assert found["rmse"] == pytest.approx(np.sqrt(np.nanmean(delta**2)), rel=1e-6)
    assert found["bias"] == pytest.approx(np.nanmean(delta), abs=1e-8)
    assert found["largest"] == pytest.approx(np.nanmax(np.abs(delta)), rel=1e-6)
    np.testing.assert_allclose(found["band_rmse"], np.sqrt(np.nanmean(delta**2, axis=(1, 2))), rtol=1e-6)
    whole = np.isfinite(delta).all(axis=0)
    assert found["pixels"] == whole.sum()
    x, y = (np.asarray(cube[:, whole], np.float64) for cube in (a, b))
    angles = np.arccos((x * y).sum(axis=0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y, axis=0))
    assert found["sam_deg"] == pytest.approx(np.degrees(angles.mean()), rel=1e-4)
    good = np.isfinite(a[1]) & np.isfinite(b[1])
    assert found["band_r2"][1] == pytest.approx(np.corrcoef(a[1][good], b[1][good])[0, 1] ** 2, rel=1e-5)


@settings(deadline=None)
@given(block=st.integers(1, 64), step=st.integers(1, 9))
def test_blocks_do_not_matter(block: int, step: int) -> None:
    a, b = cubes((2, 23, 31))
    whole, cut = (gathered(a, b, block=size, step=step) for size in (64, block))
    np.testing.assert_array_equal(cut.map, whole.map)
    np.testing.assert_allclose(cut.cells, whole.cells, rtol=1e-9)
    np.testing.assert_allclose(cut.moments, whole.moments, rtol=1e-9)
    assert cut.pixels == whole.pixels


def test_a_cell_holds_its_own_pixels_only() -> None:
    a = np.zeros((1, 200, 100), np.float32)
    b = a.copy()
    b[0, 150, 75] = 1.0
    difference = gathered(a, b, block=33)
    rms = difference.cell_rms()
    assert rms.shape == (1, 64, 32)
    assert np.count_nonzero(rms) == 1
    assert rms[0, 150 * 64 // 200, 75 * 32 // 100] == pytest.approx(1 / np.sqrt(difference.cells[1, 0].max()), rel=0.3)
    assert difference.cells[1].sum() == 200 * 100


def test_equal_cubes_differ_by_nothing_and_empty_ones_cannot_be_compared() -> None:
    a, _ = cubes()
    same = gathered(a, a).to_json()
    assert (same["rmse"], same["bias"], same["largest"]) == (0.0, 0.0, 0.0)
    assert same["sam_deg"] < 0.03  # float32 dot products
    assert same["r2"] == pytest.approx(1.0)
    nothing = gathered(np.full_like(a, np.nan), a).to_json()
    assert {nothing[key] for key in ("rmse", "bias", "sam_deg", "r2", "largest")} == {None}


def test_samples_are_picked_across_blocks() -> None:
    cube = np.arange(2 * 30 * 40, dtype=np.float32).reshape(2, 30, 40)
    sampled = Sampled(bands=np.array([1]), rows=np.array([0, 7, 8, 29]), cols=np.array([3, 15, 16, 39]))
    for box in chunk_boxes(cube.shape, (8, 16)):
        sampled.add(box, cube[:, *box.slices])
    np.testing.assert_array_equal(sampled.values, cube[[1]][:, [0, 7, 8, 29]][:, :, [3, 15, 16, 39]])
    sampled.add(Box(y0=1, y1=2, x0=0, x1=40), cube[:, 1:2])  # a block without any of them
