"""Kill runs, then workers, at random moments, and look whether a part of a product ever shows: `make chaos`.

A run is killed, started again and killed again until it publishes; then the product is compared, put away, and all begins
anew, until the kills are spent. Meanwhile a thread looks at the product's path all the time: whatever is there must pass
`verify`. Then the same with a cluster of two workers of which one is killed ever and again while runs go on. Then
files of killed runs are lost, cut and changed, and calls to the disk fail; see `harm`.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.pipeline.config import RunConfig, load_config
from hyperfuse.pipeline.job.folder import Job
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import verify
from hyperfuse.pipeline.run import run

QUICK = "size=300&ratio=4&bands=10&seed=2&east_m=9"
TILES = {"tiles.core": 64, "tiles.chunk": 64, "quality.gate": "off"}
_LOOK_SECONDS = 0.005
_RUN_SECONDS = 600.0
"""After which a run that nobody kills hangs."""


@dataclass
class Toll:
    """What was killed, and what was seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By what the run was doing."""
    products: int = 0
    """Published, verified and equal to that of an undisturbed run, the last one included."""
    looks: int = 0
    """Times that the product's path was looked at."""
    seen: int = 0
    """Times that something was there, which passed `verify`."""
    set_aside: int = 0
    """Runs that ended because of a tile that was unlucky enough to be taken for deadly; each was run again."""
    seconds: float = 0.0
    """All in all."""

    def told(self) -> dict[str, Any]:
        """As a record."""
        return self.__dict__ | {"kills": {"all": self.kills.total(), **dict(sorted(self.kills.items()))}}


class Watch:
    """Looks at a product's path from a thread of its own; what it finds there must be whole."""

    def __init__(self, output: Path, toll: Toll) -> None:
        self.output, self.toll, self.still = output, toll, threading.Lock()
        self.broken: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            with self.still:
                self.toll.looks += 1
                if not os.path.lexists(self.output):
                    continue
                try:
                    verify(self.output)
                    self.toll.seen += 1
                except (HyperFuseError, OSError) as error:
                    self.broken.append(str(error))


def settings_of(output: Path, recipe: str = QUICK, **more: Any) -> RunConfig:
    """A quick run with tiles enough to be killed between."""
    scenes = {f"{role}.uri": f"synthetic:{role}?{recipe}" for role in ("hsi", "msi")}
    return load_config(
        None, scenes | {"output": str(output)} | TILES | {k.replace("__", "."): v for k, v in more.items()}
    )


def kill_runs(folder: Path, settings: RunConfig, *, kills: int, seed: int = 0) -> Toll:
    """Kill runs of one process until the kills are spent; the last one completes.

    Raises
    ------
    AssertionError
        If ever a part of a product was seen, or one differs from that of an undisturbed run.
    """
    rng, toll = random.Random(seed), Toll()  # noqa: S311 (moments, not secrets)
    expected, seconds = undisturbed(folder, settings)
    began = time.monotonic()
    with Watch(settings.output, toll) as watch:
        while toll.kills.total() < kills:
            process = started(settings)
            # Resumed runs are shorter: half of the moments are drawn from half of the time.
            process.join(rng.uniform(0.0, seconds) * rng.choice((0.5, 1.0)))
            if process.is_alive():
                doing = _doing(settings.output)
                process.kill()
                toll.kills[doing] += 1
            process.join()
            assert process.exitcode in {0, -signal.SIGKILL}, f"a run ended with {process.exitcode}"
            _take_away(watch, expected)
        _complete(settings, watch, expected)
    toll.seconds = round(time.monotonic() - began, 1)
    return toll


def kill_workers(folder: Path, settings: RunConfig, *, kills: int, seed: int = 0, pause_s: float = 6.0) -> Toll:
    """Kill one of two workers ever and again while runs go on; every run completes.

    Raises
    ------
    AssertionError
        If ever a part of a product was seen, or one differs from that of an undisturbed run.
    """
    import dask
    from distributed import LocalCluster

    rng, toll = random.Random(seed), Toll()  # noqa: S311 (moments, not secrets)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Watch(settings.output, toll) as watch,
    ):
        settings = settings.model_copy(update={"dask": cluster.scheduler_address})
        # By the same workers: on several threads sums may round otherwise, and one sample in 2,000 by a count.
        expected, _ = undisturbed(folder, settings)
        began = time.monotonic()
        while toll.kills.total() < kills:
            process = started(settings)
            while process.is_alive() and toll.kills.total() < kills:
                process.join(rng.uniform(0.0, pause_s))
                pids = [nanny.pid for nanny in cluster.workers.values() if nanny.status.name == "running" and nanny.pid]
                doing = _doing(settings.output)
                if process.is_alive() and pids and doing == "fusing":
                    with suppress(ProcessLookupError):  # it is being started again
                        os.kill(rng.choice(pids), signal.SIGKILL)
                        toll.kills[doing] += 1
            process.join(_RUN_SECONDS)
            assert process.exitcode in {0, 8}, f"a run ended with {process.exitcode}"
            if process.exitcode == 8:
                toll.set_aside += 1
                settings = _with_retry(settings)
            _take_away(watch, expected)
        _complete(_with_retry(settings), watch, expected)
    toll.seconds = round(time.monotonic() - began, 1)
    return toll


def _with_retry(settings: RunConfig) -> RunConfig:
    return settings.model_copy(update={"tiles": settings.tiles.model_copy(update={"retry_quarantined": True})})


def _complete(settings: RunConfig, watch: Watch, expected: NDArray[Any]) -> None:
    """The last run, which nobody disturbs."""
    process = started(settings)
    process.join(_RUN_SECONDS)
    assert process.exitcode == 0, f"the last run ended with {process.exitcode}"
    _take_away(watch, expected)
    assert not os.path.lexists(settings.output)
    assert watch.broken == [], watch.broken[0]
    assert not list(settings.output.parent.glob(f".{settings.output.name}.*")), "something was left behind"


def _take_away(watch: Watch, expected: NDArray[Any]) -> None:
    """Compare a product, if there is one, and make room for the next."""
    with watch.still:
        if watch.output.exists():
            require_equal(watch.output, expected)
            watch.toll.products += 1
            shutil.rmtree(watch.output)


def require_equal(output: Path, expected: NDArray[Any], what: str = "") -> None:
    """A product passes `verify` and is what nobody disturbed."""
    assert np.array_equal(_samples(verify(output)), expected, equal_nan=True), f"a product differs {what}"


def ended(settings: RunConfig) -> int | None:
    """The exit code of a run that nobody kills, 1 for what is no expected end; None if it hangs."""
    process = started(settings)
    process.join(_RUN_SECONDS)
    code = process.exitcode
    process.kill()
    return int(code) if code is not None else None


def undisturbed(folder: Path, settings: RunConfig) -> tuple[NDArray[Any], float]:
    """What nobody disturbed, and the time that it took."""
    alone = settings.model_copy(update={"output": folder / "undisturbed"})
    began = time.monotonic()
    process = started(alone)
    process.join(_RUN_SECONDS)
    assert process.exitcode == 0
    return _samples(verify(alone.output)), time.monotonic() - began


def _samples(product: Product) -> NDArray[Any]:
    with product.open() as data:
        return np.asarray(data["reflectance"].values)


def started(settings: RunConfig) -> Any:
    """A process that fuses, forked from one that has imported everything: the kills shall hit the work, not the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "hyperfuse.pipeline.run",
            "hyperfuse.pipeline.products.writers.zarr",
            "hyperfuse.pipeline.products.writers.cog",
        ]
    )
    process = context.Process(target=_fuse, args=(settings,))
    process.start()
    return process


def _fuse(settings: RunConfig) -> None:
    logging.disable()
    try:
        run(settings)
    except HyperFuseError as error:
        os._exit(error.exit_code)


def _doing(output: Path) -> str:
    """What a run is doing, by what is there."""
    for folder in output.parent.glob(f".{output.name}.*.staging"):
        with suppress(OSError, ValueError):
            job = Job.load(folder)
            if not job.is_staged:
                return "staging"
            n_tiles = len(list(job.ledger.folder.glob("*.json")))
            return "fusing" if n_tiles < job.as_staged().plan.n_tiles else "publishing"
        return "starting"
    return "ending" if output.exists() else "starting"


@contextmanager
def _work_folder(given: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hyperfuse-chaos-", dir=given) as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="runs to kill (default: 50)")
    parser.add_argument("--worker-kills", type=int, default=50, metavar="N", help="workers to kill (default: 50)")
    parser.add_argument("--harms", type=int, default=50, metavar="N", help="files to harm (default: 50)")
    parser.add_argument("--failures", type=int, default=20, metavar="N", help="runs on a disk that fails (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work (default: the system's)")
    options = parser.parse_args()
    from tests.benchmarks import harm  # it uses what is here

    for name, kills, chaos, recipe in (
        ("runs", options.kills, kill_runs, QUICK),
        ("workers", options.worker_kills, kill_workers, QUICK.replace("300", "600")),
    ):
        if kills:
            with _work_folder(options.folder) as folder:
                toll = chaos(folder, settings_of(folder / "product", recipe), kills=kills, seed=options.seed)
            print(name, json.dumps(toll.told()), flush=True)
    with _work_folder(options.folder) as folder:
        if options.harms:
            harmed = harm.harm_files(folder, settings_of(folder / "product"), rounds=options.harms, seed=options.seed)
            print("files", json.dumps(harmed.told()), flush=True)
        if options.failures:
            harmed = harm.fail_calls(folder, rounds=options.failures, seed=options.seed)
            print("calls", json.dumps(harmed.told()), flush=True)


if __name__ == "__main__":
    main()
