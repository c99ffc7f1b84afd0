"""The curves for TensorBoard hold what the CSV files hold, read back by TensorBoard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.pipeline.training import train
from hyperfuse.pipeline.training.curves import Logs
from tests.pipeline.training.settings import curve, training


def points(folder: Path) -> dict[str, dict[int, float]]:
    """All curves as TensorBoard shows them: values by step; a step that stands twice is an error."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    shown = reader.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert all(len(dict(pairs)) == len(pairs) for pairs in found.values())
    return {tag: dict(pairs) for tag, pairs in found.items()}


def test_event_files_hold_what_the_csv_files_hold(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    config = training(tmp_path / "out", steps=4, every=2, tensorboard=True)
    train(config)
    found = points(config.output)
    header, *rows = curve(config.output)
    for column, name in enumerate(header[1:], start=1):
        expected = {int(row[0]): np.float32(row[column]) for row in rows}
        assert found.pop(f"steps/{name}") == expected
    header, *rows = curve(config.output, "validation.csv")
    for column, name in enumerate(header[2:], start=2):
        expected = {int(row[0]): pytest.approx(float(row[column])) for row in rows}
        assert found.pop(f"validation/csakd-student/{name}") == expected
    assert not found


def test_after_a_kill_no_step_stands_twice(tmp_path):
    """Killed at step 5 when the state was that of step 3; then the later steps had other values."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    for begun, steps in ((0, range(1, 6)), (3, range(4, 7))):
        with Logs(tmp_path, begun, tensorboard=True) as logs:
            for step in steps:
                logs.learnt(step, {"network.loss": float(10 * begun + step)})
                if step % 3 == 0:
                    logs.validated(step, "net", {"sam_deg": float(begun + step)})
    assert points(tmp_path) == {
        "steps/network.loss": {1: 1, 2: 2, 3: 3, 4: 34, 5: 35, 6: 36},
        "validation/net/sam_deg": {3: 3, 6: 9},
    }


def test_what_was_learnt_when_the_state_is_saved_is_on_disk(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    with Logs(tmp_path, 0, tensorboard=True) as logs:
        logs.learnt(1, {"network.loss": 0.5})
        logs.validated(1, "net", {"sam_deg": 2.0})
        assert points(tmp_path) == {"steps/network.loss": {1: 0.5}, "validation/net/sam_deg": {1: 2.0}}


def test_without_tensorboard_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'hyperfuse\[tensorboard\]'"):
        train(training(tmp_path / "out", tensorboard=True))
    assert not (tmp_path / "out").exists()
