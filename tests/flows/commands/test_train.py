"""`hyperfuse train` and the flow: a file of settings in, weights out; sentences where that cannot be."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import yaml

from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.flows.cli import main
from tests import ROOT
from tests.pipeline.training.settings import training


@pytest.fixture
def settings(tmp_path) -> Path:
    """A training of two steps as YAML."""
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(training(tmp_path / "out", steps=2).model_dump(mode="json")))
    return path


def test_the_command_trains_tells_and_goes_on(settings, tmp_path, capsys):
    assert main(["train", str(settings)]) == 0
    out = capsys.readouterr().out
    weights = tmp_path / "out" / "csakd-student.safetensors"
    assert str(weights) in out
    assert "on the scenes held out, best at step 2" in out
    assert read_card(weights).training["best_step"] == 2
    assert main(["train", str(settings)]) == 4
    assert "raise steps to go on" in capsys.readouterr().err
    assert main(["train", str(settings), "--steps", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["steps"], record["resumed_at"]) == (3, 2)


@pytest.mark.parametrize(
    ("code", "sentence", "arguments"),
    [
        (2, "setting steps", ["--steps", "0"]),
        (3, "its parent folder does not exist", ["--output", "/nowhere/at/all"]),
        (6, "no device 'gpu'", ["--device", "gpu"]),
        (2, "2 patches cannot be shared evenly by 3 devices", ["--devices", "3"]),
        (2, "--set rate: expected KEY=VALUE, for example --set samples.patch=16", ["--set", "rate"]),
        (2, "setting samples.patches is unknown", ["--set", "samples.patches=16"]),
        (2, "setting rate.patch: rate is not a group of settings", ["--set", "rate.patch=16"]),
    ],
)
def test_refusals_write_nothing(settings, capsys, code, sentence, arguments):
    assert main(["train", str(settings), *arguments]) == code
    assert sentence in capsys.readouterr().err
    assert [path.name for path in settings.parent.iterdir()] == [settings.name]


def test_settings_of_the_file_are_overruled_one_by_one(settings, tmp_path):
    given = ["samples.patch=12", "rate=2e-3", "network=csakd-student", "options={attention: channel}"]
    assert main(["train", str(settings), *(word for each in given for word in ("--set", each))]) == 0
    told = read_card(tmp_path / "out" / "csakd-student.safetensors")
    assert (told.training["samples"]["patch"], told.training["samples"]["batch"]) == (12, 2)
    assert told.training["rate"] == 2e-3
    assert told.options["attention"] == "channel"


def test_an_unknown_setting_is_named(settings, capsys):
    settings.write_text(settings.read_text() + "epochs: 3\n")
    assert main(["train", str(settings)]) == 2
    assert "setting epochs is unknown; correct its name" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_the_flow_trains_and_skips(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prefect.client.orchestration import get_client
        from prefect.testing.utilities import prefect_test_harness

        from hyperfuse.flows.prefect.train_network import train_network

        config = training(tmp_path / "out", steps=2)
        with prefect_test_harness(server_startup_timeout=120):
            assert Path(train_network(config)["weights"]["network"]).is_file()
            assert "raise steps" in train_network(config)["skipped"]
            with get_client(sync_client=True) as client:
                assert {artifact.key for artifact in client.read_artifacts()} == {"train-network-network"}


def test_the_deployment_is_declared():
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    entry = {d["name"]: d["entrypoint"] for d in declared["deployments"]}
    assert entry["train-network"] == "hyperfuse.flows.prefect.train_network.train_network"
