from __future__ import annotations

from dataclasses import replace

import pytest

from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.registration.decision import Evidence, decide

GOOD = Evidence(tried=64, clear=60, agreeing=58, explained=0.9, residual_px=0.05, error_px=0.04)


def test_good_evidence_is_accepted():
    assert decide(GOOD, AlignConfig()) == ("accept", "")


@pytest.mark.parametrize(
    ("change", "decision", "told"),
    [
        ({"tried": 2, "clear": 2, "agreeing": 2}, "refuse", "in common in 2 windows"),
        ({"explained": 0.2}, "refuse", "do not show the same"),
        ({"clear": 5, "agreeing": 5}, "refuse", "only 5 of 64 windows"),
        ({"agreeing": 20}, "refuse", "only 20 of 60 tie points agree"),
        ({"residual_px": 0.6}, "refuse", "to 0.60 coarse px only"),
        ({"error_px": 0.7}, "refuse", "to 0.70 coarse px only"),
        ({"tried": 5, "clear": 5, "agreeing": 5}, "warn", "only 5 tie points"),
        ({"agreeing": 40}, "warn", "only 40 of 60"),
        ({"error_px": 0.3}, "warn", "to 0.30 coarse px"),
        ({"explained": 0.4}, "warn", "explains 40%"),
    ],
)
def test_every_weakness_is_named(change, decision, told):
    found, reason = decide(replace(GOOD, **change), AlignConfig())
    assert found == decision
    assert told in reason


def test_thresholds_are_settings():
    assert decide(GOOD, AlignConfig(min_tie_points=59))[0] == "refuse"
    assert decide(GOOD, AlignConfig(max_residual_px=0.04))[0] == "refuse"
    assert decide(GOOD, AlignConfig(min_explained=0.95))[0] == "refuse"
    assert decide(GOOD, AlignConfig(min_agreement=0.99))[0] == "refuse"
