"""Where fetched files are kept, how large they may be, and which hosts may be asked."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.stac.trusted import Trust

CACHE = "HYPERFUSE_CACHE"
"""Environment variable: folder of the cache."""
MAX_GB = "HYPERFUSE_FETCH_MAX_GB"
"""Environment variable: largest file (GB) that is fetched."""
DEFAULT_MAX_GB = 64.0


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """How addresses are fetched."""

    cache: Path
    """Folder of the fetched files; made when something is fetched."""
    max_bytes: int
    """Largest file that is fetched."""
    trust: Trust
    """Servers that may be asked."""

    @classmethod
    def of(cls, cache: Path | None = None, max_gb: float | None = None) -> Fetching:
        """What is set, else what the environment says, else `~/.cache/hyperfuse` and 64 GB.

        Hosts come from the environment alone (`HYPERFUSE_HOSTS`, separated by commas): the address itself names none, because
        it may be that of a catalogue of others.

        Raises
        ------
        UsageError
            If an environment variable is no number.
        """
        limit = _from_environment() if max_gb is None else max_gb
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = cache or Path(os.environ.get(CACHE) or f"{home}/hyperfuse")
        return cls(cache=folder.expanduser().absolute(), max_bytes=int(limit * 1e9), trust=Trust.of())


def _from_environment() -> float:
    given = os.environ.get(MAX_GB) or str(DEFAULT_MAX_GB)
    with suppress(ValueError):
        if 0 < float(given) < float("inf"):
            return float(given)
    raise UsageError(f"{MAX_GB}={given[:40]!r}: expected a number of GB above 0")
