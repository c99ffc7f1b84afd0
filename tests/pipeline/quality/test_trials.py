"""The benchmark: known answers on simulated and real cubes, and rows instead of aborts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from hyperfuse import models
from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, QualityRefused, UsageError
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.references.cubes import CubeSource, ReferenceCube, open_cube
from hyperfuse.catalogs.weight_cards import WeightCard
from hyperfuse.models import ModelSpec
from hyperfuse.pipeline.config import AlignConfig, load_config
from hyperfuse.pipeline.evaluation.field_table import field_summary
from hyperfuse.pipeline.evaluation.means import means
from hyperfuse.pipeline.evaluation.presets import AVIRIS_DROPPED, CUBES, PAIRS, PRESETS, cube_trials, preset_trials
from hyperfuse.pipeline.fusion.weights import save_weights
from hyperfuse.pipeline.observation.field import ROWS, planting
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import simulate
from hyperfuse.pipeline.quality import trials as module
from hyperfuse.pipeline.quality.metrics import Scores
from hyperfuse.pipeline.quality.reduced_resolution import pair_trial, reduced, reduced_protocol
from hyperfuse.pipeline.quality.trials import (
    Fused,
    Trial,
    TrialRow,
    evaluate,
    fuse_whole,
    methods_without_weights,
    score,
)
from hyperfuse.pipeline.reports.evaluation_figure import draw
from tests import DATA
from tests.synthetic import scene, whole

RECIPE = "size=96&bands=40&seed=5"
CLEAN = Protocol(hsi_snr_db=None, msi_snr_db=None)


@pytest.fixture(scope="module")
def pair():
    truth = scene("truth", RECIPE)
    return simulate(ReferenceCube(name="land", values=whole(truth), bands=truth.bands), Protocol())


def trial(pair, name="land"):
    return Trial(cube=name, protocol=Protocol(), make=lambda: pair)


# --- one pair ------------------------------------------------------------------------------------------------------


def test_every_method_without_weights_beats_the_control(pair):
    control = score(fuse_whole("bicubic", pair).image, pair)
    for name in methods_without_weights():
        fused = fuse_whole(name, pair)
        assert fused.image.shape == pair.truth.shape
        assert fused.seconds > 0
        assert fused.peak_bytes >= 0
        if name != "bicubic":
            assert score(fused.image, pair).psnr_db > control.psnr_db + 3, name


def test_the_rim_is_not_scored(pair):
    wrong = pair.truth.copy()
    wrong[:, :4], wrong[:, :, -4:] = 9.0, 9.0
    assert score(wrong, pair).rmse == 0.0
    assert score(wrong, pair).pixels == 88 * 88
    assert score(wrong, replace(pair, rim_px=0)).rmse > 1.0


class Recorder:
    """A method that wants multiples of 5 coarse pixels and returns the nearest HSI pixel."""

    margin = 0

    def __init__(self):
        self.valid = None
        self.hsi = None

    def specify(self, observed, **_options):
        return ModelSpec(name="recorder", observed=observed, halo=0, hsi_reach=0, msi_reach=0, multiple_of=5,
                         needs_first_pass=True)  # fmt: skip

    def first_pass(self, _spec, _weights=None):
        return self

    def sums(self, _hsi, _msi, valid, _origin):
        self.valid = valid
        return {}

    def build(self, _spec, _sums=None, _weights=None):
        return self

    def __call__(self, hsi, msi):
        self.hsi = hsi
        assert hsi.shape[-1] % 5 == hsi.shape[-2] % 5 == 0
        assert msi.shape[-1] == 4 * hsi.shape[-1]
        assert torch.isfinite(hsi).all()
        assert torch.isfinite(msi).all()
        return hsi.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_padding_and_holes(pair, monkeypatch):
    """24 coarse pixels become 25 by repeating the last; holes are filled; neither counts in the first pass."""
    recorder = Recorder()
    monkeypatch.setattr(module, "method", lambda _: recorder)
    hsi, msi = pair.hsi.copy(), pair.msi.copy()
    hsi[:, 3, 7], msi[1, 40, 50] = np.nan, np.nan
    image = fuse_whole("recorder", replace(pair, hsi=hsi, msi=msi)).image
    assert image.shape == pair.truth.shape
    np.testing.assert_array_equal(image[:, ::4, ::4], recorder.hsi[0, :, :24, :24].numpy())
    np.testing.assert_allclose(image[:, 12, 28], np.nanmean(hsi, axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(recorder.hsi[..., 24, :].numpy(), recorder.hsi[..., 23, :].numpy())
    assert recorder.valid.shape == (1, 25, 25)
    assert np.argwhere(~recorder.valid[0, :24, :24].numpy()).tolist() == [[3, 7], [10, 12]]
    assert not recorder.valid[0, 24].any()


def test_a_network_with_its_weights(pair, tmp_path):
    """The network sees both images in [-1, 1] by the HSI's range, and its output is mapped back."""
    chosen = models.method("csakd-student")
    network = chosen.build(chosen.specify(pair.observed))
    card = WeightCard(
        network="csakd-student", hsi_bands=40, msi_bands=4, ratio=4, options={}, source="test", license="CC0-1.0"
    )
    save_weights(tmp_path / "w.safetensors", network.state_dict(), card)
    low, high = pair.hsi.min(), pair.hsi.max()
    with torch.inference_mode():
        scaled = (torch.from_numpy(2 * (image - low) / (high - low) - 1)[None] for image in (pair.hsi, pair.msi))
        expected = (network(*scaled)[0].numpy() + 1) * (high - low) / 2 + low
    fused = fuse_whole("csakd-student", pair, weights=tmp_path / "w.safetensors")
    np.testing.assert_allclose(fused.image, expected, atol=1e-4)
    other = replace(pair, observed=replace(pair.observed, ratio=2))
    with pytest.raises(InputRejected, match="at ratio 4, expected csakd-student with 40 and 4 at ratio 2"):
        fuse_whole("csakd-student", other, weights=tmp_path / "w.safetensors")


# --- tables --------------------------------------------------------------------------------------------------------


def test_a_method_that_fails_is_a_row(pair, monkeypatch):
    def method(name):
        if name == "broken":
            raise ZeroDivisionError("no\n inverse")
        return models.method(name)

    monkeypatch.setattr(module, "method", method)
    rows = evaluate([trial(pair)], ["bicubic", "broken", "csakd-teacher", "gsa"])
    assert [row.error is None for row in rows] == [True, False, False, True]
    assert rows[1].error == "no inverse"
    assert "csakd-teacher=FILE" in rows[2].error
    assert rows[1].to_json()["error"] == "no inverse"
    assert [record.get("psnr_db") is not None for record in means(rows)] == [True, False, False, True]
    assert means(rows)[1]["error"] == "failed on 1 of 1"


def test_a_cube_that_cannot_be_read_is_a_row_unless_it_is_the_only_one(pair):
    lost = Trial.refused("lost", Protocol(), InputRejected("a.mat: no such file"))
    apart = Trial.refused("apart", Protocol(), ExpectedSkip("the scenes do not overlap"))
    rows = evaluate([lost, trial(pair)], ["bicubic"])
    assert [row.error for row in rows] == ["a.mat: no such file", None]
    with pytest.raises(ExpectedSkip, match="do not overlap"):
        evaluate([apart, lost], ["bicubic"])


def test_means_are_over_the_cubes_of_one_protocol():
    def row(cube, value, protocol=CLEAN):
        scores = Scores(psnr_db=value, psnr_max_db=value, sam_deg=value, ergas=value, ssim=value, rmse=value, cc=value,
                        pixels=9)  # fmt: skip
        return TrialRow(cube=cube, method="gsa", protocol=protocol, scores=scores, seconds=value, unit=10.0)

    found = means([row("a", 1.0), row("b", 4.0), row("a", 9.0, Protocol()), replace(row("c", 0.0), scores=None)])
    assert [(r["sam_deg"], r["seconds"], r["rmse_own_unit"], r["cubes"]) for r in found] == [
        (2.5, 2.5, 25.0, 2), (9.0, 9.0, 90.0, 1),
    ]  # fmt: skip
    assert found[0]["error"] == "failed on 1 of 3"
    assert row("a", float("inf")).to_json()["psnr_db"] is None  # JSON knows no infinity


def test_figure(pair, tmp_path):
    rows = evaluate([trial(pair, "a"), trial(pair, "b")], ["bicubic", "gsa"])
    rows += [replace(row, cube="c", scores=None, error="failed") for row in rows[:1]]
    draw(rows, tmp_path / "bars.png")
    image = imread(tmp_path / "bars.png")
    assert image.shape[0] > 300
    assert image.shape[1] > 900
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20  # not blank
    with pytest.raises(InputRejected, match="cannot be written"):
        draw(rows, tmp_path / "absent" / "bars.png")


# --- the field protocol --------------------------------------------------------------------------------------------


def small_cube(folder, name="jasper-ridge"):
    """A cube of the presets in a folder of its own, of random mixtures."""
    nm = np.arange(420.0, 2400.0, 30.0)
    rng = np.random.default_rng(1)
    spectra = np.abs(np.sin(nm[:, None] / np.array([300.0, 500.0, 900.0]))) + 0.1
    values = np.einsum("ck,yxk->cyx", spectra, rng.dirichlet(np.ones(3), (60, 60))).astype(np.float32)
    (folder / CUBES[name].uri).parent.mkdir(parents=True)
    return ReferenceCube(name=name, values=values, bands=Bands.sort(nm, unit="nm", of=name, fwhm=[30.0] * len(nm)))


def test_field_presets(tmp_path, monkeypatch):
    """Every row for every band set, of the window in the middle; rows and sets can be chosen."""
    cube = small_cube(tmp_path)
    monkeypatch.setattr("hyperfuse.pipeline.evaluation.presets._opened", lambda _: cube)
    trials = preset_trials("field-4", tmp_path)
    assert [(t.protocol.msi, t.protocol.planted.name) for t in trials] == [
        (msi, row) for msi in ("s2-4", "s2-6") for row in ROWS
    ]
    assert {t.protocol.msi for t in preset_trials("field-10", tmp_path)} == {"s2-10"}
    assert {t.protocol.ratio for t in preset_trials("field-3", tmp_path)} == {3}
    chosen = preset_trials("field-4", tmp_path, sets=["s2-6"], rows=[planting("shift-0.15")], window=32)
    assert [(t.protocol.msi, t.protocol.planted.vnir_px) for t in chosen] == [("s2-6", 0.15)]
    pair = chosen[0].make()
    np.testing.assert_allclose(pair.truth * pair.unit, cube.values[:, 14:46, 14:46], rtol=1e-5)
    assert pair.bands is not None
    assert [len(bands) for bands in pair.bands] == [len(pair.hsi), len(pair.msi)]


def test_what_changed_is_scored_apart(pair):
    """The truth with errors in the changed squares only: whole it is wrong, outside of them it is perfect."""
    changed = np.zeros(pair.truth.shape[1:], bool)
    changed[40:50, 40:50] = True
    wrong = pair.truth.copy()
    wrong[:, 36:54, 36:54] += 0.1  # as far as the rim of 4 pixels that counts as changed
    planted = Protocol(planted=planting("date-1"))
    row = evaluate(
        [Trial(cube="land", protocol=planted, make=lambda: replace(pair, changed=changed))], ["gsa"],
        fuse=lambda *_, **__: Fused(image=wrong, seconds=1.0, peak_bytes=0),
    )[0]  # fmt: skip
    assert row.outside.rmse == 0.0
    assert row.outside.pixels == 88 * 88 - 18 * 18
    assert row.scores.rmse == pytest.approx(0.1 * 18 / 88, rel=1e-5)
    assert row.to_json()["planted"] == "date-1"
    assert row.to_json()["outside_sam_deg"] == row.outside.sam_deg
    assert means([row])[0]["outside_sam_deg"] == row.outside.sam_deg


def test_summary_of_the_field():
    """Means are over the cubes that all methods fused; a method is named where one of its two scores is better."""

    def row(cube, name, psnr_db, sam_deg, planted="mix"):
        scores = Scores(psnr_db=psnr_db, psnr_max_db=0, sam_deg=sam_deg, ergas=0, ssim=0, rmse=0, cc=0, pixels=9)
        return TrialRow(cube=cube, method=name, protocol=Protocol(planted=planting(planted)), scores=scores)

    rows = [
        row("a", "map_subspace", 30.0, 3.0), row("a", "gsa", 31.0, 4.0),
        row("b", "map_subspace", 34.0, 2.0), row("b", "gsa", 33.0, 2.5),
        row("c", "map_subspace", 99.0, 0.0), replace(row("c", "gsa", 0, 0), scores=None, error="failed"),
    ]  # fmt: skip
    date = row("a", "gsa", 20.0, 9.0, "date-10")
    found = field_summary([*rows, replace(date, outside=rows[1].scores)])
    shown = [(r["planted"], r["method"], r["psnr_db"], r["sam_deg"], r["cubes"]) for r in found["field"]]
    assert shown == [
        ("mix", "map_subspace", 32.0, 2.5, 2), ("mix", "gsa", 32.0, 3.25, 2),
        ("date-10", "gsa", 20.0, 9.0, 1), ("date-10 outside", "gsa", 31.0, 4.0, 1),
    ]  # fmt: skip
    assert [(r["cube"], r["method"], r["psnr_db"], r["default_psnr_db"]) for r in found["beaten"]] == [
        ("a", "gsa", 31.0, 30.0)
    ]


# --- real pairs at reduced resolution ------------------------------------------------------------------------------


def test_reduced_pair_of_known_scenes():
    """Both images degraded once more: the HSI is the truth, and the MSI still shows what lies in it."""
    recipe = "size=192&ratio=4&bands=100&seed=5&snr_hsi=inf&snr_msi=inf"
    pair = ScenePair(hsi=scene("hsi", recipe), msi=scene("msi", recipe))
    made = reduced(pair, reduced_protocol(pair), align=AlignConfig(estimate=False))
    np.testing.assert_allclose(made.truth * made.unit, whole(pair.hsi), rtol=1e-5)
    assert made.hsi.shape == (100, 12, 12)
    assert made.msi.shape == (4, 48, 48)
    # The PSF of the HSI and the blur of the MSI are the same, so the degraded MSI is the response of the truth.
    predicted = np.einsum("kc,cyx->kyx", np.array(made.observed.srf), made.truth)
    for ours, theirs in zip(predicted, made.msi, strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998
        assert np.corrcoef(np.roll(ours, 1, axis=0).ravel(), theirs.ravel())[0, 1] < 0.98
    control, fused = (score(fuse_whole(name, made).image, made) for name in ("bicubic", "gsa"))
    assert fused.psnr_db > control.psnr_db + 3
    assert fused.sam_deg < control.sam_deg


@pytest.mark.parametrize("reference", ["msi", "hsi"])
def test_a_reduced_pair_of_displaced_scenes_lies_on_itself(reference):
    """Whichever image is moved onto the other: the degraded MSI is the response of the truth."""
    recipe = "size=192&ratio=4&bands=100&seed=5&snr_hsi=inf&snr_msi=inf&east_m=60&north_m=-80"
    pair = ScenePair(hsi=scene("hsi", recipe), msi=scene("msi", recipe))
    align = AlignConfig(reference=reference, east_m=60, north_m=-80)
    made = reduced(pair, reduced_protocol(pair), align=align)
    predicted = np.einsum("kc,cyx->kyx", np.array(made.observed.srf), made.truth)
    for ours, theirs in zip(predicted, made.msi, strict=True):
        seen = np.isfinite(ours) & np.isfinite(theirs)
        assert seen.mean() > 0.8
        assert np.corrcoef(ours[seen], theirs[seen])[0, 1] > 0.97


def test_a_reduced_pair_as_noisy_as_at_full_resolution():
    """For who learns from it: the images' noise comes back that averaging took, holes and all else stay."""
    recipe = "size=192&ratio=4&bands=30&seed=5&snr_hsi=30&snr_msi=30"
    silent = recipe.replace("snr_hsi=30&snr_msi=30", "snr_hsi=inf&snr_msi=inf")
    quiet = ScenePair(hsi=scene("hsi", silent), msi=scene("msi", silent))
    pair = ScenePair(hsi=scene("hsi", recipe), msi=scene("msi", recipe))
    protocol, align = reduced_protocol(pair), AlignConfig(estimate=False)
    clean, plain = (reduced(each, protocol, align=align) for each in (quiet, pair))
    noisy, again = (reduced(pair, protocol, align=align, noisy=True) for _ in range(2))

    def noise(image, of):
        return float(np.sqrt(np.nanmean((image * of.unit - clean_of(image) * clean.unit) ** 2)))

    def clean_of(image):
        return next(each for each in (clean.hsi, clean.msi, clean.truth) if each.shape == image.shape)

    assert noise(noisy.hsi, noisy) > 2 * noise(plain.hsi, plain)
    assert noise(noisy.msi, noisy) > 2 * noise(plain.msi, plain)
    assert noise(noisy.truth, noisy) < 0.7 * noise(plain.truth, plain)
    assert noisy.observed == plain.observed
    np.testing.assert_array_equal(noisy.msi, again.msi)


def pair_config(hsi="hsi", msi="msi", recipe=RECIPE, **settings):
    uris = {"hsi.uri": f"synthetic:{hsi}?{recipe}", "msi.uri": f"synthetic:{msi}?{recipe}", "output": "unused"}
    return load_config(None, uris | settings)


PAIR = "size=192&bands=40&seed=5"


def test_a_pair_reduced_by_less_than_its_own_ratio():
    """The MSI is brought to the HSI's pixels: the degraded MSI is the response of the truth, whatever the ratio."""
    quiet = f"{PAIR.replace('=40', '=100')}&snr_hsi=inf&snr_msi=inf"
    made = pair_trial(pair_config(recipe=quiet, **{"align.estimate": False}), ratio=2).make()
    assert made.truth.shape == (100, 48, 48)
    assert made.hsi.shape == (100, 24, 24)
    assert made.msi.shape == (4, 48, 48)
    predicted = np.einsum("kc,cyx->kyx", np.array(made.observed.srf), made.truth)
    for ours, theirs in zip(predicted, made.msi, strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998
    assert made.told["registration"] == "accept"


def test_settings_of_a_pair_count():
    """A known move, another PSF, and a camera's numbers, which a line per band turns into reflectance."""
    known = {"align.east_m": 0.0, "align.north_m": 0.0}
    plain = pair_trial(pair_config(recipe=PAIR, **known)).make()
    moved = pair_trial(pair_config(recipe=PAIR, **{"align.east_m": 20.0, "align.north_m": 0.0})).make()
    assert (plain.told["east_m"], moved.told["east_m"]) == (0.0, 20.0)
    assert np.abs(plain.msi - moved.msi).max() > 0.01 or np.abs(plain.truth - moved.truth).max() > 0.01
    wide = pair_trial(pair_config(recipe=PAIR, psf_mtf=0.1, **known))
    assert wide.protocol.mtf_nyquist == 0.1
    camera = {"msi.scale": 200.0, "msi.offset": 30.0, "msi.quantity": "digital_number"}
    numbers = pair_trial(pair_config(recipe=PAIR, **known, **camera)).make()
    for ours, theirs in zip(numbers.msi, plain.msi, strict=True):
        inside = np.isfinite(ours) & np.isfinite(theirs)
        np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.03)


def test_a_pair_that_is_not_registered_is_no_benchmark():
    """Two different places: refused with the reason, unless the geometry is to be trusted."""
    other = {"msi.uri": f"synthetic:msi?{PAIR}&seed=8".replace("seed=5&", "")}
    refused = pair_trial(pair_config(recipe=PAIR, **other))
    with pytest.raises(QualityRefused, match="could not be registered"):
        refused.make()
    with pytest.raises(QualityRefused, match="could not be registered"):
        evaluate([refused], ["bicubic"])
    kept = pair_trial(pair_config(recipe=PAIR, **other, **{"align.on_refuse": "keep"})).make()
    assert kept.told["registration"] == "refuse"


def test_real_pairs_of_a_folder(tmp_path, monkeypatch):
    """Pairs by name, plots by number, at the ratios that their sizes allow; tables and images lie in the folder."""
    seen = []
    monkeypatch.setattr(
        "hyperfuse.pipeline.evaluation.presets.pair_trial",
        lambda config, **named: seen.append((config, named)) or "trial",
    )
    for name in ("HSI/MLBS_10.tif", "HSI/MLBS_2.tif", "RGB/MLBS_2.tif"):
        path = tmp_path / "neon_idtrees_mlbs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    berlin = tmp_path / PAIRS["berlin-a"].settings["hsi.uri"]
    berlin.parent.mkdir(parents=True)
    berlin.touch()
    assert len(preset_trials("real-pairs", tmp_path)) == 4
    assert [(named["name"], named["ratio"], named["bands"]) for _, named in seen] == [
        ("neon-mlbs MLBS_2", 2, "rgb"), ("neon-mlbs MLBS_10", 2, "rgb"), ("berlin-a", 2, "hymap-4"), ("berlin-a", 4, "hymap-4"),
    ]  # fmt: skip
    assert all(named["absorption"] for _, named in seen)
    assert seen[0][0].msi.uri == str(tmp_path / "neon_idtrees_mlbs/RGB/MLBS_2.tif")
    assert seen[0][0].hsi.wavelengths == str(tmp_path / "neon_idtrees_mlbs/neon_369_band_table.csv")
    assert seen[0][0].msi.wavelengths == "650,550,470"
    with pytest.raises(InputRejected, match="none of the pairs of real-pairs"):
        preset_trials("real-pairs", tmp_path / "neon_idtrees_mlbs")


def test_real_pairs_as_they_are():
    """HARV is displaced by a good half meter, is registered, and is fused better than interpolated."""
    if not (DATA / "neon_harv_pair").is_dir():
        pytest.skip("real imagery is absent: neon_harv_pair (see the README)")
    trial = next(t for t in preset_trials("real-pairs", DATA) if t.cube == "neon-harv" and t.protocol.ratio == 4)
    control, fused = evaluate([trial], ["bicubic", "map_subspace"])
    assert (control.told["registration"], control.protocol.msi) == ("accept", "rgb")
    assert 300 < len(trial.make().truth) < 380  # of 426, without those in water vapor
    assert control.told["east_m"] == pytest.approx(-0.4, abs=0.15)
    assert fused.scores.psnr_db > control.scores.psnr_db + 1


def test_reduced_pair_that_is_none():
    swapped = pair_trial(pair_config(hsi="msi", msi="hsi"))
    with pytest.raises(InputRejected, match="swapped"):
        swapped.make()
    assert swapped.protocol.msi == "own"


# --- presets -------------------------------------------------------------------------------------------------------

QUALITY = {  # PSNR (dB) and SAM (deg) of bicubic and of GSA at ratio 4, s2-4, 35/40 dB: shared/design/quality.md
    "aviris-gatorsense": ((25.23, 6.48), (34.72, 4.43)),
    "jasper-ridge": ((23.56, 7.79), (31.24, 6.48)),
    "san-diego": ((25.15, 1.84), (33.64, 1.94)),
    "berlin-enmap": ((23.70, 5.85), (34.71, 3.79)),
    "neon-harv": ((26.72, 3.05), (40.93, 2.84)),
    "muufl": ((21.96, 6.66), (37.63, 3.83)),
}


@pytest.mark.parametrize("name", QUALITY)
def test_recorded_figures(name):
    source = CUBES[name]
    if not (DATA / source.uri).is_file():
        pytest.skip(f"real imagery is absent: {source.uri} (see the README)")
    made = next(
        t for t in preset_trials("real-4", DATA) if t.cube == name and t.protocol == PRESETS["real-4"].protocols[0]
    )
    pair = made.make()
    for method, (psnr_db, sam_deg) in zip(("bicubic", "gsa"), QUALITY[name], strict=True):
        got = score(fuse_whole(method, pair).image, pair)
        assert got.psnr_db == pytest.approx(psnr_db, abs=0.2), method
        assert got.sam_deg == pytest.approx(sam_deg, abs=0.1), method


def test_presets_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="choose one of real-3, real-4, real-6, field-3"):
        preset_trials("real-5", tmp_path)
    with pytest.raises(InputRejected, match="no such folder"):
        preset_trials("real-4", tmp_path / "absent")
    with pytest.raises(InputRejected, match="holds none of the cubes"):
        preset_trials("real-4", tmp_path)
    with pytest.raises(InputRejected, match="holds no image"):
        preset_trials("aviris-172", tmp_path)


def test_the_papers_protocol(tmp_path, monkeypatch):
    """224 bands become 172, tiles are whole, negative samples are 0, and the range is 0..1 without noise."""
    nm = np.linspace(366.0, 2496.0, 224)
    values = np.random.default_rng(0).uniform(-0.1, 1.0, (224, 40, 70)).astype(np.float32)
    cube = ReferenceCube(
        name="line", values=values, bands=Bands.sort(nm, unit="nm", of="line", fwhm=np.full(224, 10.0))
    )
    monkeypatch.setattr("hyperfuse.pipeline.evaluation.presets._opened", lambda _: cube)
    monkeypatch.setattr("hyperfuse.pipeline.evaluation.presets.AVIRIS_TILE_PX", 32)
    (tmp_path / "line.mat").touch()
    trials = preset_trials("aviris-172", tmp_path)
    assert [(t.cube, t.protocol.msi) for t in trials] == [
        (f"line_{tile}", msi) for msi in ("landsat-4", "landsat-6") for tile in (0, 1)
    ]
    pair = trials[1].make()
    assert pair.truth.shape == (172, 32, 32)
    assert (pair.truth.min(), pair.truth.max()) == (0.0, 1.0)
    kept = [i for i in range(224) if not any(int(a) <= i + 1 <= int(b) for a, b in
            (part.split("-") for part in AVIRIS_DROPPED.split(",")))]  # fmt: skip
    np.testing.assert_allclose(pair.truth * pair.unit, np.maximum(values[kept, :32, 32:64], 0), atol=1e-6)
    blocks = pair.truth.reshape(172, 8, 4, 8, 4)
    assert (pair.hsi <= blocks.max(axis=(2, 4)) + 1e-6).all()  # nothing comes from another coarse pixel
    assert score(pair.truth, pair).pixels == 32 * 32


def test_a_cube_of_another_sensor_is_not_aviris(tmp_path, monkeypatch):
    cube = ReferenceCube(name="x", values=np.ones((4, 300, 300), np.float32),
                         bands=Bands.sort([450.0, 550.0, 650.0, 850.0], unit="nm", of="x"))  # fmt: skip
    monkeypatch.setattr("hyperfuse.pipeline.evaluation.presets._opened", lambda _: cube)
    (tmp_path / "x.mat").touch()
    with pytest.raises(InputRejected, match="4 bands, expected the 224"):
        preset_trials("aviris-172", tmp_path)[0].make()


def test_a_cube_is_read_once_for_all_its_protocols(monkeypatch):
    trials = cube_trials(CubeSource(uri=f"synthetic:truth?{RECIPE}&gsd=7"), [CLEAN, Protocol()], name="land")
    opened = []
    monkeypatch.setattr(
        "hyperfuse.pipeline.evaluation.presets.open_cube", lambda source: opened.append(source) or open_cube(source)
    )
    pairs = [made.make() for made in trials]
    assert len(opened) == 1
    np.testing.assert_array_equal(pairs[0].truth, pairs[1].truth)
