"""How the fusion of one scene ended, and what that means for the next night."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hyperfuse.catalogs.addresses import as_glob
from hyperfuse.catalogs.errors import (
    ExpectedSkip,
    HyperFuseError,
    InputRejected,
    OutOfResources,
    QualityRefused,
    Transient,
    UsageError,
)
from hyperfuse.pipeline.archive.dead_letters import Verdict

_MAX_DEATHS = 2
"""Processes that a scene may kill before it is quarantined."""
_REFUSED = {error.exit_code for error in (UsageError, InputRejected, ExpectedSkip, QualityRefused)}
_STOPPED = {130, 143}
"""Exit codes of a command that SIGINT or SIGTERM ended: somebody's will, and no fault of the scene."""
_PASSING = {error.exit_code for error in (Transient, OutOfResources)} | _STOPPED


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the fusion of one scene ended."""

    exit_code: int
    """As of the command line; negative: the signal that killed the process."""
    reason: str = ""
    """Reason code; empty for a product."""
    message: str = ""
    """One sentence."""
    observed: float | None = None
    """Figure that decided, where one figure did ..."""
    allowed: float | None = None
    """... and its limit."""
    log: tuple[str, ...] = ()
    """Last lines that the run wrote, for ends that nobody expected."""

    @classmethod
    def of(cls, error: HyperFuseError) -> Outcome:
        """An expected end."""
        return cls(
            exit_code=error.exit_code,
            reason=error.reason,
            message=str(error),
            observed=error.observed,
            allowed=error.allowed,
        )

    @classmethod
    def of_signal(cls, number: int, last: Iterable[str]) -> Outcome:
        """The death of the process that fused."""
        cause = "most often because memory ran out" if number == signal.SIGKILL else "a crash in compiled code"
        message = (
            f"its process was ended by {signal.Signals(number).name}, {cause}; replay it alone and watch its memory"
        )
        return cls(exit_code=-number, reason="killed", message=message, log=tuple(last))

    def verdict(self, attempts: int, limit: int) -> Verdict:
        """What an end without a product means.

        Parameters
        ----------
        attempts : int
            Nights that tried, this one included.
        limit : int
            Nights that may.
        """
        if self.reason == "bad_product":
            return "quarantined"  # what was written does not read back: a disk or a bug, and no fault of the input
        if self.exit_code in _REFUSED:
            return "refused"
        if self.exit_code in _PASSING:
            return "failed" if attempts < limit else "quarantined"
        if self.exit_code < 0:
            return "failed" if attempts < min(_MAX_DEATHS, limit) else "quarantined"
        return "quarantined"


def missing(addresses: Iterable[str]) -> Outcome | None:
    """The end of a scene whose input is not there: a disk that is not mounted must not condemn a whole archive."""
    for address in map(as_glob, addresses):
        local = "://" not in address and not address.startswith("synthetic:")
        if local and not Path(address).exists() and not _matches(Path(address)):
            return Outcome.of(Transient(f"{address}: is not there; mount its disk, or remove it from the catalogue"))
    return None


def at_fault(addresses: tuple[str, ...], message: str) -> tuple[str, ...]:
    """The inputs that a message names; all where it names none."""
    return tuple(address for address in addresses if Path(address).stem in message) or addresses


def _matches(pattern: Path) -> bool:
    """Whether there is a file of the pattern; readers take globs of file names only."""
    return any(character in pattern.name for character in "*?[") and any(pattern.parent.glob(pattern.name))
