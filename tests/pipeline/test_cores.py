"""Cores are those that the process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hyperfuse.pipeline.cores import memory_budget_gb, usable_cores, usable_memory

COUNT = "from hyperfuse.pipeline.cores import usable_cores; print(usable_cores())"


def test_affinity_counts_and_not_the_machine() -> None:
    one = min(os.sched_getaffinity(0))
    held = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{one}}}); {COUNT}"],
        capture_output=True, text=True, check=True, env={k: v for k, v in os.environ.items() if "SLURM" not in k},
    )  # fmt: skip
    assert held.stdout.strip() == "1"


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS"])
def test_a_batch_system_says_less(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert usable_cores() == 1
    monkeypatch.setenv(name, "100000")
    assert usable_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv(name, "many")
    assert usable_cores() >= 1


def test_memory_is_that_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    machine = usable_memory()
    assert memory_budget_gb() <= 8.0
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    assert usable_memory() == min(machine, 2048 << 20)
    assert memory_budget_gb() == pytest.approx(0.7 * usable_memory() / 1e9, abs=0.06)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert usable_memory() == machine
