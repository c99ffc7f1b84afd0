"""A network fitted to a scene: never worse than the start by blocks that were held back, refused where a scene is too small."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.flows.cli import main
from hyperfuse.models import method, universal
from hyperfuse.pipeline.fusion.weights import save_weights, shipped_weights
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.trials import fuse_by, score
from hyperfuse.pipeline.training.adapt import fit as fitting
from hyperfuse.pipeline.training.adapt import run as module
from hyperfuse.pipeline.training.adapt.fit import AdaptSettings
from hyperfuse.pipeline.training.adapt.run import adapt
from hyperfuse.pipeline.training.pairs import open_ground
from hyperfuse.pipeline.training.settings import GroundConfig, SimulationConfig

NETWORK = "universal-csakd-student"
SHORT = AdaptSettings(minutes=10, most_steps=4, patch=4, batch=2, every=2)
RECIPE = "size=416&ratio=4&bands=12&high_nm=1000"


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    """104 x 104 pixels of truth, as the HSI of a scene of that size would be."""
    config = GroundConfig(uri="synthetic:truth?size=104&seed=3&bands=12&high_nm=1000")
    return open_ground(config, SimulationConfig(msi_snr_db=40.0), noise_seed=1).pair


@pytest.fixture
def spec(pair):
    return method(NETWORK).specify(pair.observed, components=4)


def broken(spec) -> dict[str, torch.Tensor]:
    """Weights that add noise to the estimate, so that any learning helps."""
    core = universal.build_core(spec)
    torch.manual_seed(0)
    torch.nn.init.normal_(core.core.last.weight, std=1.0)
    return {name: value.detach().clone() for name, value in core.state_dict().items()}


def test_what_was_bad_becomes_better_and_is_kept(pair, spec):
    """And the figures are those of the method itself, on blocks that neither taught nor chose."""
    start = broken(spec)
    made, tensors = adapt(pair, spec, start, replace(SHORT, most_steps=20, every=5))
    assert made.kept
    assert made.psnr_db[0] > made.psnr_db[1]
    assert made.sam_deg[0] < made.sam_deg[1]
    part = module._parts(pair, np.random.default_rng((SHORT.seed, 0)))
    asked = replace(pair, truth=np.where(part == 2, pair.truth, np.float32(np.nan)))
    again = score(fuse_by(method(NETWORK), spec, pair, tensors, device="cpu").image, asked)
    assert again.psnr_db == pytest.approx(made.psnr_db[0], abs=1e-6)


def test_what_cannot_be_bettered_is_not_kept(pair, spec, monkeypatch):
    """A rate that destroys the network leaves the start."""
    monkeypatch.setattr(fitting, "_RATE", 10.0)
    made, tensors = adapt(pair, spec, None, SHORT)
    assert not made.kept
    assert made.best_step == 0
    assert made.psnr_db[0] == made.psnr_db[1]
    assert "not kept: on blocks held back" in made.reason
    # And the weights it gives are the start's.
    core = universal.build_core(spec)
    assert all(torch.equal(tensors[name], value) for name, value in core.state_dict().items())


def test_blocks_are_apart_and_holes_are_nobodys(pair):
    holed = pair.truth.copy()
    holed[:, 20:30, 50:60] = np.nan
    part = module._parts(replace(pair, truth=holed), np.random.default_rng(0))
    assert (part[20:30, 50:60] == -1).all()
    shares = [(part == which).mean() for which in range(3)]
    assert sum(shares) == pytest.approx(1 - 100 / 104**2)
    assert shares[0] == pytest.approx(0.75, abs=0.05)
    assert shares[1] == pytest.approx(0.125, abs=0.04)
    assert shares[2] == pytest.approx(0.125, abs=0.04)
    # Whole blocks: neighbors belong together but for the edges of blocks.
    assert (np.diff(part[:, 0]) != 0).sum() <= 8


def test_a_killed_adaptation_goes_on(pair, spec, tmp_path):
    start = broken(spec)
    whole, tensors = adapt(pair, spec, start, SHORT)
    state = tmp_path / "w.state"
    adapt(pair, spec, start, replace(SHORT, most_steps=2), state=state)
    resumed, again = adapt(pair, spec, start, SHORT, state=state)
    assert (resumed.steps, resumed.psnr_db) == (whole.steps, whole.psnr_db)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    with pytest.raises(InputRejected, match="is of another adaptation; remove it"):
        adapt(pair, spec, start, replace(SHORT, seed=1), state=state)
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(InputRejected, match="no whole state of an adaptation"):
        adapt(pair, spec, start, SHORT, state=state)


def test_time_ends_it(pair, spec):
    made, _ = adapt(pair, spec, None, replace(SHORT, minutes=1e-9, most_steps=None))
    assert made.steps == 1


def test_small_scenes_are_refused(pair, spec):
    small = replace(pair, truth=pair.truth[:, :96, :96])
    with pytest.raises(ExpectedSkip, match="9216 HSI pixels with data, expected at least 10000"):
        adapt(small, spec, None, SHORT)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        module, "AdaptSettings", lambda minutes: replace(SHORT, minutes=minutes, most_steps=20, every=5)
    )
    spec = method(NETWORK).specify(_observed(), components=4)
    start, output = tmp_path / "start.safetensors", tmp_path / "out.safetensors"
    card = WeightCard(
        network=NETWORK, hsi_bands=0, msi_bands=0, ratio=0, space="universal", components=4, ratios=[3],
        options=dict(spec.options), license="CC0-1.0",
    )  # fmt: skip
    save_weights(start, broken(spec), card)
    scenes = [f"synthetic:{role}?{RECIPE}&seed=5" for role in ("hsi", "msi")]
    given = [
        "adapt",
        *scenes,
        "--network",
        NETWORK,
        "--weights",
        str(start),
        "--output",
        str(output),
        "--device",
        "cpu",
    ]
    assert main([*given, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["weights"] == str(output)
    made = read_card(output)
    assert made.training["adapted"]["start"] == read_card(start).sha256
    assert (made.license, made.components, made.space) == ("CC0-1.0", 4, "universal")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "start.safetensors"]
    assert main(given) == 3
    assert "exists; choose another name" in capsys.readouterr().err
    monkeypatch.setattr(fitting, "_RATE", 10.0)
    assert main([*given[:-4], "--output", str(tmp_path / "b.safetensors"), "--minutes", "0"]) == 2
    assert main(["adapt", *scenes, "--network", "csakd-student", "--output", str(tmp_path / "c")]) == 2
    assert "expected a universal network" in capsys.readouterr().err
    small = [f"synthetic:{role}?size=128&ratio=4&bands=12&high_nm=1000" for role in ("hsi", "msi")]
    assert main(["adapt", *small, "--network", NETWORK, "--output", str(tmp_path / "c")]) == 4
    assert "HSI pixels with data, expected at least 10000" in capsys.readouterr().err


def _observed():
    config = GroundConfig(uri="synthetic:truth?size=48&seed=3&bands=12&high_nm=1000")
    return open_ground(config, SimulationConfig()).pair.observed


@pytest.mark.slow
def test_a_fusion_with_weights_fitted_to_its_scene(tmp_path, capsys, monkeypatch):
    """The gate believes the blocks that were held back; the same command again takes the same weights."""
    asked = []

    def short(minutes):
        asked.append(minutes)
        return replace(SHORT, minutes=minutes, most_steps=20, every=5)

    monkeypatch.setattr(module, "AdaptSettings", short)
    spec = method(NETWORK).specify(_observed(), components=4)
    start = tmp_path / "start.safetensors"
    card = WeightCard(
        network=NETWORK, hsi_bands=0, msi_bands=0, ratio=0, space="universal", components=4, options=dict(spec.options)
    )
    save_weights(start, broken(spec), card)
    scenes = [f"synthetic:{role}?{RECIPE}&seed=5" for role in ("hsi", "msi")]
    given = ["fuse", *scenes, "--network", NETWORK, "--weights", str(start), "--adapt", "3", "--device", "cpu"]
    given += ["--output", str(tmp_path / "p"), "--set", "publish.formats=[zarr]", "--json"]
    assert main(given) == 0
    record = json.loads(capsys.readouterr().out)
    fitted = read_card(tmp_path / "p.adapted.safetensors")
    told = fitted.training["adapted"]
    learned = json.loads((tmp_path / "p" / "provenance.json").read_text())["method"]["residual"]
    assert asked == [3.0]
    assert learned["psnr_db"] == [told["psnr_db"][0], told["estimate"][0]]
    assert learned["applied"] == (
        told["psnr_db"][0] >= told["estimate"][0] and told["sam_deg"][0] <= told["estimate"][1]
    )
    assert "fitted to this scene; on blocks held back" in learned["reason"]
    assert record["product"] == str(tmp_path / "p")
    assert main(given) == 4  # the same job, so the weights are the same and nothing was learnt again
    assert asked == [3.0]
    capsys.readouterr()
    assert main([*given[:3], "--network", NETWORK, *given[7:]]) == 3
    assert f"was fitted from other weights than {shipped_weights(NETWORK)}; remove it" in capsys.readouterr().err
