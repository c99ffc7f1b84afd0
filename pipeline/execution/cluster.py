"""Dask clusters: one started here, or the one of a scheduler; and `map` over their workers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfuse.catalogs.errors import OutOfResources
from hyperfuse.pipeline.cores import usable_cores
from hyperfuse.pipeline.pipelining import ParallelMap

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 30
GPU = "GPU"
"""Resource of workers that own a device: a task that asks for one of it has the device for itself."""
_LOOPBACK = "127.0.0.1:0"
_PATIENCE = {"distributed.scheduler.allowed-failures": 10, "distributed.deploy.lost-worker-timeout": "300s"}
"""Of a cluster that is started here. Deaths after which Dask gives a task up: marks tell whose fault they were, Dask also
counts who waited at that worker. And the time that a worker which died may take to be back before its place is closed for
good: the usual 15 s are too few on a busy machine, where importing alone may take longer."""


@contextmanager
def connected(address: str, *, device: str = "cpu") -> Iterator[Client]:
    """A client of worker processes started here (`local`), or of a scheduler by its address or its JSON file.

    Parameters
    ----------
    address : str
    device : str
        What tiles will be fused on: processes started here are one per CUDA device, otherwise one per two cores.

    Raises
    ------
    OutOfResources
        If no scheduler answers at the address.
    """
    from distributed import Client  # noqa: PLC0415 (a second that only clusters need)

    # Importing it made it tell of every connection.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # Closing ends its attempts to find a lost scheduler again, and it tells each with a traceback.
    logging.getLogger("distributed.client").addFilter(_is_no_end_of_a_task)
    if address == "local":
        with _local_cluster(device) as cluster, Client(cluster) as client:
            client.forward_logging("hyperfuse", level=logging.INFO)
            yield client
        return
    try:
        client = Client(_of_file(address) if address.endswith(".json") else address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OutOfResources(
            f"no Dask scheduler answers at {address!r} within {_CONNECT_SECONDS} s ({error}); start one, or use --dask local"
        ) from error
    with client:
        client.forward_logging("hyperfuse", level=logging.INFO)
        yield client


def _is_no_end_of_a_task(record: logging.LogRecord) -> bool:
    """Whether a log record tells something else than that a task of asyncio was ended by who had started it."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def first_worker(client: Client, seconds: float) -> bool:
    """Wait for a worker, and tell whether any owns a device.

    Parameters
    ----------
    client : Client
    seconds : float
        A cluster that grows on demand needs a task to grow for, and its workers a while to start.

    Raises
    ------
    OutOfResources
        If none comes in time.
    """
    probe = client.submit(int, pure=False)
    try:
        probe.result(timeout=seconds)
    except TimeoutError as error:
        raise OutOfResources(
            f"no worker joined the Dask scheduler within {seconds:g} s; start workers, or wait longer with --set "
            "dask_wait_s=SECONDS"
        ) from error
    finally:
        probe.release()
    return any(GPU in worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())


@contextmanager
def spread_over(address: str | None) -> Iterator[ParallelMap]:
    """`map` in this process (None), or over the workers of a cluster; functions and results must pickle, and be small."""
    if address is None:
        yield map
        return
    with connected(address) as client:
        yield lambda function, items: client.gather(client.map(function, list(items), pure=False, retries=1))


def _of_file(path: str) -> str:
    """The address in a scheduler's JSON file; Dask itself would wait forever for a file that is not there."""
    try:
        return str(json.loads(Path(path).read_bytes())["address"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutOfResources(
            f"{path}: no scheduler file ({error}); start one with `dask scheduler --scheduler-file {path}`"
        ) from error


@contextmanager
def _local_cluster(device: str) -> Iterator[Any]:
    import dask  # noqa: PLC0415 (a second that only clusters need)
    from distributed import LocalCluster  # noqa: PLC0415

    n_devices = _n_devices(device)
    # Loopback and any free port: Dask's own choice is a port of all interfaces, and a warning where another cluster has it.
    # What goes wrong in a worker is told by the engine, in a line and not in a traceback.
    common = {"threads_per_worker": 1, "dashboard_address": _LOOPBACK, "silence_logs": logging.CRITICAL}
    with dask.config.set(_PATIENCE):
        if n_devices == 0:
            cluster = LocalCluster(n_workers=max(usable_cores() // 2, 1), **common)
        elif n_devices == 1:
            # Nothing to share out, so a device that was chosen by its number keeps it.
            cluster = LocalCluster(n_workers=1, resources={GPU: 1}, **common)
        else:
            cluster = _cuda_cluster(n_devices, common)
        with cluster:
            yield cluster


def _n_devices(device: str) -> int:
    """CUDA devices that processes started here may use: all for `auto` and `cuda`, one for `cuda:N`."""
    import torch  # noqa: PLC0415 (registering needs clusters, not torch)

    if device == "cpu" or not torch.cuda.is_available():
        return 0
    return 1 if ":" in device else torch.cuda.device_count()


def _cuda_cluster(n_devices: int, common: dict[str, Any]) -> Any:
    """A process per device, each of which sees only its own."""
    try:
        from dask_cuda import LocalCUDACluster  # noqa: PLC0415 (an optional extra)

        return LocalCUDACluster(resources={GPU: 1}, **common)
    except ImportError:
        log.debug("dask-cuda is not installed: devices are shared out by CUDA_VISIBLE_DEVICES alone")
    from distributed import Nanny, Scheduler, SpecCluster  # noqa: PLC0415

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n_devices)))
    workers = {
        index: {
            "cls": Nanny,
            "options": {"nthreads": 1, "resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": name}},
        }
        for index, name in enumerate(visible.split(",")[:n_devices])
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": _LOOPBACK}}
    return SpecCluster(workers=workers, scheduler=scheduler)
