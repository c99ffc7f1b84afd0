"""Weight files: only what is whole, finite, fitting and plain is ever used; a network then goes the whole way."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.weight_cards import WeightCard, read_card
from hyperfuse.flows.cli import main
from hyperfuse.models import Observed, method
from hyperfuse.pipeline.fusion import method as fusion_method
from hyperfuse.pipeline.fusion.weights import import_weights, save_weights, write_tensors
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import simulate
from hyperfuse.pipeline.plan import job_record, open_pair
from hyperfuse.pipeline.quality.trials import fuse_whole
from hyperfuse.pipeline.run import fuse_tiles, open_run, publish_product, run, stage_pair
from tests.pipeline.quality.test_residual_decision import weight_file as universal_weights
from tests.synthetic import config, fused_tiles, scene, whole

RECIPE = "size=150&ratio=4&bands=12&seed=3&holes_msi=0.001"
NETWORKS = ("csakd-student", "hyfusion-s")


def weight_file(path: Path, network: str, *, bands: int = 12, scale: float = 1.0) -> Path:
    """Seeded weights of a network for the pair of RECIPE, with their card."""
    chosen = method(network)
    spec = chosen.specify(Observed(hsi_bands=bands, msi_bands=4, ratio=4, psf_sigma_px=2.0))
    state = {name: value * scale for name, value in chosen.build(spec).state_dict().items()}
    card = WeightCard(network=network, hsi_bands=bands, msi_bands=4, ratio=4, options=dict(spec.options))
    save_weights(path, state, card)
    return path


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow) if name == "hyfusion-s" else name for name in NETWORKS]
)
def test_a_network_goes_the_whole_way_and_its_tiles_are_invisible(tmp_path, network):
    weights = weight_file(tmp_path / "w.safetensors", network)
    settings = {"method": network, "weights": str(weights), "publish__formats": "[zarr]", "publish__dtype": "float32"}
    settings["quality__gate"] = "off"  # untrained, it shows nothing of the MSI
    whole = run(config(tmp_path / "whole", RECIPE, **settings))
    tiled = run(config(tmp_path / "tiled", RECIPE, **settings, tiles__core=64, tiles__chunk=32))
    assert tiled.provenance["method"]["weights_sha256"] == read_card(weights).sha256
    assert tiled.provenance["tiles"]["finished"] == 9
    with whole.open() as a, tiled.open() as b:
        one, other = a["reflectance"].values, b["reflectance"].values
    assert np.array_equal(np.isnan(one), np.isnan(other))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_what_a_network_gives_comes_back_in_the_unit_of_the_hsi(tmp_path, monkeypatch):
    """A network sees the HSI between -1 and 1; one that repeats what it sees is the HSI, each pixel 4 x 4 times."""
    weights = weight_file(tmp_path / "w.safetensors", "csakd-student")
    seen = []

    def repeated(hsi: torch.Tensor, _msi: torch.Tensor, *_features: torch.Tensor) -> torch.Tensor:
        seen.append((float(hsi.min()), float(hsi.max())))
        return hsi.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)

    monkeypatch.setattr(fusion_method, "build_model", lambda _job, _device: repeated)
    settings = {"method": "csakd-student", "weights": str(weights), "publish__dtype": "float32"}
    recipe = "size=64&ratio=4&bands=12&seed=3"
    fused = fused_tiles(config(tmp_path / "p", recipe, **settings, align__estimate=False))
    assert seen == [(pytest.approx(-1.0), pytest.approx(1.0))]
    expected = whole(scene("hsi", recipe)).repeat(4, axis=1).repeat(4, axis=2)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(fused, expected, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_half_precision_is_close_and_recorded(tmp_path, network):
    weights = weight_file(tmp_path / "w.safetensors", network)
    settings = {"method": network, "weights": str(weights), "publish__formats": "[zarr]", "publish__dtype": "float32"}
    settings["quality__gate"] = "off"  # untrained, it shows nothing of the MSI
    settings |= {"quality__gate": "off"}  # nothing of the MSI is in what untrained weights make
    single = run(config(tmp_path / "single", "size=96&bands=12", **settings))
    half = run(config(tmp_path / "half", "size=96&bands=12", **settings, precision="bf16"))
    assert half.provenance["method"]["precision"] == "bf16"
    assert half.job_key != single.job_key
    with single.open() as a, half.open() as b:
        one, other = a["reflectance"].values, b["reflectance"].values
    assert 0 < np.abs(one - other).max() < 0.02 * np.abs(one).max()


def test_workers_need_only_the_job_folder(tmp_path):
    weights = weight_file(tmp_path / "w.safetensors", "csakd-student")
    settings = {
        "method": "csakd-student",
        "weights": str(weights),
        "publish__formats": "[zarr]",
        "quality__gate": "off",
    }
    with open_run(config(tmp_path / "p", "size=96&bands=12", **settings)) as held:
        weights.unlink()
        job = stage_pair(held)
        fuse_tiles(job)
        assert publish_product(job, started=held.started).path.is_dir()


def test_weights_are_open_to_whoever_may_read_new_files(tmp_path):
    beside, weights = tmp_path / "beside", tmp_path / "w.safetensors"
    beside.touch()
    write_tensors(weights, {"a": torch.ones(2, 3).T}, {"told": "yes"})
    assert weights.stat().st_mode == beside.stat().st_mode
    assert torch.equal(load_file(weights)["a"], torch.ones(3, 2))
    assert {path.name for path in tmp_path.iterdir()} == {"beside", "w.safetensors"}


def test_networks_without_weights_are_refused(tmp_path):
    with pytest.raises(InputRejected, match="give a file with --weights"):
        run(config(tmp_path / "p", RECIPE, method="csakd-student"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fault", ["bands", "network", "truncated", "bit in header", "bit in data", "nan", "pickle", "no card", "missing"]
)
def test_bad_weights_are_refused_in_one_sentence(tmp_path, capsys, fault):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path = weight_file(tmp_path / "w.safetensors", "csakd-student", bands=10 if fault == "bands" else 12)
    network = "hyfusion-s" if fault == "network" else "csakd-student"
    data = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif fault == "bit in header":  # where it breaks the list of tensors
        path.write_bytes(data[:40] + bytes([data[40] ^ 0x40]) + data[41:])
    elif fault == "bit in data":  # where it is just another number
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 0x01]) + data[-99:])
    elif fault == "nan":
        state = load_file(path)
        next(iter(state.values())).view(-1)[0] = float("nan")
        save_weights(path, state, WeightCard(network="csakd-student", hsi_bands=12, msi_bands=4, ratio=4))
    elif fault == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif fault == "no card":
        save_file(load_file(path), path)
    elif fault == "missing":
        path.unlink()
    (tmp_path / "out").mkdir()
    scenes = [f"synthetic:{role}?{RECIPE}" for role in ("hsi", "msi")]
    code = main(["fuse", *scenes, "--method", network, "--weights", str(path), "--output", str(tmp_path / "out" / "p")])
    sentence = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hyperfuse: ")]
    assert code == 3
    assert len(sentence) == 1
    assert "w.safetensors" in sentence[0]
    assert not marker.exists()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "option", "core", "size"])
@pytest.mark.parametrize("network", ["csakd-student", "universal-csakd-student"])
def test_weights_that_were_asked_for_fit_or_nothing_is_staged(tmp_path, monkeypatch, network, fault):
    """A universal network is its base without weights: such a product is not what was asked for."""
    path = tmp_path / "w.safetensors"
    universal_weights(path) if network.startswith("universal") else weight_file(path, network)
    card, state = read_card(path), load_file(path)
    first = min(name for name, value in state.items() if value.ndim == 4)
    if fault == "missing":
        del state[first]
    elif fault == "extra":
        state["more.weight"] = torch.ones(3)
    elif fault == "shape":
        state[first] = state[first][:, :, :1].contiguous()
    else:
        change = {
            "option": {"colour": "red"},
            "core": {"core": "nothing", "layers": 3},
            "size": {"growth": -1, "components": 0},
        }
        card = replace(card, options=card.options | change[fault])
    save_weights(path, state, card)
    monkeypatch.setattr("hyperfuse.pipeline.run.stage", lambda *_a, **_k: pytest.fail("it was staged"))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputRejected, match=rf"w\.safetensors: does not fit {network}"):
        run(config(tmp_path / "out" / "p", "size=96&bands=12", method=network, weights=str(path)))
    assert list((tmp_path / "out").iterdir()) == []


def released_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state under the names of the authors' checkpoint, as torch.compile saves them."""
    return {
        f"_orig_mod.decoder.{name}": value for name, value in method("csakd-student").module.to_released(state).items()
    }


@pytest.mark.parametrize("network", ["csakd-teacher", "csakd-student"])
def test_a_published_checkpoint_is_converted_and_used(tmp_path, network):
    chosen = method(network)
    spec = chosen.specify(Observed(hsi_bands=12, msi_bands=4, ratio=4, psf_sigma_px=2.0))
    model = chosen.build(spec)
    torch.save(released_names(model.state_dict()), tmp_path / "authors.pth")
    card = import_weights(
        tmp_path / "authors.pth", network=network, ratio=4, license_id="MIT", output=tmp_path / "w.safetensors"
    )
    assert (card.hsi_bands, card.msi_bands, card.license) == (12, 4, "MIT")
    hsi, msi = torch.rand(1, 12, 8, 8), torch.rand(1, 4, 32, 32)
    again = chosen.build(chosen.specify(spec.observed, **card.options), None, load_file(tmp_path / "w.safetensors"))
    with torch.inference_mode():
        assert torch.equal(again(hsi, msi), model(hsi, msi))


def saved(path: Path, network: str, nest, **options) -> dict[str, torch.Tensor]:
    """A checkpoint of a network as its authors might have saved it."""
    chosen = method(network)
    spec = chosen.specify(Observed(hsi_bands=12, msi_bands=4, ratio=4, psf_sigma_px=2.0), **options)
    state = released_names(chosen.build(spec).state_dict())
    torch.save(nest(state), path)
    return state


NESTS = {
    "ema": lambda state: {"params_ema": state, "params": {name: 0 * value for name, value in state.items()}},
    "model state": lambda state: {"epoch": 3, "model_state": state, "optimizer": {"lr": 1e-4}},
    "both": lambda state: {"teacher": {"x": torch.ones(1)}, "student": {"state_dict": state}},
    "profiled": lambda state: state | {"_orig_mod.decoder.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
}


@pytest.mark.parametrize("nest", NESTS)
def test_a_checkpoint_is_found_where_it_is_nested(tmp_path, nest):
    saved(tmp_path / "a.pth", "csakd-student", NESTS[nest])
    import_weights(tmp_path / "a.pth", network="csakd-student", ratio=4, license_id="MIT", output=tmp_path / "w")
    plain = tmp_path / "plain.pth"
    saved(plain, "csakd-student", lambda state: state)
    import_weights(plain, network="csakd-student", ratio=4, license_id="MIT", output=tmp_path / "v")
    one, other = load_file(tmp_path / "w"), load_file(tmp_path / "v")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("of", "named", "told"),
    [
        ("csakd-teacher", "csakd-student", "its layers are those of csakd-teacher"),
        ("csakd-student", "csakd-teacher", "its layers are those of csakd-student"),
        ("csakd-student", "s3rnet-published", "its convolutions are grouped"),
        ("csakd-teacher", "s3rnet-paper", "no checkpoint of s3rnet-paper was ever published"),
    ],
)
def test_a_checkpoint_under_the_name_of_another_is_refused(tmp_path, of, named, told):
    saved(tmp_path / "a.pth", of, lambda state: state)
    with pytest.raises(InputRejected, match=told):
        import_weights(tmp_path / "a.pth", network=named, ratio=4, license_id="MIT", output=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_published_s3rnet_is_imported(tmp_path):
    """Its authors' code is that of CSAKD's teacher."""
    saved(tmp_path / "a.pth", "csakd-teacher", lambda state: state)
    card = import_weights(
        tmp_path / "a.pth", network="s3rnet-published", ratio=4, license_id="MIT", output=tmp_path / "w"
    )
    assert (card.network, card.options["layers"]) == ("s3rnet-published", [6, 6, 4, 4])


def test_a_checkpoint_of_another_width_is_read_off_its_tensors(tmp_path):
    saved(tmp_path / "a.pth", "csakd-student", lambda state: state, growth=5)
    card = import_weights(tmp_path / "a.pth", network="csakd-student", ratio=4, license_id="MIT", output=tmp_path / "w")
    assert card.options["growth"] == 5


def authors_state(network: str) -> dict[str, torch.Tensor]:
    """A state of a small network, under the names of the authors' checkpoint."""
    chosen = method(network)
    return released_names(
        chosen.build(chosen.specify(Observed(hsi_bands=12, msi_bands=4, ratio=4, psf_sigma_px=2.0))).state_dict()
    )


def converted(folder: Path, saved: object, network: str) -> dict[str, torch.Tensor]:
    """Tensors that `import-weights` makes of something that was saved."""
    torch.save(saved, folder / "authors.pth")
    output = folder / "converted.safetensors"
    import_weights(folder / "authors.pth", network=network, ratio=4, license_id="MIT", output=output)
    return load_file(output)


@pytest.mark.parametrize("network", ["csakd-student", "csakd-teacher", "s3rnet-published"])
@pytest.mark.parametrize(
    "saved",
    [
        lambda own, _own, _other, _role: {"state_dict": {n: v + 1 for n, v in own.items()}, "ema_state_dict": own},
        lambda _, own, other, role: {f"{role}_state_dict": own[role], f"{other}_state_dict": own[other]},
        lambda _, own, _other, _role: {f"{role}.{n}": v for role, state in own.items() for n, v in state.items()},
    ],
    ids=["averaged", "nested roles", "flat roles"],
)
def test_of_several_states_that_of_the_network_is_taken(tmp_path, network, saved):
    both = {role: authors_state(f"csakd-{role}") for role in ("student", "teacher")}
    role, other = ("student", "teacher") if network.endswith("student") else ("teacher", "student")
    tensors = converted(tmp_path, saved(both[role], both, other, role), network)
    assert len(tensors) == len(both[role])
    assert torch.equal(tensors["last.weight"], both[role]["_orig_mod.decoder.last.weight"])
    assert not torch.equal(tensors["last.weight"], both[other]["_orig_mod.decoder.last.weight"])


@pytest.mark.parametrize("saved", [lambda t: {"teacher": t}, lambda t: {f"teacher.{n}": v for n, v in t.items()}])
def test_a_checkpoint_of_the_other_role_alone_is_refused(tmp_path, saved):
    with pytest.raises(InputRejected, match="holds a teacher and no student"):
        converted(tmp_path, saved(authors_state("csakd-teacher")), "csakd-student")
    assert not (tmp_path / "converted.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {n: v for n, v in s.items() if "fuse_att" not in n}, "--adaptive_fuse 0"),
        (
            lambda s: {n: v for n, v in s.items() if "fuse_att" not in n} | {"decoder.fuse_att.weights": torch.ones(4, 6, 1, 1)},
            "--adaptive_fuse 1",
        ),
        (lambda s: {n: v for n, v in s.items() if "attention_weights" not in n}, "--adaptive_fuse 2"),
        (
            lambda s: {n.replace("attention_weights", "attention_conv"): v for n, v in s.items() if "_conv" not in n},
            "--adaptive_fuse 4",
        ),
        (lambda s: {n: v[:, : v.shape[1] // 2] if ".fuse.weight" in n else v for n, v in s.items()}, r"2 groups \(--groups"),
    ],
    ids=["sum", "channels", "attention", "gates", "groups"],
)  # fmt: skip
def test_a_variant_that_is_not_built_is_refused_by_name(tmp_path, change, told):
    """By its tensors: none of them is called as the option of the training script is."""
    with pytest.raises(InputRejected, match=told):
        converted(tmp_path, change(authors_state("csakd-teacher")), "csakd-teacher")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputRejected, match="nothing of it was executed"):
        import_weights(tmp_path / "evil.pth", network="csakd-student", ratio=4, license_id="MIT", output=tmp_path / "w")
    assert not marker.exists()
    assert not (tmp_path / "w").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save({"layer.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(InputRejected, match="does not fit csakd-student"):
        import_weights(
            tmp_path / "other.pth", network="csakd-student", ratio=4, license_id="MIT", output=tmp_path / "w"
        )
    with pytest.raises(InputRejected, match="no checkpoint of it was ever published"):
        import_weights(tmp_path / "other.pth", network="hyfusion-s", ratio=4, license_id="MIT", output=tmp_path / "w")


def banded_file(path: Path, centers: list[float], msi: list[float]) -> Path:
    """Weights that were never trained, of a card that tells where its bands lie."""
    chosen = method("csakd-student")
    spec = chosen.specify(Observed(hsi_bands=len(centers), msi_bands=len(msi), ratio=4, psf_sigma_px=2.0))
    card = WeightCard(
        network="csakd-student", hsi_bands=len(centers), msi_bands=len(msi), ratio=4, options=dict(spec.options),
        center_nm=centers, msi_center_nm=msi,
    )  # fmt: skip
    save_weights(path, chosen.build(spec).state_dict(), card)
    return path


def test_a_network_is_given_the_bands_that_it_was_trained_on(tmp_path):
    """Each second band, 3 nm beside: the product has these alone, and its samples are those of a scene without the others."""
    hsi, msi = scene("hsi", RECIPE).bands, scene("msi", RECIPE).bands
    weights = banded_file(tmp_path / "w.safetensors", (hsi.center_nm[::2] + 3.0).tolist(), msi.center_nm[:3].tolist())
    asked = config(
        tmp_path / "p", RECIPE, method="csakd-student", weights=str(weights), publish__dtype="float32",
        publish__formats="[zarr]", quality__gate="off",
    )  # fmt: skip
    record = job_record(asked, open_pair(asked))
    np.testing.assert_array_equal(np.flatnonzero(record.hsi.bands["good"]), np.arange(len(hsi))[::2])
    assert np.flatnonzero(record.msi.bands["good"]).tolist() == [0, 1, 2]
    with run(asked).open() as cube:
        np.testing.assert_allclose(cube["wavelength"], hsi.center_nm[::2])


@pytest.mark.parametrize(("role", "moved"), [("HSI", 229.0), ("MSI", 120.0)])
def test_weights_of_other_bands_are_refused(tmp_path, capsys, role, moved):
    hsi, msi = scene("hsi", RECIPE).bands, scene("msi", RECIPE).bands
    centers, msi_centers = hsi.center_nm.copy(), msi.center_nm.copy()
    (centers if role == "HSI" else msi_centers)[-1] += moved
    weights = banded_file(tmp_path / "w.safetensors", centers.tolist(), msi_centers.tolist())
    scenes = [f"synthetic:{one}?{RECIPE}" for one in ("hsi", "msi")]
    given = ["--method", "csakd-student", "--weights", str(weights), "--output", str(tmp_path / "p")]
    assert main(["fuse", *scenes, *given]) == 3
    error = capsys.readouterr().err
    assert f"trained on a band at {(centers if role == 'HSI' else msi_centers)[-1]:.1f} nm" in error
    assert "more than half its width away" in error
    assert not (tmp_path / "p").exists()


def test_a_trial_refuses_weights_of_other_bands(tmp_path):
    truth = scene("truth", "size=120&bands=12&seed=3")
    pair = simulate(ReferenceCube(name="land", values=whole(truth), bands=truth.bands), Protocol())
    hsi, msi = (bands.center_nm.tolist() for bands in pair.bands)
    there = banded_file(tmp_path / "there.safetensors", hsi, msi)
    assert fuse_whole("csakd-student", pair, weights=there).image.shape == pair.truth.shape
    elsewhere = banded_file(tmp_path / "elsewhere.safetensors", [*hsi[:-1], hsi[-1] + 229.0], msi)
    with pytest.raises(InputRejected, match=r"trained on a band at .* the nearest good one of HSI"):
        fuse_whole("csakd-student", pair, weights=elsewhere)
