"""The gate of universal networks: what harms a scene is left out of it, and everybody can read why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.models import Observed, method, universal
from hyperfuse.pipeline.fusion.residual import load_gate
from hyperfuse.pipeline.fusion.weights import save_weights, shipped_weights
from hyperfuse.pipeline.quality import residual_decision as gate
from hyperfuse.pipeline.run import fuse_tiles, open_run, publish_product, run, stage_pair
from tests.synthetic import config, fused_tiles

NETWORK = "universal-csakd-student"
WITHOUT = "universal-hyfusion-s"
"""One for which no weights come along."""
OPTIONS = {"core": "csakd-student", "core_options": {"growth": 4, "layers": [0, 0, 0, 1]}, "components": 4}
LARGE, SMALL = "size=272&ratio=4&bands=12&seed=3&holes_msi=0.001", "size=96&bands=12"
PLAIN = {"publish__formats": "[zarr]", "publish__dtype": "float32"}


def weight_file(path: Path, *, strength: float = 0.3) -> Path:
    """Weights that were never trained: their residual is noise."""
    spec = method(NETWORK).specify(Observed(hsi_bands=50, msi_bands=3, ratio=3, psf_sigma_px=1.5), **OPTIONS)
    core = universal.build_core(spec)
    nn.init.normal_(core.core.last.weight, std=strength, generator=torch.Generator().manual_seed(0))
    card = WeightCard(
        network=NETWORK, hsi_bands=0, msi_bands=0, ratio=0, space="universal", components=4, options=dict(spec.options)
    )
    save_weights(path, core.state_dict(), card)
    return path


@pytest.fixture
def weights(tmp_path) -> Path:
    return weight_file(tmp_path / "w.safetensors")


def samples(product) -> np.ndarray:
    with product.open() as cube:
        return cube["reflectance"].values


def test_a_residual_that_harms_is_left_out_and_everybody_can_read_why(tmp_path, weights):
    gated = run(config(tmp_path / "gated", LARGE, method=NETWORK, weights=str(weights), **PLAIN))
    base = run(config(tmp_path / "base", LARGE, **PLAIN))
    np.testing.assert_array_equal(samples(gated), samples(base))
    told = gated.provenance["method"]["residual"]
    assert told["applied"] is False
    assert told["psnr_db"][0] < told["psnr_db"][1]
    assert told["window_px"][1] - told["window_px"][0] >= 64
    assert gated.provenance["method"]["base"] == "map_subspace"
    assert gated.provenance["method"]["weights_sha256"] == read_card(weights).sha256
    qa = json.loads((gated.path / "qa.json").read_text())
    assert qa["residual"] == told
    # The assessment's trial is of what was published.
    ours = next(row for row in qa["reduced_resolution"]["rows"] if row["method"] == NETWORK)
    assert ours["error"] is None
    assert told["sentence"] in (gated.path / "report.html").read_text()
    assert base.provenance["method"]["residual"] is None


def test_who_wants_it_always_gets_it_and_tiles_are_invisible(tmp_path, weights):
    settings = {"method": NETWORK, "weights": str(weights), "residual": "always", **PLAIN}
    recipe = "size=144&ratio=4&bands=12&seed=3&holes_msi=0.001"
    whole = fused_tiles(config(tmp_path / "whole", recipe, **settings))
    tiled = fused_tiles(config(tmp_path / "tiled", recipe, **settings, tiles__core=64, tiles__chunk=32))
    assert np.array_equal(np.isnan(tiled), np.isnan(whole))
    np.testing.assert_allclose(tiled, whole, rtol=1e-5, atol=1e-5)
    never = run(config(tmp_path / "never", recipe, **settings | {"residual": "never"}))
    assert np.nanmax(np.abs(samples(never) - whole)) > 1e-3
    assert never.provenance["method"]["residual"]["sentence"] == "not applied: residual=never was asked for"


@pytest.mark.parametrize(
    ("psnr_db", "sam_deg", "applied"),
    [
        ((31.0, 30.0), (1.9, 2.0), True),
        ((30.0, 30.0), (2.0, 2.0), True),
        ((31.0, 30.0), (2.1, 2.0), False),
        ((29.0, 30.0), (1.9, 2.0), False),
        ((29.0, 30.0), (2.1, 2.0), False),
    ],
)
def test_neither_score_may_be_worse(psnr_db, sam_deg, applied):
    """Higher is better for PSNR, lower for SAM."""
    record = gate._compared("here", psnr_db, sam_deg)
    assert record.applied is applied
    assert (record.psnr_db, record.sam_deg) == (psnr_db, sam_deg)


def test_a_scene_too_small_to_be_asked_is_left_alone(tmp_path, weights):
    product = run(config(tmp_path / "p", SMALL, method=NETWORK, weights=str(weights), **PLAIN))
    assert "too small to try it, 6 pixels" in product.provenance["method"]["residual"]["reason"]
    np.testing.assert_array_equal(samples(product), samples(run(config(tmp_path / "base", SMALL, **PLAIN))))


def test_without_weights_it_is_its_base_and_says_so(tmp_path):
    assert shipped_weights(WITHOUT) is None
    product = run(config(tmp_path / "p", SMALL, method=WITHOUT, **PLAIN))
    assert product.provenance["method"]["residual"]["reason"] == (
        f"there are no weights, and without them {WITHOUT} is map_subspace"
    )
    assert product.provenance["method"]["weights_sha256"] is None


def test_it_is_decided_once(tmp_path, weights, monkeypatch):
    settings = {"method": NETWORK, "weights": str(weights), **PLAIN}
    with open_run(config(tmp_path / "p", SMALL, **settings)) as held:
        job = stage_pair(held)
        decided = load_gate(job)
    monkeypatch.setattr(gate, "_decision", lambda _: pytest.fail("it was decided again"))
    with open_run(config(tmp_path / "p", SMALL, **settings)) as held:
        job = stage_pair(held)
        assert load_gate(job) == decided
        fuse_tiles(job)
        publish_product(job, started=held.started)


def test_weights_that_come_along_are_used_unless_others_are_given(tmp_path, weights, monkeypatch):
    assert shipped_weights("no-such-network") is None
    folder = tmp_path / "hyperfuse.models" / "weights"
    folder.mkdir(parents=True)
    shipped = weight_file(folder / f"{NETWORK}.safetensors", strength=0.2)
    monkeypatch.setattr("hyperfuse.pipeline.fusion.weights.files", lambda package: tmp_path / package)
    one = run(config(tmp_path / "shipped", SMALL, method=NETWORK, residual="always", **PLAIN))
    other = run(config(tmp_path / "given", SMALL, method=NETWORK, residual="always", weights=str(weights), **PLAIN))
    digests = [product.provenance["method"]["weights_sha256"] for product in (one, other)]
    assert digests == [read_card(shipped).sha256, read_card(weights).sha256]
    assert one.job_key != other.job_key
    assert not np.array_equal(samples(one), samples(other))
