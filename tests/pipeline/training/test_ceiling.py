"""The bound on learning: no block is guessed from its own truth, and what a filter can know it finds."""

from __future__ import annotations

import numpy as np
import pytest

from hyperfuse.pipeline.training.pairs import open_ground
from hyperfuse.pipeline.training.settings import GroundConfig, SimulationConfig
from tests.benchmarks.ceiling import FOLDS, NETWORK, by_filters, folds, mean, row
from tests.pipeline.training.settings import LEARNT


@pytest.fixture(scope="module")
def pair():
    return open_ground(GroundConfig(uri=LEARNT), SimulationConfig(), noise_seed=0).pair


def test_neighboring_blocks_are_of_different_fourths(pair):
    edge = 3 * pair.observed.ratio
    blocks = folds(pair)[::edge, ::edge]
    assert set(blocks.ravel()) == set(range(FOLDS))
    assert (blocks[1:] != blocks[:-1]).all()
    assert (blocks[:, 1:] != blocks[:, :-1]).all()
    assert (blocks[1:, 1:] != blocks[:-1, :-1]).all()


def test_filters_find_a_displacement_and_never_see_what_they_guess(pair):
    fold = folds(pair)
    # Beyond the rim lies what filters take to be there, the image reflected.
    moved = (np.pad(pair.msi, ((0, 0), (0, 0), (1, 0)), mode="reflect")[..., :-1] - pair.msi)[:2]
    guess = by_filters(pair.msi, moved, fold)
    np.testing.assert_allclose(guess, moved, atol=0.02 * moved.std())
    other = moved.copy()
    other[:, fold == 1] = 7.0
    again = by_filters(pair.msi, other, fold)
    np.testing.assert_array_equal(again[:, fold == 1], guess[:, fold == 1])
    assert (again[:, fold == 0] != guess[:, fold == 0]).any()


def test_known_planes_bound_what_is_learnt(pair):
    found = row("land", pair, steps=2)
    psnr_db = {name: db for name, (db, _) in found.scores.items()}
    assert list(psnr_db)[:4] == ["map_subspace", NETWORK, "filter", "core"]
    assert max(list(psnr_db.values())[:4]) < psnr_db["4 planes known"]
    assert psnr_db["map_subspace"] < psnr_db["1 plane known"] < psnr_db["4 planes known"]
    both = mean([found, found]).scores
    assert both["filter"] == pytest.approx(found.scores["filter"])
