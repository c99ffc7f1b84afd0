from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from hyperfuse.models import ModelSpec, Observed
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.grids import NestedGrids
from hyperfuse.pipeline.geometry.tiling import TilePlan


def plan(shape, ratio, lead, *, halo=2, multiple_of=1, core=64, chunk=32) -> TilePlan:
    spec = ModelSpec(
        name="test", observed=Observed(hsi_bands=10, msi_bands=4, ratio=ratio, psf_sigma_px=1.0), halo=halo,
        hsi_reach=0, msi_reach=0, multiple_of=multiple_of,
    )  # fmt: skip
    product = GeoBox(shape, Affine(10, 0, 0, 0, -10, 0), "EPSG:32633")
    return TilePlan(grids=NestedGrids(product=product, ratio=ratio, lead=lead), spec=spec, core=core, chunk=chunk)


@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    ratio=st.integers(2, 9),
    lead=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    halo=st.integers(0, 20),
    multiple_of=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=80, deadline=None)
def test_cores_partition_and_windows_hold_them(shape, ratio, lead, halo, multiple_of):
    lead = lead[0] % ratio, lead[1] % ratio
    tiles = plan(shape, ratio, lead, halo=halo, multiple_of=multiple_of)
    written = np.zeros(shape, int)
    rows, cols = tiles.grids.coarse_shape
    for tile in tiles:
        written[tile.core.slices] += 1
        window = tile.window
        assert window.y0 % multiple_of == window.x0 % multiple_of == 0
        assert all(n % multiple_of == 0 for n in window.shape)
        assert window.y0 >= 0
        assert window.x0 >= 0
        # The halo is whole, unless the scene ends before.
        assert window.y0 * ratio <= max(tile.core.y0 + lead[0] - halo * ratio, 0)
        assert window.y1 >= min(-(-(tile.core.y1 + lead[0]) // ratio) + halo, rows)
        assert window.x1 >= min(-(-(tile.core.x1 + lead[1]) // ratio) + halo, cols)
    assert (written == 1).all()


def test_batches_skip_what_is_done():
    tiles = plan((200, 200), 4, (0, 0))
    keys = [tile.key for tile in tiles]
    batches = tiles.batches(3, done=keys[:5])
    assert [tile.key for batch in batches for tile in batch] == keys[5:]
    assert max(len(batch) for batch in batches) == 3


def test_core_that_cuts_chunks_is_refused():
    with pytest.raises(ValueError, match="multiple of chunk"):
        plan((100, 100), 4, (0, 0), core=60, chunk=32)


def test_memory_does_not_depend_on_the_scene():
    assert plan((1_000, 1_000), 4, (0, 0)).peak_bytes == plan((20_000, 20_000), 4, (0, 0)).peak_bytes


def test_redundancy_at_the_default_tile():
    assert plan((2048, 2048), 4, (0, 0), core=512, chunk=256).redundancy < 1.1


def test_tiles_are_cut_to_fit_the_memory():
    large = plan((9_000, 9_000), 4, (0, 0), core=512, chunk=128)
    large = replace(large, spec=replace(large.spec, work_floats=2_000, tile=512, halo=12))
    fitted = TilePlan.fitting(large.grids, large.spec, chunk=128, budget=large.peak_bytes)
    assert fitted == large
    smaller = TilePlan.fitting(large.grids, large.spec, chunk=128, budget=large.peak_bytes - 1)
    assert 0 < smaller.core < 512
    assert smaller.core % 128 == 0
    assert smaller.peak_bytes < large.peak_bytes
    assert TilePlan.fitting(large.grids, large.spec, chunk=128, budget=1).core == 128


def test_a_small_halo_wants_a_small_tile():
    near = plan((9_000, 9_000), 4, (0, 0), halo=2, core=512, chunk=128)
    cut = {
        halo: TilePlan.fitting(near.grids, replace(near.spec, tile=512, halo=halo), chunk=128, budget=10**12)
        for halo in (0, 2, 12)
    }
    assert {halo: tiles.core for halo, tiles in cut.items()} == {0: 128, 2: 256, 12: 512}
    assert cut[2].redundancy < 1.2


@given(
    core=st.sampled_from([32, 64, 96]), ratio=st.integers(2, 9), halo=st.integers(0, 20),
    multiple_of=st.sampled_from([1, 2, 4]), lead=st.integers(0, 1),
)  # fmt: skip
def test_the_largest_window_is_the_one_that_memory_is_planned_for(core, ratio, halo, multiple_of, lead):
    tiles = plan((700, 700), ratio, (lead, lead), halo=halo, multiple_of=multiple_of, core=core)
    largest = max(h * w for h, w in (tile.window.shape for tile in tiles)) * ratio**2
    assert largest <= tiles._window_pixels


@given(core=st.integers(2, 60), other=st.integers(1, 60))
def test_halves_are_the_whole(core, other):
    box = Box(y0=3, y1=3 + core, x0=5, x1=5 + other)
    covered = np.zeros((80, 80), int)
    for half in box.halves():
        covered[half.slices] += 1
    assert (covered[box.slices] == 1).all()
    assert covered.sum() == core * other
