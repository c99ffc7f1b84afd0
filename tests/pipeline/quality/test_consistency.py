"""Consistency with both inputs, seams and scores without a reference: oracles, closed forms and planted faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hyperfuse.pipeline.quality.consistency as module
from hyperfuse.models.operators import degrade
from hyperfuse.pipeline.fusion.findings import band_psfs
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.psf import taps
from hyperfuse.pipeline.quality.accumulators import Moments
from hyperfuse.pipeline.quality.consistency import Consistency, consistency
from hyperfuse.pipeline.quality.no_reference import no_reference, q2n, sampled_windows, uiqi
from hyperfuse.pipeline.run import fuse_tiles, open_run, stage_pair
from tests.synthetic import SMALL, TILES, config

HOLES = "height=97&width=131&ratio=3&bands=5&holes_hsi=0.02&east_m=7&seed=5"


def fused_job(folder: Path, recipe: str = SMALL, **settings: object) -> StagedJob:
    """A job whose tiles are fused, and nothing more; the lock is given back, the folder stays."""
    with open_run(config(folder / "product", recipe, **settings)) as held:
        job = stage_pair(held)
        fuse_tiles(job)
        return job


@pytest.fixture(scope="module", params=[SMALL, HOLES], ids=["whole", "holes, ratio 3, lead"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StagedJob:
    return fused_job(
        tmp_path_factory.mktemp("job"), request.param, **{k.replace(".", "__"): v for k, v in TILES.items()}
    )


def whole(job: StagedJob) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Product on the fine grid with NaN around it, HSI and MSI, kept bands."""
    stored = store.open_array(job.fused)[...]
    samples = np.where(stored == -32768, np.nan, stored * job.staged.scale).astype(np.float32)
    fine = np.full((len(samples), *job.grids.fine.shape), np.nan, np.float32)
    (y, x), (height, width) = job.grids.lead, samples.shape[1:]
    fine[:, y : y + height, x : x + width] = samples
    hsi, msi = (store.open_array(job.folder / "stage" / f"{role}.zarr")[...] for role in ("hsi", "msi"))
    return fine, hsi[job.staged.hsi.kept], msi[job.staged.msi.kept]


def degraded(job: StagedJob, fine: NDArray[np.float32]) -> NDArray[np.float32]:
    """The whole product degraded at once, NaN where a thousandth of the PSF is lost."""
    ratio = job.grids.ratio
    ((_, (sigma, *shift)),) = band_psfs(job)
    # A wide rim of nothing, so that no outermost pixel is repeated.
    rim = 20 * ratio
    wide = np.pad(fine, ((0, 0), (rim, rim), (rim, rim)), constant_values=np.nan)
    valid = np.isfinite(wide).all(axis=0)
    low = degrade(torch.from_numpy(np.where(valid, wide, 0).astype(np.float64)), ratio, sigma, tuple(shift)).numpy()
    share = degrade(torch.from_numpy(valid.astype(np.float64)), ratio, sigma, tuple(shift)).numpy()
    low = np.where(share > 1 - 1e-3, low / np.maximum(share, 1e-9), np.nan)
    return low[:, 20:-20, 20:-20]


def test_one_pass_equals_the_whole_image_at_once(job: StagedJob) -> None:
    found = consistency(job)
    fine, hsi, msi = whole(job)
    low = degraded(job, fine)
    both = np.isfinite(low).all(axis=0) & np.isfinite(hsi).all(axis=0)
    assert both.sum() > 100
    error = low[:, both] - hsi[:, both]
    assert found.hsi is not None
    assert found.hsi.pixels == both.sum()
    np.testing.assert_allclose(found.hsi.band_bias, error.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.hsi.band_rmse, np.sqrt((error**2).mean(axis=1)), rtol=1e-4)
    np.testing.assert_allclose(
        found.hsi.band_r2,
        [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(low[:, both], hsi[:, both], strict=True)],
        rtol=1e-4,
    )
    srf = np.array(job.observation.srf)
    predicted = np.einsum("kc,cyx->kyx", srf, np.nan_to_num(fine))[srf.any(axis=1)]
    msi = msi[srf.any(axis=1)]
    both = np.isfinite(fine).all(axis=0) & np.isfinite(msi).all(axis=0)
    assert found.msi is not None
    assert found.msi.pixels == both.sum()
    error = predicted[:, both] - msi[:, both]
    np.testing.assert_allclose(found.msi.band_rmse, np.sqrt((error**2).mean(axis=1)), rtol=1e-4)
    stored = store.open_array(job.fused)[...]
    assert found.invalid == pytest.approx((stored == -32768).any(axis=0).mean(), abs=1e-12)


def test_swaths_are_invisible(job: StagedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene cut into narrow swaths says the same of everything, and its maps are the same."""
    once = consistency(job)
    monkeypatch.setattr(module, "_SWATH_PX", 32)
    swaths = consistency(job)
    # Single precision rounds each sample of about 0.3 to 3e-8; a bias is what is left of sums of them.
    assert flat(swaths) == pytest.approx(flat(once), rel=1e-5, abs=2e-8)
    for name in ("hsi_sam_deg", "hsi_rmse", "msi_rmse"):
        np.testing.assert_allclose(getattr(swaths.maps, name), getattr(once.maps, name), rtol=1e-3, atol=1e-6)
        assert np.isfinite(getattr(once.maps, name)).any()


def flat(found: Consistency) -> list[float]:
    assert found.hsi is not None
    assert found.msi is not None
    assert found.seams is not None
    return [
        found.hsi.pixels, found.hsi.sam_deg, found.hsi.rmse, found.hsi.bias, *found.hsi.band_r2, found.msi.pixels,
        found.msi.rmse, found.msi.r2, found.seams.score, found.seams.lines, found.invalid, found.implausible or 0.0,
    ]  # fmt: skip


def change(job: StagedJob, faulty: NDArray[np.float32]) -> None:
    """Overwrite the product's samples, given in physical units, where they are valid."""
    array = store.open_array(job.fused, write=True)
    stored = array[...]
    array[...] = np.where(stored == -32768, stored, np.round(faulty / job.staged.scale)).astype(np.int16)


def test_a_bias_a_blur_and_a_seam_are_found(tmp_path: Path) -> None:
    job = fused_job(tmp_path, **{k.replace(".", "__"): v for k, v in TILES.items()})
    before = consistency(job)
    samples = store.open_array(job.fused)[...].astype(np.float32) * job.staged.scale
    change(job, samples + 0.02)
    biased = consistency(job)
    assert before.hsi is not None
    assert biased.hsi is not None
    assert biased.hsi.bias - before.hsi.bias == pytest.approx(0.02, abs=1e-4)
    change(job, samples.mean(axis=(1, 2), keepdims=True) + np.zeros_like(samples))
    blurred = consistency(job)
    assert blurred.msi is not None
    assert blurred.msi.r2 < 0.1
    stepped = samples.copy()
    stepped[:, :, 64:128] += 0.03
    change(job, stepped)
    seamed = consistency(job)
    assert before.seams is not None
    assert seamed.seams is not None
    assert abs(before.seams.score) < 0.05 + 2 * before.seams.spread
    assert seamed.seams.score > 0.3
    assert seamed.seams.lines == 4
    assert np.argmax([value or 0 for value in seamed.seams.profile]) == len(seamed.seams.profile) // 2
    change(job, np.full_like(samples, 2.0))
    assert consistency(job).implausible == pytest.approx(1.0)


def test_a_phase_of_the_coarse_lattice_is_no_seam(tmp_path: Path) -> None:
    """Steps between coarse pixels cross every tile border, but the lines of the same phase beside it as well."""
    job = fused_job(tmp_path, SMALL, **{k.replace(".", "__"): v for k, v in TILES.items()})
    _, height, width = store.open_array(job.fused).shape
    rng = np.random.default_rng(1)
    coarse = rng.random((12, -(-height // 4), -(-width // 4))).astype(np.float32)
    change(job, coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width] * 0.5)
    seams = consistency(job).seams
    assert seams is not None
    assert abs(seams.score) < 0.1


def test_one_tile_has_no_seam(tmp_path: Path) -> None:
    assert consistency(fused_job(tmp_path)).seams is None


@settings(max_examples=30, deadline=None)
@given(ratio=st.integers(2, 9), first=st.integers(0, 40), length=st.integers(1, 60), share=st.floats(0.2, 0.8))
def test_taps_of_a_stretch_are_those_of_the_whole(ratio: int, first: int, length: int, share: float) -> None:
    from hyperfuse.models.operators import blur_matrix

    n_coarse, sigma = 60, share * ratio
    matrix = blur_matrix(n_coarse, ratio, sigma)
    inner = range(12, 28)
    part = taps(inner, range(first, first + length), ratio, sigma)
    np.testing.assert_allclose(part, matrix[inner.start : inner.stop, first : first + length], atol=1e-6)


def test_moments_of_equal_images() -> None:
    image = np.random.default_rng(0).random((4, 50), dtype=np.float32)
    moments = Moments(4)
    angle, rmse = moments.add(image, image)
    agreement = moments.agreement()
    assert agreement is not None
    assert (agreement.rmse, agreement.bias) == (0.0, 0.0)
    assert agreement.r2 == pytest.approx(1.0)
    assert angle.max() < 1e-4
    assert rmse.max() == 0
    assert Moments(3).agreement() is None


class TestQ2n:
    """Against a naive hypercomplex product, and UIQI, which it is for one band."""

    rng = np.random.default_rng(3)

    @staticmethod
    def conj(v: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([v[:1], -v[1:]])

    def times(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cayley-Dickson product by its recursive definition."""
        if len(a) == 1:
            return a * b
        half = len(a) // 2
        (p, q), (r, s) = (a[:half], a[half:]), (b[:half], b[half:])
        return np.concatenate(
            [self.times(p, r) - self.times(self.conj(s), q), self.times(s, p) + self.times(q, self.conj(r))]
        )

    @pytest.mark.parametrize("n_bands", [1, 2, 3, 4, 7, 8, 13])
    def test_equals_the_definition(self, n_bands: int) -> None:
        a, b = self.rng.random((2, n_bands, 5, 6))
        size = 1 << (n_bands - 1).bit_length()
        x, y = (np.pad(image.reshape(n_bands, -1), ((0, size - n_bands), (0, 0))) for image in (a, b))
        mx, my = x.mean(axis=1), y.mean(axis=1)
        covariance = np.mean([self.times(p - mx, self.conj(q - my)) for p, q in zip(x.T, y.T, strict=True)], axis=0)
        vx, vy = ((z - m[:, None]) ** 2 for z, m in ((x, mx), (y, my)))
        vx, vy = vx.sum(axis=0).mean(), vy.sum(axis=0).mean()
        lx, ly = np.linalg.norm(mx), np.linalg.norm(my)
        expected = (
            np.linalg.norm(covariance) / np.sqrt(vx * vy)
            * 2 * np.sqrt(vx * vy) / (vx + vy)
            * 2 * lx * ly / (lx**2 + ly**2)
        )  # fmt: skip
        assert q2n(a, b) == pytest.approx(expected, rel=1e-12)

    def test_one_band_is_uiqi(self) -> None:
        a, b = self.rng.random((2, 1, 16, 16))
        index = uiqi(a.reshape(1, -1), b.reshape(1, -1))
        assert q2n(a, b) == pytest.approx(abs(float(index[0])), rel=1e-12)

    def test_equal_images_reach_one_and_gain_or_noise_less(self) -> None:
        a = self.rng.random((9, 12, 12))
        assert q2n(a, a) == pytest.approx(1.0, rel=1e-12)
        assert q2n(a, 2 * a) == pytest.approx(0.8 * 0.8, rel=1e-12)  # 2 * 2 / (1 + 4), of the means and of the spreads
        noisy = [q2n(a, a + sigma * self.rng.standard_normal(a.shape)) for sigma in (0.01, 0.1, 1.0)]
        assert 1 > noisy[0] > noisy[1] > noisy[2]


def test_no_reference_ranks_the_hsi_itself_and_a_spoiled_product(tmp_path: Path) -> None:
    job = fused_job(tmp_path, "size=240&ratio=4&bands=8&seed=2", method="gsa")
    good = no_reference(job)
    assert good is not None
    assert good.d_s is not None
    assert good.hqnr == pytest.approx((1 - good.d_lambda_k) * (1 - good.d_s))
    assert 0 <= good.d_lambda_k < 0.1
    samples = store.open_array(job.fused)[...].astype(np.float32) * job.staged.scale
    change(job, samples[::-1].copy())
    spoiled = no_reference(job)
    assert spoiled is not None
    assert spoiled.d_lambda_k > 2 * good.d_lambda_k


def test_windows_lie_inside_with_their_psf(job: StagedJob) -> None:
    windows = sampled_windows(job)
    assert windows
    height, width = job.grids.product.shape
    for window in windows:
        assert isinstance(window, Box)
        reach = -(-int(4 * job.observation.psf_sigma_px + job.grids.ratio) // job.grids.ratio)
        around = window.grown(reach - 1).times(job.grids.ratio)
        assert around.y0 >= job.grids.lead[0]
        assert around.x0 >= job.grids.lead[1]
        assert around.y1 <= height + job.grids.lead[0]
        assert around.x1 <= width + job.grids.lead[1]
