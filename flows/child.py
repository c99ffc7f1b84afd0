"""A scene in a process of its own: `hyperfuse fuse --config FILE --json`, ended when the night that started it ends.

The exit code and the record of the command line are all that comes back, so what a night does with a scene is what a
person does who replays it. A crash, a leak or an exhausted memory ends the scene and not the night; and a night that is
killed leaves no fusion behind that nobody waits for.
"""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
import threading
from collections import deque

from hyperfuse.catalogs.errors import HyperFuseError, Transient
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.flows.leash import leashed
from hyperfuse.pipeline.archive.backlog import Task
from hyperfuse.pipeline.archive.locks import STATE
from hyperfuse.pipeline.archive.outcome import Outcome

log = logging.getLogger(__name__)

_LAST_LINES = 40
_GRACE_SECONDS = 30.0


class Children:
    """Fuses scenes, each in a child process."""

    def __init__(self, *, timeout_hours: float) -> None:
        self._timeout_hours = timeout_hours
        self._running: set[subprocess.Popen[str]] = set()

    def fuse(self, task: Task) -> Outcome:
        """Fuse one scene; its log lines go to the log of this process."""
        # Beside the products, where a night that is killed leaves one file that the next one overwrites.
        config = task.product.parent / STATE / f"{task.product.name}.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config, json.dumps(task.config.model_dump(mode="json")), private=True)
        # The leash holds only as long as the thread that started the child: this one waits for it.
        command = leashed("hyperfuse.flows.cli", "fuse", "--config", str(config), "--json")
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as record:
            code, late = self._run(command, record.fileno(), task.id, last)
            record.seek(0)
            told = record.read()
        config.unlink(missing_ok=True)
        if late:
            return Outcome.of(Transient(f"{task.id}: took more than {self._timeout_hours:g} hours and was stopped"))
        return _outcome(code, told, last)

    def stop(self) -> None:
        """End what runs; finished tiles stay."""
        for child in list(self._running):
            child.terminate()

    def _run(self, command: list[str], output: int, scene: str, last: deque[str]) -> tuple[int, bool]:
        late = threading.Event()

        def expire() -> None:
            late.set()
            child.kill()

        with subprocess.Popen(  # noqa: S603 (this very program, with a configuration that was checked)
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as child:  # fmt: skip
            self._running.add(child)
            clock = threading.Timer(self._timeout_hours * 3600, expire)
            clock.start()
            try:
                assert child.stderr is not None  # noqa: S101 (it is a pipe)
                for line in child.stderr:
                    last.append(line.rstrip())
                    log.info("%s: %s", scene, last[-1])
                code = child.wait()
            except BaseException:
                child.terminate()
                try:
                    child.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                raise
            finally:
                clock.cancel()
                self._running.discard(child)
        return code, late.is_set()


def _outcome(code: int, record: str, last: deque[str]) -> Outcome:
    if code == 0:
        return Outcome(exit_code=0)
    if code < 0:
        return Outcome.of_signal(-code, last)
    try:
        told = json.loads(record)
        return Outcome(
            exit_code=code,
            reason=str(told["reason"]),
            message=str(told["error"]),
            observed=told.get("observed"),
            allowed=told.get("allowed"),
        )
    except (ValueError, LookupError, TypeError):
        # Nothing that was expected: the last line of a traceback names it.
        message = last[-1] if last else f"ended with exit code {code} and no word"
        return Outcome(exit_code=code, reason=HyperFuseError.reason, message=message, log=tuple(last))
