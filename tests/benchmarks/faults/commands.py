"""Commands as processes of their own, with what a fault needs: limits, a library before all others, a moment to be killed at."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.products.publish import verify
from tests import ROOT

PAIR = "size=300&ratio=4&bands=10&seed=2&east_m=9"
"""Fused in 25 tiles, in a few seconds."""
SCENES = tuple(f"synthetic:{role}?{PAIR}" for role in ("hsi", "msi"))
_TILES = {"tiles.core": 64, "tiles.chunk": 64, "tiles.batch": 1, "publish.formats": "[zarr]", "quality.gate": "off"}
N_TILES = 25
PATIENCE_S = 300.0
"""After which a command hangs."""
# Sums round alike on one thread only, here as in the commands.
os.environ["OMP_NUM_THREADS"] = "1"
_PRELOAD = Path(__file__).with_name("preload")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code, negative for a signal."""
    out: str
    err: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The one sentence to the person who must act.

        Raises
        ------
        AssertionError
            If there is a traceback, or not one sentence.
        """
        assert "Traceback" not in self.err, self.err[-2000:]
        told = [line.removeprefix("hyperfuse: ") for line in self.err.splitlines() if line.startswith("hyperfuse: ")]
        assert len(told) == 1, self.err[-2000:]
        return told[0]

    def require(self, code: int, *words: str) -> str:
        """Exit code, and words of the sentence; gives the sentence."""
        assert self.code == code, f"exit code {self.code}, expected {code}: {self.err[-2000:]}"
        told = self.sentence if code else self.err
        for word in words:
            assert word in told, f"{word!r} is not in {told!r}"
        return told


def fuse_of(output: Path, scenes: Sequence[str] = SCENES, **settings: object) -> list[str]:
    """Arguments of a run with tiles enough to be killed between; settings with `__` for dots."""
    chosen = _TILES | {name.replace("__", "."): value for name, value in settings.items()}
    told = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    return ["fuse", *scenes, "--output", str(output), *told]


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "hyperfuse.flows.cli", *arguments]


def environment(preload: str = "", **more: str) -> dict[str, str]:
    """That of this process, with a library loaded before all others."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({"LD_PRELOAD": str(library(preload))} if preload else {})
    return dict(os.environ) | own | more


def started(
    arguments: Sequence[str], *, before: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A command that runs; `before` is put in front of it, as `nsenter` wants to be."""
    # Files, not pipes: what outlives the command must not hold up who reads its words.
    out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 (they live as long as the process)
    process = subprocess.Popen(
        [*before, *command(arguments)], stdout=out, stderr=err, text=True, env=dict(env or environment())
    )
    process.stdout, process.stderr = out, err
    return process


def ended(process: subprocess.Popen[str], *, patience_s: float = PATIENCE_S, began: float | None = None) -> Ended:
    """Wait for a command."""
    began = time.monotonic() if began is None else began
    try:
        code = process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the command did not end within {patience_s:g} s") from None
    seconds = time.monotonic() - began
    texts = []
    for file in (process.stdout, process.stderr):
        assert file is not None
        file.seek(0)
        texts.append(file.read())
        file.close()
    return Ended(code, texts[0], texts[1], seconds)


def called(arguments: Sequence[str], *, patience_s: float = PATIENCE_S, **how: Any) -> Ended:
    """Run a command to its end; see `started`."""
    return ended(started(arguments, **how), patience_s=patience_s)


def killed(arguments: Sequence[str], when: Callable[[], bool], *, patience_s: float = PATIENCE_S, **how: Any) -> None:
    """Run a command and `kill -9` it as soon as something is so."""
    process, deadline = started(arguments, **how), time.monotonic() + patience_s
    while not when():
        assert process.poll() is None, f"the command ended before it could be killed: {ended(process).err[-1500:]}"
        assert time.monotonic() < deadline, "the moment to kill at did not come"
        time.sleep(0.005)
    process.kill()
    ended(process)


def forked(arguments: Sequence[str], *, memory: int = 0, patience_s: float = PATIENCE_S, **env: str) -> Ended:
    """Run a command in a process forked from one that has imported everything: a tenth of the time of a fresh one.

    `memory` limits its address space, bytes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["hyperfuse.flows.cli", "hyperfuse.pipeline.run", "hyperfuse.pipeline.products.writers.zarr"]
    )
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = context.Process(target=_run, args=(list(arguments), str(out), str(err), memory, env))
        began = time.monotonic()
        process.start()
        process.join(patience_s)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"the command did not end within {patience_s:g} s")
        seconds = time.monotonic() - began
        texts = [path.read_text() if path.exists() else "" for path in (out, err)]
    code = process.exitcode
    assert code is not None
    return Ended(code, texts[0], texts[1], seconds)


def _run(arguments: list[str], out: str, err: str, memory: int, env: dict[str, str]) -> None:
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(handle, number)
    os.environ.update(env)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    from hyperfuse.flows.cli import main

    sys.exit(main(arguments))


@cache
def library(name: str) -> Path:
    """A library of `preload`, compiled.

    Raises
    ------
    AssertionError
        If there is no C compiler.
    """
    target = Path(tempfile.mkdtemp(prefix="hyperfuse-preload-")) / f"{name}.so"
    try:
        made = subprocess.run(
            ["cc", "-O1", "-shared", "-fPIC", "-o", str(target), str(_PRELOAD / f"{name}.c"), "-ldl"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise AssertionError("there is no C compiler `cc`, which this fault needs") from None
    assert made.returncode == 0, made.stderr
    return target


def tiles_of(output: Path) -> int:
    """Finished tiles of the run that makes a product."""
    return len(list(output.parent.glob(f".{output.name}.*.staging/tiles/[!.]*.json")))


def staging_of(output: Path) -> Path:
    """The staging folder of a product."""
    [folder] = output.parent.glob(f".{output.name}.*.staging")
    return folder


def samples(product: Path) -> NDArray[Any]:
    """All samples of a product that passes `verify`."""
    with verify(product).open() as data:
        return np.asarray(data["reflectance"].values)


@cache
def undisturbed() -> NDArray[Any]:
    """What nobody disturbed."""
    with tempfile.TemporaryDirectory() as folder:
        called(fuse_of(Path(folder) / "p")).require(0)
        return samples(Path(folder) / "p")


def require_same(product: Path) -> None:
    """The product is that of an undisturbed run, and nothing else is left beside it."""
    assert np.array_equal(samples(product), undisturbed(), equal_nan=True), (
        "the samples differ from an undisturbed run's"
    )
    left = sorted(path.name for path in product.parent.iterdir() if path.name.startswith(f".{product.name}."))
    assert not left, f"left behind: {left}"
