"""The device that computes: found by name, fed from pinned memory on streams of its own, and timed.

On a CPU all of it is nothing: tensors are where they must be, and the clock is the wall's.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hyperfuse.catalogs.errors import OutOfResources


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, then CPU.

    Raises
    ------
    OutOfResources
        If a device is asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OutOfResources(f"there is no device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OutOfResources(
            f"device {name!r} is asked for and {torch.cuda.device_count()} CUDA devices are here; choose auto or cpu"
        )
    return device


def exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or beside it."""
    # The allocator of the CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MOST_HEAPS = -1, -3, -8
"""Parameters of `mallopt`, see its manual page."""


def share_heaps() -> None:
    """Let all threads that are yet to come share two heaps; does nothing where the C library is not glibc.

    Otherwise each has one of its own, and each heap keeps the most that its thread ever held: a third of the peak of a run.
    """
    _mallopt({_MOST_HEAPS: 2})


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tile; does nothing where it is not glibc.

    Otherwise each tile fetches hundreds of megabytes from the system page by page, and every page is zeroed.
    """
    _mallopt({_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**30})


def _mallopt(parameters: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in parameters.items():
            mallopt(parameter, value)


def give_back_memory() -> None:
    """Return what was kept, and what only cycles of references keep, to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Many small steps on a CPU in this thread alone.

    Spread over all cores, each step would wait for a core that just encodes or reads, far longer than it takes.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


class Lane:
    """The way to a device and back, beside the computation.

    `bring` is called by the thread that reads, `begin` and `end` by the one that computes, `take` by the one that writes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def bring(self, tensors: Iterable[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Copies on the device, and what `begin` must wait for."""
        if not self._cuda:
            return list(tensors), None
        with torch.cuda.stream(self._in):
            moved = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
            return moved, self._in.record_event()

    def begin(self, tensors: Sequence[torch.Tensor], arrived: Any) -> Any:
        """Computing begins as soon as the tensors have arrived; gives the beginning, for `end`."""
        if not self._cuda:
            return time.perf_counter()
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(arrived)
        for tensor in tensors:
            tensor.record_stream(stream)
        return stream.record_event(torch.cuda.Event(enable_timing=True))

    def end(self, begun: Any, results: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Computing is done; results come back while the next computation runs. `take` waits for them."""
        if not self._cuda:
            return list(results), time.perf_counter() - begun
        stream = torch.cuda.current_stream(self.device)
        ended = stream.record_event(torch.cuda.Event(enable_timing=True))
        with torch.cuda.stream(self._out):
            self._out.wait_event(ended)
            back = []
            for result in results:
                host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                back.append(host.copy_(result, non_blocking=True))
                result.record_stream(self._out)
            return back, (begun, ended, self._out.record_event())

    def take(self, ticket: Any) -> float:
        """Wait until results are here; gives the seconds that the device computed."""
        if not self._cuda:
            return float(ticket)
        begun, ended, arrived = ticket
        arrived.synchronize()
        return float(begun.elapsed_time(ended)) / 1e3
