"""How long work tells whoever watches where it is, and how fast it goes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a stage goes, measured since it began."""

    pixels_per_second: float
    """Product pixels, all bands of one counted once."""
    busy: float | None
    """Share of the time in which the device computed; None if it is not known."""
    remaining_s: float
    """Estimate of what is left, from the pace so far."""

    def __str__(self) -> str:
        busy = "" if self.busy is None else f", device busy {100 * self.busy:.0f} %"
        return f"{self.pixels_per_second / 1e6:.3g} Mpx/s{busy}, {_clock(self.remaining_s)} left"


class Progress(Protocol):
    """Told of every step of a stage."""

    def __call__(self, stage: str, done: int, total: int, pace: Pace | None = None) -> None:
        """Take note.

        Parameters
        ----------
        stage : str
        done, total : int
            Steps done, and all steps.
        pace : Pace, optional
            Only from stages that measure it.
        """


def silent(stage: str, done: int, total: int, pace: Pace | None = None) -> None:
    """The progress of a run that nobody watches."""


class Steps:
    """A stage of a known number of steps, counted up one by one."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0
        progress(stage, 0, total)

    def __call__(self) -> None:
        """One more step is done."""
        self._done += 1
        self._progress(self._stage, self._done, self._total)


class Meter:
    """Measures the pace of a stage from what it finishes."""

    def __init__(self, pixels: int, devices: int = 1) -> None:
        self._left, self._devices = pixels, devices
        self._done, self._busy_s = 0, 0.0
        self._started = time.monotonic()

    def add(self, pixels: int, busy_s: float) -> Pace:
        """Some pixels are finished, for which a device computed so long."""
        self._done += pixels
        self._left -= pixels
        self._busy_s += busy_s
        seconds = max(self.seconds, 1e-9)
        speed = self._done / seconds
        return Pace(
            pixels_per_second=speed,
            busy=min(self._busy_s / (seconds * self._devices), 1.0),
            remaining_s=max(self._left, 0) / speed if speed > 0 else 0.0,
        )

    def to_json(self) -> dict[str, float | None]:
        """What the product's record keeps of it."""
        pace = self.add(0, 0.0)
        return {
            "pixels": self._done,
            "seconds": round(self.seconds, 3),
            "pixels_per_second": round(pace.pixels_per_second, 1),
            "device_busy": None if pace.busy is None or not self._done else round(pace.busy, 4),
        }

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self._started


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes}:{rest:02d} min"
