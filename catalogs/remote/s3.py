"""Files in buckets (s3://): read by ranges through s3fs. Logins, endpoint and region are those of the environment (AWS_*)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hyperfuse.catalogs.addresses import without_query
from hyperfuse.catalogs.errors import HyperFuseError, InputRejected, Transient, UsageError
from hyperfuse.catalogs.remote.answers import Answer, Facts

UNSIGNED = "AWS_NO_SIGN_REQUEST"
"""Environment variable, as GDAL has it: YES asks public buckets without a login."""
_PIECE = 8 << 20


@contextmanager
def read_bucket(url: str, *, start: int = 0, tag: str | None = None) -> Iterator[Answer]:
    """Ask for a file in a bucket; parameters as in `catalogs.remote.http.asked`.

    Raises
    ------
    InputRejected
        If there is no such file, or it is not for whoever asks.
    Transient
        If the server does not answer.
    UsageError
        If s3fs is missing.
    """
    told = without_query(url)
    with _named(told):
        system = _system(told)
        bucket, key = _split(told)
        head = system.call_s3("head_object", Bucket=bucket, Key=key)
        facts = Facts(size=int(head["ContentLength"]), tag=head.get("ETag"), md5=_md5(head))
        same = tag is not None and tag == facts.tag
        begins = start if same else 0
        yield Answer(
            facts=facts,
            unchanged=same and not start,
            start=begins,
            pieces=_pieces(system, told, facts, begins),
        )


def _pieces(system: Any, told: str, facts: Facts, start: int) -> Iterator[bytes]:
    """Parts of one version of the file: S3 refuses the rest of one that was replaced meanwhile."""
    import fsspec  # noqa: PLC0415 (only where buckets are read)

    size = facts.size or 0
    bucket, key = _split(told)
    while start < size:
        end = min(start + _PIECE, size)
        with _named(told):
            same = {} if facts.tag is None else {"IfMatch": facts.tag}
            got = system.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **same)
            piece: bytes = fsspec.asyn.sync(system.loop, got["Body"].read)
        if not piece:
            raise Transient(f"{told}: its server stopped sending; run again to go on")
        yield piece
        start += len(piece)


def _split(told: str) -> tuple[str, str]:
    bucket, _, key = told.removeprefix("s3://").partition("/")
    return bucket, key


def _md5(head: dict[str, Any]) -> str | None:
    """The ETag where that is the MD5: of a file of one part that no key of KMS or the customer encrypts."""
    plain = "kms" not in str(head.get("ServerSideEncryption", "")) and not head.get("SSECustomerAlgorithm")
    tag = str(head.get("ETag", "")).strip('"')
    return tag if plain and re.fullmatch(r"[0-9a-f]{32}", tag) else None


def _system(told: str) -> Any:
    try:
        import fsspec  # noqa: PLC0415 (only where buckets are read)
        import s3fs  # noqa: F401, PLC0415 (an optional dependency)
    except ImportError as error:
        raise UsageError(f"{told}: needs s3fs; install it with `pip install 'hyperfuse[s3]'`") from error
    unsigned = os.environ.get(UNSIGNED, "").upper() in {"YES", "TRUE", "1", "ON"}
    return fsspec.filesystem("s3", anon=unsigned)


@contextmanager
def _named(told: str) -> Iterator[None]:
    """Turn the errors of the client into sentences; their own texts may quote keys."""
    try:
        yield
    except HyperFuseError:
        raise
    except FileNotFoundError as error:
        raise InputRejected(f"{told}: there is no such file in the bucket; check the address") from error
    except PermissionError as error:
        raise InputRejected(
            f"{told}: the bucket refuses it; give a login in the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID ...), or set "
            f"{UNSIGNED}=YES for a public one"
        ) from error
    except (OSError, TimeoutError) as error:
        if getattr(error, "errno", None) is None or isinstance(error, ConnectionError | TimeoutError):
            raise Transient(f"{told}: its server does not answer ({type(error).__name__}); run again later") from error
        raise Transient(f"{told}: cannot be read ({os.strerror(error.errno or 0)}); run again later") from error
    except Exception as error:
        name = type(error).__name__
        if name == "NoCredentialsError":
            raise InputRejected(
                f"{told}: there is no login for the bucket; give one in the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID ...), or "
                f"set {UNSIGNED}=YES for a public one"
            ) from error
        # botocore's own: of many kinds, most of them of a connection.
        if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise Transient(f"{told}: its server does not answer ({name}); run again later") from error
        raise
