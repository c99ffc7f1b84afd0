"""An HSI whose samples lie beside the product's lattice: what resampling takes from it comes back where the MSI tells of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.displacement import Displacement, SmoothField
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.sampled_anew import SampledAnew
from hyperfuse.pipeline.observation.sampled_detail import GuideMoments, restored
from tests.simulated import HeldCube

RATIO, SIGMA, N = 4, 1.976, 40
FINE = GeoBox((N * RATIO, N * RATIO), Affine(10, 0, 300_000, 0, -10, 5_800_000), "EPSG:32633")
COARSE = GeoBox((N, N), Affine(40, 0, 300_000, 0, -40, 5_800_000), "EPSG:32633")
OF_BANDS = np.array([[0.6, 0.1, 0.0], [0.0, -0.5, 0.8], [0.3, 0.3, 0.3]])
NO_FIELD = Displacement()


def land() -> NDArray[np.float64]:
    """Three bands of small fields with hard borders, and single bright dots."""
    rng = np.random.default_rng(4)
    blocks = rng.uniform(0.05, 0.5, (3, N * RATIO // 5, N * RATIO // 5)).repeat(5, 1).repeat(5, 2)
    return blocks + 0.3 * (rng.random((1, *blocks.shape[1:])) < 0.01)


def through_the_psf(
    image: NDArray[np.float64], row: NDArray[np.float64], col: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The image at positions (fine pixels) as the HSI's sensor sees it: every weight by the Gaussian itself."""
    weights = [
        np.exp(-0.5 * ((at.ravel()[:, None] - np.arange(size)) / SIGMA) ** 2)
        for at, size in ((row, image.shape[1]), (col, image.shape[2]))
    ]
    weights = [one / np.maximum(one.sum(axis=1, keepdims=True), 1e-30) for one in weights]
    return np.einsum("py,cyx,px->cp", weights[0], image, weights[1]).reshape(-1, *row.shape)


def turned(crs: str = "EPSG:32633") -> GeoBox:
    """A lattice of the HSI's own, turned or of the next zone, that covers the scene."""
    if crs == "EPSG:32633":
        return GeoBox((60, 60), Affine(40, 0, 299_600, 0, -40, 5_800_500) @ Affine.rotation(3.0), crs)
    x, y = Transformer.from_crs("EPSG:32633", crs, always_xy=True).transform(300_000, 5_800_000)
    return GeoBox((80, 80), Affine(40, 0, x - 700.0, 0, -40, y + 700.0), crs)


def measured(image: NDArray[np.float64], lattice: GeoBox, move: Displacement = NO_FIELD) -> NDArray[np.float64]:
    """What a sensor of that lattice measures of the image, through the PSF."""
    col, row = np.meshgrid(np.arange(lattice.shape[1]) + 0.5, np.arange(lattice.shape[0]) + 0.5)
    x, y = lattice.affine @ (col, row)
    if lattice.crs != FINE.crs:
        x, y = Transformer.from_crs(str(lattice.crs), str(FINE.crs), always_xy=True).transform(x, y)
    x, y = (-move)(np.asarray(x), np.asarray(y))  # from where the HSI shows it to where the MSI does
    fine_col, fine_row = ~FINE.affine @ (x, y)
    return through_the_psf(image, np.asarray(fine_row) - 0.5, np.asarray(fine_col) - 0.5)


def scene_of(samples: NDArray[np.float64], lattice: GeoBox) -> Scene:
    return Scene(
        name="hsi", uri="hsi", sensor="generic", cube=HeldCube(samples.astype(np.float32)),
        bands=Bands.sort(np.linspace(500, 900, len(samples)), unit="nm", of="hsi", fwhm=np.full(len(samples), 10.0)),
        geobox=lattice, quantity="reflectance", unit="1", time=None, digest="0" * 64,
    )  # fmt: skip


def anew(tmp_path: Path, image: NDArray[np.float64], hsi: Scene, move: Displacement = NO_FIELD) -> SampledAnew:
    array = store.create_cube(tmp_path / "msi.zarr", image.shape, 64)  # type: ignore[arg-type]
    for y in range(0, N * RATIO, 64):
        for x in range(0, N * RATIO, 64):
            box = Box(y0=y, y1=min(y + 64, N * RATIO), x0=x, x1=min(x + 64, N * RATIO))
            store.write(array, box, image[:, *box.slices].astype(np.float32))
    found = SampledAnew(
        scene=hsi, grid=COARSE, displacement=move, bands=range(len(hsi.bands)), fine=FINE, msi=tmp_path / "msi.zarr",
        msi_bands=range(len(image)), ratio=RATIO, psf_sigma_px=SIGMA,
    )  # fmt: skip
    found.learn([Box(y0=0, y1=N, x0=0, x1=N)], is_psf_known=False)
    return found


def rms(error: NDArray[np.floating]) -> float:
    """Inside the rim, where neither image ends under a kernel."""
    return float(np.sqrt(np.nanmean(error[:, 8:-8, 8:-8].astype(np.float64) ** 2)))


WAVY = Displacement(
    east=12.0, north=-9.0, slope=(0.002, 0.0, 0.0, -0.001), center=(300_800, 5_799_200),
    field=SmoothField(
        origin=(299_000, 5_797_500), step=(900.0, 900.0),
        east=tuple(tuple(4.0 * (-1) ** (i + j) for i in range(6)) for j in range(6)),
        north=tuple(tuple(5.0 * (-1) ** i for i in range(6)) for _ in range(6)),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("crs", "move"),
    [("EPSG:32633", NO_FIELD), ("EPSG:32632", NO_FIELD), ("EPSG:32633", WAVY)],
    ids=["turned", "zone", "field"],
)
def test_what_follows_the_msi_is_as_if_it_had_been_measured_there(tmp_path: Path, crs: str, move: Displacement) -> None:
    image, lattice = land(), turned(crs)
    hsi = scene_of(np.tensordot(OF_BANDS, measured(image, lattice, move), axes=1), lattice)
    row, col = np.meshgrid(*((np.arange(N) + 0.5) * RATIO - 0.5,) * 2, indexing="ij")
    wanted = np.tensordot(OF_BANDS, through_the_psf(image, row, col), axes=1)
    plain = warp(hsi, COARSE, Box(y0=0, y1=N, x0=0, x1=N).slices, bands=range(3), displacement=move, sharp=True)
    found = anew(tmp_path, image, hsi, move)(Box(y0=0, y1=N, x0=0, x1=N))
    assert found.dtype == np.float32
    assert rms(plain - wanted) > 0.004
    assert rms(found - wanted) < 0.1 * rms(plain - wanted)


def test_what_does_not_follow_the_msi_is_left_as_it_was_resampled(tmp_path: Path) -> None:
    image, lattice = land(), turned()
    other = np.random.default_rng(1).permutation(measured(image, lattice).ravel()).reshape(3, 60, 60)
    hsi = scene_of(other, lattice)
    box = Box(y0=0, y1=N, x0=0, x1=N)
    plain = warp(hsi, COARSE, box.slices, bands=range(3), sharp=True)
    assert rms(anew(tmp_path, image, hsi)(box) - plain) < 0.02 * float(np.nanstd(plain))


def test_holes_of_either_image(tmp_path: Path) -> None:
    """Where the MSI is not known the HSI stays as it was resampled; where the HSI is not, nothing is invented."""
    image, lattice = land(), turned()
    samples = np.tensordot(OF_BANDS, measured(image, lattice), axes=1)
    samples[:, 20:24, 30:33] = np.nan
    image[:, 60:90, 60:90] = np.nan
    hsi, box = scene_of(samples, lattice), Box(y0=0, y1=N, x0=0, x1=N)
    plain = warp(hsi, COARSE, box.slices, bands=range(3), sharp=True)
    found = anew(tmp_path, image, hsi)(box)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(plain))
    assert np.isnan(plain).any()
    np.testing.assert_array_equal(found[:, 16:21, 16:21], plain[:, 16:21, 16:21])
    assert np.nanmax(np.abs(found - plain)) < 0.3


def test_blocks_are_invisible(tmp_path: Path) -> None:
    image, lattice = land(), turned("EPSG:32632")
    image[:, 30:50, 100:120] = np.nan
    hsi = scene_of(np.tensordot(OF_BANDS, measured(land(), lattice), axes=1), lattice)
    read = anew(tmp_path, image, hsi)
    whole = read(Box(y0=0, y1=N, x0=0, x1=N))
    for box in (Box(y0=0, y1=17, x0=0, x1=23), Box(y0=9, y1=31, x0=20, x1=N)):
        np.testing.assert_allclose(read(box), whole[:, *box.slices], atol=2e-6)


def test_the_weights_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    guides = rng.normal(0.2, 0.1, (3, 20, 30)).astype(np.float32)
    hsi = (np.tensordot(OF_BANDS, guides, axes=1) + 0.1 + rng.normal(0, 0.01, (3, 20, 30))).astype(np.float32)
    hsi[1, :5], guides[0, 10, 10], hsi[2] = np.nan, np.nan, np.nan
    parts = [GuideMoments.of(hsi[:, :, part], guides[:, :, part]) for part in (slice(0, 11), slice(11, 30))]
    weights = (parts[0] + parts[1]).weights()
    for band in (0, 1):
        known = np.isfinite(hsi[band]) & np.isfinite(guides).all(axis=0)
        x = np.column_stack([np.ones(known.sum()), guides[:, known].T])
        np.testing.assert_allclose(
            weights[band], np.linalg.lstsq(x, hsi[band][known], rcond=None)[0][1:], rtol=0.01, atol=1e-3
        )
    np.testing.assert_array_equal(weights[2], 0.0)  # a band without a sample
    np.testing.assert_array_equal(restored(hsi, guides, guides, weights)[:2], hsi[:2])


@pytest.mark.parametrize("believed", [0.78, 1.28])
def test_a_psf_that_is_believed_wrongly_is_found(tmp_path: Path, believed: float) -> None:
    image, lattice = land(), turned()
    hsi = scene_of(np.tensordot(OF_BANDS, measured(image, lattice), axes=1), lattice)
    right, wrong = anew(tmp_path, image, hsi), anew(tmp_path, image, hsi)
    wrong.psf_sigma_px = believed * SIGMA
    wrong.learn([Box(y0=0, y1=N, x0=0, x1=N)], is_psf_known=False)
    assert right.psf_sigma_px == SIGMA
    assert wrong.psf_sigma_px == pytest.approx(SIGMA, rel=0.07)
    held = anew(tmp_path, image, hsi)
    held.psf_sigma_px = believed * SIGMA
    held.learn([Box(y0=0, y1=N, x0=0, x1=N)], is_psf_known=True)
    assert held.psf_sigma_px == believed * SIGMA
