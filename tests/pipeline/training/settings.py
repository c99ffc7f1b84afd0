"""Trainings that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperfuse.pipeline.training import TrainConfig

RECIPE = "bands=12&high_nm=1000"
"""Bands of all scenes here; they cover the four of Sentinel-2."""
LEARNT, HELD_OUT = (f"synthetic:truth?size={size}&seed={seed}&{RECIPE}" for size, seed in ((96, 1), (64, 2)))

UNIVERSAL: dict[str, Any] = {
    "network": "universal-csakd-student",
    "scenes": [{"uri": LEARNT, "license": "CC0-1.0"}, {"uri": HELD_OUT.replace("bands=12", "bands=17")}],
    "samples": {"patch": 6, "batch": 2},
    "variations": {"pairs": 3, "ratios": [3, 4]},
}
"""Settings of a universal network, from scenes of different bands."""


def training(output: Path, **settings: Any) -> TrainConfig:
    """A small student by itself, unless settings say otherwise."""
    given: dict[str, Any] = {
        "network": "csakd-student",
        "scenes": [{"uri": LEARNT, "license": "CC0-1.0"}],
        "held_out": [{"uri": HELD_OUT}],
        "output": output,
        "samples": {"patch": 8, "batch": 2, "shift_px": 0.5, "gain": 0.1, "msi_gain": 0.02},
        "steps": 12,
        "every": 6,
        "rate": 1e-3,
        "device": "cpu",
    }
    return TrainConfig.model_validate(given | settings)


def curve(output: Path, name: str = "steps.csv") -> list[list[str]]:
    """Rows of a curve, the header first."""
    return [line.split(",") for line in (output / name).read_text().splitlines()]
