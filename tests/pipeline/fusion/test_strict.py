"""Strict mode: below the noise for every method, the same over tiles, without a seam, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from hyperfuse import models
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.flows.cli import main
from hyperfuse.pipeline.evaluation.means import means
from hyperfuse.pipeline.fusion.strict import noise, project_whole
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.product_files import QA
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.plan import plan_report
from hyperfuse.pipeline.quality.trials import Trial, evaluate, fuse_whole, score
from hyperfuse.pipeline.run import run
from tests.pipeline.fusion.test_weights import weight_file
from tests.pipeline.quality.test_consistency import HOLES, fused_job
from tests.synthetic import SMALL, config, methods_without_weights, scene, whole

SIZE = 96
"""Fine pixels, in whole windows of every network."""


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    truth = scene("truth", f"size={SIZE}&bands=24&seed=5")
    return simulate(ReferenceCube(name="land", values=whole(truth), bands=truth.bands), Protocol())


def untrained(name: str, pair: SimulatedPair) -> np.ndarray:
    """What a network with seeded random weights makes of the pair: nonsense, hundreds of times the noise off."""
    network = models.method(name)
    hsi, msi = torch.from_numpy(pair.hsi)[None], torch.from_numpy(pair.msi)[None]
    with torch.inference_mode():
        return network.build(network.specify(pair.observed))(hsi, msi)[0].numpy()


@pytest.mark.parametrize("name", [name for name in models.available() if not name.startswith("universal-")])
def test_every_method_agrees_within_the_noise(name, pair):
    trained = name in methods_without_weights()
    fused = fuse_whole(name, pair).image if trained else untrained(name, pair)
    made = project_whole(fused, pair)
    assert made.after < 1.0
    assert made.after < made.before
    assert trained or made.before > 20
    gained = score(made.image, pair).psnr_db - score(fused, pair).psnr_db
    assert gained > -0.1


def test_noise_is_estimated_as_strong_as_it_was_made():
    """Of a scene with many bands; one that is like no other band is taken for noisier than it is."""
    address = "synthetic:hsi?size=160&bands=100&seed=5"
    noisy, clean = (whole(open_scene(Source(uri=f"{address}&snr_hsi={snr}"))).reshape(100, -1) for snr in (35, 0))
    found = noise(noisy)
    assert found is not None
    over = found / (noisy - clean).std(axis=1)
    assert np.median(over) == pytest.approx(1.0, abs=0.03)
    assert (over > 0.85).all()
    assert (over < 1.2).mean() > 0.9
    assert noise(noisy[:, :10]) is None


@pytest.mark.parametrize(
    ("network", "recipe", "n_tiles"),
    [("bicubic", SMALL, 9), ("gsa", SMALL, 9), ("csakd-student", SMALL, 9), ("bicubic", HOLES, 6), ("gsa", HOLES, 6)],
)
def test_tiles_equal_the_whole_image(tmp_path: Path, network: str, recipe: str, n_tiles: int) -> None:
    """To single precision, with holes, a lead and ratio 3 as well: no seam."""
    settings = {"method": network, "strict": True, "publish__dtype": "float32", "quality__gate": "off"}
    if network == "csakd-student":
        settings["weights"] = str(weight_file(tmp_path / "w.safetensors", network))
    made = []
    for folder, tiles in (("one", {}), ("many", {"tiles__core": 64, "tiles__chunk": 32})):
        (tmp_path / folder).mkdir()
        job = fused_job(tmp_path / folder, recipe, **settings, **tiles)
        assert job.plan.n_tiles == (1 if folder == "one" else n_tiles)
        made.append(store.open_array(job.fused)[...])
    one, many = made
    assert np.array_equal(np.isnan(one), np.isnan(many))
    assert np.isfinite(one).any()
    # Random weights are corrected by as much as the image itself, so rounding is relative to that.
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


def test_a_strict_product_says_what_it_has_reached(tmp_path: Path) -> None:
    settings = {"method": "gsa", "publish__formats": "[zarr]", "tiles__core": 64, "tiles__chunk": 32}
    recipe = "size=200&bands=40&seed=3"
    plain = run(config(tmp_path / "plain", recipe, **settings))
    strict = run(config(tmp_path / "strict", recipe, **settings, strict=True))
    assert strict.provenance["method"]["strict"]
    assert not plain.provenance["method"]["strict"]
    assert strict.job_key != plain.job_key
    loose, qa = (json.loads((product.path / QA).read_text()) for product in (plain, strict))
    assert loose["strict"] is None
    told = qa["strict"]
    over = np.array(qa["consistency"]["hsi"]["band_rmse"]) / np.array(told["noise"])
    assert told["over_noise"] == pytest.approx(over.max())
    assert told["over_noise"] < 1.0 < (np.array(loose["consistency"]["hsi"]["band_rmse"]) / told["noise"]).max()
    assert told["bands_above_noise"] == 0
    assert abs(qa["seams"]["score"] - loose["seams"]["score"]) < 0.02
    assert [row["method"] for row in qa["reduced_resolution"]["rows"]] == ["gsa", "gsa strict", "bicubic"]
    report = (strict.path / "report.html").read_text()
    assert "bands were corrected" in report
    with xr.open_zarr(plain.zarr) as a, xr.open_zarr(strict.zarr) as b:
        one, other = a["reflectance"].values, b["reflectance"].values
    truth = whole(scene("truth", recipe))
    error = [np.sqrt(np.nanmean((image - truth) ** 2)) for image in (one, other)]
    assert error[1] < error[0]


def test_the_halo_of_strict_mode_is_planned(tmp_path: Path) -> None:
    plain, strict = (plan_report(config(tmp_path / "p", SMALL, method="gsa", strict=mode)) for mode in (False, True))
    assert strict["tiles"]["halo"] == plain["tiles"]["halo"] + 14
    assert strict["job_key"] != plain["job_key"]


def test_a_scene_too_small_for_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="leave out --strict"):
        run(config(tmp_path / "p", "size=12&ratio=4&bands=12", method="bicubic", strict=True, align__estimate=False))


def test_evaluate_has_a_row_for_each_mode(pair, tmp_path, capsys):
    rows = evaluate([Trial(cube="land", protocol=Protocol(), make=lambda: pair)], ["gsa", "bicubic"], strict=True)
    assert [row.method for row in rows] == ["gsa", "gsa strict", "bicubic", "bicubic strict"]
    for plain, strict in zip(rows[::2], rows[1::2], strict=True):
        assert strict.over_noise < 1.0 < plain.over_noise
        assert strict.scores.psnr_db > plain.scores.psnr_db - 0.1
    assert {mean["method"]: mean["over_noise"] for mean in means(rows)}["gsa strict"] < 1.0
    address = f"synthetic:truth?size={SIZE}&bands=24&seed=5"
    assert main(["evaluate", address, "--methods", "bicubic", "--strict"]) == 0
    assert "bicubic strict" in capsys.readouterr().out
