"""Weights that come along: what their card says can be repeated by whoever has the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.evaluation.presets import PRESETS, preset_trials
from hyperfuse.pipeline.fusion.weights import shipped_weights
from hyperfuse.pipeline.quality.trials import fuse_whole, score
from hyperfuse.pipeline.training import load_training
from hyperfuse.pipeline.training.pairs import open_ground
from tests import DATA, ROOT

SETTINGS = {
    "universal-plain": {},
    "universal-csakd-student": {"samples.patch": "12", "samples.batch": "4", "rate": "2e-3", "steps": "1000"},
    "universal-csakd-teacher": {"samples.patch": "12", "samples.batch": "4", "rate": "2e-3", "steps": "600"},
    "universal-s3rnet": {"samples.patch": "12", "samples.batch": "4", "rate": "2e-3", "steps": "600"},
}
"""Networks whose weights come along, and what the README sets over the recipe for each."""
RECIPE = ROOT / "examples" / "universal.yaml"
NOT_TO_BE_LEARNT_FROM = ("jasper", "enmap_potsdam")
"""Their terms allow no weights to be made of them; that makes them the cubes that no weights have seen."""


@pytest.fixture(scope="module", params=SETTINGS)
def weights(request) -> Path:
    path = shipped_weights(request.param)
    assert path is not None
    return path


def test_all_weights_that_come_along_are_known():
    folder = ROOT / "models" / "weights"
    assert {path.stem for path in folder.iterdir()} == set(SETTINGS)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 40 * 2**20


def test_a_card_names_data_terms_and_scores_and_no_place(weights):
    card = read_card(weights)
    told = card.training
    assert (card.network, card.space, card.license) == (weights.stem, "universal", "CC-BY-SA-4.0")
    assert told["command"].startswith("hyperfuse train")
    assert all(part["license"] != "unknown" for part in told["data"])
    sources = [source for part in ("images", "libraries") for source in told["generated"][part]]
    assert sources
    assert all("/" not in source["name"] and source["license"] != "unknown" for source in sources)
    assert {part["part"] for part in told["data"]} == {"learnt", "held out"}
    assert not [part for part in told["data"] if part["name"].lower().startswith(NOT_TO_BE_LEARNT_FROM)]
    assert told["scores"]["psnr_db"] > told["estimate"]["psnr_db"]
    assert told["scores"]["sam_deg"] < told["estimate"]["sam_deg"]
    assert weights.stat().st_size < 2**20


def test_the_recipe_is_that_of_the_card(weights, tmp_path):
    told = read_card(weights).training
    recipe = load_training(RECIPE, SETTINGS[weights.stem] | {"network": weights.stem, "output": tmp_path})
    assert told["variations"] == recipe.variations.model_dump(mode="json")
    assert told["samples"] == recipe.samples.model_dump(mode="json")
    assert recipe.generated is not None
    assert told["generated"] == recipe.generated.to_json()
    assert (told["rate"], told["seed"], told["steps"]) == (recipe.rate, recipe.seed, recipe.steps)


@pytest.mark.parametrize("number", [0, 1])
def test_scores_of_its_card_come_again(weights, number):
    if not DATA.is_dir():
        pytest.skip("real imagery is absent (see the README)")
    told = [part for part in read_card(weights).training["data"] if part["part"] == "held out"][number]
    recipe = load_training(RECIPE, data=DATA)
    ground = open_ground(recipe.held_out[number], recipe.simulation, noise_seed=number)
    found = score(fuse_whole(weights.stem, ground.pair, weights=weights).image, ground.pair)
    assert ground.sha256 == told["sha256"]
    assert abs(found.psnr_db - told["psnr_db"]) < 0.05
    assert abs(found.sam_deg - told["sam_deg"]) < 0.01


@pytest.mark.parametrize("cube", ["jasper-ridge", "enmap-potsdam"])
def test_cubes_that_nothing_was_learnt_from_are_better_for_it(weights, cube):
    if not DATA.is_dir():
        pytest.skip("real imagery is absent (see the README)")
    noisy = PRESETS["real-4"].protocols[0]
    trial = next(trial for trial in preset_trials("real-4", DATA) if (trial.cube, trial.protocol) == (cube, noisy))
    pair = trial.make()
    ours, base = (
        score(fuse_whole(name, pair, weights=file).image, pair)
        for name, file in ((weights.stem, weights), ("map_subspace", None))
    )
    assert ours.psnr_db > base.psnr_db + 0.05
    assert ours.sam_deg < base.sam_deg - 0.01
