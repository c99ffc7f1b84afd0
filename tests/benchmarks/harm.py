"""The part of `make chaos` that harms what lies on the disk: files between a kill and the next run, and calls that fail with EIO.

Whatever file of the staging folder is lost, cut or changed, the next run publishes what an undisturbed one does, or
refuses with a sentence; it never publishes something else. On a disk that fails at random a run publishes, or ends with exit code 9
and leaves nothing at the product's path; in the end, on a sound disk, the product is that of an undisturbed run.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hyperfuse.pipeline.config import RunConfig
from tests.benchmarks import chaos
from tests.benchmarks.faults.commands import called, environment, fuse_of, require_same, samples, undisturbed


def lose(path: Path, rng: random.Random) -> None:
    """Delete a file."""
    path.unlink()


def cut(path: Path, rng: random.Random) -> None:
    """Keep the first part of a file, or nothing of it."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))] if data else b"")


def flip(path: Path, rng: random.Random) -> None:
    """Change one bit of a file; of an empty one there is none, so it gets a byte."""
    data = bytearray(path.read_bytes() or b"\0")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


HARMS: tuple[Callable[[Path, random.Random], None], ...] = (lose, cut, flip)


@dataclass
class Harmed:
    """What was harmed, and what came of it."""

    rounds: int = 0
    harms: Counter[str] = field(default_factory=Counter)
    """By kind of file."""
    ends: Counter[str] = field(default_factory=Counter)
    """`published`, or the exit code of a refusal."""
    seconds: float = 0.0

    def told(self) -> dict[str, Any]:
        """As a record."""
        return self.__dict__ | {"harms": dict(sorted(self.harms.items())), "ends": dict(sorted(self.ends.items()))}


def harm_files(folder: Path, settings: RunConfig, *, rounds: int, seed: int = 0) -> Harmed:
    """Kill a run, harm a file of its staging folder, and run again; as often as asked.

    Raises
    ------
    AssertionError
        If a product differs from that of an undisturbed run, or a run ends with a traceback.
    """
    rng, found = random.Random(seed), Harmed()  # noqa: S311 (moments and files, not secrets)
    expected, seconds = chaos.undisturbed(folder, settings)
    began = time.monotonic()
    while found.rounds < rounds:
        process = chaos.started(settings)
        process.join(rng.uniform(0.05, 0.95) * seconds)
        process.kill()
        process.join()
        staging = list(settings.output.parent.glob(f".{settings.output.name}.*.staging"))
        files = kinds(staging[0]) if staging else {}
        if files:
            kind = rng.choice(sorted(files))
            path, harm = rng.choice(files[kind]), rng.choice(HARMS)
            what = f"{harm.__name__} {path.relative_to(staging[0])}"
            harm(path, rng)
            found.rounds += 1
            found.harms[f"{kind} {harm.__name__}"] += 1
            code = chaos.ended(settings)
            assert code not in {None, 1}, f"{what}: the run ended with {code}"
            found.ends["published" if code == 0 else f"exit {code}"] += 1
            if code:
                assert not settings.output.exists(), f"{what}: refused, and a product is there"
                shutil.rmtree(staging[0])  # as the sentence asks
        if settings.output.exists():
            chaos.require_equal(settings.output, expected, what if files else "")
            shutil.rmtree(settings.output)
    found.seconds = round(time.monotonic() - began, 1)
    return found


def kinds(staging: Path) -> dict[str, list[Path]]:
    """Files of a staging folder by their part of it: so that few records weigh as much as many chunks."""
    found: dict[str, list[Path]] = {}
    for path in sorted(staging.rglob("*")):
        if path.is_file() and path.name != "lock":
            parts = path.relative_to(staging).parts
            name = parts[0] if len(parts) == 1 else f"{parts[0]}/{'zarr.json' if path.name == 'zarr.json' else ''}"
            found.setdefault(name, []).append(path)
    return found


def fail_calls(folder: Path, *, rounds: int, seed: int = 0) -> Harmed:
    """Run on a disk of which one call in 30 to 3,000 fails, then on a sound one; as often as asked.

    Raises
    ------
    AssertionError
        If a product differs, a run ends otherwise than published or with exit code 9, or it leaves a part of a product.
    """
    rng, found = random.Random(seed), Harmed()  # noqa: S311 (calls that fail, not secrets)
    output = folder / "disk" / "p"
    output.parent.mkdir()
    began = time.monotonic()
    for _ in range(rounds):
        often = int(10 ** rng.uniform(1.5, 3.5))
        env = environment(
            "failing_disk",
            FAILING_DISK=str(output.parent),
            FAILING_ONE_IN=str(often),
            FAILING_SEED=str(rng.randrange(1 << 30)),
        )
        end = called(fuse_of(output), env=env)
        found.rounds += 1
        found.harms[f"one in {10 ** (len(str(often)) - 1)} to {10 ** len(str(often))}"] += 1
        found.ends["published" if end.code == 0 else f"exit {end.code}"] += 1
        assert end.code in {0, 9}, f"one in {often}: exit {end.code}: {end.err[-3000:]}"
        if end.code:
            assert end.sentence
        if output.exists():  # after exit code 9 too: what failed may have been the flush after the rename
            assert np.array_equal(samples(output), undisturbed(), equal_nan=True), f"one in {often}: a product differs"
            shutil.rmtree(output)
    called(fuse_of(output)).require(0)
    require_same(output)
    found.seconds = round(time.monotonic() - began, 1)
    return found
