"""What each stage of a run cost is in the record of its product."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hyperfuse.pipeline.run import run
from hyperfuse.pipeline.stage_times import STAGE_TIMES, stage_times, timed
from tests.synthetic import config


def test_a_stage_costs_what_it_does(tmp_path: Path) -> None:
    with timed(tmp_path, "work"):
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        (tmp_path / "file").write_bytes(bytes(3_000_000))
        (tmp_path / "file").read_bytes()
    with timed(tmp_path, "sleep"):
        time.sleep(0.2)
    work, sleep = stage_times(tmp_path)
    assert (work.stage, sleep.stage) == ("work", "sleep")
    assert 0.15 <= work.cpu_s <= work.wall_s + 0.1
    assert sleep.wall_s >= 0.2
    assert sleep.cpu_s < 0.15
    if Path("/proc/self/io").exists():
        assert work.written_mb == pytest.approx(3.0, abs=0.1)
        assert work.read_mb == pytest.approx(3.0, abs=0.3)
    assert work.peak_mb > 20


def fail(folder: Path) -> None:
    with timed(folder, "fuse"):
        time.sleep(0.05)
        raise KeyError


def test_a_resumed_job_has_the_sum_and_a_torn_line_does_no_harm(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError):
            fail(tmp_path)
    with (tmp_path / STAGE_TIMES).open("a") as file:
        file.write('{"stage": "ju')
    (fuse,) = stage_times(tmp_path)
    assert fuse.wall_s >= 0.1
    with timed(tmp_path / "gone", "fuse"):  # a folder that is removed by whoever ends the job
        os.getpid()


def test_the_record_of_a_product_tells_its_stages(tmp_path: Path) -> None:
    started = time.monotonic()
    product = run(config(tmp_path / "p", method="bicubic", publish__uncertainty=True))
    spent = time.monotonic() - started
    stages = product.provenance["stages"]
    names = [stage["stage"] for stage in stages]
    assert names == [
        "open", "register", "stage", "learn", "fuse", "check", "standard error", "judge", "report", "write zarr", "write cog",
    ]  # fmt: skip
    assert 0.3 * spent < sum(stage["wall_s"] for stage in stages) < spent
