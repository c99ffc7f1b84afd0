from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfuse.pipeline.fusion.packing import Packed, Packing
from hyperfuse.pipeline.job.encoding import INT16_RANGE, NODATA

CPU = torch.device("cpu")


def packed(cube: torch.Tensor, valid: torch.Tensor | None, packing: Packing) -> Packed:
    result = Packed(packing, cube.shape[0], tuple(cube.shape[1:]), CPU)
    result.add(cube, valid, slice(0, cube.shape[1]), slice(0, cube.shape[2]))
    return result


def test_counts_nodata_and_sums_by_hand():
    cube = torch.tensor([[[0.1, -0.02], [4.0, 0.30004]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    result = packed(cube, valid, Packing(scale=1e-4))
    assert result.stored.tolist() == [[[1000, -200], [32767, NODATA]]]
    n, total, low, high, beyond = result.sums[:, 0].tolist()
    assert (n, beyond) == (3, 1)
    assert total == pytest.approx((1000 - 200 + 32767) * 1e-4)
    assert (low, high) == pytest.approx((-0.02, 3.2767))


def test_gain_and_offset_undo_a_symmetric_range():
    cube = torch.tensor([[[-1.0, 0.0, 1.0]]])
    result = packed(cube, None, Packing(scale=1e-4, gain=0.25, offset=0.35))
    assert result.stored.flatten().tolist() == [1000, 3500, 6000]


@pytest.mark.parametrize("scale", [1e-4, None])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_no_number_is_no_sample(scale, whole):
    cube = torch.full((3, 4, 5), 0.25)
    cube[1, 2, 3], cube[2, 0, 0] = torch.nan, torch.inf
    valid = None if whole else torch.ones((1, 4, 5), dtype=torch.bool)
    result = packed(cube, valid, Packing(scale=scale))
    assert result.sums[0].tolist() == [20, 19, 19]
    assert torch.isfinite(result.sums).all()
    lost = result.stored == NODATA if scale else torch.isnan(result.stored)
    assert lost.nonzero().tolist() == [[1, 2, 3], [2, 0, 0]]


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.4, 1.0, None]),
    scale=st.sampled_from([1e-4, 5e-3, None]),
)
@settings(max_examples=60, deadline=None)
def test_parts_equal_the_whole_and_the_record_equals_what_is_stored(shape, seed, share, scale):
    random = torch.Generator().manual_seed(seed)
    cube = torch.randn(shape, generator=random)
    valid = None if share is None else torch.rand((1, *shape[1:]), generator=random) >= share
    whole = packed(cube.clone(), valid, Packing(scale=scale))
    parts = Packed(Packing(scale=scale), shape[0], shape[1:], CPU)
    middle = shape[1] // 2
    for rows in (slice(0, middle), slice(middle, shape[1])):
        if rows.stop > rows.start:
            mask = None if valid is None else valid[:, rows]
            parts.add(cube[:, rows].clone(), mask, rows, slice(0, shape[2]))
    assert torch.equal(torch.nan_to_num(whole.stored.float()), torch.nan_to_num(parts.stored.float()))
    assert torch.allclose(whole.sums, parts.sums, rtol=1e-9, equal_nan=True)
    # The sums are those of the stored values, not of what they were before rounding.
    stored = whole.stored.double() * (scale or 1.0)
    counted = torch.isfinite(stored) if scale is None else whole.stored != NODATA
    assert whole.sums[0].tolist() == counted.sum(dim=(1, 2)).tolist()
    # Rows are summed in single precision: what is lost goes by the magnitudes, however much of them cancels.
    kept = torch.where(counted, stored, 0.0)
    assert ((whole.sums[1] - kept.sum(dim=(1, 2))).abs() <= 1e-6 * kept.abs().sum(dim=(1, 2)) + 1e-12).all()
    if scale:
        low, high = INT16_RANGE
        assert int(whole.sums[4].sum()) == int((((cube / scale).round() < low) | ((cube / scale).round() > high))[
            counted
        ].sum())  # fmt: skip
