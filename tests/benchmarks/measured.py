"""A function in a process of its own, with the peak of its resident memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from typing import Any, Self

import psutil


def in_own_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function returns, and `peak_mb` of the process that ran it."""
    # As `pipeline` does, which a benchmark imports after torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, function, arguments))
    process.start()
    sender.close()  # else nobody would notice that the other end is gone
    try:
        record: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{function.__name__}{arguments} ended with {process.exitcode}") from None
    process.join()
    return record


def _work(sender: Any, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    record = function(*arguments)
    sender.send(record | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


class Growth:
    """Most resident memory above what was there at the beginning, sampled."""

    def __enter__(self) -> Self:
        self._process, self._stop = psutil.Process(), threading.Event()
        self._before, self._most = self._process.memory_info().rss, 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mb(self) -> float:
        """Megabytes."""
        return self._most / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._most = max(self._most, self._process.memory_info().rss - self._before)
