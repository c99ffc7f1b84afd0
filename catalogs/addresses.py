"""Kinds of addresses, and secrets in them (`https://user:password@host/`, `https://host/a.tif?sig=...`): found, and never repeated.

What this software does is written down, in the records of jobs and products and in messages; a password or a signature in an
address would be published with them. Such addresses are refused where they come in, in words that do not repeat them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

BAND = "{band}"
"""Place of a band's name in a pattern of files."""
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
"""All up to the last @ before the path: a password may hold an @ itself."""
_KEYS = (
    r"sig|signature|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|[a-z_-]*token|"
    r"api_?-?key|key|password|passwd|secret|policy|auth|subscription-key"
)
"""Names of parts of a query that stand for a login: signed addresses of Azure, Amazon, Google, and keys of servers."""
_SIGNED = re.compile(rf"[?&](?:{_KEYS})=[^\s&#]", re.IGNORECASE)
_REMOTE = re.compile(r"(?:https?|s3)://", re.IGNORECASE)
_QUERY = re.compile(r"(?<=://)([^\s?#'\"]*)\?[^\s'\"]*")


def is_pattern(uri: str) -> bool:
    """Whether an address is a pattern of files of one band each."""
    return BAND in uri


def as_glob(uri: str) -> str:
    """The glob of all files that a pattern means; other addresses as they are."""
    return uri.replace(BAND, "*")


def is_remote(uri: str) -> bool:
    """Whether an address is of a server: https, http or s3."""
    return _REMOTE.match(uri) is not None


def carries_user(text: str) -> bool:
    """Whether a text holds an address with a user name, a password, or a key or signature in its query."""
    return _USER.search(text) is not None or ("://" in text and _SIGNED.search(text) is not None)


def without_user(text: str) -> str:
    """The text without the user information of the addresses in it, and without queries that hold a key."""
    told = _USER.sub("", text)
    return _QUERY.sub(lambda found: found[0] if _SIGNED.search(found[0]) is None else found[1], told)


def without_query(url: str) -> str:
    """An address without user, query and fragment, for messages and records."""
    return _USER.sub("", url.partition("#")[0].partition("?")[0])


def name_for_cache(url: str) -> str:
    """What stands for an address in a cache: its query too, unless that is a signature, which changes from day to day."""
    return without_query(url) if _SIGNED.search(url) else _USER.sub("", url.partition("#")[0])


def refuse_secrets(value: object) -> object:
    """The same value, unless it is a text, or holds one, that is an address with a user name, a password or a key in its query.

    Raises
    ------
    ValueError
        In words that do not repeat it.
    """
    if isinstance(value, str | Path) and carries_user(str(value)):
        raise ValueError(
            "the address carries a user name or a password, or a key in its query, which would be written into the records of job and product; "
            "leave it out, and give the login to the client's own configuration or environment"
        )
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        refuse_secrets(part)
    return value
