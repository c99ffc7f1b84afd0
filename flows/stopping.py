"""SIGTERM ends a command as Ctrl-C does: what is done stays done, its workers go with it, and within 30 s.

A flow needs none of this: Prefect turns the signal into an exception of its own, and kills after 30 s.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_MOST_SECONDS = 25.0
"""That closing files and workers may take before the process just ends; workers notice that and end too."""


class Terminated(BaseException):
    """The process was told to end. No `Exception`: nothing that recovers from errors may swallow it."""

    exit_code = 143
    """128 and the signal's number, as shells have it."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the main thread on the first SIGTERM; more of them change nothing.

    Raises
    ------
    Terminated
    """

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        last_resort = threading.Timer(_MOST_SECONDS, os._exit, (Terminated.exit_code,))
        last_resort.daemon = True
        last_resort.start()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)
