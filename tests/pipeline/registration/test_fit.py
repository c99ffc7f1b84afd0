from __future__ import annotations

import numpy as np
import pytest

from hyperfuse.pipeline.registration.fit import FEWEST, MODELS, fit_best
from hyperfuse.pipeline.registration.tie_points import TiePoints

UNIT = (30.0, 30.0)
EDGE = 12.0
SIZE = 96.0


def points(move, *, noise: float = 0.03, outliers: float = 0.0, n: int = 8, seed: int = 0) -> TiePoints:
    """A lattice of n x n tie points of a move (coarse px at coarse px)."""
    rng = np.random.default_rng(seed)
    at = (np.arange(n) + 0.5) * SIZE / n
    x, y = (axis.ravel() for axis in np.meshgrid(at, at))
    values = np.stack([part + np.zeros(n * n) for part in move(x, y)]) + noise * rng.standard_normal((2, n * n))
    wrong = rng.random(n * n) < outliers
    values[:, wrong] += rng.uniform(-4, 4, (2, wrong.sum()))
    return TiePoints(
        x=x * 30.0, y=y * 30.0, move=values, remainder=values, sigma=np.full(n * n, max(noise, 0.01)),
        split=np.zeros(n * n), correlation=np.ones(n * n),
    )  # fmt: skip


def best(found: TiePoints, models=MODELS):
    bounds = np.zeros(2), np.full(2, SIZE * 30.0)
    return fit_best(found, models, bounds=bounds, unit=UNIT, spacing=EDGE)


def error(fit, move) -> float:
    """Largest error (coarse px) inside the scene."""
    x, y = np.meshgrid(np.linspace(8, SIZE - 8, 30), np.linspace(8, SIZE - 8, 30))
    east, north = fit.displacement.at(x * 30.0, y * 30.0)
    right = move(x, y)
    return float(np.hypot(east / 30.0 - right[0], north / 30.0 - right[1]).max())


CASES = {
    "none": lambda x, y: (0.0 * x, 0.0 * y),
    "shift": lambda x, y: (0.8 + 0.0 * x, -2.3 + 0.0 * y),
    "affine": lambda x, y: (0.8 + 0.02 * x - 0.01 * y, 0.3 + 0.015 * y),
    "field": lambda x, y: (np.sin(x / 14.0), 1.0 + np.cos(y / 17.0)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_the_simplest_model_that_predicts_is_taken(name, seed):
    fit = best(points(CASES[name], seed=seed))
    assert fit.name == name
    assert error(fit, CASES[name]) < (0.15 if name == "field" else 0.06)


@pytest.mark.parametrize("name", ["shift", "affine", "field"])
def test_a_quarter_of_wrong_matches_is_survived(name):
    fit = best(points(CASES[name], outliers=0.25))
    assert fit.name == name
    assert error(fit, CASES[name]) < (0.5 if name == "field" else 0.06)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_noise_is_no_field(noise):
    """Of 30 scenes that only shift, at most three are taken for more; the move is right in all."""
    names = []
    for seed in range(30):
        fit = best(points(CASES["shift"], noise=noise, seed=seed))
        names.append(fit.name)
        assert error(fit, CASES["shift"]) < 2.5 * noise
    assert sum(name != "shift" for name in names) <= 3
    assert "field" not in names


def test_few_points_support_few_terms():
    few = points(CASES["field"], n=4)
    assert len(few) < FEWEST["field"]
    assert best(few).name != "field"
    assert best(few.only(np.arange(16) < 5)).name in {"none", "shift"}
    with pytest.raises(ValueError, match="tie points"):
        best(few.only(np.arange(16) < 1), models=("affine",))
