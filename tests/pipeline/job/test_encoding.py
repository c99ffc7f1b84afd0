"""Samples as they are stored: back and forth within half a count, nodata and the ends of the range by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfuse.pipeline.job.encoding import NODATA, decoded, encoded, valid_samples


def test_nodata_and_the_ends_of_the_range_by_hand() -> None:
    samples = np.array([0.1, -0.02, np.nan, 4.0, -4.0, 0.00004], np.float32)
    valid = np.array([True, True, False, True, True, True])
    stored, clipped = encoded(samples, 1e-4, valid)
    assert stored.tolist() == [1000, -200, NODATA, 32767, -32767, 0]
    assert clipped == 2
    np.testing.assert_array_equal(valid_samples(stored), valid)
    expected = np.array([0.1, -0.02, np.nan, 3.2767, -3.2767, 0.0], np.float32)
    np.testing.assert_allclose(decoded(stored, 1e-4), expected, rtol=1e-6)


def test_what_is_valid_decides_and_not_the_value() -> None:
    stored, clipped = encoded(np.array([9e9, 0.5], np.float32), 1e-4, np.array([False, True]))
    assert (stored.tolist(), clipped) == ([NODATA, 5000], 0)


def test_float_samples_are_their_own_values() -> None:
    samples = np.array([0.25, np.nan, -1.0], np.float32)
    np.testing.assert_array_equal(decoded(samples, 1e-4), samples)
    assert valid_samples(samples).tolist() == [True, False, True]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-4, 2e-4, 0.5]))
def test_back_and_forth_is_within_half_a_count(seed: int, scale: float) -> None:
    samples = np.random.default_rng(seed).uniform(-3.2, 3.2, (2, 30)).astype(np.float32)
    stored, clipped = encoded(samples, scale, np.ones_like(samples, bool))
    assert clipped == 0
    assert decoded(stored, scale) == pytest.approx(samples, abs=0.501 * scale)
