from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement, SmoothField

CENTER = (400_500.0, 5_799_500.0)
SHIFTS = st.floats(-300, 300)
SLOPES = st.tuples(*[st.floats(-0.03, 0.03)] * 4)


def field(scale: float, seed: int = 0, size: int = 9) -> SmoothField:
    """Control points 150 m apart around the center, with random coefficients."""
    east, north = np.random.default_rng(seed).uniform(-scale, scale, (2, size, size + 1))
    origin = (CENTER[0] - 150.0 * size / 2, CENTER[1] - 150.0 * size / 2)
    tables = (tuple(map(tuple, table.tolist())) for table in (east, north))
    return SmoothField(origin=origin, step=(150.0, 150.0), east=next(tables), north=next(tables))


def positions(n: int = 200):
    return np.random.default_rng(1).uniform(-350, 350, (2, n)) + np.array(CENTER)[:, None]


@given(SHIFTS, SHIFTS, SLOPES, st.floats(0, 25))
@settings(deadline=None, max_examples=30)
def test_there_and_back(east, north, slope, scale):
    """To within a millimeter of a 30 m pixel, whatever the model."""
    moved = Displacement(east=east, north=north, slope=slope, center=CENTER, field=field(scale))
    x, y = positions()
    back = (-moved)(*moved(x, y))
    np.testing.assert_allclose(back, (x, y), atol=1e-3)
    np.testing.assert_allclose(moved(*(-moved)(x, y)), (x, y), atol=1e-3)


def test_the_move_is_that_at_the_position_in_the_hsi():
    """At q = p + move(q), whatever the way."""
    moved = Displacement(east=30.0, slope=(0.02, 0.0, 0.01, -0.01), center=CENTER, field=field(20.0))
    x, y = positions()
    there = moved(x, y)
    np.testing.assert_allclose(np.array(there) - (x, y), moved.at(*there), atol=1e-3)
    np.testing.assert_allclose((-moved)(x, y), np.array([x, y]) - moved.at(x, y), atol=1e-9)


def test_a_field_is_a_cubic_spline():
    """scipy's B-splines as the oracle."""
    surface = field(20.0)
    x, y = positions()
    rows, cols = np.shape(surface.east)

    def basis(at, origin, n):
        knots = origin + 150.0 * np.arange(-2, n + 2)
        return BSpline.design_matrix(at, knots, 3).toarray()

    along_x, along_y = basis(x, surface.origin[0], cols), basis(y, surface.origin[1], rows)
    for component, table in zip(surface.at(x, y), (surface.east, surface.north), strict=True):
        np.testing.assert_allclose(component, np.einsum("pj,ji,pi->p", along_y, np.array(table), along_x), atol=1e-9)


def test_a_field_goes_on_beyond_its_knots_with_the_value_at_the_rim():
    surface = field(20.0)
    rim, beyond = (np.array(surface.at(np.array([CENTER[0] + d]), np.array([CENTER[1]]))) for d in (1e5, 1e6))
    np.testing.assert_array_equal(rim, beyond)


def test_json_round_trip():
    moved = -Displacement(east=1 / 3, slope=(0.1, 0.2, 0.3, 1e-17), center=CENTER, field=field(2.0))
    assert Displacement.model_validate_json(moved.model_dump_json()) == moved


def test_nothing_is_falsy():
    assert not NO_DISPLACEMENT
    assert not -NO_DISPLACEMENT
    assert Displacement(slope=(0.0, 1e-6, 0.0, 0.0))
    x, y = positions()
    assert NO_DISPLACEMENT(x, y)[0] is x


@pytest.mark.parametrize(
    ("east", "step", "told"),
    [(((0.0,) * 3,) * 5, (1.0, 1.0), "4 x 4"), (((0.0,) * 4,) * 4, (1.0, 0.0), "positive distance")],
)
def test_fields_that_are_none(east, step, told):
    with pytest.raises(ValueError, match=told):
        SmoothField(origin=(0.0, 0.0), step=step, east=east, north=east)
