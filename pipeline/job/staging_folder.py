"""The hidden folder beside an output in which a job is done: what it is called."""

from __future__ import annotations

import re
from pathlib import Path

from hyperfuse.pipeline.job.records import KEY


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
