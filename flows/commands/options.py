"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable

from hyperfuse.catalogs.errors import UsageError


def assigned(pairs: Iterable[str] | None, *, example: str) -> dict[str, str]:
    """The settings of the options `--set KEY=VALUE`; the last of a key counts.

    Parameters
    ----------
    pairs : iterable of str or None
        As they were given; None if there is none.
    example : str
        One that the command understands, for the message.

    Raises
    ------
    UsageError
        If one has no value.
    """
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected KEY=VALUE, for example --set {example}")
        settings[key] = value
    return settings
