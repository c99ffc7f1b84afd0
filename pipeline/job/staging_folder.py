"""The hidden folder beside an output in which a job is done: its name, whose it is, and of which job.

A shared folder may hold anything under such a name. A staging folder is taken over or removed only if it is a folder and
no link, belongs to this user, and has exactly the name that the record in it gives.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.pipeline.job.records import KEY

RECORD = "job.json"
"""What is done in the folder."""
AREA_SCHEMA = "hyperfuse-area-job/1"
"""Version of the folder of an area mosaic; that of a fusion is `records.JOB_SCHEMA`."""
_LOCK_FILE = re.compile(r"lock|\.lock\.\d+\.lease|\.clock-.*|\.job\.json\..*\.partial")
"""Files of a folder whose job was killed before it had a record."""


@dataclass(frozen=True)
class Identity:
    """What a record says of itself, whatever version of this software wrote it."""

    schema: str
    """Empty for versions that did not say."""
    key: str
    """Names the folder."""


def staging_folder(output: Path, key: str) -> Path:
    """The hidden folder beside `output` that becomes it.

    Parameters
    ----------
    output : Path
        Product folder.
    key : str
        SHA-256 of what decides the samples, 64 hexadecimal digits.

    Raises
    ------
    ValueError
        If it is no such key.
    """
    if not re.fullmatch(KEY, key):
        raise ValueError(f"{key!r} is no key: expected the 64 hexadecimal digits of a SHA-256")
    return output.parent / f".{output.name}.{key[:12]}.staging"


def staging_folders(output: Path) -> Iterator[Path]:
    """Folders of this user beside `output` that are called like its staging folders; those of `output.v2` are not."""
    pattern = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{12}}\.staging")
    for path in sorted(output.parent.iterdir()) if output.parent.is_dir() else ():
        if pattern.fullmatch(path.name) and _is_own_folder(path):
            yield path


def claim(folder: Path) -> None:
    """Make a staging folder, or find it.

    Raises
    ------
    InputRejected
        If something is there that is no folder of this user.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        if not _is_own_folder(folder):
            raise InputRejected(
                f"{folder}: is no folder of this user, so no job is done in it; remove it, or choose another output"
            ) from None


def require_same_job(folder: Path, key: str, schema: str) -> None:
    """Refuse to go on in a folder that holds another job; call it while the folder is locked.

    Parameters
    ----------
    folder : Path
    key, schema : str
        Of the job that wants to.

    Raises
    ------
    InputRejected
        If its record is of another job or another version, or it holds something without a record.
    """
    found = identity(folder)
    if found is None:
        if not _is_empty(folder):
            raise InputRejected(f"{folder}: holds files, but no {RECORD} that tells their job; move it away")
    elif found.schema != schema:
        raise InputRejected(f"{folder}: {made_by_another(found, schema)}; move it away")
    elif found.key != key:
        raise InputRejected(f"{folder}: holds another job than its name says; move it away")


def made_by_another(found: Identity, schema: str) -> str:
    """The sentence on a record of another version."""
    return f"made by another version of HyperFuse ({found.schema or 'without a schema'}, expected {schema})"


def may_be_removed(folder: Path) -> bool:
    """Whether a staging folder has the name that its record gives, or holds nothing."""
    found = identity(folder)
    if found is None:
        return _is_empty(folder)
    return folder.name.endswith(f".{found.key[:12]}.staging")


def identity(folder: Path) -> Identity | None:
    """What the record in a folder says of itself; None if there is none that has a key."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = {} if path.is_symlink() else json.loads(path.read_bytes())
        # Versions without a schema named their folders by the key of the product.
        key = record["samples"] if "job_schema" in record else record["key"]
        schema = record.get("job_schema", "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return Identity(schema=str(schema), key=key) if isinstance(key, str) and re.fullmatch(KEY, key) else None


def _is_empty(folder: Path) -> bool:
    return all(_LOCK_FILE.fullmatch(path.name) for path in folder.iterdir())


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return S_ISDIR(found.st_mode) and found.st_uid == _own_uid(path.parent)


def _own_uid(folder: Path) -> int:
    """Owner of what this process makes in a folder: some network file systems give all files to one user."""
    with tempfile.NamedTemporaryFile(prefix=".hyperfuse-probe-", dir=folder) as file:
        return Path(file.name).lstat().st_uid
