from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.grids import GridRecord, NestedGrids, nest, on_lattice
from tests.synthetic import scene

UTM = "EPSG:32633"


def pair(recipe: str) -> ScenePair:
    return ScenePair(hsi=scene("hsi", recipe), msi=scene("msi", recipe))


@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    ratio=st.integers(2, 20),
    lead=st.tuples(st.integers(0, 19), st.integers(0, 19)),
)
@settings(max_examples=60)
def test_grids_nest(shape, ratio, lead):
    """Fine holds the product at the lead, coarse covers fine exactly, and the record loses nothing."""
    lead = lead[0] % ratio, lead[1] % ratio
    product = GeoBox(shape, Affine(3.6, 0, 383469.97, 0, -3.6, 5818303.55), UTM)
    grids = NestedGrids(product=product, ratio=ratio, lead=lead)
    assert grids.fine.shape == tuple(n * ratio for n in grids.coarse.shape)
    np.testing.assert_allclose(grids.fine.boundingbox.bbox, grids.coarse.boundingbox.bbox, atol=1e-6)
    assert on_lattice(grids.fine, product) == lead
    assert grids.fine.shape[0] - lead[0] - shape[0] < ratio
    assert GridRecord.model_validate_json(GridRecord.of(grids).model_dump_json()).grids() == grids


def test_lead_puts_the_coarse_grid_on_the_hsi():
    """Where both lattices agree, the HSI is copied: its pixels are the coarse pixels."""
    image = pair("size=120&ratio=4&bands=4")
    bounds = image.msi.geobox[10:90, 7:80].boundingbox.bbox
    grids = nest(image, AlignConfig(bounds=bounds), None)
    assert grids.lead == (2, 3)
    assert on_lattice(image.hsi.geobox, grids.coarse) == (2, 1)


@pytest.mark.parametrize(("ratio", "step"), [(3, 2), (4, 2), (6, 2), (3, 6)])
@pytest.mark.parametrize("first", [(10, 7), (11, 8), (13, 13)])
def test_the_fine_grid_begins_on_whole_blocks(ratio, step, first):
    """Bands of a coarser sampling are read as whole blocks; the HSI is still copied unless that is impossible."""
    image = pair(f"size=120&ratio={ratio}&bands=4")
    own = np.where(np.arange(len(image.msi.bands)) % 2, step, 1) * image.msi.gsd_m
    image = ScenePair(hsi=image.hsi, msi=replace(image.msi, bands=replace(image.msi.bands, gsd_m=own)))
    bounds = image.msi.geobox[first[0] : 90, first[1] : 80].boundingbox.bbox
    grids = nest(image, AlignConfig(bounds=bounds), None)
    row, col = (at - lead for at, lead in zip(first, grids.lead, strict=True))
    assert (row % step, col % step) == (0, 0)
    assert grids.block == step
    assert on_lattice(image.hsi.geobox, grids.coarse) is not None
    assert GridRecord.of(grids).grids() == grids
    warped = nest(image, AlignConfig(bounds=bounds, reference="hsi"), None)
    assert warped.block == 1


def test_the_product_keeps_the_reference_lattice():
    image = pair("size=150&ratio=8.33&bands=4")
    grids = nest(image, AlignConfig(), None)
    assert grids.ratio == 8
    assert on_lattice(image.msi.geobox, grids.product) is not None
    other = nest(image, AlignConfig(reference="hsi"), 4)
    assert on_lattice(image.hsi.geobox, other.coarse) is not None


def test_bounds_outside_are_skipped():
    with pytest.raises(ExpectedSkip, match="outside the overlap"):
        nest(pair("size=120&ratio=4&bands=4"), AlignConfig(bounds=(0, 0, 10, 10)), None)


def test_rotated_reference_is_rejected():
    image = pair("size=120&ratio=4&bands=4")
    box = image.msi.geobox
    turned = GeoBox(box.shape, box.affine @ Affine.rotation(5), box.crs)
    object.__setattr__(image.msi, "geobox", turned)
    with pytest.raises(InputRejected, match=r"rotated.*align\.reference"):
        nest(image, AlignConfig(), None)


def test_swapped_scenes_are_named():
    with pytest.raises(InputRejected, match="look swapped"):
        ScenePair(hsi=scene("msi"), msi=scene("hsi"))


def test_ratio_out_of_range():
    with pytest.raises(InputRejected, match="expected 2 to 20"):
        ScenePair(hsi=scene("hsi", "size=120&ratio=1.2&bands=4"), msi=scene("msi", "size=120&ratio=1.2&bands=4"))


def test_no_overlap_gives_both_footprints():
    near, far = scene("hsi"), scene("msi")
    box = far.geobox
    object.__setattr__(far, "geobox", GeoBox(box.shape, Affine.translation(1e5, 0) @ box.affine, box.crs))
    with pytest.raises(ExpectedSkip, match=r"do not overlap: .* covers .* E, .* N and .* covers"):
        ScenePair(hsi=near, msi=far)
