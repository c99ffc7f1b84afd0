"""Generated scenes: structure with a known answer, scenes that depend on their number alone, and like land where it counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.training import load_training, train
from hyperfuse.pipeline.training.generated.materials import KIN, Palette, matched
from hyperfuse.pipeline.training.generated.scenes import Generator
from hyperfuse.pipeline.training.generated.structure import rough_field, structure_of
from hyperfuse.pipeline.training.pairs import open_grounds
from hyperfuse.pipeline.training.settings import GeneratedConfig, GroundConfig, SimulationConfig
from tests import DATA
from tests.benchmarks.realism import likeness, picture
from tests.libraries import soils_and_leaves, write_library
from tests.pipeline.training.settings import HELD_OUT, LEARNT, training
from tests.sources import everything

FLAT = {"softness": (0.01, 0.01), "tilt": 0.0, "snr_db": (200.0, 200.0), "natural": 1.0}


@pytest.fixture
def config(tmp_path):
    """Makes a GeneratedConfig of synthetic images and a small library."""
    library = write_library(tmp_path / "soils.sli", *soils_and_leaves())

    def made(**settings) -> GeneratedConfig:
        given = {
            "images": [{"uri": f"synthetic:msi?size=96&seed={seed}", "license": "CC0-1.0"} for seed in (1, 2)],
            "libraries": [{"uri": str(library), "license": "CC-BY-4.0"}],
            "size_px": 40,
            "materials": (4, 8),
            "seed": 5,
        }
        return GeneratedConfig.model_validate(given | settings)

    return made


def fields_of_color() -> np.ndarray:
    """Three flat fields, shape (2, 48, 48); the border between the first two cuts blocks of 4 in halves."""
    color = np.zeros((2, 48, 48), np.float32)
    color[:, :, :22] = np.array([0.9, 0.1])[:, None, None]
    color[:, :, 22:] = np.array([0.1, 0.8])[:, None, None]
    color[:, 32:, :] = np.array([0.3, 0.3])[:, None, None]
    return color


def test_flat_fields_are_pure_and_borders_are_mixed():
    color = fields_of_color()
    land = structure_of(color, n_materials=3, softness=0.01, step=4, rng=np.random.default_rng(0))
    np.testing.assert_allclose(land.shares.sum(axis=0), 1, atol=1e-6)
    inside = land.shares[:, 1:6, [1, 2, 3, 8, 9, 10]]
    assert (inside.max(axis=0) > 0.999).mean() > 0.9
    border = np.sort(land.shares[:, 1:6, 5], axis=0)  # columns 20 to 23 of the image, two on either side
    np.testing.assert_allclose(border[1:].mean(axis=1), 0.5, atol=0.1)
    # What the materials explain, times the light, is the image.
    again = np.tensordot(land.color.mean(axis=1), land.shares, axes=1) * land.light
    means = color.mean(axis=0).reshape(12, 4, 12, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(again[:, [1, 2, 8, 9]], means[:, [1, 2, 8, 9]], atol=0.02)


def test_the_light_is_what_materials_do_not_explain():
    image = np.random.default_rng(1).uniform(0.2, 0.4, (3, 64, 64)).astype(np.float32)
    land = structure_of(image, n_materials=6, softness=1.0, step=1, rng=np.random.default_rng(2))
    again = np.tensordot(land.color.mean(axis=1), land.shares, axes=1) * land.light
    np.testing.assert_allclose(again, image.mean(axis=0), rtol=1e-4)


def test_softer_is_more_mixed():
    image = np.random.default_rng(1).uniform(0.2, 0.4, (3, 64, 64)).astype(np.float32)
    purest = [
        structure_of(image, n_materials=6, softness=soft, step=1, rng=np.random.default_rng(2))
        .shares.max(axis=0)
        .mean()
        for soft in (0.2, 0.6, 1.5)
    ]
    assert purest[0] > purest[1] > purest[2]


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_a_rough_field_falls_as_it_says(slope):
    field = rough_field((128, 128), slope=slope, rng=np.random.default_rng(3))
    assert abs(field.mean()) < 1e-5
    assert field.std() == pytest.approx(1, abs=1e-4)
    power = np.abs(np.fft.rfft2(field)) ** 2
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None])
    some = (frequency > 0.02) & (frequency < 0.4)
    found = np.polyfit(np.log(frequency[some]), np.log(power[some]), 1)[0]
    assert found == pytest.approx(-2 * slope, abs=0.1)


def test_colors_find_their_spectra():
    """Materials of an image of the library's own colors, in another unit and order, get back the spectra they came from."""
    colors = np.random.default_rng(4).uniform(0.05, 0.6, (20, 4)).astype(np.float32)
    order = np.random.default_rng(5).permutation(20)
    assert matched(colors, 37.0 * colors[order]).tolist() == order.tolist()
    assert matched(colors[:3], colors[:6]).shape == (6,)


def test_kin_is_near():
    nm, spectra = soils_and_leaves(80)
    unit = (spectra / np.linalg.norm(spectra, axis=1, keepdims=True)).astype(np.float32)
    palette = Palette(spectra=spectra.astype(np.float32), unit=unit, share=np.full(80, 1 / 80))
    bundles = palette.bundles(np.arange(0, 80, 2), np.random.default_rng(6))
    assert bundles.shape == (40, KIN, nm.size)
    # Those that were chosen are leaves, and so are all their kin: near infrared over red.
    red, infrared = (bundles[..., int(np.abs(nm - at).argmin())] for at in (670.0, 800.0))
    assert (infrared > 3 * red).all()
    heads = palette.drawn(np.random.default_rng(7))
    assert {0, 1} == set(heads % 2)  # families are unlike


def test_a_scene_is_a_function_of_its_number(config):
    one, other = Generator(config()), Generator(config())
    first = one.scene(3).cube
    other.scene(0)
    again = other.scene(3).cube
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.bands.center_nm, again.bands.center_nm)
    assert first.values.shape[1:] == (40, 40)
    assert np.isfinite(first.values).all()
    assert not np.array_equal(first.bands.center_nm, other.scene(4).cube.bands.center_nm)
    assert not np.array_equal(first.values[0], Generator(config(seed=6)).scene(3).cube.values[0])


def test_scenes_are_mixtures_of_the_library(config, tmp_path):
    """Without tilt and noise nothing is in a scene but its spectra in sun and sky: as many components, twice, and no more."""
    nm, spectra = soils_and_leaves()
    library = write_library(tmp_path / "few.sli", nm, spectra[:4])
    cube = Generator(config(libraries=[{"uri": str(library)}], **FLAT)).scene(0).cube
    flat = cube.values.reshape(len(cube.bands), -1).astype(np.float64)
    singular = np.linalg.svd(flat, compute_uv=False)
    assert (singular > 1e-6 * singular[0]).sum() <= 8
    tilted = Generator(config(libraries=[{"uri": str(library)}], **FLAT | {"tilt": 0.05})).scene(0).cube
    singular = np.linalg.svd(tilted.values.reshape(len(cube.bands), -1), compute_uv=False)
    assert (singular > 1e-5 * singular[0]).sum() > 8


def test_noise_has_its_power(config):
    clean, noisy = (Generator(config(snr_db=(db, db))).scene(1).cube.values.astype(np.float64) for db in (200.0, 30.0))
    found = 10 * np.log10((clean**2).mean(axis=(1, 2)) / ((noisy - clean) ** 2).mean(axis=(1, 2)))
    assert np.abs(found - 30).max() < 1


def test_bands_of_a_table_are_kept_and_unknown_ones_are_bad(config, tmp_path):
    table = tmp_path / "sensor.csv"
    table.write_text("center_nm,fwhm_nm\n" + "\n".join(f"{nm},12" for nm in (300, 420, 800, 1400, 2200, 2700)))
    generator = Generator(config(bands=str(table)))
    for number in range(3):
        bands = generator.scene(number).cube.bands
        assert bands.center_nm.tolist() == [300, 420, 800, 1400, 2200, 2700]
        assert bands.good.tolist() == [False, True, True, False, True, False]
    table.write_text("center_nm\n1400\n2700\n")
    with pytest.raises(
        InputRejected, match=r"none of its 2 bands lies where all libraries have samples \(soils 380-2490 nm\)"
    ):
        Generator(config(bands=str(table)))


def test_holes_and_small_images(config):
    holed = "synthetic:msi?size=128&seed=3&holes_msi=0.02"
    generator = Generator(config(images=[{"uri": holed}], size_px=32))
    assert all(np.isfinite(generator.scene(number).cube.values).all() for number in range(4))
    with pytest.raises(InputRejected, match="96 x 96 pixels hold no part of 128 x 128 without a hole"):
        Generator(config(size_px=128))


def test_terms_of_all_sources_go_along(config):
    assert Generator(config()).scene(0).license == "CC-BY-4.0; CC0-1.0"
    told = json.dumps(config(bands="/there/sensor.csv").to_json())
    assert "soils.sli" in told
    assert "/" not in told.replace("CC0-1.0", "")


def test_a_network_learns_from_generated_scenes_alone(config, tmp_path):
    table = tmp_path / "sensor.csv"
    table.write_text("center_nm,fwhm_nm\n" + "\n".join(f"{nm},58" for nm in np.linspace(420, 1000, 12)))
    made = config(bands=str(table), count=3, size_px=40)
    trained = train(training(tmp_path / "out", scenes=[], generated=made, steps=2))
    card = read_card(trained.weights["network"])
    assert [d["name"] for d in card.training["data"]] == [
        "generated-5-0",
        "generated-5-1",
        "generated-5-2",
        "synthetic-truth",
    ]
    assert card.training["data"][0]["license"] == "CC-BY-4.0; CC0-1.0"
    assert card.training["generated"]["seed"] == 5
    with safe_open(trained.weights["network"], framework="pt") as file:
        assert str(tmp_path) not in json.dumps(file.metadata())


def test_a_native_network_has_generated_scenes_of_the_bands_it_is_scored_on(config, tmp_path):
    made = config(count=2, size_px=40)
    held_out, plain = (GroundConfig(uri=HELD_OUT),), SimulationConfig()
    learnt, scored = open_grounds((), held_out, plain, generated=made)
    assert [ground.center_nm.tolist() for ground in learnt] == [scored[0].center_nm.tolist()] * 2
    beside, _ = open_grounds((GroundConfig(uri=LEARNT),), held_out, plain, generated=made)
    assert np.array_equal(beside[-1].pair.truth, learnt[-1].pair.truth)
    free, _ = open_grounds((), held_out, plain, generated=made, universal=True)
    assert free[0].center_nm.tolist() != scored[0].center_nm.tolist()


def test_bands_of_the_scenes_that_a_library_does_not_know_are_told(config):
    beyond = Bands.sort([300, 500], unit="nm", of="test", fwhm=[9.0, 9.0])
    with pytest.raises(InputRejected, match=r"300.0 nm, a band of the scenes, .* \(soils 380-2490 nm\)"):
        Generator(config(), beyond)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scenes": []}, "none to learn from"),
        ({"generated": {"images": [], "libraries": []}}, "setting generated.images"),
        ({"generated": {"images": [{"uri": "a"}], "libraries": [{"uri": "b"}], "materials": [9, 3]}}, "both increasing"),
        ({"generated": {"images": [{"uri": "a", "msi": "c"}], "libraries": [{"uri": "b"}]}}, "setting generated.images.0.msi is unknown"),
    ],
)  # fmt: skip
def test_settings_are_checked(tmp_path, changes, told):
    record = json.loads(training(tmp_path / "out").model_dump_json()) | changes
    (tmp_path / "c.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=told):
        load_training(tmp_path / "c.json")


def test_addresses_are_taken_from_the_folder_of_the_data(config, tmp_path):
    record = json.loads(training(tmp_path / "out", generated=config(bands="sensor.csv")).model_dump_json())
    record["generated"]["libraries"][0]["uri"] = "soils.sli"
    record["generated"]["images"][0] |= {"uri": "fine.tif", "wavelengths": "665,560"}
    (tmp_path / "c.json").write_text(json.dumps(record))
    found = load_training(tmp_path / "c.json", data=tmp_path / "there").generated
    assert found.libraries[0].uri == str(tmp_path / "there" / "soils.sli")
    assert found.bands == str(tmp_path / "there" / "sensor.csv")
    assert (found.images[0].uri, found.images[0].wavelengths) == (str(tmp_path / "there" / "fine.tif"), "665,560")
    assert found.images[1].uri == "synthetic:msi?size=96&seed=2"


@pytest.mark.skipif(not DATA.is_dir(), reason="real imagery is absent (see the README)")
def test_generated_scenes_are_like_land(tmp_path):
    """Bounds around the seven real cubes of `real-4`, which `tests.benchmarks.realism` prints; means of four scenes."""
    generator = Generator(GeneratedConfig.model_validate(everything(DATA) | {"size_px": 80, "seed": 3}))
    cubes = [generator.scene(number).cube for number in range(4)]
    found = [likeness(cube) for cube in cubes]
    mean = {name: float(np.mean([getattr(f, name) for f in found])) for name in vars(found[0])}
    assert 4 <= mean["components"] <= 25
    assert 0.6 <= mean["neighbors"] <= 0.95
    assert 0.1 <= mean["afar"] <= 0.7
    assert 0.01 <= mean["unpredicted"] <= 0.2
    assert 20 <= mean["bicubic_db"] <= 29
    assert 32 <= mean["gsa_db"] <= 42
    assert 36 <= mean["map_db"] <= 43.5
    assert 0.8 <= mean["map_deg"] <= 3.5
    # The order of the methods is that of real land, on every scene.
    assert all(f.bicubic_db < f.gsa_db < f.map_db and f.map_deg < f.bicubic_deg for f in found)
    picture(cubes, tmp_path / "scenes.png")
    assert (tmp_path / "scenes.png").stat().st_size > 10_000
