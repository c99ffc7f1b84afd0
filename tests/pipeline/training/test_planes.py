"""What universal networks learn from: the same pair and patch for the same number, whatever is turned and flipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.models import method
from hyperfuse.pipeline.quality.trials import fuse_whole
from hyperfuse.pipeline.training import load_training, train
from hyperfuse.pipeline.training.pairs import Ground, open_ground
from hyperfuse.pipeline.training.planes import Exercise, Residuals, drawn, exercise, exercises
from hyperfuse.pipeline.training.settings import GroundConfig, SampleConfig, SimulationConfig, VariationConfig
from tests import ROOT
from tests.pipeline.training.settings import LEARNT, UNIVERSAL, curve, training

NETWORK = "universal-csakd-student"
PATCH = SampleConfig(patch=4, batch=3)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return open_ground(GroundConfig(uri=LEARNT), SimulationConfig(hsi_snr_db=None), keep_cube=True)


def made_up(ratio: int, seed: int) -> Exercise:
    """An exercise whose images are all the same one."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3, 9, 7, generator=rng).half()
    fine = coarse.repeat_interleave(ratio, dim=1).repeat_interleave(ratio, dim=2)
    corners = np.argwhere(np.ones((6, 4)))
    return Exercise(
        name="made up",
        ratio=ratio,
        coarse=coarse,
        fine=torch.cat([fine, fine]),
        residual=fine,
        spectra=torch.eye(3),
        corners=corners,
    )


def test_turns_are_those_of_all_images():
    samples = Residuals([made_up(ratio, seed) for ratio, seed in ((2, 0), (3, 1), (3, 2))], PATCH, seed=5)
    seen = set()
    for number in range(24):
        sample = samples[number]
        ratio = sample.truth.shape[-1] // 4
        seen.add(ratio)
        assert torch.equal(sample.msi, torch.cat([sample.truth, sample.truth]))
        assert torch.equal(sample.hsi, sample.truth[:, ::ratio, ::ratio])
    assert seen == {2, 3}


def test_a_sample_is_a_function_of_its_number_and_batches_have_one_ratio():
    made = [made_up(ratio, ratio) for ratio in (2, 3)]
    samples, again = Residuals(made, PATCH, seed=5), Residuals(made, PATCH, seed=5)
    sizes = [samples[number].truth.shape[-1] for number in range(30)]
    assert all(len(set(sizes[k : k + 3])) == 1 for k in range(0, 30, 3))
    assert len(set(sizes)) == 2
    for number in (7, 2, 29):
        assert all(torch.equal(a, b) for a, b in zip(samples[number], again[number], strict=True))
    other = Residuals(made, PATCH, seed=6)
    assert any(not torch.equal(samples[k].hsi, other[k].hsi) for k in range(6))


def test_draws_vary_ratio_bands_and_noise_and_can_be_repeated(ground):
    config = VariationConfig(ratios=(3, 4), msis=("s2-4",), least_bands=2)
    pairs = [drawn(ground, config, np.random.default_rng(k)) for k in range(12)]
    assert {pair.observed.ratio for pair in pairs} == {3, 4}
    assert {pair.observed.msi_bands for pair in pairs} == {2, 3, 4}
    assert all(len(pair.observed.srf) == len(pair.msi) == pair.observed.msi_bands for pair in pairs)
    again = drawn(ground, config, np.random.default_rng(3))
    assert np.array_equal(again.hsi, pairs[3].hsi)
    assert np.array_equal(again.msi, pairs[3].msi)


def test_a_displacement_moves_the_hsi_alone(ground):
    still = VariationConfig(noise_free=1.0, msi_gain=0.0, shift_px=0.0)
    moved = still.model_copy(update={"shift_px": 1.0})
    one, other = (drawn(ground, config, np.random.default_rng(1)) for config in (still, moved))
    assert np.array_equal(one.msi, other.msi)
    assert np.array_equal(one.truth, other.truth)
    assert not np.allclose(one.hsi, other.hsi)
    np.testing.assert_allclose(one.hsi.mean(axis=(1, 2)), other.hsi.mean(axis=(1, 2)), rtol=0.02)


def test_an_exercise_asks_for_what_the_estimate_is_short_of(ground):
    pair = drawn(ground, VariationConfig(ratios=(4,), least_bands=4), np.random.default_rng(0))
    spec = method(NETWORK).specify(pair.observed)
    made = exercise(pair, spec, patch=4)
    short = pair.truth - fuse_whole("map_subspace", pair).image
    # Orthonormal axes: the residual's energy in its scale is at most that of the error, and here nearly all of it.
    planes, bands = made.residual.double().square().sum(dim=(1, 2)), float((short.astype(np.float64) ** 2).sum())
    ratio = float(planes.sum()) / bands
    alone = float(planes[0]) / bands
    other = exercise(replace(pair, truth=pair.truth + 2 * short), spec, patch=4)
    torch.testing.assert_close(other.residual.float(), 3 * made.residual.float(), rtol=0.02, atol=0.02)
    assert 0 < alone < ratio


def test_a_pair_that_cannot_be_made_is_left_out(ground, caplog):
    config = VariationConfig(ratios=(4, 20), pairs=4)
    made = exercises([ground], NETWORK, config, SampleConfig(patch=4), seed=0)
    assert {exercise.ratio for exercise in made} == {4}
    assert "nothing is learnt from pair" in caplog.text


def test_scenes_without_a_whole_patch_are_refused():
    with pytest.raises(InputRejected, match="no scene holds a patch of 40 x 40"):
        Residuals([replace(made_up(2, 0), corners=np.empty((0, 2), np.int64))], SampleConfig(patch=40), seed=0)


@pytest.mark.slow
def test_a_universal_training_goes_on_along_the_same_curve(tmp_path):
    whole = training(tmp_path / "whole", **UNIVERSAL)
    made = train(whole)
    parts = training(tmp_path / "parts", **UNIVERSAL)

    def killed(stage: str, done: int, steps: int, pace: object = None) -> None:
        if (stage, done) == ("train", 9):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, progress=killed)
    assert train(parts).resumed_at == 6
    assert curve(parts.output) == curve(whole.output)
    card = read_card(made.weights["network"])
    assert (card.space, card.components, card.ratios) == ("universal", 4, [3, 4])
    assert (card.hsi_bands, card.msi_bands, card.ratio) == (0, 0, 0)
    header, *rows = curve(whole.output, "validation.csv")
    assert [row[1] for row in rows] == ["map_subspace", NETWORK] * 2
    told = {name: float(value) for name, value in zip(header[2:], rows[0][2:], strict=True)}
    assert card.training["estimate"]["sam_deg"] == told["sam_deg"]
    assert len({len(row) for row in rows}) == 1


def test_a_universal_student_learns_beside_its_teacher(tmp_path):
    made = train(training(tmp_path / "t", **UNIVERSAL, teacher="universal-s3rnet", steps=2, every=2))
    assert set(made.weights) == {"network", "teacher"}
    header, *_ = curve(tmp_path / "t")
    assert {"network.response", "network.relative", "teacher.relative"} <= set(header)


def test_what_does_nothing_in_universal_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"variations\.shift_px"):
        training(tmp_path, **UNIVERSAL | {"samples": {"shift_px": 0.5}})
    with pytest.raises(ValueError, match="one space"):
        training(tmp_path, **UNIVERSAL, teacher="csakd-teacher")
    with pytest.raises(UsageError, match=r"samples\.patch: 6 coarse pixels, expected a multiple of 8"):
        train(training(tmp_path / "t", **UNIVERSAL | {"network": "universal-hyfusion-s"}))


def test_the_scenes_of_a_recipe_are_found_in_the_folder_that_is_given(tmp_path):
    recipe = ROOT / "examples" / "universal.yaml"
    config = load_training(recipe, {"output": tmp_path / "out"}, data=Path("/cubes"))
    assert config.universal
    assert config.scenes[0].uri == "/cubes/san_diego/Sandiego_224.mat"
    assert config.scenes[0].wavelengths == "/cubes/srf/derived/AVIRIS_classic_224.csv"
    assert all(scene.uri.startswith("/cubes/") for scene in config.held_out)
    (tmp_path / "made.yaml").write_text(
        f"{{network: {NETWORK}, output: out, scenes: [{{uri: '{LEARNT}'}}], held_out: [{{uri: a.tif, wavelengths: '500,600'}}]}}"
    )
    made = load_training(tmp_path / "made.yaml", data=Path("cubes"))
    assert made.scenes[0].uri == LEARNT
    assert (made.held_out[0].uri, made.held_out[0].wavelengths) == ("cubes/a.tif", "500,600")
