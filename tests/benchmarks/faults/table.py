"""Experiments by their numbers, and the table of how they ended."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

Trial = Callable[[Path], str]
"""Does an experiment in a folder of its own and tells what was seen; an AssertionError is what was not expected."""


class NotHere(Exception):
    """This machine cannot make the fault; the reason."""


@dataclass(frozen=True)
class Experiment:
    """A fault and what must come of it."""

    number: str
    fault: str
    expected: str
    trial: Trial


@dataclass(frozen=True)
class Result:
    """How an experiment ended."""

    experiment: Experiment
    seen: str
    state: str
    """ok, NOT OK, or not run."""
    seconds: float

    @property
    def row(self) -> str:
        """A row of the table."""
        told = " ".join(self.seen.split()).replace("|", "/")
        return f"| {self.experiment.number} | {self.experiment.fault} | {self.experiment.expected} | {told} | {self.state} |"


EXPERIMENTS: dict[str, Experiment] = {}
HEAD = "| no. | fault | expected | seen | |\n|---|---|---|---|---|"


def experiment(number: str, fault: str, expected: str) -> Callable[[Trial], Trial]:
    """Put a function into the table."""

    def add(trial: Trial) -> Trial:
        assert number not in EXPERIMENTS
        EXPERIMENTS[number] = Experiment(number, fault, expected, trial)
        return trial

    return add


def by_tests(number: str, fault: str, expected: str, *tests: str) -> None:
    """An experiment that the test suite does: node ids below `tests`."""

    def trial(folder: Path) -> str:
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(folder / "t"),
            "-m",
            "slow or not slow",
            "--timeout",
            "900",
        ]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr[-500:]
        assert run.returncode == 0, run.stdout[-2500:]
        assert " passed" in last, last
        names = ", ".join(dict.fromkeys(test.rpartition("/")[2].partition(".py")[0] for test in tests))
        return f"{last.strip('= ').partition(' in ')[0].partition(',')[0]} ({names})"

    experiment(number, fault, expected)(trial)


def tried(one: Experiment) -> Result:
    """Do an experiment."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hyperfuse-fault-") as folder:
        try:
            seen, state = one.trial(Path(folder)), "ok"
        except NotHere as reason:
            seen, state = f"not run: {reason}", "not run"
        except AssertionError as error:
            seen, state = str(error)[-700:] or traceback.format_exc()[-700:], "NOT OK"
        except Exception:  # noqa: BLE001 (whatever it was, the others are still to be done)
            seen, state = traceback.format_exc()[-700:], "NOT OK"
    return Result(one, seen, state, round(time.monotonic() - began, 1))
