"""The server that a command with `--prefect` talks to: that of PREFECT_API_URL, or a temporary one that ends with the command.

Prefect would start a temporary one itself, which lives on when the command is killed. Here it is on a leash.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ

import httpx
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    get_current_settings,
    temporary_settings,
)

from hyperfuse.catalogs.errors import OutOfResources, Transient
from hyperfuse.flows.leash import leashed

_START_SECONDS = 120.0
"""Within which a temporary server must answer; its database is made first."""
_STOP_SECONDS = 5.0
_RETRIES = 2
"""Times that a temporary server which does not answer is asked again, 2 s and 4 s later: on this machine it is there, or it is lost."""


@contextmanager
def served() -> Iterator[None]:
    """Run flows against the server of the settings, or against a temporary one where they name none.

    Raises
    ------
    OutOfResources
        If no temporary server can be started.
    Transient
        If the server is lost.
    """
    url = PREFECT_API_URL.value()
    if url is not None or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        with _told_if_lost(url or "PREFECT_API_URL"):
            yield
        return
    with (
        _temporary() as url,
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: _RETRIES}),
        _told_if_lost(url),
    ):
        yield


@contextmanager
def _told_if_lost(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise Transient(
            f"Prefect's server at {url} was lost ({told}); what is finished is kept: see that it runs, and run again to resume"
        ) from error


@contextmanager
def _temporary() -> Iterator[str]:
    """A server of this process on a free port of this machine; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"
    application = ("--factory", "prefect.server.api.server:create_app", "--lifespan", "on")
    command = leashed("uvicorn", *application, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error")
    # As Prefect starts its own: without pages, schedules and triggers, which nobody would look at.
    own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    # In a session of its own: Ctrl-C is for the command, which has to tell the server of it.
    with subprocess.Popen(  # noqa: S603 (this very program)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**environ, **settings, **own},
        start_new_session=True,
    ) as process:
        try:
            _wait_for(process, url)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise OutOfResources(
        f"Prefect's temporary server did not start within {_START_SECONDS:g} s; start one with `prefect server start` and name it "
        "in PREFECT_API_URL"
    )
