"""How many cores this process may use, which on a shared machine are fewer than it has."""

from __future__ import annotations

import os

_ALLOTTED = ("SLURM_CPUS_PER_TASK", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")
"""What SLURM, PBS, LSF and Grid Engine tell a job; not all of them hold it to that by affinity or cgroup."""


def usable_cores() -> int:
    """Cores by affinity, cgroup and batch system; at least 1."""
    from dask.system import cpu_count  # noqa: PLC0415 (dask knows affinity and both kinds of cgroups)

    told = [int(value) for name in _ALLOTTED if (value := os.environ.get(name, "")).isdigit() and int(value) > 0]
    return max(min(int(cpu_count()), *told) if told else int(cpu_count()), 1)
