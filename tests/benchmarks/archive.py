"""Backlog of an archive of many scenes: `make bench-archive`.

Catalogue, products' records and dead letters are written first, with records as long as those of real products; reading
the catalogue, pairing and the backlog run in a process of their own, of which the kernel's count of peak resident memory
is told.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.pipeline.archive.backlog import take_stock
from hyperfuse.pipeline.archive.dead_letters import DeadLetter, DeadLetters
from hyperfuse.pipeline.archive.settings import ArchiveConfig, open_catalog
from tests.archives import archive
from tests.pipeline.archives import record_of

N_BANDS = 224


def config(folder: Path) -> ArchiveConfig:
    return ArchiveConfig(
        catalog=str(folder / "catalog"),
        output=folder / "products",
        roots=(Path("/nowhere"),),
    )


def fill(found: ArchiveConfig) -> None:
    """Every eighth scene gets a dead letter, the others the record of a product with all that a real one says of bands."""
    bands = {key: [1234.5678] * N_BANDS for key in ("center_nm", "fwhm_nm", "good", "source_band")}
    letters = DeadLetters(found.folder)
    now = datetime.now(UTC)
    for index, entry in enumerate(take_stock(found, open_catalog(found).read()).entries):
        task = entry.task
        if task is None:
            continue
        if index % 8 == 0:
            message = f"{entry.address}: no band carries a signal"
            common = {"first": now, "last": now, "recipe": task.recipe.key, "replay": "hyperfuse fuse"}
            letters.write(
                DeadLetter(scene=entry.id, state="refused", reason="input_rejected", message=message, **common),
                task.config,
            )
            continue
        record = record_of(task)
        record["product"]["wavelength_nm"] = bands["center_nm"]
        for role in ("hsi", "msi"):
            record["inputs"][role]["bands"] = bands
        entry.product.mkdir(parents=True)
        (entry.product / "provenance.json").write_text(json.dumps(record))


def look(folder: Path) -> None:
    started = time.monotonic()
    found = config(folder)
    contents = open_catalog(found).read()
    listed = time.monotonic()
    backlog = take_stock(found, contents)
    told = ", ".join(f"{n} {state}" for state, n in Counter(entry.state for entry in backlog.entries).items())
    print(f"{len(contents.scenes):>8} scenes read         {listed - started:7.1f} s")
    print(f"{len(backlog.entries):>8} pairings, states    {time.monotonic() - listed:7.1f} s   ({told})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        look(options.read)
        return
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        Catalog.open(Path(folder) / "catalog").add(archive(options.scenes))
        started = time.monotonic()
        fill(config(Path(folder)))
        size = sum(path.stat().st_size for path in Path(folder, "products").rglob("*.json"))
        print(f"{options.scenes:>8} records written     {time.monotonic() - started:7.1f} s   ({size / 1e6:.0f} MB)")
        again = [sys.executable, "-m", "tests.benchmarks.archive", "--read", folder]
        with subprocess.Popen(again) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        print(f"         of one core         {usage.ru_utime + usage.ru_stime:7.1f} s")
        print(f"         peak memory         {usage.ru_maxrss / 1024:7.0f} MB")


if __name__ == "__main__":
    main()
