"""User information in addresses (`https://user:password@host/`): found, and never repeated.

What this software does is written down, in the records of jobs and products and in messages; a password in an address would
be published with them. Such addresses are refused where they come in, in words that do not repeat them.
"""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^\s/?#]*@")
"""All up to the last @ before the path: a password may hold an @ itself."""


def carries_user(text: str) -> bool:
    """Whether a text holds an address with a user name or a password."""
    return _USER.search(text) is not None


def without_user(text: str) -> str:
    """The text without the user information of the addresses in it."""
    return _USER.sub("", text)
