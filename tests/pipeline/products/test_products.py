"""From products as operators deliver them to a published cube: EnMAP over Sentinel-2, its 20 m bands included."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine

from hyperfuse.pipeline.config import load_config
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.run import open_run, run, stage_pair
from tests.products import enmap, sentinel2
from tests.products.packing import tarred, zipped
from tests.synthetic import TILES

GRID = Affine(10, 0, 628740, 0, -10, 5294280)
"""5 m off the lattice of the EnMAP scene, as real tiles are; the product begins on an odd row."""
SHAPE = (84, 102)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("products")
    hsi = tarred(enmap.enmap(folder / "ENMAP"), folder / "enmap.tar.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentinel2, "GRID", GRID)
        patch.setattr(sentinel2, "SHAPE", SHAPE)
        patch.setattr(sentinel2, "counts", _texture)
        msi = zipped(sentinel2.sentinel2(folder, masks=False), folder / "s2.zip")
    return {"hsi.uri": str(hsi), "msi.uri": str(msi), "align.estimate": False, **TILES}


def _texture(name: str, gsd_m: int) -> np.ndarray:
    """Counts between 2000 and 4000 that no plane predicts."""
    rows, cols = SHAPE[0] * 10 // gsd_m, SHAPE[1] * 10 // gsd_m
    rng = np.random.default_rng(list(sentinel2.BANDS).index(name))
    return rng.integers(2000, 4000, (rows, cols)).astype(np.uint16)


def _left_of_a_wave(sigma_px: float) -> float:
    """Amplitude that a Gaussian leaves of the cosine at the Nyquist frequency of 20 m pixels on a 10 m grid."""
    x = np.arange(-40.0, 40.0, 0.01)
    weights = np.exp(-0.5 * (x / sigma_px) ** 2)
    return float((weights * np.cos(np.pi * x / 2)).sum() / weights.sum())


def test_20_m_bands_reach_the_method_as_whole_blocks(settings, tmp_path):
    with open_run(load_config(None, settings | {"output": str(tmp_path / "a")})) as held:
        job = stage_pair(held)
        assert job.spec.observed.msi_steps == (1, 1, 1, 2, 1, 2, 2)
        sigmas = job.spec.observed.msi_sigma_px
        # B02 B03 B04 B05 B08 B8A B11: a Gaussian leaves of a wave of four fine pixels what the table says.
        for sigma_px, mtf in zip(sigmas, (None, None, None, 0.38, None, 0.33, 0.22), strict=True):
            assert sigma_px == 0.0 if mtf is None else _left_of_a_wave(sigma_px) == pytest.approx(mtf, abs=1e-4)
        # A 20 m sample comes as two equal pixels, whose variance adds to that of the PSF: 1/4 of a fine pixel squared.
        assert job.own_blur_px(job.staged.msi.kept) == pytest.approx(
            [0.0 if s == 0 else float(np.sqrt(s**2 + 0.25)) for s in sigmas]
        )
        staged = store.open_array(job.folder / "stage" / "msi.zarr")
        rows, cols = job.grids.fine.shape
        fine = store.read(staged, Box(y0=0, y1=rows, x0=0, x1=cols))[3]
    height, width = (n // 2 * 2 for n in fine.shape)
    blocks = fine[:height, :width].reshape(height // 2, 2, width // 2, 2)
    there = np.isfinite(blocks).all(axis=(1, 3))
    assert there.mean() > 0.8
    spread = blocks.max(axis=(1, 3)) - blocks.min(axis=(1, 3))
    np.testing.assert_array_equal(spread[there], 0)


def test_the_product_is_published(settings, tmp_path):
    product = run(load_config(None, settings | {"output": str(tmp_path / "fused")}))
    with product.open() as data:
        assert data["reflectance"].shape[0] == 5  # six bands, one of them dead
        assert data["wavelength"].values.tolist() == sorted(set(enmap.CENTER_NM) - {enmap.CENTER_NM[enmap.DEAD]})
    assert product.provenance["product"]["valid_fraction"] > 0.3
