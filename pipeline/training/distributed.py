"""A training over several devices of one machine: a process for each, watched by the process that asked for them.

    calling process   starts the others, hands on what the first of them tells, ends them all
    process r         works on device r with its part of every batch; they average gradients among themselves

Notes
-----
Lightning brings gradients together but does not start the processes. Its launchers begin the command line anew for each
device, or wait for spawned processes in silence: no progress, no log line, and of an error the text alone.

A process that is lost is noticed when its pipe closes. The others are then ended, within `MOST_SECONDS_LOST`; a collective
operation by itself would wait for hours, or take the process down. One that hangs and does not die is not noticed.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
from torch import distributed

from hyperfuse.catalogs.errors import HyperFuseError, OutOfResources, Transient, UsageError
from hyperfuse.pipeline.progress import Pace, Progress, silent

T = TypeVar("T")

MOST_SECONDS_LOST = 10.0
"""From the loss of a process to the end of all."""
_WORDS_SECONDS = 3.0
"""In which the others may tell what they know of it: of two errors one is often the other's consequence."""
_EXIT_SECONDS = 3.0
"""From the end of a process's pipe to its exit code."""
_LONGEST_WAIT = timedelta(days=7)
"""Of a process for the others, as for the first while it validates; those that are lost are noticed otherwise."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that share a training."""

    number: int = 0
    """From 0 on; also the number of its device."""
    of: int = 1
    """Processes."""

    @property
    def leads(self) -> bool:
        """Whether it writes and validates, which one process does for all."""
        return self.number == 0


ALONE = Rank()
"""The process of a training on one device."""


def count_devices(asked: int | Literal["auto"], device: torch.device, batch: int) -> int:
    """Devices that share each batch.

    Parameters
    ----------
    asked : int or "auto"
    device : device
        The first, or the only one.
    batch : int
        Patches per step.

    Raises
    ------
    UsageError
        If the batch cannot be shared evenly, or one device of several is named.
    OutOfResources
        If there are not so many.
    """
    here = torch.cuda.device_count() if device.type == "cuda" else None
    if asked == "auto":
        # A CPU's threads share the work of one process by themselves.
        asked = 1 if here is None or device.index is not None else here
    if asked == 1:
        return 1
    if device.index is not None:
        raise UsageError(
            f"setting device: {device} is one device and devices are {asked}; give cuda, which takes the first {asked}, or devices 1"
        )
    if here is not None and asked > here:
        raise OutOfResources(
            f"setting devices: {asked}, and {here} CUDA devices are here; choose auto or at most {here}"
        )
    if batch % asked:
        raise UsageError(
            f"setting samples.batch: {batch} patches cannot be shared evenly by {asked} devices; choose a multiple of {asked}"
        )
    return asked


def together(
    work: Callable[[Rank, Progress], T], n_ranks: int, device: torch.device, *, progress: Progress = silent
) -> T:
    """Do a work in several processes that can average tensors among themselves.

    Parameters
    ----------
    work : callable
        Called in every process with its rank. It is pickled; its tensors are shared, not copied.
    n_ranks : int
    device : device
        Kind of the devices: over CUDA devices they speak by NCCL, on a CPU by Gloo.
    progress : Progress
        Told what the first process tells.

    Returns
    -------
    object
        What the first process gives.

    Raises
    ------
    HyperFuseError
        As one of the processes raised it.
    Transient
        If a process was lost.
    RuntimeError
        If anything else was raised in one; the message holds the traceback.
    """
    _allow_open_files()
    context = get_context("spawn")  # a fork would inherit the threads of whoever calls, Prefect's among them
    level = logging.getLogger(__name__).getEffectiveLevel()
    with TemporaryDirectory(prefix="hyperfuse-") as meeting:
        processes: dict[Connection, SpawnProcess] = {}
        try:
            for number in range(n_ranks):
                pipe, told = context.Pipe(duplex=False)
                seat = _Seat(
                    rank=Rank(number, n_ranks), kind=device.type, meeting=Path(meeting) / "ranks", log_level=level
                )
                process = context.Process(target=_take_part, args=(work, told, seat), name=f"rank {number}")
                processes[pipe] = process
                process.start()
                told.close()  # so that the pipe ends when the process does
            result: T = _listen(processes, progress)
        finally:
            _end(processes)
    return result


def _listen(processes: dict[Connection, SpawnProcess], progress: Progress) -> Any:
    """What the first process gives, once all are done."""
    ends: dict[str, _Result | Exception] = {}
    speaking = set(processes)
    deadline = math.inf
    while speaking and time.monotonic() < deadline:
        for pipe in wait(speaking, None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)):
            assert isinstance(pipe, Connection)  # noqa: S101 (as given)
            process = processes[pipe]
            try:
                word = pipe.recv()
            except (EOFError, ConnectionResetError):
                word = _lost(process)
            match word:
                case logging.LogRecord():
                    _log(word)
                case _Result() | Exception():
                    ends[process.name] = word
                    speaking.remove(pipe)
                case stage, done, total, pace:
                    progress(stage, done, total, pace)
            if isinstance(word, Exception):
                deadline = min(deadline, time.monotonic() + _WORDS_SECONDS)
    errors = [end for end in ends.values() if isinstance(end, Exception)]
    if errors:
        raise min(errors, key=_remoteness)
    first = ends["rank 0"]
    assert isinstance(first, _Result)  # noqa: S101 (there was no error)
    return first.value


def _remoteness(error: Exception) -> int:
    """How likely an error is to follow from another one: a refusal is a cause, a broken connection never is."""
    return 1 if isinstance(error, Transient) else 0 if isinstance(error, HyperFuseError) else 2


def _lost(process: SpawnProcess) -> Transient:
    process.join(_EXIT_SECONDS)
    code = process.exitcode
    how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    return Transient(
        f"training: the process of {process.name} {how}, as happens for want of memory; the same command goes on from the last "
        "validation"
    )


def _end(processes: dict[Connection, SpawnProcess]) -> None:
    """End what still runs: who has told its end has nothing left to do, and of others each file is whole or not there."""
    for pipe, process in processes.items():
        if process.is_alive():
            process.kill()
        if process.pid is not None:
            process.join()
        pipe.close()


def _log(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _allow_open_files() -> None:
    """As many files as this process may have: every tensor that is shared is one, and a training may hold thousands."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True, kw_only=True)
class _Seat:
    """What one of the processes is told at its beginning."""

    rank: Rank
    kind: str
    """Of the devices, `cuda` or `cpu`."""
    meeting: Path
    """File, not yet there, through which the processes find each other."""
    log_level: int


@dataclass(frozen=True)
class _Result:
    """What a work gave."""

    value: Any


class _Voice(logging.Handler):
    """What a process tells the one that watches: log records, progress, and in the end a result or an error."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe
        self._speaking = threading.Lock()  # log lines may come from any thread

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a log record as text: arguments and tracebacks may not survive the way."""
        told = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        self.tell(logging.makeLogRecord(told | {"msg": self.format(record)}))

    def tell(self, word: Any) -> None:
        """Tell it now."""
        with self._speaking:
            self._pipe.send(word)

    def progress(self, stage: str, done: int, total: int, pace: Pace | None = None) -> None:
        """See `pipeline.progress.Progress`."""
        self.tell((stage, done, total, pace))


def _take_part(work: Callable[[Rank, Progress], Any], pipe: Connection, seat: _Seat) -> None:
    """The whole life of one of the processes."""
    # Ctrl-C reaches all processes of a terminal; the one that watches decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    voice, rank = _Voice(pipe), seat.rank
    # All meet the same warnings, so one tells them.
    logging.root.addHandler(voice if rank.leads else logging.NullHandler())
    logging.root.setLevel(seat.log_level)
    try:
        _meet(seat)
        result = work(rank, voice.progress if rank.leads else silent)
        distributed.destroy_process_group()
    except HyperFuseError as error:
        voice.tell(error)
    except Exception:  # noqa: BLE001 (it goes on in the process that watches; many do not survive the way)
        voice.tell(RuntimeError(f"in the process of device {rank.number}:\n{traceback.format_exc()}"))
    else:
        voice.tell(_Result(result if rank.leads else None))
        return
    sys.exit(1)


def _end_with_parent() -> None:
    """However it ended, killed or not."""
    parent = parent_process()
    assert parent is not None  # noqa: S101 (this process was spawned)
    parent.join()
    os._exit(1)


def _meet(seat: _Seat) -> None:
    """Join the others, through a file: a port could be taken by somebody else, and heard by anybody."""
    rank, cuda = seat.rank, seat.kind == "cuda"
    os.environ["LOCAL_RANK"] = str(rank.number)  # by which Lightning knows that it need not start processes
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=seat.meeting.as_uri(),
        rank=rank.number,
        world_size=rank.of,
        timeout=_LONGEST_WAIT,
        device_id=torch.device("cuda", rank.number) if cuda else None,
    )
