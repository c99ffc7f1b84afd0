"""Cores are those that the process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hyperfuse.pipeline.cores import usable_cores

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
