"""A whole training: the loss falls, the weights fuse, the card is true, and a kill leaves no trace in the curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, UsageError
from hyperfuse.catalogs.references.cubes import CubeSource
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.evaluation.presets import cube_trials
from hyperfuse.pipeline.quality.trials import evaluate
from hyperfuse.pipeline.run import run
from hyperfuse.pipeline.training import load_training, train
from hyperfuse.pipeline.training.pairs import open_grounds
from hyperfuse.pipeline.training.run import rehearse_training
from tests.pipeline.training.settings import HELD_OUT, LEARNT, RECIPE, curve, training
from tests.synthetic import config as run_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """50 steps of a student."""
    config = training(tmp_path_factory.mktemp("training") / "out", steps=50, every=25)
    return config, train(config)


def test_fifty_steps_lower_the_loss(trained):
    config, made = trained
    header, *rows = curve(config.output)
    assert header == ["step", "network.pixel", "network.sam", "network.beba", "network.loss"]
    assert [int(row[0]) for row in rows] == [*range(1, 51)]
    loss = np.array([float(row[-1]) for row in rows])
    assert loss[-10:].mean() < 0.5 * loss[:5].mean()
    assert (made.steps, made.resumed_at) == (50, 0)


def test_the_best_by_angle_is_kept_and_its_card_is_true(trained):
    config, made = trained
    header, *rows = curve(config.output, "validation.csv")
    angles = {int(row[0]): float(row[header.index("sam_deg")]) for row in rows}
    assert [*angles] == [25, 50]
    best = made.best["network"]
    assert (best["step"], best["sam_deg"]) == min(angles.items(), key=lambda item: item[1])
    weights = made.weights["network"]
    card = read_card(weights)
    assert (card.network, card.hsi_bands, card.msi_bands, card.ratio) == ("csakd-student", 12, 4, 4)
    assert card.training["scores"]["sam_deg"] == best["sam_deg"]
    assert [(d["part"], d["license"]) for d in card.training["data"]] == [
        ("learnt", "CC0-1.0"),
        ("held out", "unknown"),
    ]
    assert card.training["losses"] == {"pixel": 1.0, "sam": 0.1, "beba": 0.1}
    # Scored again from the file, by the command that users have.
    protocol = config.simulation.protocol(noise=True, seed=0)
    (row,) = evaluate(
        cube_trials(CubeSource(uri=HELD_OUT), [protocol], name="held out"), ["csakd-student"],
        weights={"csakd-student": weights},
    )  # fmt: skip
    assert row.scores is not None, row.error
    assert row.scores.sam_deg == pytest.approx(best["sam_deg"], rel=1e-5)
    assert row.scores.psnr_db == pytest.approx(best["psnr_db"], rel=1e-5)


def test_the_weights_fuse_at_once(trained, tmp_path):
    _, made = trained
    settings = {"method": "csakd-student", "weights": str(made.weights["network"]), "publish__formats": "[zarr]"}
    settings |= {"quality__gate": "off"}  # fifty steps teach it next to nothing of the MSI
    product = run(run_config(tmp_path / "p", f"size=96&ratio=4&seed=5&{RECIPE}", **settings))
    assert product.provenance["method"]["weights_sha256"] == read_card(made.weights["network"]).sha256
    with product.open() as cube:
        assert np.isfinite(cube["reflectance"].values).all()


def test_a_finished_training_is_skipped_and_more_steps_go_on(trained):
    config, _ = trained
    with pytest.raises(ExpectedSkip, match="has learnt 50 steps already; raise steps"):
        train(config)
    longer = config.model_copy(update={"steps": 53})
    assert train(longer).resumed_at == 50
    assert len(curve(config.output)) == 1 + 53


def test_a_killed_training_goes_on_along_the_same_curve(tmp_path):
    """With a teacher, so that two networks and two optimizers must come back; to the last bit."""
    settings = {"teacher": "csakd-teacher", "steps": 14, "every": 4, "samples": {"patch": 4, "batch": 2, "shift_px": 1}}
    whole = training(tmp_path / "whole", **settings)
    train(whole)
    killed = training(tmp_path / "killed", **settings)
    (tmp_path / "config.json").write_text(killed.model_dump_json())
    code = "import sys, pathlib; from hyperfuse.pipeline.training import load_training, train; train(load_training(pathlib.Path(sys.argv[1])))"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "config.json")])
    deadline = time.monotonic() + 120
    while not (killed.output / "steps.csv").is_file() or len(curve(killed.output)) < 1 + 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = train(load_training(tmp_path / "config.json"))
    assert resumed.resumed_at in {4, 8, 12}
    for name in ("steps.csv", "validation.csv"):
        assert curve(killed.output, name) == curve(whole.output, name)
    for name in ("csakd-student.safetensors", "csakd-teacher.safetensors"):
        one, other = (load_file(output / name) for output in (whole.output, killed.output))
        assert all((one[key] == other[key]).all() for key in one)


def started(config, folder):
    """The training of a configuration in a process of its own."""
    (folder / "config.json").write_text(config.model_dump_json())
    code = "import sys, pathlib; from hyperfuse.pipeline.training import load_training, train; train(load_training(pathlib.Path(sys.argv[1])))"
    return subprocess.Popen([sys.executable, "-c", code, str(folder / "config.json")])


def wait_for_steps(process, output, n_steps):
    deadline = time.monotonic() + 120
    while not (output / "steps.csv").is_file() or len(curve(output)) < 1 + n_steps:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


SMALL = {"steps": 40, "every": 40, "samples": {"patch": 4, "batch": 2}}


def test_a_kill_loses_no_more_than_the_minutes_between_two_saves(tmp_path):
    """No validation is near: what is left is what was saved by time."""
    killed = training(tmp_path / "killed", **SMALL, save_minutes=1e-6)
    process = started(killed, tmp_path)
    wait_for_steps(process, killed.output, 6)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = len(curve(killed.output)) - 1
    whole = training(tmp_path / "whole", **SMALL)
    resumed, undisturbed = train(killed), train(whole)
    assert resumed.resumed_at >= seen - 1
    assert undisturbed.resumed_at == 0
    assert curve(killed.output) == curve(whole.output)


def test_a_training_that_is_told_to_end_saves_the_step_it_is_at(tmp_path):
    told = training(tmp_path / "told", **SMALL)
    process = started(told, tmp_path)
    wait_for_steps(process, told.output, 3)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    n_steps = len(curve(told.output)) - 1
    assert 3 <= n_steps < 40
    assert train(told).resumed_at == n_steps


def test_the_running_mean_of_the_weights_is_kept_and_comes_back(tmp_path):
    settings = {"steps": 6, "every": 3, "samples": {"patch": 4, "batch": 2}, "average": 0.5, "clip": 0.01, "warmup": 4}
    whole = train(training(tmp_path / "whole", **settings))
    train(training(tmp_path / "parts", **settings | {"steps": 3}))
    # The rates depend on the length, so the parts are compared with parts.
    again = train(training(tmp_path / "again", **settings | {"steps": 3}))
    one, other = (load_file(tmp_path / name / "csakd-student.safetensors") for name in ("parts", "again"))
    assert all((one[key] == other[key]).all() for key in one)
    state = load_file(tmp_path / "again" / "state.safetensors")
    weights = load_file(again.weights["network"])
    moved = [key for key in weights if (weights[key] != state[f"network/weights/{key}"]).any()]
    assert moved
    assert all((weights[key] == state[f"network/average/{key}"]).all() for key in weights)
    assert whole.steps == 6


def test_refinements_are_in_the_key_where_they_do_something(tmp_path):
    plain = training(tmp_path / "out")
    assert training(tmp_path / "out", save_minutes=1).key == plain.key
    for changes in ({"warmup": 3}, {"clip": 1.0}, {"average": 0.9}):
        assert training(tmp_path / "out", **changes).key != plain.key


def test_a_rehearsal_tells_what_a_training_takes_and_writes_nothing(tmp_path):
    config = training(tmp_path / "out", steps=1000, every=100, samples={"patch": 4, "batch": 2})
    told = rehearse_training(config)
    assert not config.output.exists()
    assert told.parameters["network"] > 1000
    assert told.hours == pytest.approx((1000 * told.step_s + 10 * told.validation_s) / 3600)
    assert told.peak_gb > 0.05
    assert told.device_gb is None


def test_workers_cut_the_same_samples(tmp_path):
    here, apart = (training(tmp_path / name, steps=3, workers=n) for name, n in (("here", 0), ("apart", 2)))
    train(here)
    train(apart)
    assert curve(here.output) == curve(apart.output)


def test_a_folder_of_another_training_is_refused(tmp_path):
    train(training(tmp_path / "out", steps=1))
    with pytest.raises(InputRejected, match="holds a training with other settings"):
        train(training(tmp_path / "out", steps=2, rate=1e-4))
    state = tmp_path / "out" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(InputRejected, match=r"is no whole state of a training.*remove the folder"):
        train(training(tmp_path / "out", steps=2))


def test_nothing_on_disk_is_a_pickle(trained):
    config, _ = trained
    names = {path.name for path in config.output.iterdir()}
    assert names == {
        "config.json", "csakd-student.safetensors", "state.safetensors", "steps.csv", "validation.csv", "lock"
    }  # fmt: skip


def test_a_real_partner_is_degraded_with_its_hsi(tmp_path):
    pair = {role: f"synthetic:{role}?size=256&seed=4&ratio=4&{RECIPE}" for role in ("hsi", "msi")}
    other = {role: f"synthetic:{role}?size=192&seed=6&ratio=4&{RECIPE}" for role in ("hsi", "msi")}
    config = training(
        tmp_path / "out",
        scenes=[{"uri": pair["hsi"], "msi": pair["msi"]}],
        held_out=[{"uri": other["hsi"], "msi": other["msi"]}],
        steps=2,
    )
    card = read_card(train(config).weights["network"])
    assert [data["msi"] for data in card.training["data"]] == ["real", "real"]
    assert card.training["data"][0]["shape"] == [12, 64, 64]


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        ({"uri": LEARNT}, "is held out and learnt from.*expected whole scenes apart"),
        ({"uri": HELD_OUT.replace("bands=12", "bands=14")}, "14 good HSI bands and 4 MSI bands, expected 12"),
        ({"uri": HELD_OUT.replace("high_nm=1000", "high_nm=990")}, "band 12 lies at 990.0 nm, expected 1000.0 nm"),
        ({"uri": "absent.mat"}, "absent.mat"),
    ],
)
def test_scenes_that_do_not_fit_are_refused(tmp_path, held_out, told):
    config = training(tmp_path / "out", held_out=[held_out])
    with pytest.raises(InputRejected, match=told):
        open_grounds(config.scenes, config.held_out, config.simulation)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 3}, "setting epochs is unknown"),
        ({"samples": {"pach": 8}}, "setting samples.pach is unknown"),
        ({"network": "unet"}, "setting network: there is no network 'unet'"),
        ({"held_out": []}, "setting held_out"),
        ({"teacher": "csakd-student"}, "is the network itself"),
        ({"samples": {"shift_px": 1.5}}, "setting samples.shift_px"),
        ({"losses": {"l1": 1.0}}, "setting losses.l1"),
        ({"devices": 0}, "setting devices: expected a number from 1 on, or auto; found 0"),
        ({"devices": "all"}, "setting devices: expected a number from 1 on, or auto; found 'all'"),
        ({"losses": {"sam": 0.0}}, "at least one term"),
        ({"simulation": {"msi": "s2-5"}}, "there is no band set 's2-5'"),
        ({"simulation": {"psf": "block"}, "samples": {"shift_px": 1}}, "displaces a Gaussian PSF only"),
        ({"scenes": [{"uri": "a.bsq", "msi": "b.tif", "bad": "1-3"}]}, "belong to a cube"),
    ],
)
def test_settings_are_checked_before_anything_is_opened(tmp_path, changes, told):
    record = json.loads(training(tmp_path / "out").model_dump_json()) | changes
    (tmp_path / "c.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=told):
        load_training(tmp_path / "c.json")


def test_the_key_knows_what_decides(tmp_path):
    one = training(tmp_path / "a")
    elsewhere = {"steps": 99, "every": 3, "workers": 2, "device": "auto", "devices": "2", "tensorboard": True}
    assert one.key == training(tmp_path / "b", **elsewhere).key
    assert one.key != training(tmp_path / "a", seed=1).key


def test_without_lightning_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "hyperfuse.pipeline.training.step", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(UsageError, match=r"pip install 'hyperfuse\[train\]'"):
        train(training(tmp_path / "out"))
