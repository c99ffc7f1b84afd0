"""Co-registration against known displacements, beside its peers on the same pairs: `make bench-register`.

Per class of pairs: root mean square error (coarse px) over the scene, median and 95th percentile of the scenes; failures (refused, or
wrong by more than a pixel); silent failures (wrong by more than a pixel and accepted); seconds per scene. The last classes
have no right answer: there the only success is to refuse, and whatever else is accepted is a silent failure.

Peers: scikit-image's phase correlation, of the band pair nearest to 842 nm with the MSI brought to the HSI's PSF and
pixels first, as its users do; AROSICS, global and local, where it can be imported (`install_arosics.sh`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.geometry.grids import nest
from hyperfuse.pipeline.registration.estimate import estimate
from hyperfuse.pipeline.registration.views import Survey, open_view
from tests import DATA
from tests.simulated import MTF_SIGMA, Move, constant, held_scene, sentinel2_ground, simulate, synthetic_ground

BERLIN = DATA / "berlin_urban_gradient" / "pairA" / "HighResolution_BerlinUrbanGradient.bsq"
_STEP_PX = 0.05
_WRONG_PX = 1.0


@dataclass(frozen=True)
class Case:
    """A pair, and how it really lies."""

    group: str
    pair: ScenePair
    move: Move | None
    """None where nothing can be found."""


@dataclass(frozen=True)
class Outcome:
    """What a method made of a case."""

    error_px: float
    accepted: bool
    seconds: float


def grounds() -> Iterator[np.ndarray]:
    """Land to look at, shape (4, y, x): real where the imagery is at hand, and synthetic."""
    if DATA.is_dir():
        yield sentinel2_ground()
        berlin = open_scene(Source(uri=str(BERLIN)))
        yield berlin.read((slice(0, 640), slice(0, 480))).astype(np.float64)
    yield synthetic_ground(768)


def affine(seed: int, size: int) -> Move:
    """Up to 2 px of shift and 2 px of rotation, scale and shear at the rim."""
    a = np.random.default_rng(seed).uniform(-1, 1, 6) * np.array([2, 4 / size, 4 / size, 2, 4 / size, 4 / size])
    return lambda x, y: (
        a[0] + a[1] * (x - size / 2) + a[2] * (y - size / 2),
        a[3] + a[4] * (x - size / 2) + a[5] * (y - size / 2),
    )


def smooth(seed: int, size: int, peak: float) -> Move:
    """A wavy field of up to `peak` px about a shift; its shortest wave is as long as the scene."""
    rng = np.random.default_rng(seed)
    phase, shift = rng.uniform(0, 2 * np.pi, 4), rng.uniform(-2, 2, 2)

    def move(x, y):
        u, v = 2 * np.pi * x / size, 2 * np.pi * y / size
        east = np.sin(u + phase[0]) * 0.6 + np.sin(0.7 * v + phase[1]) * 0.4
        north = np.sin(v + phase[2]) * 0.6 + np.sin(0.7 * u + phase[3]) * 0.4
        return shift[0] + peak * east, shift[1] + peak * north

    return move


def oblique_step(size: int, share: float, step: float) -> Move:
    """A part of the scene along an oblique line lies `step` px further east than the rest."""
    return lambda x, y: (
        np.where(x + 0.25 * (y - size / 2) < size * share, 1.0 + step, 1.0),
        np.full_like(x, -0.5),
    )


def clouds(shape: tuple[int, int], share: float, seed: int) -> np.ndarray:
    """A mask of cloud of a given share, in patches of about a sixth of the scene."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), min(shape) / 12)
    return noise > np.quantile(noise, 1.0 - share)


def altered(pair: ScenePair, change: Callable[[np.ndarray], np.ndarray]) -> ScenePair:
    """A pair whose HSI samples are changed."""
    scene = pair.hsi
    data = change(scene.cube.data.copy())
    hsi = held_scene("hsi", data, gsd=scene.geobox.resolution.x, nm=scene.bands.center_nm, fwhm=scene.bands.fwhm_nm)
    return replace(pair, hsi=hsi)


def masked(pair: ScenePair, share: float, seed: int) -> ScenePair:
    """Clouds in the HSI that a mask has taken out."""
    hole = clouds(pair.hsi.cube.shape[1:], share, seed)
    return altered(pair, lambda data: np.where(hole, np.nan, data))


def clouded(pair: ScenePair, share: float, seed: int) -> ScenePair:
    """Clouds in the HSI that no mask knows."""
    hole = clouds(pair.hsi.cube.shape[1:], share, seed)
    rng = np.random.default_rng(seed)
    bright = 0.6 + 0.05 * gaussian_filter(rng.standard_normal(hole.shape), 2)
    return altered(pair, lambda data: np.where(hole, bright, data))


def striped(pair: ScenePair, seed: int) -> ScenePair:
    """Columns with gains of their own (3 %), and one in thirty dead."""
    rng = np.random.default_rng(seed)
    width = pair.hsi.cube.shape[2]
    gain = 1.0 + 0.03 * rng.standard_normal(width)
    gain[rng.random(width) < 1 / 30] = np.nan
    return altered(pair, lambda data: data * gain)


def two_years_later(ground: np.ndarray, seed: int) -> np.ndarray:
    """A third of the land shows other land, and vegetation stands differently everywhere."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(ground.shape[1:]), 15)
    changed = np.abs(noise) > np.quantile(np.abs(noise), 2 / 3)
    later = np.where(changed, ground[:, ::-1, ::-1], ground)
    return later * np.array([1.1, 1.0, 1.25, 0.75])[:, None, None]


def repeated(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Straight lines, and a chessboard: what fits in many places."""
    y, x = np.mgrid[: shape[0], : shape[1]] / 6.0
    patterns = np.sin(2 * np.pi * (x + 0.4 * y) / 8.3), np.sign(np.sin(np.pi * x / 2)) * np.sign(np.sin(np.pi * y / 2))
    gains = np.array([1.0, 0.9, 0.8, 1.2])[:, None, None]
    return (0.2 + 0.1 * patterns[0]) * gains, (0.2 + 0.1 * patterns[1]) * gains


def panchromatic(pair: ScenePair) -> ScenePair:
    """The MSI as one broad band, which is no combination that the HSI's neighbors of its center are."""
    data = pair.msi.cube.data.mean(axis=0, keepdims=True)
    return replace(pair, msi=held_scene("msi", data, gsd=pair.msi.geobox.resolution.x, nm=[650.0], fwhm=[60.0]))


def cases(n: int) -> Iterator[Case]:
    """All cases, `n` per class and ground."""
    for place, ground in enumerate(grounds()):
        for i in range(n):
            seed = 1000 * place + i
            rng = np.random.default_rng(seed)
            east, north = (np.round(rng.uniform(-10, 10, 2) / np.sqrt(2) / _STEP_PX) * _STEP_PX).tolist()
            shift = constant(east, north)
            for ratio in (1, 3, 4, 6, 8):
                cut = ground[:, :256, :256] if ratio == 1 else ground
                yield Case(f"shift, ratio {ratio}", simulate(cut, ratio=ratio, move=shift, seed=seed), shift)
            plain = simulate(ground, ratio=3, move=shift, seed=seed)
            size = max(plain.hsi.geobox.shape)
            yield Case("shift, 20 dB", simulate(ground, ratio=3, move=shift, snr_db=20, seed=seed), shift)
            yield Case("shift, 60 % cloud masked", masked(plain, 0.6, seed), shift)
            yield Case("shift, 30 % cloud unmasked", clouded(plain, 0.3, seed), shift)
            yield Case("shift, 60 % cloud unmasked", clouded(plain, 0.6, seed), shift)
            yield Case("shift, stripes", striped(plain, seed), shift)
            later = two_years_later(ground, seed)
            yield Case("shift, 2 years", simulate(ground, ratio=3, move=shift, seed=seed, later=later), shift)
            yield Case("shift, one broad band", panchromatic(plain), shift)
            bent = affine(seed, size)
            yield Case("affine", simulate(ground, ratio=3, move=bent, seed=seed), bent)
            for peak in (0.5, 1.5, 3.0):
                field = smooth(seed, size, peak)
                yield Case(f"smooth field, {peak} px", simulate(ground, ratio=3, move=field, seed=seed), field)
            for share, step in ((0.25, 2.0), (0.35, 3.0)):
                stepped = oblique_step(size, share, step)
                pair = simulate(ground, ratio=3, move=stepped, seed=seed)
                yield Case(f"step of {step:g} px over {share:.0%}", pair, stepped)
            water = 0.05 + 0 * ground
            yield Case("refuse: water", simulate(water, ratio=3, move=shift, snr_db=35, seed=seed), None)
            yield Case("refuse: all cloud", clouded(plain, 1.0, seed), None)
            other = ground[:, ::-1, ::-1] if i % 2 else ground[:, :, ::-1]
            yield Case("refuse: unrelated", simulate(ground, ratio=3, move=shift, seed=seed, later=other.copy()), None)
            lines = repeated(ground.shape[1:])
            yield Case("refuse: lines, patterns", simulate(lines[i % 2], ratio=3, move=shift, seed=seed), None)
            yield Case("refuse: beyond the search", simulate(ground, ratio=3, move=constant(14, -9), seed=seed), None)


def ours(case: Case) -> Outcome:
    """This project."""
    align = AlignConfig()
    began = time.perf_counter()
    grids = nest(case.pair, align, None)
    found = estimate(case.pair, grids, align, MTF_SIGMA * case.pair.gsd_ratio).registration
    return Outcome(wrong_by(case, found.displacement.at), found.decision == "accept", time.perf_counter() - began)


def wrong_by(case: Case, found: Move) -> float:
    """Root mean square error (coarse px) over the HSI's pixels; infinite where nothing is right."""
    if case.move is None:
        return np.inf
    height, width = case.pair.hsi.geobox.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    east, north = found(*(case.pair.hsi.geobox.affine @ (x, y)))
    right_east, right_north = case.move(x, y)
    gsd = case.pair.hsi.geobox.resolution.x
    return float(np.sqrt(((east / gsd - right_east) ** 2 + (north / gsd - right_north) ** 2).mean()))


def brought_together(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Band pair nearest to 842 nm on the HSI's pixels, MSI blurred with its PSF; NaN where invalid."""
    grids = nest(case.pair, AlignConfig(), None)
    survey = Survey.of(case.pair, grids, MTF_SIGMA * case.pair.gsd_ratio)
    survey = survey.with_bands([int(np.argmin(np.abs(case.pair.msi.bands.center_nm[list(survey.bands)] - 842)))])
    height, width = case.pair.hsi.geobox.shape
    view = open_view(survey, (slice(0, height), slice(0, width)), [(0.0, 0.0)])
    return view.targets(survey.mixing)[0], view.lattice((0.0, 0.0), 0)[0]


def phase_correlation(case: Case) -> Outcome:
    """scikit-image; holes are filled with the mean, because its masked variant has no sub-pixel."""
    from skimage.registration import phase_cross_correlation

    began = time.perf_counter()
    hsi, msi = (np.where(np.isfinite(v), v, np.nanmean(v)) for v in brought_together(case))
    (down, right), *_ = phase_cross_correlation(hsi, msi, upsample_factor=100)
    return scalar(case, float(right), -float(down), began)


def arosics(case: Case, *, local: bool) -> Outcome:
    """AROSICS on the same two bands, which share a grid, as its users would call it.

    Its local tie points are interpolated by a thin-plate spline; where fewer than three are left, it found nothing.
    """
    from arosics import COREG, COREG_LOCAL
    from geoarray import GeoArray
    from rasterio.crs import CRS
    from scipy.interpolate import RBFInterpolator

    began = time.perf_counter()
    hsi, msi = brought_together(case)
    box = case.pair.hsi.geobox
    transform = (box.affine.c, box.affine.a, 0.0, box.affine.f, 0.0, box.affine.e)
    wkt = CRS.from_user_input(str(box.crs)).to_wkt()
    nothing = Outcome(np.inf, accepted=False, seconds=0.0)
    try:
        reference, target = (GeoArray(np.nan_to_num(v, nan=-1.0), transform, wkt, nodata=-1.0) for v in (hsi, msi))
        if not local:
            single = COREG(reference, target, ws=(64, 64), max_shift=12, q=True)
            single.calculate_spatial_shifts()
            shift = single.coreg_info["corrected_shifts_map"]
            found = scalar(case, float(shift["x"]) / box.resolution.x, float(shift["y"]) / box.resolution.x, began)
            return replace(found, accepted=bool(single.coreg_info["success"]))
        table = COREG_LOCAL(
            reference, target, grid_res=8, window_size=(32, 32), max_shift=12, q=True, progress=False, CPUs=1
        ).CoRegPoints_table
        table = table[(table.ABS_SHIFT != -9999) & ~table.OUTLIER.astype(bool)]
        if len(table) < 3:
            return replace(nothing, seconds=time.perf_counter() - began)
        at, moves = (table[names].to_numpy(float) for names in (["X_MAP", "Y_MAP"], ["X_SHIFT_M", "Y_SHIFT_M"]))
        plate = RBFInterpolator(at, moves, smoothing=0.0)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, np.linalg.LinAlgError):
        return replace(nothing, seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began

    def interpolated(x, y):
        return plate(np.stack([x, y], axis=-1).reshape(-1, 2)).T.reshape(2, *x.shape)

    return Outcome(wrong_by(case, interpolated), accepted=True, seconds=seconds)


def scalar(case: Case, east_px: float, north_px: float, began: float) -> Outcome:
    """The outcome of a method that gives one shift and believes it."""
    gsd = case.pair.hsi.geobox.resolution.x
    moved = Displacement(east=east_px * gsd, north=north_px * gsd)
    return Outcome(wrong_by(case, moved.at), accepted=True, seconds=time.perf_counter() - began)


def methods() -> dict[str, Callable[[Case], Outcome]]:
    """Whatever can be imported."""
    found: dict[str, Callable[[Case], Outcome]] = {"hyperfuse": ours}
    try:
        import skimage.registration  # noqa: F401

        found["phase correlation"] = phase_correlation
    except ImportError:
        print("scikit-image is not installed: phase correlation is left out")
    try:
        import arosics as _  # noqa: F401

        found["AROSICS global"] = lambda case: arosics(case, local=False)
        found["AROSICS local"] = lambda case: arosics(case, local=True)
    except ImportError as error:
        print(f"AROSICS is left out ({error}); see install_arosics.sh")
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=8, help="pairs per class and ground (default: 8)")
    parser.add_argument("--quick", action="store_true", help="one pair per class and ground")
    parser.add_argument("--only", help="classes whose name contains this")
    options = parser.parse_args()
    chosen = methods()
    results: dict[tuple[str, str], list[Outcome]] = {}
    for case in cases(1 if options.quick else options.n):
        if options.only and options.only not in case.group:
            continue
        for name, method in chosen.items():
            results.setdefault((case.group, name), []).append(method(case))
    print(f"{'class':30}{'method':20}{'n':>4}{'median':>9}{'95 %':>9}{'fails':>8}{'silent':>8}{'s':>7}")
    for (group, name), outcomes in results.items():
        error = np.array([o.error_px for o in outcomes])
        accepted = np.array([o.accepted for o in outcomes])
        wrong = error > _WRONG_PX
        silent = wrong & accepted
        failed = silent if group.startswith("refuse") else wrong
        ok = error[~wrong]
        median, high = (f"{np.quantile(ok, q):9.3f}" if ok.size else f"{'-':>9}" for q in (0.5, 0.95))
        seconds = np.median([o.seconds for o in outcomes])
        print(f"{group:30}{name:20}{len(error):4}{median}{high}{failed.mean():8.0%}{silent.mean():8.0%}{seconds:7.2f}")


if __name__ == "__main__":
    main()
