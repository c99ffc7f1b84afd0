"""What is planted into a pair is named in `qa.json` with its size, and nothing else is; limits follow the noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.models.operators import degrade
from hyperfuse.pipeline.evaluation.field_files import written
from hyperfuse.pipeline.fusion.findings import METHOD, band_psfs, load_findings
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.product_files import QA, REPORT
from hyperfuse.pipeline.observation.field import changed_squares, planting
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import Sample
from hyperfuse.pipeline.observation.simulate import simulate
from hyperfuse.pipeline.observation.stripes import stripes
from hyperfuse.pipeline.quality.causes.limits import noise_angle_deg
from hyperfuse.pipeline.run import fuse_tiles, open_run, run, stage_pair
from tests.pages import Page, require_figures
from tests.synthetic import scene, whole

SIZE, RATIO = 160, 4
FAST = {"publish.formats": "[zarr]"}


@pytest.fixture(scope="module")
def land() -> ReferenceCube:
    truth = scene("truth", f"size={SIZE}&bands=40&seed=5&snr_hsi=0&snr_msi=0")
    return ReferenceCube(name="land", values=whole(truth), bands=truth.bands)


def told(land: ReferenceCube, folder: Path, row: str, **settings: Any) -> dict[str, Any]:
    """`qa.json` of the product of a planted pair, of which nothing is known but what its files tell."""
    pair = simulate(land, Protocol(ratio=RATIO, planted=planting(row)))
    product = run(written(pair, folder, {**FAST, **settings}))
    record: dict[str, Any] = json.loads((product.path / QA).read_text())
    return record


def significant(qa: dict[str, Any]) -> dict[tuple[str, str | None], float]:
    return {(cause["name"], cause["detector"]): cause["value"] for cause in qa["causes"] if cause["significant"]}


CHANGED = float(changed_squares(np.zeros((1, SIZE, SIZE), np.float32), 10)[1].mean())
PLANTED: dict[str, dict[tuple[str, str | None], float]] = {
    "nothing": {},
    "shift-0.25": {("displacement", "VNIR"): 0.25, ("displacement", "SWIR"): 0.25},
    "vswir-0.3": {("displacement", "SWIR"): 0.3},
    "psf-1.3": {("psf", None): 1.3},
    "psf-0.77": {("psf", None): 0.77},
    "date-10": {("changed", None): CHANGED},
    "stripe-0.01": {("stripes", "VNIR"): 0.01, ("stripes", "SWIR"): 0.01},
    "cstripe-0.01": {("stripes", "VNIR"): 0.01, ("stripes", "SWIR"): 0.01},
}
"""Row of the protocol, and all that it must be told as, with its size."""


@pytest.mark.parametrize("row", PLANTED)
def test_what_is_planted_is_told_with_its_size_and_nothing_else(land, row, tmp_path):
    qa = told(land, tmp_path, row)
    found = significant(qa)
    assert found.keys() == PLANTED[row].keys()
    for key, size in PLANTED[row].items():
        assert found[key] == (
            pytest.approx(size, abs=0.05) if key[0] == "displacement" else pytest.approx(size, rel=0.2)
        )
    if row not in {"date-10", "vswir-0.3"}:  # of which the product itself suffers
        assert (qa["state"], qa["warnings"]) == ("published", [])


def test_a_method_that_does_not_refine_tells_what_staging_measured_and_what_it_leaves(land, tmp_path):
    qa = told(land, tmp_path, "vswir-0.3", method="bicubic")
    found = {(cause["name"], cause["detector"]): cause for cause in qa["causes"]}
    assert found["changed", None]["value"] is None
    swir = found["displacement", "SWIR"]
    assert swir["value"] == pytest.approx(0.3, abs=0.05)
    assert swir["left"] == pytest.approx(0.3, abs=0.05)
    assert swir["left"] > swir["limit"]
    (gate,) = (gate for gate in qa["gates"] if gate["name"] == "displacement")
    assert not gate["passed"]
    # Where a gate is missed, what to do stands beside it.
    assert qa["state"] == "published with warnings"
    assert swir["sentence"] in qa["warnings"]
    assert "choose method=map_subspace" in swir["sentence"]


def test_a_universal_network_tells_what_its_estimate_found(land, tmp_path):
    """Without weights it is the estimate, and what was not measured in staging is the estimate's own finding."""
    qa = told(land, tmp_path, "psf-1.3", method="universal-plain", sensor_model="tables")
    found = {cause["name"]: cause for cause in qa["causes"]}
    assert found["psf"]["value"] == pytest.approx(1.3, rel=0.05)
    assert found["changed"]["value"] == 0.0


def test_the_psf_that_is_advised_is_the_planted_one(land, tmp_path):
    """Independent of what was measured: the modulation of a Gaussian 1.3 times as wide as the protocol's."""
    (psf,) = (cause for cause in told(land, tmp_path, "psf-1.3")["causes"] if cause["name"] == "psf")
    told_mtf = Protocol().mtf_nyquist
    assert f"psf_mtf={told_mtf ** (1.3**2):.2f}" in psf["sentence"]


def test_the_report_shows_the_same(land, tmp_path):
    pair = simulate(land, Protocol(ratio=RATIO, planted=planting("psf-1.3")))
    product = run(written(pair, tmp_path, FAST))
    qa = json.loads((product.path / QA).read_text())
    text = (product.path / REPORT).read_text(encoding="utf-8")
    page = Page(text)
    require_figures(page, qa)
    assert "What the pair told" in text
    assert page.cells["causes.2.value"] == f"{qa['causes'][2]['value']:.4g}"
    assert qa["causes"][2]["sentence"].replace("'", "&#39;") in text


def test_what_a_method_found_is_kept_once_and_read_back(land, tmp_path):
    """A folder that lost it, as one whose tiles were fused elsewhere, gets the same again."""
    pair = simulate(land, Protocol(ratio=RATIO, planted=planting("vswir-0.3")))
    with open_run(written(pair, tmp_path, FAST)) as held:
        job = stage_pair(held)
        fuse_tiles(job)
    found = load_findings(job)
    assert sorted(band for one in found for band in one.bands) == list(range(len(job.bands)))
    (job.folder / METHOD).unlink()
    assert load_findings(StagedJob.load(job.folder)) == found
    swir = {job.bands.center_nm[band] > 1000 for bands, psf in band_psfs(job) if psf.y > 0.4 for band in bands}
    assert swir == {True}


def test_stripes_do_not_depend_on_scenery_or_noise():
    """Gains on a scene that the MSI predicts whole, under noise five times as strong as the stripes in each pixel."""
    rng = np.random.default_rng(3)
    msi = rng.uniform(0.1, 0.4, (2, 160, 160)).astype(np.float32)
    import torch

    low = degrade(torch.from_numpy(msi), RATIO, 2.0).numpy()
    hsi = np.stack([low[0], low.mean(axis=0), 0.2 + low[1]])
    noise = 0.02 * hsi.mean() * rng.standard_normal(hsi.shape)
    gains = 0.004 * rng.standard_normal((3, 1, 40))

    def measured(image: np.ndarray) -> Any:
        sample = Sample.of(image[None].astype(np.float32), msi[None], RATIO)
        found = stripes(sample, Psf(2.0), np.arange(3))
        assert found is not None
        return found

    striped, plain = measured(hsi * (1 + gains) + noise), measured(hsi + noise)
    assert striped.amplitude == pytest.approx(gains.std(), rel=0.2)
    assert striped.amplitude > striped.limit
    assert plain.amplitude < plain.limit
    assert plain.limit < 0.004


def test_too_few_columns_tell_no_stripes():
    sample = Sample.of(np.ones((1, 3, 30, 10), np.float32), np.ones((1, 2, 120, 40), np.float32), RATIO)
    assert stripes(sample, Psf(2.0), np.arange(3)) is None


@pytest.mark.parametrize("n_bands", [8, 100])
def test_the_angle_that_noise_makes_against_a_draw(n_bands):
    rng = np.random.default_rng(1)
    clean = rng.uniform(0.1, 0.5, (n_bands, 2000))
    sigma = rng.uniform(0.002, 0.02, n_bands)
    noisy = clean + sigma[:, None] * rng.standard_normal(clean.shape)
    cosine = (clean * noisy).sum(axis=0) / np.sqrt((clean**2).sum(axis=0) * (noisy**2).sum(axis=0))
    drawn = np.degrees(np.arccos(cosine)).mean()
    assert noise_angle_deg(noisy.astype(np.float32), sigma) == pytest.approx(drawn, rel=0.06)


def test_the_limit_on_the_spectral_angle_follows_the_noise_and_gives_way_to_a_setting(land, tmp_path):
    def limit(snr_db: float, **settings: Any) -> float:
        folder = tmp_path / f"{snr_db}{len(settings)}"
        folder.mkdir()
        pair = simulate(land, replace(Protocol(ratio=RATIO), hsi_snr_db=snr_db))
        product = run(written(pair, folder, {**FAST, **settings}))
        gates = json.loads((product.path / QA).read_text())["gates"]
        return next(float(gate["limit"]) for gate in gates if gate["name"] == "max_hsi_sam_deg")

    assert limit(29.0) / limit(35.0) == pytest.approx(2.0, rel=0.1)  # 6 dB are a factor of two
    assert limit(35.0, **{"quality.max_hsi_sam_deg": 0.7}) == 0.7
