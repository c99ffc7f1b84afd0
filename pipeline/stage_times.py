"""What each stage of a run cost: seconds, CPU, bytes and memory, kept beside the job until its record is written.

A line of JSON per stage and run is appended to `stage_times.jsonl` in the job's folder, so a run that was killed and resumed
has the sum of both. Work of Dask workers in other processes is in the seconds on the clock alone.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

STAGE_TIMES = "stage_times.jsonl"
"""Name of the file in the job's folder."""


class StageTime(BaseModel):
    """Cost of one stage, summed over the runs of a job."""

    model_config = ConfigDict(frozen=True)

    stage: str
    wall_s: float
    """Seconds on the clock."""
    cpu_s: float
    """Seconds of this process and of those that it waited for, over all cores."""
    read_mb: float | None
    """MB (10^6 bytes) that the process read, from disk or from the system's cache; None where the system does not tell."""
    written_mb: float | None
    """MB that it wrote."""
    peak_mb: float
    """Largest memory of the process until the end of the stage, MB."""


class Clock:
    """Runs since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu, self._bytes = time.monotonic(), _cpu_s(), _bytes()

    def note(self, folder: Path, stage: str) -> None:
        """Keep what it tells as a stage of the job in a folder; where that is gone or full nothing is kept, and nothing harmed."""
        now = _bytes()
        cost = StageTime(
            stage=stage,
            wall_s=round(time.monotonic() - self._wall, 3),
            cpu_s=round(_cpu_s() - self._cpu, 3),
            read_mb=_mega(self._bytes[0], now[0]),
            written_mb=_mega(self._bytes[1], now[1]),
            peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        )
        with suppress(OSError), (folder / STAGE_TIMES).open("a", encoding="utf-8") as file:
            file.write(cost.model_dump_json() + "\n")


@contextmanager
def timed(folder: Path, stage: str) -> Iterator[None]:
    """Note what happens inside as a stage of the job in a folder; a stage that fails is noted, too."""
    clock = Clock()
    try:
        yield
    finally:
        clock.note(folder, stage)


def stage_times(folder: Path) -> list[StageTime]:
    """What the stages of a job cost so far, in the order in which they first ended."""
    total: dict[str, StageTime] = {}
    for cost in _noted(folder):
        before = total.get(cost.stage)
        total[cost.stage] = cost if before is None else _sum(before, cost)
    return list(total.values())


def _noted(folder: Path) -> Iterator[StageTime]:
    try:
        lines = (folder / STAGE_TIMES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        with suppress(ValidationError, json.JSONDecodeError):  # of a run that was killed while it wrote
            yield StageTime.model_validate_json(line)


def _sum(one: StageTime, other: StageTime) -> StageTime:
    def both(first: float | None, second: float | None) -> float | None:
        return None if first is None or second is None else round(first + second, 3)

    return StageTime(
        stage=one.stage,
        wall_s=round(one.wall_s + other.wall_s, 3),
        cpu_s=round(one.cpu_s + other.cpu_s, 3),
        read_mb=both(one.read_mb, other.read_mb),
        written_mb=both(one.written_mb, other.written_mb),
        peak_mb=max(one.peak_mb, other.peak_mb),
    )


def _cpu_s() -> float:
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def _bytes() -> tuple[int | None, int | None]:
    """Bytes that this process has read and written through system calls."""
    try:
        told = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
        return int(told["rchar"]), int(told["wchar"])
    except (OSError, ValueError, LookupError):  # no Linux
        return None, None


def _mega(before: int | None, after: int | None) -> float | None:
    return None if before is None or after is None else round((after - before) / 1e6, 1)
