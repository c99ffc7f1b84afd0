"""Read, compute and write at the same time, with bounded queues between the three.

    load    in a thread      what comes next is read while this is computed
    work    in the caller    the device; nothing else holds it up
    store   in two threads   what was computed is packed off, encoded and written behind its back

Whatever the number of items, at most `ahead` wait loaded and `behind + 1` wait computed: memory does not grow.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, TypeVar

_NICE = 10
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Worked = TypeVar("Worked")
Stored = TypeVar("Stored")


def step_back(thread: int | None = None) -> None:
    """Let a thread, this one unless given by its native number, and those that it starts run only where others leave time.

    A method that computes on all cores waits for the last of them: a thread that takes one away for a moment costs all.
    Only Linux knows priorities of threads; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, thread or threading.get_native_id(), _NICE)


def convey(
    items: Iterable[Item],
    *,
    load: Callable[[Item], Loaded],
    work: Callable[[Loaded], Worked],
    store: Callable[[Worked], Stored],
    ahead: int = 1,
    behind: int = 1,
) -> Iterator[Stored]:
    """What `store(work(load(item)))` gives for every item, in order, with the three overlapped.

    An error of any stage ends it: what is being written is finished, what only waits is dropped. The same holds when the
    caller stops early.

    Parameters
    ----------
    items : iterable
    load : callable
        Runs in a thread of its own.
    work : callable
        Runs in the caller's thread.
    store : callable
        Runs in one of two threads, so that what one item does on a single core does not hold up the encoding of the next.
    ahead : int
        Items that are loaded while another is worked on.
    behind : int
        Results that wait or are being stored besides the oldest of them.
    """
    waiting = iter(items)
    loading: deque[Future[Loaded]] = deque()
    storing: deque[Future[Stored]] = deque()
    with (
        ThreadPoolExecutor(1, "load", initializer=step_back) as loader,
        ThreadPoolExecutor(2, "store", initializer=step_back) as storer,
    ):
        try:
            loading.extend(loader.submit(load, item) for item in islice(waiting, ahead))
            while loading:
                loaded = loading.popleft().result()
                loading.extend(loader.submit(load, item) for item in islice(waiting, 1))
                # Nothing here keeps an item alive longer than the stage that has it.
                worked = work(loaded)
                del loaded
                storing.append(storer.submit(store, worked))
                del worked
                while len(storing) > behind or (storing and storing[0].done()):
                    yield storing.popleft().result()
            while storing:
                yield storing.popleft().result()
        finally:
            for load_ahead in loading:
                load_ahead.cancel()
            for unwritten in storing:
                unwritten.cancel()


ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to every item and gives the results in order, as the builtin `map` does."""
Workers = Callable[[], AbstractContextManager[ParallelMap]]
"""Where such a map runs; nothing is started before it is entered."""


@contextmanager
def in_this_process() -> Iterator[ParallelMap]:
    """The builtin `map`."""
    yield map
