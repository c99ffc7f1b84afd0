"""A training that is told to end ends between two steps: half a step would leave weights that belong to no step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Told:
    """Whether the process was told to end; true once it was."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def held_back() -> Iterator[Told]:
    """Hold SIGTERM and Ctrl-C back until the end of the block, where they do what they would have done.

    A second one is not held back. Outside of the main thread, which alone hears signals, nothing is.
    """
    told = Told()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.signal = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, hold)
    try:
        yield told
    finally:
        restore()
    if told.signal is not None:
        os.kill(os.getpid(), told.signal)
