"""Dates and times: read as the headers of products write them, written as records want them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

_FORMATS = ("%Y:%m:%d %H:%M:%S", "%Y%m%d%H%M%S", "%d-%b-%Y %H:%M:%S", "%Y/%m/%d %H:%M:%S")
"""What some headers have instead of ISO 8601."""


def parse_time(*texts: object) -> datetime | None:
    """The first of some texts that is a date and time; one without a zone is UTC."""
    for text in (str(t).strip() for t in texts if t):
        for parse in (datetime.fromisoformat, *(_with_format(f) for f in _FORMATS)):
            try:
                found = parse(text)
            except ValueError:
                continue
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return None


def now() -> datetime:
    """The time, UTC; records tell whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def rfc3339(time: datetime) -> str:
    """A time of a record, UTC, as STAC, ACDD and PROV want it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _with_format(pattern: str) -> Callable[[str], datetime]:
    return lambda text: datetime.strptime(text, pattern).replace(tzinfo=UTC)
