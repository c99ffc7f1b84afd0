from __future__ import annotations

import numpy as np
import pytest

from hyperfuse.pipeline.registration.fit import fit_best, fit_through
from hyperfuse.pipeline.registration.parts import find_parts
from tests.pipeline.registration.test_fit import EDGE, MODELS, SIZE, UNIT, best, error, points


def parts_of(found, contrary, n_matching=64):
    return find_parts(found, found.move, contrary, n_matching=n_matching, unit=UNIT, half_px=EDGE / 2)


def test_a_part_is_its_neighbors_with_their_move_and_their_place():
    """The left quarter of 8 x 8 windows moves by (2, -1) px."""
    found = points(lambda x, y: (np.where(x < SIZE / 4, 2.0, 0.0 * y), np.where(x < SIZE / 4, -1.0, 0.0)))
    contrary = found.x < SIZE / 4 * UNIT[0]
    (part,) = parts_of(found, contrary)
    assert (part.members == contrary).all()
    assert part.move == pytest.approx((2.0, -1.0), abs=0.05)
    assert part.share == 0.25
    assert part.bounds == pytest.approx((0.0, 0.0, SIZE / 4 * UNIT[0], SIZE * UNIT[1]))


def test_two_parts_that_move_apart_are_two():
    found = points(lambda x, y: (np.where(y < SIZE / 2, 2.0, -2.0), 0.0 * x))
    assert len(parts_of(found, found.x < SIZE / 4 * UNIT[0])) == 2


@pytest.mark.parametrize("seed", range(5))
def test_wrong_matches_are_no_part(seed):
    """A quarter of the windows with moves at random up to 5 px do not agree with their neighbors."""
    rng = np.random.default_rng(seed)
    found = points(lambda x, y: (rng.uniform(-5, 5, x.shape), rng.uniform(-5, 5, y.shape)))
    assert not parts_of(found, rng.random(64) < 0.25)


def test_few_windows_are_no_part():
    found = points(lambda x, y: (2.0 + 0.0 * x, 0.0 * y))
    contrary = np.zeros(64, bool)
    contrary[:2] = True
    assert not parts_of(found, contrary)


def test_a_field_through_every_point_follows_a_part_that_a_robust_fit_drops():
    def move(x, y):
        return np.where(x < SIZE / 4, 3.0, 0.0), 0.0 * y

    found = points(move)
    shift = best(found, MODELS[:2])
    bounds = np.zeros(2), np.full(2, SIZE * UNIT[0])
    through = fit_through(found, shift.displacement, bounds=bounds, unit=UNIT, spacing=EDGE)
    assert through is not None
    missed = [np.hypot(m[0] - 3.0, m[1]).max() for m in [_moves(fit, SIZE / 10) for fit in (through, shift)]]
    assert missed[0] < 1.0
    assert missed[1] > 2.5


def test_a_field_through_every_point_is_refused_where_it_predicts_no_better():
    found = points(lambda x, y: (0.5 + 0.0 * x, 0.0 * y))
    bounds = np.zeros(2), np.full(2, SIZE * UNIT[0])
    plain = fit_best(found, MODELS[:2], bounds=bounds, unit=UNIT, spacing=EDGE)
    assert fit_through(found, plain.displacement, bounds=bounds, unit=UNIT, spacing=EDGE) is None
    assert error(plain, lambda x, y: (0.5 + 0.0 * x, 0.0 * y)) < 0.05


def _moves(fit, x):
    y = np.linspace(10, SIZE - 10, 9)
    east, north = fit.displacement.at(np.full_like(y, x) * UNIT[0], y * UNIT[1])
    return east / UNIT[0], north / UNIT[1]
