"""Dask clusters: one started here, or the scheduler at an address; and `map` over their workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from catalogs.errors import OutOfResources

if TYPE_CHECKING:
    from distributed import Client

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to every item and gives the results in order, as the builtin `map` does."""
_CONNECT_SECONDS = 30


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of worker processes started here (`local`), or of the scheduler at an address.

    Raises
    ------
    OutOfResources
        If no scheduler answers at the address.
    """
    from distributed import Client, LocalCluster  # noqa: PLC0415 (a second that only clusters need)

    if address == "local":
        n_workers = max((os.cpu_count() or 1) // 2, 1)
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            client.forward_logging("pipeline", level=logging.INFO)
            yield client
        return
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OutOfResources(
            f"no Dask scheduler answers at {address!r} within {_CONNECT_SECONDS} s ({error}); start one, or use --dask local"
        ) from error
    with client:
        client.forward_logging("pipeline", level=logging.INFO)
        yield client


@contextmanager
def spread_over(address: str | None) -> Iterator[Spread]:
    """`map` in this process (None), or over the workers of a cluster; functions and results must pickle, and be small."""
    if address is None:
        yield map
        return
    with connected(address) as client:
        yield lambda function, items: client.gather(client.map(function, list(items), pure=False, retries=1))
