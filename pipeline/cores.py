"""Cores and memory that this process may use, which on a shared machine are less than it has."""

from __future__ import annotations

import os

_ALLOTTED = ("SLURM_CPUS_PER_TASK", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")
"""What SLURM, PBS, LSF and Grid Engine tell a job; not all of them hold it to that by affinity or cgroup."""


def usable_cores() -> int:
    """Cores by affinity, cgroup and batch system; at least 1."""
    from dask.system import cpu_count  # noqa: PLC0415 (dask knows affinity and both kinds of cgroups)

    told = [int(value) for name in _ALLOTTED if (value := os.environ.get(name, "")).isdigit() and int(value) > 0]
    return max(min(int(cpu_count()), *told) if told else int(cpu_count()), 1)


_MOST_GB = 8.0
"""More makes no tile better."""
_SHARE = 0.7
"""Of the memory that is allowed: the rest is for libraries, and for what other parts of a run hold."""


def usable_memory() -> int:
    """Bytes of memory by machine, cgroup and batch system."""
    from distributed.system import MEMORY_LIMIT  # noqa: PLC0415 (knows cgroups)

    told = [int(MEMORY_LIMIT)]
    for name, n_of_them in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", usable_cores())):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:  # 0 is all of a node
            told.append(int(value) * n_of_them << 20)
    return min(told)


def memory_budget_gb() -> float:
    """Memory (GB) that tiles are cut for unless the settings tell it: 8, or 0.7 of what the process may use."""
    return max(min(_MOST_GB, round(_SHARE * usable_memory() / 1e9, 1)), 0.1)
