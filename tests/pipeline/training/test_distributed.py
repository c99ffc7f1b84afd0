"""Several devices learn as one does: processes on a CPU here, which differ from GPUs in nothing that is ours."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from torch import distributed

from hyperfuse.catalogs.errors import OutOfResources, QualityRefused, Transient, UsageError
from hyperfuse.pipeline.progress import Progress
from hyperfuse.pipeline.training import TrainConfig, train
from hyperfuse.pipeline.training.checkpoint import load_state
from hyperfuse.pipeline.training.distributed import MOST_SECONDS_LOST, Rank, count_devices, together
from tests.pipeline.training.settings import UNIVERSAL, curve, training

CPU = torch.device("cpu")
ROUNDING = 1e-4
"""Relative, of the loss after six steps: two halves of a sum are rounded otherwise than the whole."""


def losses(config: TrainConfig) -> np.ndarray:
    """All columns of the curve but the step."""
    return np.array([[float(value) for value in row[1:]] for row in curve(config.output)[1:]])


def until(step: int) -> Progress:
    """Somebody who presses Ctrl-C at a step."""

    def progress(stage: str, done: int, total: int, pace: object = None) -> None:
        if (stage, done) == ("train", step):
            raise KeyboardInterrupt

    return progress


def test_two_processes_learn_as_one_and_the_first_speaks_for_both(tmp_path, caplog):
    one, two = (training(tmp_path / str(n), steps=6, devices=n) for n in (1, 2))
    train(one)
    told: list[tuple[object, ...]] = []
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="pipeline"):
        made = train(two, progress=lambda *word: told.append(word[:3]))
    assert curve(two.output)[0] == curve(one.output)[0]
    assert np.allclose(losses(two), losses(one), rtol=ROUNDING, atol=0)
    assert told == [("train", step, 6) for step in range(1, 7)]
    assert [record.getMessage()[:27] for record in caplog.records] == ["csakd-student, step 6: SAM "]
    assert made.best["network"]["step"] == 6
    assert sorted(path.name for path in two.output.iterdir()) == sorted(path.name for path in one.output.iterdir())
    # Nor does each process learn from the same patches: half of them have another loss.
    half = training(tmp_path / "half", steps=1, samples=one.samples.model_dump() | {"batch": 1})
    train(half)
    assert not np.allclose(losses(half)[0], losses(one)[0], rtol=100 * ROUNDING)


@pytest.mark.slow
def test_a_training_with_a_teacher_goes_on_over_two_devices(tmp_path):
    settings = {"teacher": "csakd-teacher", "steps": 6, "every": 2, "samples": {"patch": 4, "batch": 2, "shift_px": 1}}
    whole, parts = (training(tmp_path / name, **settings) for name in ("whole", "parts"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(parts, progress=until(3))
    assert train(parts.model_copy(update={"devices": 2})).resumed_at == 2
    assert np.allclose(losses(parts), losses(whole), rtol=ROUNDING, atol=0)
    assert [row[:2] for row in curve(parts.output, "validation.csv")] == [
        row[:2] for row in curve(whole.output, "validation.csv")
    ]


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_training_and_nothing_else_is_lost(tmp_path):
    """In universal space, where every batch has one ratio, and where the estimates are made once for all processes."""
    settings = UNIVERSAL | {"steps": 500, "every": 2}
    whole, config = training(tmp_path / "whole", **settings), training(tmp_path / "out", devices=2, **settings)
    stages, lost = [], []

    def kill(stage: str, done: int, steps: int, pace: object = None) -> None:
        stages.append(stage)
        if (stage, done) == ("train", 3):
            (other,) = (process for process in multiprocessing.active_children() if process.name == "rank 1")
            os.kill(other.pid, signal.SIGKILL)
            lost.append(time.monotonic())

    with pytest.raises(Transient, match=r"rank 1 was ended by SIGKILL.*goes on from the last validation"):
        train(config, progress=kill)
    assert time.monotonic() - lost[0] < MOST_SECONDS_LOST
    assert not multiprocessing.active_children()
    assert stages.count("pairs") == len(config.scenes) * config.variations.pairs
    saved = load_state(config.output, config.key, ()).step
    assert saved >= 2
    with pytest.raises(KeyboardInterrupt):
        train(whole, progress=until(saved))
    assert np.allclose(losses(config)[:saved], losses(whole)[:saved], rtol=ROUNDING, atol=0)
    assert train(config.model_copy(update={"devices": 1, "steps": saved + 1})).resumed_at == saved
    assert [int(row[0]) for row in curve(config.output)[1:]] == [*range(1, saved + 2)]


def wait_long(rank: Rank, progress: Progress) -> None:
    """A work that is not done in time."""
    progress("waiting", rank.number, rank.of)
    time.sleep(120)


def test_no_process_outlives_the_one_that_watches():
    """Nothing there catches the signal: as by SIGKILL, it has no time to end the others."""
    code = (
        "import torch; from hyperfuse.pipeline.training.distributed import together; from tests.pipeline.training.test_distributed import wait_long;"
        "together(wait_long, 2, torch.device('cpu'), progress=lambda *word: print(*word, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting 0 2 None\n"
        others = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, alive = psutil.wait_procs(others, timeout=MOST_SECONDS_LOST)
    assert process.returncode == -signal.SIGTERM
    assert len(others) >= 2
    assert not alive


def refuse(rank: Rank, progress: Progress) -> None:
    """A work: one process refuses while the other waits for it."""
    if rank.number == 1:
        raise QualityRefused("the loss is nan", observed=2.0)
    distributed.barrier()


def test_the_cause_is_told_and_not_what_follows_from_it():
    with pytest.raises(QualityRefused, match="the loss is nan") as refused:
        together(refuse, 2, CPU)
    assert refused.value.observed == 2.0


@pytest.mark.parametrize(
    ("asked", "device", "batch", "told"),
    [
        (3, "cpu", 8, "8 patches cannot be shared evenly by 3 devices; choose a multiple of 3"),
        (2, "cuda:1", 8, "cuda:1 is one device and devices are 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(asked, device, batch, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match=told):
        count_devices(asked, torch.device(device), batch)


def test_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda = torch.device("cuda")
    assert [count_devices(asked, cuda, 8) for asked in (1, 2, 4, "auto")] == [1, 2, 4, 4]
    assert [count_devices("auto", torch.device(one), 8) for one in ("cuda:3", "cpu")] == [1, 1]
    with pytest.raises(OutOfResources, match="8, and 4 CUDA devices are here"):
        count_devices(8, cuda, 8)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"samples\.batch: 2 patches cannot be shared evenly by 4 devices"):
        train(training(tmp_path / "out", devices=4))
    assert not (tmp_path / "out").exists()
