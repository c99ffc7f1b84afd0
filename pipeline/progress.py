"""How long work tells whoever watches where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done, and all steps."""


def silent(stage: str, done: int, total: int) -> None:
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
