from __future__ import annotations

import pytest

from hyperfuse.pipeline import progress
from hyperfuse.pipeline.progress import Meter, Pace


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds that have passed, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_pace_follows_from_pixels_and_time(clock):
    meter = Meter(4_000)
    clock[0] += 2.0
    assert meter.add(1_000, 1.5) == Pace(pixels_per_second=500.0, busy=0.75, remaining_s=6.0)
    clock[0] += 2.0
    assert meter.add(3_000, 2.5) == Pace(pixels_per_second=1_000.0, busy=1.0, remaining_s=0.0)
    assert meter.to_json() == {"pixels": 4_000, "seconds": 4.0, "pixels_per_second": 1_000.0, "device_busy": 1.0}


def test_a_stage_that_finds_all_done_has_no_pace(clock):
    meter = Meter(0)
    clock[0] += 1.0
    assert meter.to_json() == {"pixels": 0, "seconds": 1.0, "pixels_per_second": 0.0, "device_busy": None}


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00 min"), (61.0, "1:01 min"), (7_260.0, "2:01 h")])
def test_what_people_read(seconds, text):
    pace = Pace(pixels_per_second=1.25e6, busy=0.934, remaining_s=seconds)
    assert str(pace) == f"1.25 Mpx/s, device busy 93 %, {text} left"
