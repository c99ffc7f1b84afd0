"""Gains of the HSI's columns: found as they were planted, taken out of what is staged, and none seen where there are none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.models import method
from hyperfuse.pipeline.evaluation.field_files import written
from hyperfuse.pipeline.fusion.windows import PairInMemory
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.seals import changed
from hyperfuse.pipeline.observation.column_gains import _likeliest, gains_of_sample
from hyperfuse.pipeline.observation.field import planting, stripe_gains
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import Sample
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.run import open_run, run, stage_pair
from tests.synthetic import scene, whole

ROW = planting("cstripe-0.01")


@pytest.fixture(scope="module")
def land() -> ReferenceCube:
    truth = scene("truth", "height=200&width=240&bands=40&seed=5")
    return ReferenceCube(name="land", values=whole(truth), bands=truth.bands)


def found(pair: SimulatedPair) -> np.ndarray | None:
    sample = Sample.of(pair.hsi[None], pair.msi[None], pair.observed.ratio)
    return gains_of_sample(sample, Psf(pair.observed.psf_sigma_px), pair.bands[0].center_nm)


def contrasts(gains: np.ndarray) -> np.ndarray:
    return gains[:, 1:-1] - 0.5 * (gains[:, :-2] + gains[:, 2:])


def test_gains_are_found_as_they_were_planted(land: ReferenceCube) -> None:
    """Of each detector by itself: what differs from column to column is left to less than a third."""
    pair = simulate(land, Protocol(planted=ROW))
    gains = found(pair)
    assert gains is not None
    true = stripe_gains(pair.bands[0].center_nm, pair.hsi.shape[2], ROW)
    of = detector_of(pair.bands[0].center_nm)
    assert len(np.unique(gains[of == 0], axis=0)) == len(np.unique(gains[of == 1], axis=0)) == 1
    for number in (0, 1):
        one = of == number
        assert contrasts(true[one] - gains[one]).std() < 0.35 * contrasts(true[one]).std()


@pytest.mark.parametrize(
    "row", ["nothing", "shift-0.25", "shift-0.5", "psf-1.3", "date-10", "keystone-0.3", "smile-2", "gain-0.05"]
)
def test_nothing_else_is_taken_for_stripes(land: ReferenceCube, row: str) -> None:
    assert found(simulate(land, Protocol(planted=planting(row)))) is None


@pytest.mark.parametrize("n", [60, 900])
def test_the_likeliest_gains_are_those_of_least_squares_with_their_true_variance(n: int) -> None:
    """Exactly for few columns; for many, mirrored at the ends, to a percent of their spread inside."""
    draw = np.random.default_rng(3)
    sigma, noise = 0.01, 2e-5
    gains = sigma * draw.standard_normal(n)
    measured = contrasts(gains[None])[0] + noise**0.5 * draw.standard_normal(n - 2)
    best, gained = _likeliest(measured, np.full(n - 2, noise), np.ones(n - 2, bool))
    differences = np.zeros((n - 2, n))
    at = np.arange(n - 2)
    differences[at, at], differences[at, at + 1], differences[at, at + 2] = -0.5, 1.0, -0.5
    gram = sigma**2 * differences @ differences.T + noise * np.eye(n - 2)
    expected = sigma**2 * differences.T @ np.linalg.solve(gram, measured)
    assert gained > 10
    inner = slice(5, -5)
    assert np.abs(best - expected)[inner].max() < 0.25 * expected.std()
    assert np.std(best - gains) < 0.75 * sigma


def test_a_pair_in_memory_and_a_staged_one_are_freed_of_the_same(land: ReferenceCube, tmp_path) -> None:
    pair = simulate(land, Protocol(planted=ROW))
    config = written(
        pair, tmp_path, {"method": "gsa", "quality.gate": "off", "align.estimate": False, "sensor_model": "tables"}
    )
    with open_run(config) as held:
        job = stage_pair(held)
        staged = store.open_array(job.folder / "stage" / "hsi.zarr")[...]
        assert len(job.staged.column_gains) == 2
        assert not changed(job.folder / "staged_files.json", job.staged.seal, [job.folder / "stage" / "hsi.zarr"])
    memory = PairInMemory(pair, method("gsa").specify(pair.observed))
    window = memory.read(memory.whole)
    true = stripe_gains(pair.bands[0].center_nm, pair.hsi.shape[2], ROW)
    clean = pair.hsi / true[:, None, :]
    for image in (staged, window.hsi[0].numpy()):
        lost = contrasts((image / clean).mean(axis=1)).std() / contrasts((pair.hsi / clean).mean(axis=1)).std()
        assert lost < 0.45


def test_the_product_says_what_was_taken_out_and_off_leaves_it(land: ReferenceCube, tmp_path) -> None:
    pair = simulate(land, Protocol(planted=ROW))
    quick = {"method": "gsa", "quality.gate": "off", "publish.formats": ["zarr"], "align.estimate": False}
    told = {}
    for mode in ("auto", "off"):
        (folder := tmp_path / mode).mkdir()
        product = run(written(pair, folder, quick | {"harmonize.stripes": mode}))
        causes = json.loads((product.path / "qa.json").read_text())["causes"]
        told[mode] = {cause["detector"]: cause for cause in causes if cause["name"] == "stripes"}
    assert "were taken out" in told["auto"]["VNIR"]["sentence"]
    assert told["auto"]["VNIR"]["left"] < 0.5 * told["off"]["VNIR"]["left"]
    assert told["auto"]["VNIR"]["value"] == pytest.approx(0.01, rel=0.35)
    assert "which the product has as well" in told["off"]["VNIR"]["sentence"]
